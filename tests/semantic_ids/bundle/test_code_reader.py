"""Semantic IDs of other programs: their layouts, both ways to join, and every way to be wrong."""

import json

import numpy as np
import polars as pl
import pytest
import torch

from sidrec.errors import DataError
from sidrec.semantic_ids.bundle.code_reader import read_codes

IDS = ["x", "y", "z"]
CODES = [[3, 1], [0, 2], [3, 0]]
TOKENS = [[f"<a_{first}>", f"<b_{second}>"] for first, second in CODES]


def written(folder, name, content):
    file = folder / name
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def test_json_of_letter_by_item_id_in_any_order(tmp_path):
    file = written(tmp_path, "index.json", dict(zip(IDS[::-1], TOKENS[::-1], strict=True)))
    assert read_codes(file, IDS, join="item_id").tolist() == CODES


def test_json_of_letter_by_row_number(tmp_path):
    file = written(tmp_path, "index.json", {"2": TOKENS[2], "0": TOKENS[0], "1": CODES[1]})
    assert read_codes(file, IDS, join="row").tolist() == CODES


@pytest.mark.parametrize(
    "text",
    [
        "item_id,first,second\ny,0,2\nx,3,1\nz,3,0\n",
        'item_id,title,codes\ny,"A, B","[0, 2]"\nx,C,"<a_3> <b_1>"\nz,D,3 0\n',
    ],
)
def test_csv_with_a_column_per_level_or_one_of_lists(tmp_path, text):
    assert read_codes(written(tmp_path, "c.csv", text), IDS, join="item_id").tolist() == CODES


def test_parquet_with_lists_or_numbers(tmp_path):
    pl.DataFrame({"item_id": IDS, "codes": CODES}).write_parquet(tmp_path / "lists.parquet")
    levels = {"item_id": IDS, "a": [3, 0, 3], "b": [1, 2, 0]}
    pl.DataFrame(levels).write_parquet(tmp_path / "levels.parquet")
    for name in ("lists", "levels"):
        assert read_codes(tmp_path / f"{name}.parquet", IDS, join="item_id").tolist() == CODES


def test_matrix_of_grid_in_both_directions(tmp_path):
    torch.save(torch.tensor(CODES).float(), tmp_path / "items.pt")
    torch.save(torch.tensor(CODES).T, tmp_path / "levels.pt")  # GRID transposes for its generator
    np.save(tmp_path / "items.npy", np.array(CODES))
    for name in ("items.pt", "levels.pt", "items.npy"):
        assert read_codes(tmp_path / name, IDS, join="item_id").tolist() == CODES


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"x": [1, 2]}, "lacks the codes of 2 of 3 items of the catalogue, first item_id 'y'"),
        (
            dict(zip([*IDS, "w"], [*CODES, [1, 1]], strict=True)),
            "codes of 1 items that are not in the catalogue, first item_id 'w'",
        ),
        (dict(zip(IDS, [[3, 1], [0], [1, 1]], strict=True)), "item_id 'y': 1 codes, expected 2"),
        (dict(zip(IDS, [[], [], []], strict=True)), "item_id 'x': 0 codes, expected some"),
        (dict(zip(IDS, [[3, -1], [0, 2], [1, 1]], strict=True)), "item_id 'x': -1 is no code"),
        (dict(zip(IDS, [[3, 1], [0.5, 2], [1, 1]], strict=True)), "item_id 'y': 0.5 is no code"),
        (dict(zip(IDS, [[3, 1], [True, 2], [1, 1]], strict=True)), "item_id 'y': True is no code"),
        (dict(zip(IDS, [[3, 1], "a film", [1, 1]], strict=True)), "item_id 'y': 'a' is no code"),
        (dict(zip(IDS, [[3, 1], [40000, 2], [1, 1]], strict=True)), "40000 is no code; expected"),
        ('{"x": [1, 2], "x": [1, 3]}', "item_id 'x' occurs twice"),
        ("[[1, 2]]", "expected an object such as"),
        ("{", "is no valid JSON"),
    ],
)
def test_what_is_wrong_is_one_line_with_its_place(tmp_path, content, message):
    file = written(tmp_path, "index.json", content)
    with pytest.raises(DataError, match=message) as caught:
        read_codes(file, IDS, join="item_id")
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_matrices_that_are_none(tmp_path):
    torch.save({"a": 1}, tmp_path / "dict.pt")
    np.save(tmp_path / "many.npy", np.zeros((5, 2)))
    np.save(tmp_path / "half.npy", np.array([[3, 1], [0, 0.5], [3, 0]]))
    np.save(tmp_path / "names.npy", np.array([["a", "b"]] * 3))
    (tmp_path / "torn.pt").write_bytes(b"PK")
    (tmp_path / "text.pt").write_text("garbage")
    (tmp_path / "text.npy").write_text("garbage")
    for name, message in (
        ("dict.pt", "holds dict, expected a matrix"),
        ("many.npy", r"holds \(5, 2\), expected a matrix .* 3 items"),
        ("half.npy", "row '1': 0.5 is no code"),
        ("names.npy", "holds no plain tensor"),
        ("torn.pt", "holds no plain tensor"),
        ("text.pt", "holds no plain tensor"),
        ("text.npy", "holds no plain tensor"),
    ):
        with pytest.raises(DataError, match=message) as caught:
            read_codes(tmp_path / name, IDS, join="row")
        assert "pickle" not in str(
            caught.value
        )  # torch and numpy advise to unpickle it all the same


def test_other_files(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read_codes(tmp_path / "none.json", IDS, join="row")
    with pytest.raises(DataError, match=r"has type '.xml', expected one of \.json, \.csv"):
        read_codes(written(tmp_path, "c.xml", ""), IDS, join="row")
    with pytest.raises(DataError, match="expected item_id and columns of codes"):
        read_codes(written(tmp_path, "c.csv", "id,a\nx,1\n"), IDS, join="row")
