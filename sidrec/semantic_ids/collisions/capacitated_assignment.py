"""Capacitated assignment: give each item the nearest code with room, many groups at once."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor

Array = npt.NDArray[Any]
# From squared errors [row, code], the rows' groups (0, 0, …, 1, …) and the room that codes have
# [group, code] to what the use of each code costs beside the error, float32 >= 0 [group, code].
CodeDuals = Callable[[Array, Array, Array], Array]

_BATCH_CELLS = 1 << 22  # items times codes that are in memory together
_LEAST_WIDTH = 8  # best codes kept per item where all do not fit into memory
_CODE_BITS = 16
_CODE_MASK = (1 << _CODE_BITS) - 1


def assign_with_capacity(
    groups: Int[Tensor, " item"],
    preferred: Int[Tensor, " item"],
    errors: Callable[[Int[Tensor, " row"]], Float[Tensor, "row code"]],
    *,
    num_codes: int,
    capacity: int,
    num_fixed: int = 0,
    code_duals: CodeDuals | None = None,
) -> Int[Tensor, " item"]:
    """Assign codes to items so that no code of a group holds more than ``capacity`` items.

    In each round, every item without a code proposes the code with the least error that has room,
    its preferred code first. If more items propose than fit, the code takes those whose error
    would grow most with their next choice (ties: the lower item). Items keep a code that is not
    overfull.

    Args:
        groups: Only items of one group compete; dense from 0. A group has room for all its
            items.
        preferred: Code of each item before, in ``[0, num_codes)``.
        errors: Squared error of each code for the given items, ``>= 0``.
        num_codes: Codes of a group, at most 65,536.
        capacity: Items that a code can hold, ``>= 1``.
        num_fixed: Number of leading items that always keep their codes; ``errors`` is never
            called for them.
        code_duals: Its costs, if given, are added to the errors, and no code is preferred. From a
            group whose errors do not fit into memory it gets every n-th item and an n-th of the
            room.
    """
    keys = groups * num_codes + preferred
    _, where, counts = torch.unique(keys, return_inverse=True, return_counts=True)
    contested = (counts[where] > capacity).nonzero().flatten()
    contested = contested[contested >= num_fixed]
    if len(contested) == 0:
        return preferred
    contested = contested[groups[contested].argsort(stable=True)]
    result = preferred.clone()
    most = max(1, _BATCH_CELLS // num_codes)
    for batch in _batches(contested, groups[contested], most=most):
        involved, dense = torch.unique(groups[batch], return_inverse=True)
        group = dense.numpy()
        room = _room(groups, preferred, involved, batch, num_codes=num_codes, capacity=capacity)
        ranked: Callable[[Array], tuple[Array, Array]]
        if code_duals is None:

            def by_errors(rows: Array, batch: Tensor = batch) -> tuple[Array, Array]:
                items = batch[torch.from_numpy(rows)]
                return _ranking(_costs(errors(items)), preferred[items].numpy())

            ranked = by_errors

        else:
            sample, fraction = _sample(group, most=most)
            known = _costs(errors(batch[torch.from_numpy(sample)]))
            part = room.reshape(-1, num_codes) * fraction[:, None]
            duals = code_duals(known, group[sample], part)

            def by_costs(
                rows: Array,
                batch: Tensor = batch,
                group: Array = group,
                duals: Array = duals,
                known: Array | None = known if len(sample) == len(batch) else None,
            ) -> tuple[Array, Array]:
                items = batch[torch.from_numpy(rows)]
                own = _costs(errors(items)) if known is None else known[rows]
                return _ranking(own + duals[group[rows]], None)

            ranked = by_costs

        width = max(4 * _BATCH_CELLS // len(batch), _LEAST_WIDTH)
        candidates = _Candidates(group, ranked, num_codes, width=width)
        result[batch] = torch.from_numpy(_rounds(candidates, room))
    return result


def rank_in_group(groups: Int[Tensor, " item"]) -> Int[Tensor, " item"]:
    """Return for each item the number of earlier items in its group."""
    order = groups.argsort(stable=True)
    rank = torch.empty_like(groups)
    rank[order] = torch.from_numpy(_rank_in_run(groups[order].numpy()))
    return rank


def _batches(items: Tensor, groups: Tensor, *, most: int) -> list[Tensor]:
    """Cut ``items`` (sorted by group) into batches of whole groups of about ``most`` items."""
    _, sizes = torch.unique_consecutive(groups, return_counts=True)
    number = (sizes.cumsum(dim=0) - sizes) // most
    per_batch = torch.zeros(int(number[-1]) + 1, dtype=torch.int64).index_add_(0, number, sizes)
    return [part for part in torch.split(items, per_batch.tolist()) if len(part)]


def _sample(group: Array, *, most: int) -> tuple[Array, Array]:
    """Return rows, evenly from each group and about ``most`` of it, and each group's fraction."""
    sizes = np.bincount(group)
    stride = -(-sizes // most)
    kept = np.flatnonzero(_rank_in_run(group) % stride[group] == 0)
    fraction: Array = np.bincount(group[kept]) / sizes
    return kept, fraction


def _room(
    groups: Tensor,
    preferred: Tensor,
    involved: Tensor,
    batch: Tensor,
    *,
    num_codes: int,
    capacity: int,
) -> Array:
    """Return each code's room, [group * code], before the contested items are placed."""
    place = torch.searchsorted(involved, groups).clamp(max=len(involved) - 1)
    settled = involved[place] == groups
    settled[batch] = False
    keys = place[settled] * num_codes + preferred[settled]
    held = torch.bincount(keys, minlength=len(involved) * num_codes)
    return (capacity - held).numpy()


def _costs(errors: Tensor) -> Array:
    costs: Array = errors.float().cpu().clamp(min=0).numpy()
    return costs


def _ranking(costs: Array, preferred: Array | None) -> tuple[Array, Array]:
    """Return the codes of each row by cost, packed, and the cost of the preferred code.

    Packed: the float32 bits of the cost, then the code. The preferred code is negative, so that it
    comes first.
    """
    rows = np.arange(len(costs))
    costs = costs + np.float32(0)  # -0.0 becomes 0.0, whose bits sort before all others
    ranking = costs.view(np.int32).astype(np.int64) << _CODE_BITS
    ranking |= np.arange(costs.shape[1])
    own_cost = np.zeros(len(costs), dtype=np.float32)
    if preferred is not None:
        own_cost = costs[rows, preferred].copy()
        ranking[rows, preferred] = preferred - _CODE_MASK - 1
    ranking.sort(axis=1)
    return ranking, own_cost


class _Candidates:
    """Candidate codes of competing items, best first; one row per item.

    If the codes of all items do not fit into memory, a row holds only its best codes, and
    ``refill`` replaces them by the next ones with room. The result is the same.

    Args:
        group: Dense number of each row's group, ascending.
        ranked: Returns ``_ranking`` of the given rows.
        num_codes: Codes of a group.
        width: Most codes that a row holds.
    """

    def __init__(
        self,
        group: Array,
        ranked: Callable[[Array], tuple[Array, Array]],
        num_codes: int,
        *,
        width: int,
    ) -> None:
        self.group, self.num_codes, self._ranked = group, num_codes, ranked
        rows = np.arange(len(group))
        weights = np.random.default_rng(0).integers(1, 2**63, num_codes, dtype=np.int64)
        if width >= num_codes:
            self.ranking, self.own_cost = ranked(rows)
            self._fingerprint = (self.ranking * weights).sum(axis=1)
        else:
            self.ranking = np.empty((len(group), width), dtype=np.int64)
            self.own_cost = np.empty(len(group), dtype=np.float32)
            self._fingerprint = np.empty(len(group), dtype=np.int64)
            for part in self._parts(rows):
                ranking, self.own_cost[part] = ranked(part)
                self.ranking[part] = ranking[:, :width]
                self._fingerprint[part] = (ranking * weights).sum(axis=1)
        self.width = self.ranking.shape[1]
        self._length = np.full(len(group), self.width)  # codes that a row holds
        self._is_complete = np.full(len(group), self.width == num_codes)

    def code(self, rows: Array, place: Array) -> Array:
        """Return the code at a place of each row's ranking."""
        code: Array = self.ranking[rows, place] & _CODE_MASK
        return code

    def slot(self, rows: Array, place: Array) -> Array:
        """Return the code's number among the codes of all groups."""
        slot: Array = self.group[rows] * self.num_codes + self.code(rows, place)
        return slot

    def cost(self, rows: Array, place: Array) -> Array:
        """Return the cost of the code at a place; infinity after the end."""
        packed = self.ranking[rows, np.minimum(place, self.width - 1)]
        bits = (np.maximum(packed, 0) >> _CODE_BITS).astype(np.int32)
        value = np.where(packed < 0, self.own_cost[rows], bits.view(np.float32))
        return np.where(place < self._length[rows], value.astype(np.float64), np.inf)

    def next_with_room(self, room: Array, rows: Array, place: Array) -> Array:
        """Return each row's first place at or after ``place`` whose code has room, or the end."""
        place = np.minimum(place, self._length[rows])
        moving = np.flatnonzero(place < self._length[rows])
        while len(moving):
            moving = moving[room[self.slot(rows[moving], place[moving])] <= 0]
            place[moving] += 1
            moving = moving[place[moving] < self._length[rows[moving]]]
        return place

    def has_ended(self, rows: Array, place: Array) -> Array:
        """Return whether ``place`` is past a row's stored codes while it has further ones."""
        ended: Array = (place >= self._length[rows]) & ~self._is_complete[rows]
        return ended

    def refill(self, room: Array, rows: Array, kept: Array | None = None) -> None:
        """Refill rows with their best codes with room, from the code of slot ``kept`` on."""
        for part in self._parts(np.arange(len(rows))):
            own = rows[part]
            ranking, _ = self._ranked(own)
            slots = self.group[own, None] * self.num_codes + (ranking & _CODE_MASK)
            is_open = room[slots] > 0
            if kept is not None:
                is_kept = slots == kept[part, None]
                is_open = is_kept | (is_open & (is_kept.cumsum(axis=1) > 0))
            order = np.argsort(~is_open, axis=1, kind="stable")[:, : self.width]
            num_open = is_open.sum(axis=1)
            self.ranking[own] = np.take_along_axis(ranking, order, axis=1)
            self._length[own] = np.minimum(num_open, self.width)
            self._is_complete[own] = num_open <= self.width

    def first_proposals(self, room: Array) -> tuple[Array, Array]:
        """Return the place of each row's first proposal, and whether the row holds none before it.

        The first proposal is the first choice. Rows of equal costs instead fill their choices in
        item order, one code's room after another.
        """
        num_rows = len(self.group)
        proposed, is_cut = np.zeros(num_rows, dtype=np.int64), np.zeros(num_rows, dtype=bool)
        order = np.lexsort((self._fingerprint, self.group))
        pair = np.stack([self.group, self._fingerprint], axis=1)[order]
        twin = np.empty(num_rows, dtype=np.int64)
        twin[order] = _rank_in_run(pair)
        for rows in self._parts(np.flatnonzero(twin)):
            is_whole = self.width == self.num_codes
            ranking = self.ranking[rows] if is_whole else self._ranked(rows)[0]
            slots = self.group[rows, None] * self.num_codes + (ranking & _CODE_MASK)
            places = np.maximum(room[slots], 0).cumsum(axis=1)
            choice = (places > twin[rows, None]).argmax(axis=1)  # 0 if too few
            if is_whole:
                proposed[rows] = choice
            else:
                self.refill(room, rows, kept=slots[np.arange(len(rows)), choice])
                is_cut[rows] = True
        return proposed, is_cut

    def _parts(self, rows: Array) -> Iterator[Array]:
        step = max(1, _BATCH_CELLS // self.num_codes)
        for start in range(0, len(rows), step):
            yield rows[start : start + step]


def _rounds(candidates: _Candidates, room: Array) -> Array:
    num_rows = len(candidates.group)
    result = np.zeros(num_rows, dtype=np.int64)
    active, reached = np.arange(num_rows), np.zeros(num_rows, dtype=np.int64)
    proposed, is_cut = candidates.first_proposals(room)
    while len(active):
        following = candidates.next_with_room(room, active, proposed + 1)
        ended = np.flatnonzero(candidates.has_ended(active, following))
        if len(ended):
            rows = active[ended]
            candidates.refill(room, rows, kept=candidates.slot(rows, proposed[ended]))
            proposed[ended] = reached[rows] = 0  # all codes before the kept one are full
            following[ended] = candidates.next_with_room(room, rows, np.ones_like(rows))
        regret = candidates.cost(active, following) - candidates.cost(active, proposed)
        slot = candidates.slot(active, proposed)
        order = np.lexsort((active, -regret, slot))
        wins = np.zeros(len(active), dtype=bool)
        wins[order] = _rank_in_run(slot[order]) < room[slot[order]]
        result[active[wins]] = candidates.code(active[wins], proposed[wins])
        np.subtract.at(room, slot[wins], 1)
        active = active[~wins]
        proposed = candidates.next_with_room(room, active, reached[active])
        ended = np.flatnonzero(candidates.has_ended(active, proposed) | is_cut[active])
        if len(ended):
            candidates.refill(room, active[ended])
            proposed[ended], is_cut[active[ended]] = 0, False
        reached[active] = proposed
    return result


def _rank_in_run(keys: Array) -> Array:
    """Return 0, 1, 2, … within each run of equal neighbors (rows, if 2-D)."""
    differs = keys[1:] != keys[:-1]
    is_first = np.concatenate([[True], differs if keys.ndim == 1 else differs.any(axis=1)])
    starts = np.flatnonzero(is_first)
    rank: Array = np.arange(len(keys)) - starts[np.cumsum(is_first) - 1]
    return rank
