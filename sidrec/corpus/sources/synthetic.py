"""Synthetic catalogue of any size, from which search and recommendation can be learned."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Float64, Int64

from sidrec.corpus.sources.raw_catalogue import RawCatalogue, RawQuery
from sidrec.errors import ConfigError

_ROWS_AT_ONCE = 1_000_000
_ITEMS_AT_ONCE = 100_000
_WORDS_PER_TOPIC = 40
_SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
_FIRST_MOMENT, _LAST_MOMENT = 946_684_800, 1_577_836_800  # 2000 to 2020, seconds
_WITHIN_TOPIC = 0.9  # share of the draws from the user's own topics
_GO_ON = 0.5  # chance that the next item is the one that follows in its topic


@dataclass(frozen=True, slots=True)
class SyntheticSettings:
    """Size and shape of a synthetic catalogue.

    Attributes:
        num_items: Number of items.
        num_users: Number of users.
        num_interactions: Draws; a user's repeats are left out, so somewhat fewer remain.
        num_topics: Number of topics, of equal size, each with words of its own.
        zipf_exponent: The item at popularity rank r of its topic is drawn in proportion to
            ``(r + 1) ** -zipf_exponent``.
        queries_per_item: Queries for each item, each with one paraphrase.
        seed: Seed of all draws; the same seed gives the same catalogue.

    Raises:
        ConfigError: If a size is not positive, or there are more topics than items.
    """

    num_items: int
    num_users: int
    num_interactions: int
    num_topics: int
    zipf_exponent: float
    queries_per_item: int
    seed: int

    def __post_init__(self) -> None:
        for name in ("num_items", "num_users", "num_interactions", "num_topics"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be 1 or more, got {getattr(self, name)}.")
        if self.queries_per_item < 0:
            raise ConfigError(f"queries_per_item must be 0 or more, got {self.queries_per_item}.")
        if self.num_topics > self.num_items:
            raise ConfigError(
                f"{self.num_topics} topics need as many items, got {self.num_items}; "
                "lower --topics."
            )


def make_synthetic(
    settings: SyntheticSettings, scratch: Path
) -> tuple[RawCatalogue, list[RawQuery]]:
    """Draw a synthetic catalogue: items, interactions and queries.

    Item i belongs to topic ``i % num_topics`` at popularity rank ``i // num_topics``. A user has
    one to three topics; an item is drawn from them by popularity, or is the next in rank after the
    previous item. Both taste and order therefore carry information about the next item.

    Args:
        settings: Sizes and seed.
        scratch: Folder for the interactions, written in chunks: memory does not grow with them.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    for number, users in enumerate(_user_slices(settings)):
        _interactions(settings, users).write_parquet(scratch / f"{number:06d}.parquet")
    raw = RawCatalogue(
        _items(settings),
        pl.scan_parquet(sorted(scratch.glob("*.parquet")), glob=False, hive_partitioning=False),
        "synthetic items",
        "synthetic interactions",
        source="synthetic",
        license="made up; no rights reserved",
    )
    return raw, list(_queries(settings))


def _user_slices(settings: SyntheticSettings) -> Iterator[range]:
    per_user = settings.num_interactions / settings.num_users
    step = max(1, int(_ROWS_AT_ONCE / per_user))
    for start in range(0, settings.num_users, step):
        yield range(start, min(start + step, settings.num_users))


