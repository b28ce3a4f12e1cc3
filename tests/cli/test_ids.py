import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import save_file

from sidrec.cli.ids import main
from sidrec.errors import ConfigError, DataError, RunError
from sidrec.runs.directory import RunDirectory
from sidrec.semantic_ids.bundle.semantic_id_bundle import SemanticIdBundle
from sidrec.semantic_ids.bundle.vector_reader import read_vector_file

CONFIGS = Path(__file__).parents[2] / "configs" / "ids"
SMALL = ["--quantizer.codebook_sizes=[16, 16]", "--quantizer.num_iterations=3"]


@pytest.fixture
def vectors():
    return torch.randn(200, 8)


def write_npy(vectors, folder):
    np.save(folder / "vectors.npy", vectors.numpy())
    return folder / "vectors.npy"


@pytest.mark.parametrize(
    ("name", "sizes", "collisions"),
    [
        ("default", (16, 16), 0),
        ("paper", (16, 16), 1),
        ("tiger", (16, 16, 256), 0),
        ("lc_rec", (16, 16), 0),
    ],
)
def test_shipped_configs_make_bundles(vectors, tmp_path, capsys, name, sizes, collisions):
    file = write_npy(vectors, tmp_path)
    out = tmp_path / "ids"
    config = f"--config={CONFIGS / name}.yaml"
    main([f"--embeddings={file}", config, f"--out={out}", *SMALL])
    bundle = SemanticIdBundle.load(out)
    assert bundle.table.codebook_sizes == sizes
    assert (bundle.quality["ids/collision_rate"] > 0) == collisions
    assert bundle.source == {"file": "vectors.npy"}
    assert "perplexity" in capsys.readouterr().out
    assert bundle.items_of(bundle.semantic_id_of("17")).count("17") == 1


def test_from_a_finished_run(vectors, tmp_path, capsys):
    file = write_npy(vectors, tmp_path)
    config = f"--config={CONFIGS / 'default.yaml'}"
    run = RunDirectory(tmp_path / "enc")
    main([f"--embeddings={file}", config, f"--out={run.semantic_ids}", *SMALL])
    again = ["--from", str(run.root), config, f"--out={tmp_path / 'again'}", *SMALL]
    with pytest.raises(RunError, match="not a finished run"):
        main(again)
    run.write_manifest(state="finished", stage="encoder")
    run.best_checkpoint.parent.mkdir()
    run.best_checkpoint.touch()
    main(again)
    first, second = (
        SemanticIdBundle.load(run.semantic_ids),
        SemanticIdBundle.load(tmp_path / "again"),
    )
    assert first.hash == second.hash
    assert capsys.readouterr().out.count("written:") == 2


@pytest.mark.parametrize("name", ["default", "paper", "tiger", "lc_rec"])
def test_append_keeps_ids_and_says_so(vectors, tmp_path, capsys, name):
    file = write_npy(vectors, tmp_path)
    old, new = tmp_path / "old", tmp_path / "new"
    sizes = "--quantizer.codebook_sizes=[16, 32]"
    main([f"--embeddings={file}", f"--config={CONFIGS / name}.yaml", f"--out={old}", *SMALL, sizes])
    added = pl.DataFrame(
        {"embedding": vectors[:9].tolist(), "item_id": [f"n{i}" for i in range(9)]}
    )
    added.write_parquet(tmp_path / "added.parquet")
    append = [f"--append={tmp_path / 'added.parquet'}", f"--from={old}", f"--out={new}"]
    main(append)
    first, second = SemanticIdBundle.load(old), SemanticIdBundle.load(new)
    assert torch.equal(second.table.codes[:200], first.table.codes)
    assert second.item_ids[200:] == [f"n{i}" for i in range(9)]
    assert "appended 9 items to 200" in capsys.readouterr().out
    main(["--diff", str(old), str(new)])
    shown = capsys.readouterr().out
    assert "added   9: n0, n1, n2, n3, n4, …" in shown
    assert "changed 0 of 200" in shown
    main([f"--append={file}", f"--from={new}", f"--out={tmp_path / 'newer'}"])
    assert SemanticIdBundle.load(tmp_path / "newer").item_ids[209] == "209"  # numbers go on
    with pytest.raises(DataError, match=r"'n0' \(row 0 of the new items"):
        main([*append[:1], f"--from={new}", f"--out={tmp_path / 'x'}"])
    assert not (tmp_path / "x").exists()


def test_other_forms_name_what_is_missing(tmp_path, capsys):
    for arguments, word in ((["--append=x.npy", "--out=o"], "from"), (["--diff", "a"], "diff")):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert word in line
    with pytest.raises(RunError, match="does not exist"):
        main(["--diff", str(tmp_path / "a"), str(tmp_path / "b")])


