import json
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from sidrec.errors import DataError
from sidrec.semantic_ids.bundle.semantic_id_bundle import SemanticIdBundle
from sidrec.types import ItemEmbeddings, SemanticIdTable


def bundle_of(codes, sizes, **changes):
    codes = torch.tensor(codes)
    parts = {
        "table": SemanticIdTable(codes, sizes),
        "embeddings": ItemEmbeddings(torch.eye(len(codes), 4), "e" * 64, "f" * 64),
        "item_ids": [f"m{row}" for row in range(len(codes))],
        "titles": [f"Film {row}" for row in range(len(codes))],
        "codebooks": {"codebooks.1": torch.ones(2, 4), "normalized": torch.tensor(False)},
        "quantizer": {"name": "rq_kmeans"},
        "policy": {"name": "none"},
        "source": {"file": "x.npy"},
        "quality": {"ids/collision_rate": 0.5},
    }
    return SemanticIdBundle(**(parts | changes))


@pytest.fixture
def bundle():
    return bundle_of([[1, 2], [0, 300], [1, 2], [1, 0]], (2, 512))


def test_both_look_ups(bundle):
    assert bundle.semantic_id_of("m1") == (0, 300)
    assert bundle.items_of((1, 2)) == ["m0", "m2"]
    assert bundle.items_of([1, 0]) == ["m3"]
    assert bundle.items_of((0, 2)) == []
    with pytest.raises(DataError, match="'zzz' is not among the bundle's 4 items"):
        bundle.semantic_id_of("zzz")
    with pytest.raises(DataError, match="has 1 codes, expected 2"):
        bundle.items_of((1,))


def test_look_ups_agree_with_a_dictionary():
    codes = torch.randint(0, 5, (300, 3))
    bundle = bundle_of(codes.tolist(), (5, 5, 5))
    for row in (0, 17, 299):
        same = (codes == codes[row]).all(dim=1).nonzero().flatten().tolist()
        assert bundle.items_of(bundle.semantic_id_of(f"m{row}")) == [f"m{other}" for other in same]


def test_what_is_loaded_is_what_was_saved(bundle, tmp_path):
    bundle.save(tmp_path / "ids")
    again = SemanticIdBundle.load(tmp_path / "ids", corpus_fingerprint="f" * 64)
    assert torch.equal(again.table.codes, bundle.table.codes)
    assert torch.equal(again.embeddings.vectors, bundle.embeddings.vectors)
    assert torch.equal(again.codebooks["codebooks.1"], torch.ones(2, 4))
    for name in ("item_ids", "titles", "quantizer", "policy", "source", "quality", "hash"):
        assert getattr(again, name) == getattr(bundle, name)
    assert sorted(file.name for file in (tmp_path / "ids").iterdir()) == [
        "codebooks.safetensors",
        "embeddings.safetensors",
        "semantic_ids.json",
        "semantic_ids.parquet",
    ]


def test_columns_are_those_of_the_contract(bundle, tmp_path):
    import pyarrow.parquet as pq

    bundle.save(tmp_path / "ids")
    schema = pq.read_schema(tmp_path / "ids" / "semantic_ids.parquet")
    assert schema.names == ["item_index", "item_id", "title", "codes"]
    assert str(schema.field("codes").type.value_type) == "int16"


def test_hash_follows_the_content(bundle):
    same = bundle_of([[1, 2], [0, 300], [1, 2], [1, 0]], (2, 512), quality={}, titles=["x"] * 4)
    assert same.hash == bundle.hash  # figures and titles do not make another bundle
    others = [
        bundle_of([[1, 2], [0, 301], [1, 2], [1, 0]], (2, 512)),
        bundle_of([[1, 2], [0, 300], [1, 2], [1, 0]], (2, 600)),
        replace(bundle, item_ids=["m0", "m1", "m3", "m2"]),
        replace(bundle, codebooks={"codebooks.1": torch.zeros(2, 4)}),
        replace(bundle, embeddings=ItemEmbeddings(torch.eye(4), "other", "f" * 64)),
    ]
    assert len({other.hash for other in others} | {bundle.hash}) == 6


