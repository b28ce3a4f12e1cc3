import datasets
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from sidrec import Corpus
from sidrec.corpus.prepare_settings import BuildSettings
from sidrec.errors import ConfigError, DataError

ITEMS = {
    "item_id": ["a", "b", "c", "d"],
    "title": ["Glue", "Tape", "Nail", "Saw"],
    "size": [1, 2, 3, 4],
}
LOG = {
    "user_id": [7, 7, 7, 8],
    "item_id": ["a", "b", "c", "d"],
    "timestamp": [30, 10, 20, 5],
    "rating": [1.0, 2.0, 3.0, 4.0],
}
QUERIES = {"query_id": ["q1", "q2"], "query": ["sticks", "cuts"], "item_ids": [["a", "b"], ["d"]]}
MAKERS = {
    "pandas": lambda columns: pd.DataFrame(columns).rename(lambda row: row + 10),
    "polars": pl.DataFrame,
    "arrow": pa.table,
    "datasets": datasets.Dataset.from_dict,
    "a dictionary of one split": lambda columns: datasets.DatasetDict(
        {"full": datasets.Dataset.from_dict(columns)}
    ),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_every_kind_of_table_makes_the_same_corpus(kind, tmp_path):
    make = MAKERS[kind]
    corpus = Corpus.from_frames(make(ITEMS), make(LOG), make(QUERIES), folder=tmp_path / "corpus")
    assert corpus.folder == tmp_path / "corpus"
    assert corpus.item_texts() == ["Glue", "Tape", "Nail", "Saw"]
    assert corpus.items["size"][:] == [1, 2, 3, 4]
    assert corpus.interactions["item_index"][:] == [1, 2, 0, 3]
    assert corpus.interactions["user_id"][:] == ["7", "7", "7", "8"]
    assert corpus.interactions["split"][:] == ["train", "valid", "test", "train"]
    assert corpus.queries["item_index"][:] == [[0, 1], [3]]
    mixed = Corpus.from_frames(pl.DataFrame(ITEMS), pd.DataFrame(LOG), pa.table(QUERIES))
    assert mixed.fingerprint == corpus.fingerprint


def test_one_task_alone_and_settings():
    search = Corpus.from_frames(pl.DataFrame(ITEMS), queries=pl.DataFrame(QUERIES))
    assert (search.num_users, len(search.queries)) == (0, 2)
    settings = BuildSettings(
        min_item_interactions=1, split="temporal", temporal_fractions=(0.25, 0.25)
    )
    histories = Corpus.from_frames(pl.DataFrame(ITEMS), pl.DataFrame(LOG), settings=settings)
    assert len(histories.queries) == 0
    assert histories.description["counts"]["interactions_test"] == 1


def test_a_data_set_by_name(tmp_path):
    pl.DataFrame(ITEMS).write_parquet(tmp_path / "items.parquet")
    cache = str(tmp_path / "cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
        corpus = Corpus.from_frames(str(tmp_path), pl.DataFrame(LOG))
    assert corpus.num_items == 4


@pytest.mark.parametrize(
    ("items", "queries", "error", "message"),
    [
        ([1, 2], None, ConfigError, "items is a builtins.list; give a pandas or polars"),
        (pl.DataFrame({"id": [1]}), None, DataError, "items has no column 'item_id'"),
        (
            pl.DataFrame(ITEMS | {"item_id": ["a", "a", "c", "d"]}),
            None,
            DataError,
            "items row 2: item_id",
        ),
        (
            pl.DataFrame(ITEMS),
            pl.DataFrame(QUERIES | {"query": ["x", ""]}),
            DataError,
            "queries row 2: q",
        ),
        (
            pl.DataFrame(ITEMS),
            pl.DataFrame({"query": ["x"]}),
            DataError,
            "queries has no column 'query_id'",
        ),
        (pd.DataFrame({"item_id": ["a", 1]}), None, DataError, "items: "),
        ("/no/such/folder", None, DataError, "items: data set '/no/such/folder' cannot be loaded"),
    ],
)
def test_bad_tables_are_named(items, queries, error, message):
    with pytest.raises(error) as raised:
        Corpus.from_frames(items, pl.DataFrame(LOG), queries)
    assert message in str(raised.value)


def test_several_splits_are_refused():
    splits = datasets.DatasetDict(dict.fromkeys(("a", "b"), datasets.Dataset.from_dict(ITEMS)))
    with pytest.raises(ConfigError, match="the data set has the splits a, b; give one of them"):
        Corpus.from_frames(splits)