def test_attributes_and_picture(vectors, tmp_path, capsys):
    file = write_npy(vectors, tmp_path)
    kinds = pl.DataFrame({"item_id": range(200), "kind": ["good|new", "bad"] * 100})
    kinds.write_csv(tmp_path / "kinds.csv")
    out = tmp_path / "ids"
    rest = [f"--config={CONFIGS / 'default.yaml'}", f"--out={out}", *SMALL]
    main([f"--embeddings={file}", f"--attributes={tmp_path / 'kinds.csv'}", *rest])
    assert SemanticIdBundle.load(out).quality["ids/purity_kind_level_0"] == 0.5
    assert "purity by kind" in capsys.readouterr().out
    assert (out / "quality.png").read_bytes().startswith(b"\x89PNG")


def test_sources_are_refused_when_none_or_two_or_missing(tmp_path):
    rest = [f"--config={CONFIGS / 'default.yaml'}", f"--out={tmp_path / 'ids'}"]
    with pytest.raises(ConfigError, match="either --from RUN or --embeddings FILE"):
        main(rest)
    with pytest.raises(ConfigError, match="only one of --from and --embeddings, got both"):
        main([*rest, "--from=a", "--embeddings=b"])
    with pytest.raises(RunError, match="does not exist"):
        main([*rest, f"--from={tmp_path / 'nothing'}"])
    with pytest.raises(DataError, match=r"b\.npy does not exist"):
        main([*rest, "--embeddings=b.npy"])
    assert not (tmp_path / "ids").exists()


def test_a_catalogue_smaller_than_the_codebook_is_refused(vectors, tmp_path):
    file = write_npy(vectors, tmp_path)
    rest = [f"--config={CONFIGS / 'default.yaml'}", f"--out={tmp_path / 'ids'}"]
    with pytest.raises(ConfigError, match="200 items, fewer than the 256 codes"):
        main([*rest, f"--embeddings={file}"])
    main([*rest, f"--embeddings={file}", "--quantizer.shrink=true"])
    facts = json.loads((tmp_path / "ids" / "semantic_ids.json").read_text())
    assert facts["codebook_sizes"] == [200, 200, 200]


def test_a_misspelt_key_ends_with_code_2(vectors, tmp_path, capsys):
    file = write_npy(vectors, tmp_path)
    config = f"--config={CONFIGS / 'default.yaml'}"
    with pytest.raises(SystemExit) as stop:
        main(
            [
                f"--embeddings={file}",
                config,
                f"--out={tmp_path / 'x'}",
                "--quantizer.codebok_sizes=1",
            ]
        )
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "codebok_sizes" in line
    assert line.endswith("; did you mean 'codebook_sizes'?")


def test_all_file_types_give_the_same_vectors(vectors, tmp_path):
    npy = read_vector_file(write_npy(vectors, tmp_path))
    save_file({"embeddings": vectors, "other": vectors * 2}, tmp_path / "v.safetensors")
    tensors = read_vector_file(tmp_path / "v.safetensors")
    ids = [f"id{row}" for row in range(200)]
    table = pl.DataFrame({"item_id": ids, "embedding": vectors.tolist(), "title": ["T"] * 200})
    table.write_parquet(tmp_path / "v.parquet")
    parquet = read_vector_file(tmp_path / "v.parquet")
    for found in (npy, tensors, parquet):
        torch.testing.assert_close(found.embeddings.vectors, vectors)
        assert found.embeddings.encoder_hash == "external"
    assert (npy.item_ids[3], npy.titles[3]) == ("3", "")
    assert (parquet.item_ids[3], parquet.titles[3]) == ("id3", "T")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_float32(vectors, tmp_path, dtype):
    save_file({"embeddings": vectors.to(dtype)}, tmp_path / "v.safetensors")
    found = read_vector_file(tmp_path / "v.safetensors").embeddings.vectors
    assert torch.equal(found, vectors.to(dtype).float())


def _not_finite(folder):
    np.save(folder / "x.npy", np.array([[1.0, 2.0], [np.nan, 1.0]], dtype=np.float32))
    return folder / "x.npy"


def _no_bytes(folder):
    (folder / "x.npy").touch()
    return folder / "x.npy"


def _no_rows(folder):
    np.save(folder / "x.npy", np.zeros((0, 8), dtype=np.float32))
    return folder / "x.npy"


def _flat(folder):
    np.save(folder / "x.npy", np.zeros(3, dtype=np.float32))
    return folder / "x.npy"


def _whole_numbers(folder):
    np.save(folder / "x.npy", np.zeros((3, 2), dtype=np.int64))
    return folder / "x.npy"


