"""What readers hand to the builder: a catalogue with the user's own ids, nothing indexed yet."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import polars as pl

from sidrec.errors import ConfigError

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")  # position = code in derived files


class RawQuery(NamedTuple):
    """One query with the items that answer it, before items are indexed.

    Attributes:
        query_id: Unique over all queries of a corpus.
        text: What the user typed; not empty.
        item_ids: The catalogue's own ids of the answers; at least one.
        group: A query and its paraphrases share a group; a group never spans two splits.
        split: Where the query belongs; ``""`` lets the builder decide by a hash of the group.
        source: Where the query comes from (file stem, ``template``, model name).
        place: File and line it was read from, for messages; empty when it was read from none.
        weights: How much each of ``item_ids`` answers the query, ``> 0``; empty: all alike. A
            training pair draws its item in proportion.
    """

    query_id: str
    text: str
    item_ids: tuple[str, ...]
    group: str
    split: Literal["train", "valid", "test", ""]
    source: str
    place: str = ""
    weights: tuple[float, ...] = ()


class RawCatalogue(NamedTuple):
    """Items and interactions as read from a source.

    Attributes:
        items: item_id string, title string, text string, then attribute columns; row order
            becomes the order of item_index.
        interactions: user_id string, item_id string, timestamp int64 (seconds), rating float32
            or null; scanned lazily, row order is the order of the source and breaks ties.
        items_name: File the items came from, for messages.
        interactions_name: File the interactions came from, for messages; empty where the source
            has none, which makes a corpus for search alone.
        source: One word for the source, e.g. ``movielens``.
        license: What the publisher asks of those who use the data.
    """

    items: pl.DataFrame
    interactions: pl.LazyFrame
    items_name: str
    interactions_name: str
    source: str
    license: str


@dataclass(frozen=True, slots=True)
class BuildSettings:
    """Every choice that turns a raw catalogue into one particular corpus.

    Attributes:
        min_item_interactions: Items with fewer interactions are left out; 0 keeps every item.
        split: ``leave_last_out``: per user the last interaction is test, the one before valid;
            users with fewer than three are all train. ``temporal``: by time, see
            ``temporal_fractions``.
        temporal_fractions: Share of all interactions, latest first, that is test, and the share
            before it that is valid; read by ``temporal`` only.
        test_query_fraction: Share of the query groups without a given split that is test.
        valid_query_fraction: Share of the train groups that is moved to valid.
        unknown_items: ``error`` refuses interactions and queries of items that the catalogue
            lacks; ``drop`` leaves them out and counts them.

    Raises:
        ConfigError: If a fraction or count is out of range.
    """

    min_item_interactions: int = 0
    split: Literal["leave_last_out", "temporal"] = "leave_last_out"
    temporal_fractions: tuple[float, float] = (0.1, 0.1)
    test_query_fraction: float = 0.2
    valid_query_fraction: float = 0.05
    unknown_items: Literal["error", "drop"] = "error"

    def __post_init__(self) -> None:
        if self.min_item_interactions < 0:
            raise ConfigError(
                f"min_item_interactions must be 0 or more, got {self.min_item_interactions}."
            )
        for name in ("test_query_fraction", "valid_query_fraction"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} must lie in [0, 1), got {getattr(self, name)}.")
        test, valid = self.temporal_fractions
        if test < 0 or valid < 0 or test + valid >= 1:
            raise ConfigError(
                f"temporal_fractions must be positive and sum to less than 1, got {test}, {valid}."
            )


DEFAULT_BUILD = BuildSettings()
