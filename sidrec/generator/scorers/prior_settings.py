"""Settings of the prior over items."""

from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

from annotated_types import Interval

from sidrec.errors import ConfigError
from sidrec.settings import PositiveFloat, PositiveInt, Probability, Settings

SearchScorer: TypeAlias = Literal["dense", "lexical"]
RecommendationScorer: TypeAlias = Literal["dense", "next_item", "popularity"]


@dataclass(frozen=True, kw_only=True)
class NextItemSettings(Settings):
    """Ridge regression from a history to the next item.

    Attributes:
        half_life_items: Number of history items over which a weight halves, ``> 0``.
        max_history_items: Number of most recent items to use, at least 1.
        ridge: Penalty on the squared weights, in squared history weights, ``> 0``.
        num_folds: Groups of users in the cross-fit of training, at least 2; each needs one more
            fit and one more matrix of ``items * items`` float32.
        max_dense_items: Largest catalogue with a dense map; larger ones get a low-rank map.
        rank: Rank of the low-rank map, at least 1.
    """

    half_life_items: PositiveFloat = 10.0
    max_history_items: PositiveInt = 30
    ridge: PositiveFloat = 1000.0
    num_folds: Annotated[int, Interval(ge=2)] = 4
    max_dense_items: PositiveInt = 30_000
    rank: PositiveInt = 512


@dataclass(frozen=True, kw_only=True)
class PriorSettings(Settings):
    """Scorers of the prior over items, and the training of their weights.

    Attributes:
        search: Scorers of queries: ``dense``, ``lexical``; empty: T5 ranks alone.
        recommendation: Scorers of histories: ``dense``, ``next_item``, ``popularity``; empty: T5
            ranks alone.
        learning_rate: Peak of AdamW for the logarithms of the weights, ``> 0``.
        dropout: Probability in training that an example has no prior, in [0, 1), so that T5
            learns to rank alone. Indexing examples never have one.
        calibration_floor: Floor ``f`` in [0, 1) of the calibration for answering, which maximizes
            the mean of ``ln(p + f)`` over validation targets of probability ``p``. 0 maximizes
            their likelihood. With .01, targets below one in a hundred, which no list reaches, count
            about alike, and the weights suit the tops of lists.
        dense_half_life_items: Number of history items over which the dense scorer halves a
            weight, ``> 0``.
        next_item: Regression of the scorer ``next_item``.
        max_exact_items: Largest catalogue with an exact prior, which takes
            ``4 * requests * items`` bytes per scorer. In larger ones T5 searches alone and the
            prior re-ranks the finished beams.
    """

    search: tuple[SearchScorer, ...] = ("dense", "lexical")
    recommendation: tuple[RecommendationScorer, ...] = ("dense", "next_item", "popularity")
    learning_rate: PositiveFloat = 0.02
    dropout: Probability = 0.0
    calibration_floor: Probability = 0.0
    dense_half_life_items: PositiveFloat = 3.0
    next_item: NextItemSettings = NextItemSettings()
    max_exact_items: PositiveInt = 1_000_000

    def __post_init__(self) -> None:
        super().__post_init__()
        for task in ("search", "recommendation"):
            names = getattr(self, task)
            if len(set(names)) < len(names):
                raise ConfigError(f"prior.{task} names a scorer twice: {', '.join(names)}.")
