"""Settings of ``sidrec prepare``; imports no table library, so that ``--help`` is quick."""

from dataclasses import dataclass
from typing import Literal

from sidrec.errors import ConfigError

TimeUnit = Literal["s", "ms", "us"]
Generation = Literal[2014, 2018, 2023]  # collections of Amazon reviews
TextField = Literal["title", "brand", "categories", "price", "features", "description", "details"]
MissingTitles = Literal["fill", "keep", "drop"]


@dataclass(frozen=True, slots=True)
class BuildSettings:
    """Build settings: all choices that turn a raw catalogue into a corpus.

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
        cold_item_fraction: Share of the items that training never sees, for cold-start figures:
            their interactions and queries are test, or left out and counted; 0 holds out none.
        exclude_history: Items of a user's history are not recommended to the user; generator,
            validation and baselines read it from the corpus.

    Raises:
        ConfigError: If a fraction or count is out of range.
    """

    min_item_interactions: int = 0
    split: Literal["leave_last_out", "temporal"] = "leave_last_out"
    temporal_fractions: tuple[float, float] = (0.1, 0.1)
    test_query_fraction: float = 0.2
    valid_query_fraction: float = 0.05
    unknown_items: Literal["error", "drop"] = "error"
    exclude_history: bool = True
    cold_item_fraction: float = 0.0

    def __post_init__(self) -> None:
        if self.min_item_interactions < 0:
            raise ConfigError(
                f"min_item_interactions must be 0 or more, got {self.min_item_interactions}."
            )
        for name in ("test_query_fraction", "valid_query_fraction", "cold_item_fraction"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} must lie in [0, 1), got {getattr(self, name)}.")
        test, valid = self.temporal_fractions
        if test < 0 or valid < 0 or test + valid >= 1:
            raise ConfigError(
                f"temporal_fractions must be positive and sum to less than 1, got {test}, {valid}."
            )


DEFAULT_BUILD = BuildSettings()


@dataclass(frozen=True)  # no slots: jsonargparse reads __dict__
class RecBoleFields:
    """RecBole field names that sidrec reads.

    Attributes:
        user: User field of ``.inter``.
        item: Item field of ``.inter`` and ``.item``.
        time: Time field of ``.inter``; ``position`` takes the order of the rows for the order in
            time.
        rating: Rating field of ``.inter``; a file without it has no ratings.
        title: Title field of ``.item``; None takes the first field whose name contains title or
            name.
    """

    user: str = "user_id"
    item: str = "item_id"
    time: str = "timestamp"
    rating: str = "rating"
    title: str | None = None


DEFAULT_FIELDS = RecBoleFields()
