"""Neighbors, attributes, differences and the picture."""

import subprocess
import sys

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import torch

from sidrec.errors import DataError
from sidrec.semantic_ids.bundle.diff import diff, diff_table
from sidrec.semantic_ids.bundle.quality_report import quality_table, save_picture
from sidrec.semantic_ids.collisions.policies import KeepCollisions, ReassignLastLevel
from sidrec.semantic_ids.pipeline import append_ids, fit_ids
from sidrec.semantic_ids.quality.id_metrics import (
    level_usage,
    nearest_items,
    neighbor_preservation,
    relative_error,
    sample_of_items,
)
from sidrec.semantic_ids.quality.purity import (
    Attribute,
    attributes_of_items,
    prefix_purity,
    read_attributes,
)
from tests.semantic_ids.made import quantizer_of, small_settings


def test_usage_of_codes_by_hand():
    even = level_usage(torch.tensor([0, 1, 2, 3]), num_codes=4)
    assert even["gini"] == pytest.approx(0)
    assert (even["perplexity"], even["dead_codes"]) == (4, 0)
    # counts 0, 1, 3: Gini 2 (0 + 2 + 9) / (3 * 4) - 4 / 3; entropy 2 / 4 + 3 / 4 * log2(4 / 3)
    assert level_usage(torch.tensor([1, 2, 2, 2]), num_codes=3) == pytest.approx(
        {
            "usage": 2 / 3,
            "dead_codes": 1,
            "entropy": 0.811278,
            "perplexity": 1.754765,
            "gini": 0.5,
        }
    )


def test_relative_error_by_hand():
    line = quantizer_of([[0.0], [100.0]], [[0.0], [1.0], [5.0]])
    codes = torch.tensor([[0, 1], [0, 1]])  # both rows are decoded as 1
    assert relative_error(torch.tensor([[1.0], [3.0]]), codes, line) == pytest.approx(4 / 2)
    assert relative_error(torch.full((2, 1), 3.0), codes, line) == 0


def test_neighbors_agree_with_all_distances(monkeypatch):
    monkeypatch.setattr("sidrec.semantic_ids.quality.id_metrics.CHUNK_ROWS", 70)
    vectors = torch.randn(300, 5)
    queries = torch.tensor([0, 69, 70, 299])
    far = torch.cdist(vectors[queries], vectors)
    far[torch.arange(4), queries] = torch.inf
    expected = far.topk(10, largest=False).indices
    assert torch.equal(nearest_items(vectors, queries, num_neighbors=10), expected)


def test_neighbor_preservation_by_hand():
    vectors = torch.tensor([[0.0], [1.0], [10.0], [11.0]])
    assert neighbor_preservation(vectors, torch.tensor([0, 0, 1, 1])) == pytest.approx(1 / 3)
    assert neighbor_preservation(vectors, torch.tensor([2, 2, 2, 2])) == 1.0
    assert neighbor_preservation(vectors[:1], torch.tensor([2])) == 1.0


def test_the_sample_of_items_is_bounded_and_always_the_same():
    assert sample_of_items(7).tolist() == list(range(7))
    assert len(sample_of_items(100_000)) == 1000
    assert len(sample_of_items(1_000_000)) == 200
    assert torch.equal(sample_of_items(5000), sample_of_items(5000))
    assert len(sample_of_items(5000).unique()) == 1000


def test_purity_by_hand():
    groups = torch.tensor([0, 0, 0, 1, 1, 2])
    # group 0: 2 of 3 are comedies; of group 1 one item has no value: left out, as is group 2
    genre = Attribute("genre", np.array([0, 1, 1, 2, 3, 5]), np.array([0, 0, 1, 1, 1, 1]))
    assert prefix_purity(groups, genre) == pytest.approx(2 / 3)
    assert prefix_purity(torch.zeros(6, dtype=torch.int64), genre) == pytest.approx(4 / 5)
    assert prefix_purity(torch.arange(6), genre) is None


def test_attributes_of_a_corpus_are_its_short_lists():
    num = 40
    table = pa.table(
        {
            "item_index": range(num),
            "item_id": [str(row) for row in range(num)],
            "title": ["same title"] * num,
            "genres": [["Drama", "Drama"], ["Comedy", "Drama"], [], None] * 10,
            "brand": ["a|b", None] * 20,
            "year": [1990 + row % 2 for row in range(num)],
            "price": [1.5] * num,
            "vector": [[0.5, 0.5]] * num,
            "place": [{"shelf": 1}] * num,
            "blurb": [f"unlike any other {row}" for row in range(num)],
        }
    )
    found = {attribute.name: attribute for attribute in attributes_of_items(table)}
    assert sorted(found) == ["brand", "genres", "year"]
    assert found["genres"].item.tolist()[:4] == [0, 1, 1, 4]  # Drama counts once for item 0
    assert len(found["brand"].item) == 40
    assert found["year"].value.tolist() == [row % 2 for row in range(num)]


def write_csv(folder, frame):
    frame.write_csv(folder / "a.csv")
    return folder / "a.csv"


def write_jsonl(folder, frame):
    frame.write_ndjson(folder / "a.jsonl")
    return folder / "a.jsonl"


def write_parquet(folder, frame):
    frame.write_parquet(folder / "a.parquet")
    return folder / "a.parquet"


