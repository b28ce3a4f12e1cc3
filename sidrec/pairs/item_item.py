"""Item–item pairs: two neighboring items of one user's train history."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from sidrec.corpus.store import Interactions
from sidrec.errors import ConfigError
from sidrec.pairs.query_item import DrawnPairs
from sidrec.training.counter_rng import key_of, uniform

Weighting = Literal["uniform", "inverse_distance"]
_ROWS_AT_ONCE = 1 << 20


@dataclass(frozen=True, slots=True)
class ItemItemPairs:
    """Item-item pairs as virtual rows: a row is a user and one of that user's anchors.

    Only one running count per user is materialized. A user with one interaction has no pair; a user
    with more than ``cap`` interactions gives ``cap`` anchors an epoch, one from each of ``cap``
    equal sections of the history, drawn anew every epoch.

    Attributes:
        interactions: Train interactions only, sorted by user, then time.
        row_starts: Rows of user ``u`` are ``[row_starts[u], row_starts[u + 1])``.
        window: Distance between an anchor and its partner, at most, in interactions.
        cap: Anchors that one user gives in an epoch, at most.
        weighting: How the partner is drawn from the window: ``uniform``, or in inverse proportion
            to distance (``inverse_distance``). An item is its own partner only where the window
            holds no other item. An interaction's weight multiplies its chance to be the partner.
    """

    interactions: Interactions
    row_starts: Int64[np.ndarray, " user_plus_1"]
    window: int
    cap: int
    weighting: Weighting

    def __len__(self) -> int:
        return int(self.row_starts[-1])

    def draw(self, rows: Int64[np.ndarray, " pair"], *, seed: int, epoch: int) -> DrawnPairs:
        """Return the pairs of some rows; the same arguments give the same pairs."""
        anchor, first, end = self._anchors(rows, seed=seed, epoch=epoch)
        steps = np.arange(1, self.window + 1)
        offsets = np.concatenate([-steps[::-1], steps])
        places = anchor[:, None] + offsets  # [pair, 2 * window]
        inside = (places >= first[:, None]) & (places < end[:, None])
        items = self.interactions.item_index
        left = np.asarray(items[anchor])
        around = np.where(inside, items[np.where(inside, places, anchor[:, None])], -1)
        chance = self._weights(offsets, inside, around != left[:, None])
        if self.interactions.weight is not None:
            chance = chance * self.interactions.weight[np.where(inside, places, anchor[:, None])]
        share = uniform(rows, key=key_of(seed, epoch, "partner"))
        chosen = _draw_column(chance, share)
        right = around[np.arange(len(rows)), chosen]
        known = np.concatenate([left[:, None], around], axis=1)
        return DrawnPairs(left, right, known)

    def log_frequency(self, num_items: int) -> Float32[np.ndarray, " item"]:
        """Return ln(probability that a row's right side is the item); -inf if it never is.

        A user counts with as many draws as anchors, spread evenly over the history: in a history
        longer than ``cap`` an interaction weighs ``cap / length``. The ends of a history, which are
        in fewer windows, count like the rest. Weights share out a user's draws in proportion.
        """
        users, items = self.interactions.user_index, self.interactions.item_index
        own, num_users = self.interactions.weight, len(self.row_starts) - 1
        sums = np.diff(self.interactions.user_starts)
        if own is not None:
            sums = np.bincount(users, weights=own, minlength=num_users)
        share = np.diff(self.row_starts) / np.where(sums > 0, sums, 1)
        total = np.zeros(num_items)
        for first in range(0, len(items), _ROWS_AT_ONCE):
            part = slice(first, first + _ROWS_AT_ONCE)
            each = share[users[part]] if own is None else share[users[part]] * own[part]
            total += np.bincount(items[part], weights=each, minlength=num_items)
        with np.errstate(divide="ignore"):
            logarithm: Float32[np.ndarray, " item"] = np.log(total / total.sum()).astype(np.float32)
        return logarithm

    def _anchors(
        self, rows: Int64[np.ndarray, " pair"], *, seed: int, epoch: int
    ) -> tuple[Int64[np.ndarray, " pair"], Int64[np.ndarray, " pair"], Int64[np.ndarray, " pair"]]:
        """Return place of the anchor, and first place and end of its user's history."""
        user = np.searchsorted(self.row_starts, rows, side="right") - 1
        slot = rows - self.row_starts[user]
        num_slots = self.row_starts[user + 1] - self.row_starts[user]
        first = np.asarray(self.interactions.user_starts[user])
        end = np.asarray(self.interactions.user_starts[user + 1])
        length = end - first
        low, high = slot * length // num_slots, (slot + 1) * length // num_slots
        share = uniform(rows, key=key_of(seed, epoch, "anchor"))
        return first + low + (share * (high - low)).astype(np.int64), first, end

    def _weights(
        self,
        offsets: Int64[np.ndarray, " place"],
        inside: Bool[np.ndarray, "pair place"],
        other: Bool[np.ndarray, "pair place"],
    ) -> Float64[np.ndarray, "pair place"]:
        by_distance = 1.0 / np.abs(offsets) if self.weighting == "inverse_distance" else 1.0
        wanted = inside & other
        wanted = np.where(wanted.any(axis=1, keepdims=True), wanted, inside)  # no other item
        weights: Float64[np.ndarray, "pair place"] = wanted * by_distance
        return weights


def item_item_pairs(
    interactions: Interactions, *, window: int, cap: int, weighting: Weighting
) -> ItemItemPairs:
    """Build the item-item pairs of train histories.

    Args:
        interactions: Result of ``Corpus.train_interactions()``.
        window: Distance of a pair, at most, in interactions, 1 or more.
        cap: Anchors per user and epoch, 1 or more.
        weighting: ``uniform`` or ``inverse_distance``.

    Raises:
        ConfigError: If a setting is out of range.
    """
    if window < 1 or cap < 1:
        raise ConfigError(f"window and cap must be 1 or more, got {window} and {cap}.")
    lengths = np.diff(interactions.user_starts)
    slots = np.where(lengths > 1, np.minimum(lengths, cap), 0)
    row_starts = np.zeros(len(slots) + 1, dtype=np.int64)
    np.cumsum(slots, out=row_starts[1:])
    return ItemItemPairs(interactions, row_starts, window, cap, weighting)


def _draw_column(
    weights: Float64[np.ndarray, "row column"], share: Float64[np.ndarray, " row"]
) -> Int64[np.ndarray, " row"]:
    """Draw one column per row in proportion to its weight, from one number in [0, 1) per row."""
    running = np.cumsum(weights, axis=1)
    goal = share * running[:, -1]
    first_above: Int64[np.ndarray, " row"] = (running > goal[:, None]).argmax(axis=1)
    return first_above