@pytest.mark.parametrize(
    "name", ["semantic_ids.parquet", "codebooks.safetensors", "embeddings.safetensors"]
)
def test_altered_truncated_and_missing_files_are_refused(bundle, tmp_path, name):
    bundle.save(tmp_path / "ids")
    file = tmp_path / "ids" / name
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DataError, match=rf"{name} does not have the sha256"):
        SemanticIdBundle.load(tmp_path / "ids")
    file.write_bytes(content[:-9])
    with pytest.raises(DataError, match=rf"{name} has {len(content) - 9} bytes"):
        SemanticIdBundle.load(tmp_path / "ids")
    file.unlink()
    with pytest.raises(DataError, match=rf"{name} is missing"):
        SemanticIdBundle.load(tmp_path / "ids")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 1}, "made by sidrec 0.1, .*; make the Semantic IDs again"),
        ({"schema_version": 99}, r"another version of sidrec \(schema 99\), this version reads"),
        ({"codebook_sizes": [2, 513]}, "was altered: its hash does not match"),
        ({"corpus_fingerprint": "0" * 64}, "was altered"),
    ],
)
def test_an_altered_description_is_refused(bundle, tmp_path, change, message):
    bundle.save(tmp_path / "ids")
    file = tmp_path / "ids" / "semantic_ids.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(DataError, match=message):
        SemanticIdBundle.load(tmp_path / "ids")


def test_foreign_and_missing_bundles_are_refused(bundle, tmp_path):
    bundle.save(tmp_path / "ids")
    with pytest.raises(
        DataError, match=r"another corpus \(fingerprint ffffffffffff, expected 0000"
    ):
        SemanticIdBundle.load(tmp_path / "ids", corpus_fingerprint="0" * 64)
    with pytest.raises(DataError, match="is not a Semantic-ID bundle"):
        SemanticIdBundle.load(tmp_path)


def test_parts_that_disagree_are_refused(bundle):
    with pytest.raises(DataError, match="disagree on the number of items"):
        replace(bundle, titles=["one"])
    with pytest.raises(DataError, match="'m0' occurs more than once"):
        replace(bundle, item_ids=["m0", "m1", "m0", "m3"])


def test_an_interrupted_write_keeps_the_old_bundle(bundle, tmp_path, monkeypatch):
    bundle.save(tmp_path / "ids")

    def no_space(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sidrec.semantic_ids.bundle.semantic_id_bundle.write_json", no_space)
    with pytest.raises(OSError, match="No space left"):
        bundle_of([[0, 0]], (2, 512)).save(tmp_path / "ids")
    assert SemanticIdBundle.load(tmp_path / "ids").hash == bundle.hash
    assert [entry.name for entry in tmp_path.iterdir()] == ["ids"]


_SAVE_AND_WAIT = """
import sys, time
from pathlib import Path
import sidrec.semantic_ids.bundle.semantic_id_bundle as room
from tests.semantic_ids.bundle.test_semantic_id_bundle import bundle_of

def wait(*_):
    print("written in part", flush=True)
    time.sleep(60)

setattr(room, sys.argv[1], wait)
bundle_of([[0, 0]], (2, 512)).save(Path(sys.argv[2]))
"""


@pytest.mark.slow  # processes of their own
@pytest.mark.parametrize("where", ["write_tensors", "write_json"])
@pytest.mark.parametrize("existed", [True, False])
def test_a_killed_write_leaves_no_half_bundle(bundle, tmp_path, where, existed):
    folder = tmp_path / "ids"
    if existed:
        bundle.save(folder)
    command = [sys.executable, "-c", _SAVE_AND_WAIT, where, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "written in part\n"
        process.send_signal(signal.SIGKILL)
    assert folder.exists() == existed
    if existed:
        assert SemanticIdBundle.load(folder).hash == bundle.hash
    bundle_of([[0, 0]], (2, 512)).save(folder)  # nothing is in the way of the next write
    assert len(SemanticIdBundle.load(folder).item_ids) == 1
