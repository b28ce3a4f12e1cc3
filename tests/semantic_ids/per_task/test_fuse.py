"""``sidrec fuse`` on bundles: which vectors are quantized, which are kept, what is refused."""

import pytest
import torch
import yaml

from sidrec.cli.fuse import main
from sidrec.encoder.fusion import fused_concat
from sidrec.errors import ConfigError, DataError, RunError
from sidrec.semantic_ids.bundle.semantic_id_bundle import SemanticIdBundle
from sidrec.semantic_ids.collisions.policies import ReassignLastLevel
from sidrec.semantic_ids.per_task.make_task_ids import fuse_ids
from sidrec.semantic_ids.per_task.task_bundles import TaskBundles
from sidrec.semantic_ids.pipeline import build_semantic_ids
from sidrec.types import ItemEmbeddings
from tests.semantic_ids.test_callback import quantizer

NUM_ITEMS = 40
CPU = torch.device("cpu")


def bundle_of(seed, dim, corpus="c" * 64):
    vectors = torch.randn(NUM_ITEMS, dim, generator=torch.Generator().manual_seed(seed))
    return build_semantic_ids(
        ItemEmbeddings(torch.nn.functional.normalize(vectors, dim=1), f"hash{seed}", corpus),
        quantizer=quantizer(),
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
        "quantizer": quantizer(),
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


@pytest.fixture
def ids_config(tmp_path):
    made = quantizer()
    settings = {
        "quantizer": {
            "class_path": f"{type(made).__module__}.{type(made).__name__}",
            "init_args": {
                "codebook_sizes": [8, 8, 8],
                "num_iterations": 3,
                "tolerance": 0.0,
                "num_redo": 1,
                "init": "progressive",
                "sample_rows_per_code": 64,
                "seed": 1,
                "num_refit_rounds": 0,
                "train_rows_per_code": None,
            },
        },
        "policy": {"class_path": "sidrec.ReassignLastLevel"},
    }
    (tmp_path / "ids.yaml").write_text(yaml.safe_dump(settings))
    return tmp_path / "ids.yaml"


@pytest.fixture
def prefix_config(tmp_path):
    settings = {
        "prefix_share": {
            "shared_codes": 4,
            "task_codes": 8,
            "latent_dim": 4,
            "hidden_dim": 8,
            "num_steps": 20,
            "batch_size": 16,
            "learning_rate": 1e-3,
            "commitment_weight": 0.25,
            "seed": 0,
        },
        "policy": {
            "class_path": "sidrec.ExtraLevel",
            "init_args": {"num_codes": NUM_ITEMS},
        },
    }
    (tmp_path / "prefix.yaml").write_text(yaml.safe_dump(settings))
    return tmp_path / "prefix.yaml"


def test_command(folders, tmp_path, ids_config, capsys):
    where = ("--from", str(folders / "search"), "--and", str(folders / "rec"))
    how = ("--fusion", "svd_sum", "--dim", "6", "--out", str(tmp_path / "out"))
    main(["--config", str(ids_config), *where, *how])
    assert f"written: {tmp_path / 'out'}" in capsys.readouterr().out
    assert SemanticIdBundle.load(tmp_path / "out").embeddings.vectors.shape == (NUM_ITEMS, 6)


@pytest.mark.parametrize(("fusion", "num_shared"), [("separate", 0), ("prefix_share", 1)])
def test_each_task_gets_ids_of_its_own(
    fusion, num_shared, folders, tmp_path, ids_config, prefix_config, capsys
):
    config = ids_config if fusion == "separate" else prefix_config
    where = ["--from", str(folders / "search"), "--and", str(folders / "rec")]
    how = ["--reader", str(folders / "search"), "--fusion", fusion, "--out", str(tmp_path / "out")]
    main(["--config", str(config), *where, *how])
    assert "search\nSemantic IDs of 40 items" in capsys.readouterr().out
    made = TaskBundles.load(tmp_path / "out")
    assert made.num_shared_levels == num_shared
    search, recommendation = (bundle.table.codes for bundle in made.bundles.values())
    assert not torch.equal(search[:, num_shared], recommendation[:, num_shared])
    own = SemanticIdBundle.load(folders / "search")
    assert torch.equal(made.item_vectors, own.embeddings.vectors)
    if fusion == "separate":
        assert torch.equal(search, own.table.codes)  # the same vectors, the same quantizer
    assert made.bundles["search"].source["fusion"] == fusion


@pytest.mark.parametrize(
    ("fusion", "config", "extra", "message"),
    [
        ("separate", "ids", [], "--fusion separate needs --and RUN"),
        ("separate", "ids", ["--and", "rec", "--dim", "4"], "takes no --dim"),
        ("separate", "prefix", ["--and", "rec"], "separate needs quantizer and no prefix_share"),
        ("prefix_share", "ids", ["--and", "rec"], "prefix_share needs prefix_share and no quant"),
        ("none", "prefix", [], "--fusion none needs quantizer"),
    ],
)
def test_wrong_parts_of_task_ids_are_refused(
    fusion, config, extra, message, folders, tmp_path, ids_config, prefix_config
):
    file = {"ids": ids_config, "prefix": prefix_config}[config]
    words = [str(folders / word) if word == "rec" else word for word in extra]
    out = tmp_path / "out"
    where = ["--from", str(folders / "search"), *words, "--out", str(out)]
    with pytest.raises(ConfigError, match=message):
        main(["--config", str(file), "--fusion", fusion, *where])
    assert not out.exists()


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
