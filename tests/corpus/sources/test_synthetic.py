from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from sidrec.corpus.sources import synthetic
from sidrec.corpus.sources.splits import normalized
from sidrec.corpus.sources.synthetic import SyntheticSettings, make_synthetic
from sidrec.errors import ConfigError

SMALL = SyntheticSettings(
    num_items=200,
    num_users=300,
    num_interactions=6_000,
    num_topics=10,
    zipf_exponent=1.0,
    queries_per_item=1,
    seed=3,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    raw, queries = make_synthetic(SMALL, tmp_path_factory.mktemp("scratch"))
    return raw.items, raw.interactions.collect(), queries


def test_sizes_and_order(made):
    items, interactions, queries = made
    assert items.height == 200
    assert items["text"].n_unique() == 200
    assert interactions["user_id"].n_unique() == 300
    assert 3_000 < interactions.height <= 7_500
    assert interactions.select("user_id", "item_id").is_duplicated().sum() == 0
    assert set(interactions["item_id"]) <= set(items["item_id"])
    assert interactions.select((pl.col("timestamp").diff().over("user_id") > 0).all()).item()
    assert len(queries) == 400


def test_same_seed_same_catalogue_written_in_chunks(tmp_path, made, monkeypatch):
    raw, queries = make_synthetic(SMALL, tmp_path / "again")
    assert raw.items.equals(made[0])
    assert raw.interactions.collect().equals(made[1])
    assert queries == made[2]
    other, _ = make_synthetic(replace(SMALL, seed=4), tmp_path / "other")
    assert not other.interactions.collect().equals(made[1])
    monkeypatch.setattr(synthetic, "_ROWS_AT_ONCE", 1_000)
    make_synthetic(SMALL, tmp_path / "chunks")
    assert len(list((tmp_path / "chunks").iterdir())) == 6


def test_recommendation_can_be_learned(made):
    topic = made[1]["item_id"].str.slice(1).cast(pl.Int64).to_numpy() % 10
    user = made[1]["user_id"].to_numpy()
    same_user = user[1:] == user[:-1]
    assert np.mean(topic[1:][same_user] == topic[:-1][same_user]) > 0.5  # 0.1 by chance
    rank = made[1]["item_id"].str.slice(1).cast(pl.Int64) // 10
    assert rank.is_in([0, 1, 2, 3]).mean() > 0.3  # 0.2 by chance


def test_search_can_be_learned(made):
    texts = dict(zip(made[0]["item_id"], made[0]["text"], strict=True))
    for query in made[2]:
        words = set(normalized(texts[query.item_ids[0]]).split())
        assert set(query.text.split()) <= words
    originals = [query for query in made[2] if query.query_id.endswith("-o")]
    assert len({query.text.split()[0] for query in originals}) == 200  # each item's own word


def test_words_are_distinct():
    assert len({synthetic._word(index) for index in range(20_000)}) == 20_000


@pytest.mark.parametrize("change", [{"num_items": 0}, {"num_topics": 201}, {"num_users": -1}])
def test_impossible_sizes_are_refused(change):
    with pytest.raises(ConfigError, match=r"must be 1 or more|topics need as many items"):
        replace(SMALL, **change)
