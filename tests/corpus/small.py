"""A corpus small enough to know by heart."""

from pathlib import Path

import polars as pl

from sidrec.corpus.build.build_corpus import build_corpus
from sidrec.corpus.prepare_settings import BuildSettings
from sidrec.corpus.sources.raw_catalogue import RawCatalogue, RawQuery

# user, item, timestamp, in the order of the source; b's two rows of moment 5 are a tie
ROWS = [
    ("b", "i2", 5),
    ("a", "i1", 30),
    ("b", "i3", 5),
    ("a", "i2", 10),
    ("a", "i3", 20),
    ("b", "i1", 1),
    ("c", "i1", 7),
    ("a", "i4", 40),
    ("c", "i2", 8),
]
SETTINGS = BuildSettings(
    min_item_interactions=0,
    split="leave_last_out",
    temporal_fractions=(0.2, 0.2),
    test_query_fraction=0.5,
    valid_query_fraction=0.0,
    unknown_items="error",
)
QUERIES = [
    RawQuery("q1", "first item", ("i1",), "g1", "train", "tests"),
    RawQuery("q2", "the very first", ("i1",), "g1", "train", "tests"),
    RawQuery("q3", "second or third", ("i3", "i2"), "g2", "test", "tests"),
    RawQuery("q4", "fourth", ("i4",), "g3", "valid", "tests"),
]


def raw_catalogue(rows=ROWS, item_ids=("i1", "i2", "i3", "i4"), **changes) -> RawCatalogue:
    items = pl.DataFrame(
        {
            "item_id": list(item_ids),
            "title": [f"Title {item_id}" for item_id in item_ids],
            "text": [f"Text of {item_id}." for item_id in item_ids],
            "genres": [["x", "y"]] * len(item_ids),
        },
        schema_overrides={"item_id": pl.String, "title": pl.String, "text": pl.String},
    )
    schema = {"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64}
    interactions = pl.LazyFrame(rows, schema=schema, orient="row").with_columns(
        rating=pl.lit(3.5, pl.Float32)
    )
    raw = RawCatalogue(items, interactions, "items.csv", "ratings.csv", "tests", "none")
    return raw._replace(**changes)


def build_small(folder: Path, queries=QUERIES, **changes) -> dict:
    return build_corpus(raw_catalogue(**changes), queries, folder, SETTINGS)
