"""``sidrec fuse`` on bundles: which vectors are quantised, which are kept, what is refused."""

import pytest
import torch
import yaml

from sidrec.encoder.fusion import fused_concat
from sidrec.errors import ConfigError, DataError, RunError
from sidrec.semantic_ids.bundle import SemanticIdBundle
from sidrec.semantic_ids.collisions import ReassignLastLevel
from sidrec.semantic_ids.fuse import fuse_ids
from sidrec.semantic_ids.fuse_command import main
from sidrec.semantic_ids.maker import make_semantic_ids
from sidrec.types import ItemEmbeddings
from tests.semantic_ids.test_callback import quantiser

NUM_ITEMS = 40
CPU = torch.device("cpu")


def bundle_of(seed, dim, corpus="c" * 64):
    vectors = torch.randn(NUM_ITEMS, dim, generator=torch.Generator().manual_seed(seed))
    return make_semantic_ids(
        ItemEmbeddings(torch.nn.functional.normalize(vectors, dim=1), f"hash{seed}", corpus),
        quantiser=quantiser(),
        policy=ReassignLastLevel(),
        item_ids=[f"i{row}" for row in range(NUM_ITEMS)],
        titles=["t"] * NUM_ITEMS,
        source={},
        device=CPU,
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    for name, bundle in (
        ("search", bundle_of(0, 12)),
        ("rec", bundle_of(1, 10)),
        ("foreign", bundle_of(2, 12, corpus="d" * 64)),
    ):
        bundle.save(folder / name)
    return folder


def fuse(folders, out, **changed):
    given = {
        "other": folders / "rec",
        "fusion": "concat",
        "dim": None,
        "reader": None,
        "quantiser": quantiser(),
        "policy": ReassignLastLevel(),
        "device": CPU,
    }
    return fuse_ids(folders / "search", out=out, **(given | changed))


def test_codes_and_vectors_are_those_of_the_fused_space(folders, tmp_path):
    bundle = fuse(folders, tmp_path / "out")
    parts = [SemanticIdBundle.load(folders / name) for name in ("search", "rec")]
    expected = fused_concat(*(part.embeddings.vectors for part in parts))
    torch.testing.assert_close(bundle.embeddings.vectors, expected)
    stored = SemanticIdBundle.load(tmp_path / "out")
    assert stored.hash == bundle.hash
    assert stored.source["bundles"] == [part.hash for part in parts]


def test_a_reader_changes_the_vectors_and_no_code(folders, tmp_path):
    plain = fuse(folders, tmp_path / "plain")
    read = fuse(folders, tmp_path / "read", reader=folders / "search")
    assert torch.equal(plain.table.codes, read.table.codes)
    own = SemanticIdBundle.load(folders / "search").embeddings.vectors
    assert torch.equal(SemanticIdBundle.load(tmp_path / "read").embeddings.vectors, own)
    assert plain.hash != read.hash


def test_one_run_alone_gives_its_own_codes(folders, tmp_path):
    bundle = fuse(folders, tmp_path / "out", other=None, fusion="none", reader=folders / "rec")
    assert torch.equal(bundle.table.codes, SemanticIdBundle.load(folders / "search").table.codes)


def test_command(folders, tmp_path, capsys):
    made = quantiser()
    settings = {
        "quantiser": {
            "class_path": f"{type(made).__module__}.{type(made).__name__}",
            "init_args": {
                "codebook_sizes": [8, 8, 8],
                "num_iterations": 3,
                "tolerance": 0.0,
                "num_redo": 1,
                "init": "progressive",
                "sample_rows_per_code": 64,
                "normalise_residuals": False,
                "seed": 1,
            },
        },
        "policy": {"class_path": "sidrec.semantic_ids.collisions.ReassignLastLevel"},
    }
    (tmp_path / "ids.yaml").write_text(yaml.safe_dump(settings))
    where = ("--from", str(folders / "search"), "--and", str(folders / "rec"))
    how = ("--fusion", "svd_sum", "--dim", "6", "--out", str(tmp_path / "out"))
    main(["--config", str(tmp_path / "ids.yaml"), *where, *how])
    assert f"written: {tmp_path / 'out'}" in capsys.readouterr().out
    assert SemanticIdBundle.load(tmp_path / "out").embeddings.vectors.shape == (NUM_ITEMS, 6)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"other": None}, ConfigError, "--fusion concat with one run: give --and RUN"),
        ({"fusion": "none"}, ConfigError, "--fusion none with two runs"),
        ({"fusion": "svd_sum"}, ConfigError, "--dim belongs to svd_sum"),
        ({"dim": 3}, ConfigError, "--dim belongs to svd_sum"),
    ],
)
def test_contradictions_are_refused(folders, tmp_path, changed, error, message):
    with pytest.raises(error, match=message):
        fuse(folders, tmp_path / "out", **changed)
    assert not (tmp_path / "out").exists()


def test_runs_over_different_corpora_are_refused(folders, tmp_path):
    with pytest.raises(DataError, match="belongs to corpus dddddddddddd"):
        fuse(folders, tmp_path / "out", other=folders / "foreign")


def test_a_folder_without_a_run_is_refused(folders, tmp_path):
    with pytest.raises(RunError, match="does not exist"):
        fuse(folders, tmp_path / "out", other=tmp_path / "nowhere")