@pytest.mark.parametrize("write", [write_csv, write_jsonl, write_parquet])
def test_attribute_files_are_joined_by_item_id(tmp_path, write):
    frame = pl.DataFrame(
        {"item_id": list(range(60, 0, -1)), "kind": ["x", "y"] * 30, "price": [0.5] * 60}
    )
    ids = ["absent", *[str(row) for row in range(1, 61)]]
    (kind,) = read_attributes(write(tmp_path, frame), ids)
    assert kind.name == "kind"
    assert kind.item.tolist() == list(range(1, 61))
    assert (kind.value[::2] == kind.value[0]).all()
    assert kind.value[0] != kind.value[1]


def test_attribute_files_that_do_not_serve_are_refused(tmp_path):
    ids = [str(row) for row in range(40)]
    with pytest.raises(DataError, match=r"has type '\.txt', expected \.parquet, \.csv or \.jsonl"):
        read_attributes(tmp_path / "a.txt", ids)
    with pytest.raises(DataError, match=r"a\.csv cannot be read"):
        read_attributes(tmp_path / "a.csv", ids)
    with pytest.raises(DataError, match=r"has columns \['kind'\]; expected 'item_id'"):
        read_attributes(write_csv(tmp_path, pl.DataFrame({"kind": ["x"]})), ids)
    frame = pl.DataFrame({"item_id": ["other"], "kind": ["x"]})
    with pytest.raises(DataError, match="names none of the 40 items"):
        read_attributes(write_csv(tmp_path, frame), ids)
    frame = pl.DataFrame({"item_id": ids, "text": [f"text {row}" for row in range(40)]})
    with pytest.raises(DataError, match="no column with at least 10 items per value"):
        read_attributes(write_csv(tmp_path, frame), ids)


def made(num_items=120, policy=None, **options):
    vectors = torch.randn(num_items, 6, generator=torch.Generator().manual_seed(1))
    return fit_ids(
        vectors,
        quantizer=small_settings(4, 8, 16),
        policy=policy or KeepCollisions(),
        item_ids=[f"m{row}" for row in range(num_items)],
        **options,
    )


def test_purity_enters_report_and_table():
    genre = Attribute("genre", np.arange(120), np.arange(120) % 3)
    bundle = made(attributes=[genre])
    assert bundle.quality["ids/purity_genre_level_0"] == pytest.approx(1 / 3)
    assert 1 / 3 < bundle.quality["ids/purity_genre_level_2"] <= 1
    table = quality_table(bundle)
    assert "purity by genre" in table
    assert "nearest 10 that share the first code" in table
    assert "Gini" in table


def test_a_bundle_of_an_older_version_still_has_a_table():
    bundle = made()
    for key in [key for key in bundle.quality if "gini" in key or "neighbor" in key]:
        del bundle.quality[key]
    assert "perplexity" in quality_table(bundle)


def test_difference_by_hand():
    a = made(policy=KeepCollisions())
    b = append_ids(a, torch.randn(3, 6), item_ids=["x", "y", "z"])
    found = diff(a, b)
    assert (found.added, found.removed, found.changed) == (["x", "y", "z"], [], [])
    assert found.changed_fraction == [0, 0, 0]
    assert [key for key, _, _ in found.settings] == ["corpus_fingerprint", "source.appended"]
    back = diff(b, a)
    assert (back.added, back.removed) == ([], ["x", "y", "z"])
    c = made(policy=ReassignLastLevel())
    moved = (a.table.codes != c.table.codes).any(dim=1).nonzero().flatten().tolist()
    found = diff(a, c)
    assert found.changed == [f"m{row}" for row in moved]
    assert found.changed_fraction[:2] == [0, 0]
    assert found.changed_fraction[2] == pytest.approx(len(moved) / 120)
    assert ("policy.name", "none", "reassign_last_level") in found.settings
    figures = {key: (one, other) for key, one, other in found.quality}
    assert figures["ids/collision_rate"] == (a.quality["ids/collision_rate"], 0.0)
    text = diff_table(a, c)
    assert f"changed {len(moved)} of 120 in both: m" in text
    assert "policy.name: none -> reassign_last_level" in text
    assert "the same Semantic IDs" in diff_table(a, a)


def test_items_are_compared_by_id_not_by_row():
    a = made()
    order = list(range(119, -1, -1))
    b = fit_ids(
        a.embeddings.vectors[order],
        quantizer=small_settings(4, 8, 16),
        policy=KeepCollisions(),
        item_ids=[a.item_ids[row] for row in order],
    )
    b.table.codes[:] = a.table.codes[order]
    assert diff(a, b).changed == []


def test_the_picture_is_no_part_of_the_bundle(tmp_path):
    bundle = made()
    bundle.save(tmp_path / "ids")
    save_picture(bundle, tmp_path / "ids")
    data = (tmp_path / "ids" / "quality.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert len(data) > 10_000
    assert type(bundle).load(tmp_path / "ids").hash == bundle.hash


@pytest.mark.slow  # a process of its own imports torch
def test_the_command_does_not_import_matplotlib_before_it_draws():
    code = (
        "import sys, sidrec.cli.ids;"
        "print([m for m in ('matplotlib', 'datasets', 'sklearn') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