def _interactions(settings: SyntheticSettings, users: range) -> pl.DataFrame:
    rng = np.random.default_rng([settings.seed, 1, users.start])
    lengths = _lengths(settings, users, rng)
    user = np.repeat(np.arange(users.start, users.stop), lengths)
    topics = rng.integers(settings.num_topics, size=(len(users), 3))
    own_topic = topics[user - users.start, rng.integers(3, size=len(user))]
    any_topic = rng.integers(settings.num_topics, size=len(user))
    topic = np.where(rng.random(len(user)) < _WITHIN_TOPIC, own_topic, any_topic)
    rank = _zipf_ranks(settings, rng.random(len(user)))

    place = np.arange(len(user))
    starts = rng.random(len(user)) >= _GO_ON
    starts[np.cumsum(lengths) - lengths] = True
    start = np.maximum.accumulate(np.where(starts, place, 0))
    sizes = (settings.num_items - topic[start] - 1) // settings.num_topics + 1
    rank_now = (rank[start] + place - start) % sizes
    item = topic[start] + rank_now * settings.num_topics

    moment = rng.integers(_FIRST_MOMENT, _LAST_MOMENT, size=len(users))[user - users.start]
    since = np.cumsum(rng.integers(1, 100_000, size=len(user)))
    since -= np.repeat(since[np.cumsum(lengths) - lengths], lengths)
    drawn = pl.DataFrame({"user": user, "item": item, "timestamp": (moment + since) * 1_000_000})
    return drawn.unique(["user", "item"], keep="first", maintain_order=True).select(
        pl.format("u{}", "user").alias("user_id"),
        pl.format("i{}", "item").alias("item_id"),
        "timestamp",
        pl.lit(None, pl.Float32).alias("rating"),
    )


def _lengths(
    settings: SyntheticSettings, users: range, rng: np.random.Generator
) -> Int64[np.ndarray, " user"]:
    mean = settings.num_interactions / settings.num_users
    return rng.geometric(min(1.0, 1 / mean), size=len(users))


def _zipf_ranks(
    settings: SyntheticSettings, uniform: Float64[np.ndarray, " draw"]
) -> Int64[np.ndarray, " draw"]:
    size = -(-settings.num_items // settings.num_topics)
    weights = np.arange(1, size + 1, dtype=np.float64) ** -settings.zipf_exponent
    cumulative = np.cumsum(weights) / weights.sum()
    return np.searchsorted(cumulative, uniform).clip(max=size - 1)


def _items(settings: SyntheticSettings) -> pl.DataFrame:
    starts = range(0, settings.num_items, _ITEMS_AT_ONCE)
    ends = (min(start + _ITEMS_AT_ONCE, settings.num_items) for start in starts)
    parts = [_some_items(settings, range(*bounds)) for bounds in zip(starts, ends, strict=True)]
    return pl.concat(parts)


def _some_items(settings: SyntheticSettings, item: range) -> pl.DataFrame:
    words = [_words_of(settings, index) for index in item]
    return pl.DataFrame(
        {
            "item_id": [f"i{index}" for index in item],
            "title": [" ".join(chosen[:3]) for chosen in words],
            "text": [f"{' '.join(chosen[:3])}. {' '.join(chosen[3:])}." for chosen in words],
            "topic": [index % settings.num_topics for index in item],
        }
    )


def _words_of(settings: SyntheticSettings, item: int) -> list[str]:
    """Return two words of the item's own, then words of its topic."""
    rng = np.random.default_rng([settings.seed, 2, item])
    topic = item % settings.num_topics
    own = settings.num_topics * _WORDS_PER_TOPIC + 2 * item
    chosen = topic * _WORDS_PER_TOPIC + rng.choice(_WORDS_PER_TOPIC, size=9, replace=False)
    return [_word(own), _word(own + 1), *(_word(int(index)) for index in chosen)]


def _queries(settings: SyntheticSettings) -> Iterator[RawQuery]:
    asked = settings.num_items if settings.queries_per_item else 0  # words take most of the time
    for item in range(asked):
        words = _words_of(settings, item)
        rng = np.random.default_rng([settings.seed, 3, item])
        for number in range(settings.queries_per_item):
            for kind, own in (("o", words[0]), ("p", words[1])):
                topic_words = rng.choice(words[2:], size=3, replace=False).tolist()
                group = f"synthetic-{item}-{number}"
                text = " ".join([own, *topic_words])
                yield RawQuery(f"{group}-{kind}", text, (f"i{item}",), group, "", "synthetic")


def _word(index: int) -> str:
    """Return a made-up word, a different one for each index."""
    syllables = []
    for _ in range(2):
        index, digit = divmod(index, len(_SYLLABLES))
        syllables.append(_SYLLABLES[digit])
    while index:
        index, digit = divmod(index, len(_SYLLABLES))
        syllables.append(_SYLLABLES[digit])
    return "".join(syllables)