def _garbage(folder):
    (folder / "x.npy").write_bytes(b"no array")
    return folder / "x.npy"


def _two_tensors(folder):
    save_file({"a": torch.zeros(2, 2), "b": torch.zeros(2, 2)}, folder / "x.safetensors")
    return folder / "x.safetensors"


def _ragged(folder):
    pl.DataFrame({"embedding": [[1.0, 2.0], [1.0]]}).write_parquet(folder / "x.parquet")
    return folder / "x.parquet"


def _ragged_late(folder):
    rows = [[1.0, 2.0]] * 5000 + [[1.0, 2.0, 3.0]]
    pl.DataFrame({"embedding": rows}).write_parquet(folder / "x.parquet", row_group_size=700)
    return folder / "x.parquet"


def _missing_vector(folder):
    pl.DataFrame({"embedding": [[1.0, 2.0], None]}).write_parquet(folder / "x.parquet")
    return folder / "x.parquet"


def _missing_number(folder):
    pl.DataFrame({"embedding": [[1.0, 2.0], [None, 2.0]]}).write_parquet(folder / "x.parquet")
    return folder / "x.parquet"


def _missing_id(folder):
    table = {"embedding": [[1.0, 2.0]] * 3, "item_id": ["a", "b", None]}
    pl.DataFrame(table).write_parquet(folder / "x.parquet")
    return folder / "x.parquet"


def _same_id(folder):
    table = {"embedding": [[1.0, 2.0]] * 3, "item_id": [7, 8, 7]}
    pl.DataFrame(table).write_parquet(folder / "x.parquet")
    return folder / "x.parquet"


def _no_lists(folder):
    pl.DataFrame({"embedding": [1.0, 2.0]}).write_parquet(folder / "x.parquet")
    return folder / "x.parquet"


def _cut_off(folder):
    pl.DataFrame({"embedding": [[1.0, 2.0]]}).write_parquet(folder / "x.parquet")
    data = (folder / "x.parquet").read_bytes()
    (folder / "x.parquet").write_bytes(data[:-20])
    return folder / "x.parquet"


def _no_rows_at_all(folder):
    pl.DataFrame({"embedding": [[1.0]]}).clear().write_parquet(folder / "x.parquet")
    return folder / "x.parquet"


def _too_large(folder):
    np.save(folder / "x.npy", np.array([[1.0, 1e300]]))
    return folder / "x.npy"


def _squares_too_large(folder):
    np.save(folder / "x.npy", np.array([[1.0, -3e25], [1.0, 1.0]]))
    return folder / "x.npy"


def _squares_too_small(folder):
    np.save(folder / "x.npy", np.array([[0.0, 2e-20], [1e-30, 0.0]]))
    return folder / "x.npy"


def _no_column(folder):
    pl.DataFrame({"a": [1]}).write_parquet(folder / "x.parquet")
    return folder / "x.parquet"


def _csv(folder):
    (folder / "x.csv").write_text("1,2")
    return folder / "x.csv"


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (_not_finite, r"x\.npy row 1, counted from 0: the vector holds NaN or infinity \(1 such"),
        (_no_bytes, r"x\.npy is not a NumPy array"),
        (_no_rows, r"x\.npy is empty: shape \(0, 8\)"),
        (_flat, r"has shape \(3,\), expected \[items, dimensions\]"),
        (_whole_numbers, "holds torch.int64, expected floating-point"),
        (_garbage, "is not a NumPy array; write it with numpy.save"),
        (_two_tensors, r"holds tensors \['a', 'b'\]; expected one 2-D tensor named 'embeddings'"),
        (_ragged, "row 1: vector of width 1, expected 2"),
        (_ragged_late, "row 5000: vector of width 3, expected 2"),
        (_missing_vector, "row 1: vector of width 0, expected 2"),
        (_missing_number, "row 1, counted from 0: the vector holds NaN"),
        (_missing_id, "row 2: item_id is missing"),
        (_same_id, "item_id '7' occurs 2 times"),
        (_no_lists, "the vector column has type double, expected lists"),
        (_cut_off, "cannot be read as Parquet"),
        (_no_rows_at_all, "is empty"),
        (_too_large, "row 0, counted from 0: the vector holds NaN or infinity"),
        (_squares_too_large, r"largest number is 3e\+25, expected 1e-15 to 1e\+15, .* scale"),
        (_squares_too_small, r"largest number is 2e-20, expected 1e-15 to"),
        (_no_column, "expected a list column 'embedding'"),
        (_csv, "has type '.csv', expected .npy, .safetensors or .parquet"),
    ],
)
def test_bad_files_are_refused(tmp_path, write, message):
    with pytest.raises(DataError, match=message):
        read_vector_file(write(tmp_path))
