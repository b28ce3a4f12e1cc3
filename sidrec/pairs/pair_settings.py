"""Settings of the pair data module: tokens, tasks and item-item pairs."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Interval

from sidrec.pairs.item_item import Weighting
from sidrec.settings import NonNegativeFloat, PositiveInt, Settings


@dataclass(frozen=True, kw_only=True)
class TokenSettings(Settings):
    """Tokenizer of the pairs' texts; encoder, revision and prompts must equal the model's.

    Attributes:
        encoder: Encoder whose tokenizer cuts the texts: hub name, folder, or
            ``package:NAME/FOLDER``.
        revision: Branch, tag or commit on the hub; None takes the newest.
        query_prompt: Text before every query; None takes the encoder's.
        item_prompt: Text before every item text; None takes the encoder's.
        max_query_tokens: Tokens of a query, at most, ``>= 3``: special tokens included, the prompt
            excluded.
        max_item_tokens: Tokens of an item text, at most, ``>= 3``: special tokens included, the
            prompt excluded.
        cache: Folder for tokenized texts; None puts them beside the corpus, or under the user's
            cache folder where the corpus cannot be written.
    """

    encoder: str = "sentence-transformers/all-mpnet-base-v2"
    revision: str | None = None
    query_prompt: str | None = None
    item_prompt: str | None = None
    max_query_tokens: Annotated[int, Interval(ge=3)] = 32
    max_item_tokens: Annotated[int, Interval(ge=3)] = 128
    cache: str | None = None


@dataclass(frozen=True, kw_only=True)
class PairTaskSettings(Settings):
    """Shares of both tasks in the training batches.

    An epoch uses all batches of the task that is scarcer for its share, and a sample of the other.

    Attributes:
        query_item_share: Share of the batches that are query-item, any scale; 0 switches the task
            off.
        item_item_share: Share of the batches that are item-item; 0 switches the task off.
        query_rows: ``query``: every query once an epoch, with one of its items; ``pair``: every
            (query, item) once.
    """

    query_item_share: NonNegativeFloat = 1.0
    item_item_share: NonNegativeFloat = 1.0
    query_rows: Literal["query", "pair"] = "query"


@dataclass(frozen=True, kw_only=True)
class ItemPairSettings(Settings):
    """Item-item pairs drawn from train histories.

    Attributes:
        window_size: Interactions between the two items of a pair, at most.
        max_anchors_per_user: Anchors of one user per epoch, at most.
        weighting: Draw of the partner within the window: ``uniform`` or ``inverse_distance``.
    """

    window_size: PositiveInt = 5
    max_anchors_per_user: PositiveInt = 100
    weighting: Weighting = "uniform"
