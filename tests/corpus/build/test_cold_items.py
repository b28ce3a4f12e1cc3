"""Split for cold-start figures: by hand, and by the law that train never names a cold item."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from sidrec.corpus.build.build_corpus import build_corpus
from sidrec.corpus.build.cold_items import held_out_items
from sidrec.corpus.build.facts import fact_lines
from sidrec.corpus.cold_start import cold_start_items, cold_start_requests, items_to_index
from sidrec.corpus.requests import recommendation_requests, search_requests
from sidrec.corpus.sources.raw_catalogue import RawQuery
from sidrec.corpus.sources.synthetic import make_synthetic
from sidrec.corpus.store import Corpus
from sidrec.errors import ConfigError
from sidrec.generator.training.datamodule import GeneratorDataModule
from sidrec.pairs.query_item import query_item_pairs
from tests.corpus.small import ROWS, SETTINGS, raw_catalogue
from tests.pairs.made import SETTINGS as MADE
from tests.pairs.made import SIZES

HELD_OUT = replace(SETTINGS, cold_item_fraction=0.2, test_query_fraction=0.0)  # one item of four
TEMPORAL = replace(SETTINGS, split="temporal", test_query_fraction=0.0)


def queries_of(*answers, split=""):
    return [
        RawQuery(f"q{row}", f"text {row}", items, f"g{row}", split, "tests")
        for row, items in enumerate(answers)
    ]


def table(folder, name):
    return pl.read_parquet(folder / f"{name}.parquet")


def test_share_is_rounded_up_and_stable():
    names = pl.Series([f"i{n}" for n in range(100)])
    held_out = held_out_items(names, 0.041)
    assert held_out.sum() == 5
    chosen = set(names.filter(held_out))
    assert set(names.reverse().filter(held_out_items(names.reverse(), 0.041))) == chosen
    assert not held_out_items(names, 0.0).any()


def test_held_out_item_by_hand(tmp_path):
    (cold,) = np.flatnonzero(held_out_items(pl.Series(["i1", "i2", "i3", "i4"]), 0.2))
    assert cold == 1  # i2: a's first item, b's valid one, the last of c
    rows = [*ROWS, ("d", "i1", 1), ("d", "i3", 2), ("d", "i2", 3)]
    asked = queries_of(("i2",), ("i1", "i2"), ("i1",), split="train")
    description = build_corpus(raw_catalogue(rows), asked, tmp_path / "out", HELD_OUT)
    found = table(tmp_path / "out", "interactions").select("user_id", "item_index", "split")
    assert found.rows() == [
        ("b", 0, "train"),
        ("b", 2, "test"),
        ("a", 2, "train"),
        ("a", 0, "valid"),
        ("a", 3, "test"),
        ("c", 0, "train"),  # fewer than three: all train
        ("d", 0, "train"),
        ("d", 2, "valid"),
        ("d", 1, "test"),
    ]
    found = table(tmp_path / "out", "queries").select("query_id", "item_index", "split")
    assert found.rows() == [("q0", [1], "test"), ("q1", [0], "train"), ("q2", [0], "train")]
    counts = description["counts"]
    expected = {
        "items_held_out": 1,
        "interactions_held_out": 3,
        "answers_held_out": 1,
        "cold_start_items": 2,  # i2, and i4, which only a's last interaction names
        "cold_start_requests_search": 1,
        "cold_start_requests_recommendation": 2,
        "users": 4,
    }
    assert {key: counts[key] for key in expected} == expected
    lines = dict(fact_lines(description))
    assert lines["items held out of train and valid"].startswith("1, with 3 interactions and 1 ans")
    assert lines["items that only test asks for"] == "2, in 1 search and 2 recommendation requests"
    corpus = Corpus.load(tmp_path / "out")
    assert cold_start_items(corpus).tolist() == [False, True, False, True]
    assert items_to_index(corpus).tolist() == [0, 2]


def test_user_of_nothing_but_held_out_items_leaves_no_gap(tmp_path):
    rows = [("d", "i2", 1), ("d", "i2", 2), *ROWS]  # fewer than three: all train
    description = build_corpus(raw_catalogue(rows), [], tmp_path / "out", HELD_OUT)
    users = table(tmp_path / "out", "interactions").select("user_index", "user_id").unique()
    assert sorted(users.rows()) == [(0, "b"), (1, "a"), (2, "c")]
    assert description["counts"]["users"] == 3
    corpus = Corpus.load(tmp_path / "out")
    assert corpus.train_interactions().user_starts.tolist() == [0, 1, 2, 3]
    assert cold_start_items(corpus).tolist() == [False, False, False, True]


def test_queries_of_items_that_come_after_the_training_cut_are_test(tmp_path):
    asked = [*queries_of(("i4",), ("i1", "i4"), ("i1",)), *queries_of(("i4",), split="train")]
    asked[-1] = asked[-1]._replace(query_id="given", group="given", text="given")
    build_corpus(raw_catalogue(), asked, tmp_path / "out", TEMPORAL)  # i4 comes last of all
    found = table(tmp_path / "out", "queries").select("query_id", "item_index", "split")
    assert found.rows()[:3] == [("q0", [3], "test"), ("q1", [0], "train"), ("q2", [0], "train")]
    assert found.rows()[3] == ("given", [3], "train")  # a given split stays, and the item is seen
    assert not cold_start_items(Corpus.load(tmp_path / "out"))[3]
    build_corpus(raw_catalogue(), asked[:3], tmp_path / "without", TEMPORAL)
    assert cold_start_items(Corpus.load(tmp_path / "without"))[3]


def test_item_of_a_train_query_alone_is_seen_and_indexed(tmp_path):
    asked = queries_of(("i4",), split="train")
    description = build_corpus(raw_catalogue(), asked, tmp_path / "out", SETTINGS)
    assert description["counts"]["cold_start_items"] == 0
    corpus = Corpus.load(tmp_path / "out")
    assert not cold_start_items(corpus).any()  # i3 is b's last, and one of a's train items
    assert items_to_index(corpus).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("split", ["leave_last_out", "temporal"])
def test_no_batch_of_training_holds_a_cold_item(tmp_path, split):
    raw, asked = make_synthetic(SIZES, tmp_path / "scratch")
    settings = replace(MADE, split=split, cold_item_fraction=0.1)
    counts = build_corpus(raw, asked, tmp_path / "corpus", settings)["counts"]
    corpus = Corpus.load(tmp_path / "corpus")
    cold = cold_start_items(corpus)
    held_out = torch.from_numpy(held_out_items(pl.Series(corpus.item_ids()), 0.1))
    assert counts["items_held_out"] == held_out.sum() == 6
    assert cold[held_out].all()
    assert not cold[torch.tensor(corpus.train_interactions().item_index)].any()
    assert not cold[torch.tensor(query_item_pairs(corpus, rows="pair").item_values)].any()
    batches = GeneratorDataModule(str(corpus.folder)).lay_out(0, 1)
    for examples in (batches.search, batches.recommendation):
        for turn in range(5):
            batch = examples.batch(np.arange(len(examples)), seed=1, turn=turn)
            for items in (batch.target, batch.history, batch.indexed_item):
                assert not cold[items[items >= 0]].any()
    found = [
        len(cold_start_requests(of(corpus, "test"), cold)[0])
        for of in (search_requests, recommendation_requests)
    ]
    assert found == [
        counts["cold_start_requests_search"],
        counts["cold_start_requests_recommendation"],
    ]
    assert found[0] > 0


def test_share_out_of_range_is_refused():
    with pytest.raises(ConfigError, match=r"cold_item_fraction must lie in \[0, 1\), got 1"):
        replace(SETTINGS, cold_item_fraction=1.0)
