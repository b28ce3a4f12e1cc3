"""Give items the nearest code that still has room, many groups at once."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor

Array = npt.NDArray[Any]
# From squared errors [row, code], the rows' groups (0, 0, …, 1, …) and the room that codes have
# [group, code] to costs >= 0, float32 [row, code].
Reprice = Callable[[Array, Array, Array], Array]

_BATCH_CELLS = 1 << 22  # items times codes that are looked at together
_CODE_BITS = 16
_CODE_MASK = (1 << _CODE_BITS) - 1


class _Contest(NamedTuple):
    """Items that want codes which cannot hold all of them; one row each."""

    group: Array  # dense number of the group in this batch
    ranking: Array  # [row, code] packed: float32 bits of the error, then the code; ascending
    own_error: Array  # [row] error of the wish


def spread(
    groups: Int[Tensor, " item"],
    wishes: Int[Tensor, " item"],
    errors: Callable[[Int[Tensor, " row"]], Float[Tensor, "row code"]],
    *,
    num_codes: int,
    capacity: int,
    num_fixed: int = 0,
    reprice: Reprice | None = None,
) -> Int[Tensor, " item"]:
    """Give every item a code so that no code of a group holds more than ``capacity`` items.

    Rounds: each item without a code proposes the code with the least error that has room, its
    wish first; where more propose than fit, those win that would lose most by going on to their
    next choice (ties: the lower item). Items whose code is not overfull keep it.

    Args:
        groups: Only items of one group compete; dense from 0. A group has room for all its
            items.
        wishes: Code that each item would like, in ``[0, num_codes)``.
        errors: Squared error of each code for the given items, ``>= 0``; asked once per item.
        num_codes: Codes of a group, at most 65,536.
        capacity: Items that a code can hold, ``>= 1``.
        num_fixed: The first so many items keep their wishes, whatever happens; ``errors`` is
            never asked about them.
        reprice: If given, its costs take the place of errors, and the wish has no precedence.
    """
    keys = groups * num_codes + wishes
    _, where, counts = torch.unique(keys, return_inverse=True, return_counts=True)
    contested = (counts[where] > capacity).nonzero().flatten()
    contested = contested[contested >= num_fixed]
    if len(contested) == 0:
        return wishes
    contested = contested[groups[contested].argsort(stable=True)]
    result = wishes.clone()
    for batch in _batches(contested, groups[contested], most=max(1, _BATCH_CELLS // num_codes)):
        involved, dense = torch.unique(groups[batch], return_inverse=True)
        room = _room(groups, wishes, involved, batch, num_codes=num_codes, capacity=capacity)
        values = errors(batch).float().cpu().clamp(min=0).numpy()
        if reprice is None:
            contest = _contest(dense.numpy(), values, wishes[batch].numpy())
        else:
            costs = reprice(values, dense.numpy(), room.reshape(-1, num_codes))
            contest = _contest(dense.numpy(), costs, None)
        result[batch] = torch.from_numpy(_rounds(contest, room))
    return result


def _batches(items: Tensor, groups: Tensor, *, most: int) -> list[Tensor]:
    """Cut ``items`` (sorted by group) into batches of whole groups of about ``most`` items."""
    _, sizes = torch.unique_consecutive(groups, return_counts=True)
    number = (sizes.cumsum(dim=0) - sizes) // most
    per_batch = torch.zeros(int(number[-1]) + 1, dtype=torch.int64).index_add_(0, number, sizes)
    return [part for part in torch.split(items, per_batch.tolist()) if len(part)]


def _room(
    groups: Tensor,
    wishes: Tensor,
    involved: Tensor,
    batch: Tensor,
    *,
    num_codes: int,
    capacity: int,
) -> Array:
    """Return how many items each code can still take, [group * code], the contested not counted."""
    place = torch.searchsorted(involved, groups).clamp(max=len(involved) - 1)
    settled = involved[place] == groups
    settled[batch] = False
    keys = place[settled] * num_codes + wishes[settled]
    held = torch.bincount(keys, minlength=len(involved) * num_codes)
    return (capacity - held).numpy()


def _contest(group: Array, costs: Array, wish: Array | None) -> _Contest:
    rows = np.arange(len(costs))
    costs = costs + np.float32(0)  # -0.0 becomes 0.0, whose bits sort before all others
    ranking = costs.view(np.int32).astype(np.int64) << _CODE_BITS
    ranking |= np.arange(costs.shape[1])
    own_error = np.zeros(len(costs), dtype=np.float32)
    if wish is not None:
        own_error = costs[rows, wish].copy()
        ranking[rows, wish] = wish - _CODE_MASK - 1  # below all others: the wish first
    ranking.sort(axis=1)
    return _Contest(group, ranking, own_error)


def _rounds(contest: _Contest, room: Array) -> Array:
    num_rows, num_codes = contest.ranking.shape
    result = np.zeros(num_rows, dtype=np.int64)
    active, reached = np.arange(num_rows), np.zeros(num_rows, dtype=np.int64)
    proposed = _first_proposals(contest, room)
    while len(active):
        following = _next_with_room(contest, room, active, proposed + 1)
        regret = _error(contest, active, following) - _error(contest, active, proposed)
        code = contest.ranking[active, proposed] & _CODE_MASK
        slot = contest.group[active] * num_codes + code
        order = np.lexsort((active, -regret, slot))
        wins = np.zeros(len(active), dtype=bool)
        wins[order] = _position_in_run(slot[order]) < room[slot[order]]
        result[active[wins]] = code[wins]
        np.subtract.at(room, slot[wins], 1)
        active = active[~wins]
        proposed = _next_with_room(contest, room, active, reached[active])
        reached[active] = proposed
    return result


def _first_proposals(contest: _Contest, room: Array) -> Array:
    """Return each row's first choice; but rows with equal errors fill their choices in item order.

    That is where the rounds would send them, one code's room after another.
    """
    num_rows, num_codes = contest.ranking.shape
    proposed = np.zeros(num_rows, dtype=np.int64)
    weights = np.random.default_rng(0).integers(1, 2**63, num_codes, dtype=np.int64)
    fingerprint = (contest.ranking * weights).sum(axis=1)
    order = np.lexsort((fingerprint, contest.group))
    pair = np.stack([contest.group, fingerprint], axis=1)[order]
    twin = np.empty(num_rows, dtype=np.int64)
    twin[order] = _position_in_run(pair)
    rows = np.flatnonzero(twin)
    slots = contest.group[rows, None] * num_codes + (contest.ranking[rows] & _CODE_MASK)
    places = np.maximum(room[slots], 0).cumsum(axis=1)
    proposed[rows] = (places > twin[rows, None]).argmax(axis=1)  # 0, the wish, if too few
    return proposed


def _next_with_room(contest: _Contest, room: Array, rows: Array, place: Array) -> Array:
    """Return each row's first choice at or after ``place`` that has room; the end if none has."""
    num_codes = contest.ranking.shape[1]
    place = place.copy()
    moving = np.flatnonzero(place < num_codes)
    while len(moving):
        code = contest.ranking[rows[moving], place[moving]] & _CODE_MASK
        full = room[contest.group[rows[moving]] * num_codes + code] <= 0
        moving = moving[full]
        place[moving] += 1
        moving = moving[place[moving] < num_codes]
    return place


def _error(contest: _Contest, rows: Array, place: Array) -> Array:
    num_codes = contest.ranking.shape[1]
    packed = contest.ranking[rows, np.minimum(place, num_codes - 1)]
    bits = (np.maximum(packed, 0) >> _CODE_BITS).astype(np.int32)
    value = np.where(packed < 0, contest.own_error[rows], bits.view(np.float32))
    return np.where(place < num_codes, value.astype(np.float64), np.inf)


def _position_in_run(keys: Array) -> Array:
    """Return 0, 1, 2, … within each run of equal neighbors (rows, if 2-D)."""
    differs = keys[1:] != keys[:-1]
    is_first = np.concatenate([[True], differs if keys.ndim == 1 else differs.any(axis=1)])
    starts = np.flatnonzero(is_first)
    position: Array = np.arange(len(keys)) - starts[np.cumsum(is_first) - 1]
    return position
