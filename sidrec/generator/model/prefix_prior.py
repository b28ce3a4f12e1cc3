"""How much a request expects below each code, without looking at every item for every request."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from sidrec.generator.decoding.beam_search import LEAST_MASS, NO_ITEM, Step
from sidrec.generator.decoding.trie import SemanticIdTrie

EVEN_SHARE = 1e-3  # of the mass, shared out evenly, so that no item is ever ruled out


@dataclass(frozen=True, slots=True)
class PrefixTree:
    """Distinct prefixes of each depth, from 0 (the root) to one level less than an ID has.

    Attributes:
        prefix_at: Per depth: the prefix to which the item at each position of the trie belongs,
            and 0 behind the last.
        first_child: Per depth: each prefix's first child, a prefix of the next depth; at the last
            depth the first item.
        child_codes: Per depth: the last code of every child, in their order.
    """

    prefix_at: tuple[Int[Tensor, " bound"], ...]
    first_child: tuple[Int[Tensor, " _"], ...]
    child_codes: tuple[Int[Tensor, " _"], ...]

    @classmethod
    def of(cls, codes: Int[Tensor, "item level"]) -> "PrefixTree":
        """Cut sorted Semantic IDs into prefixes.

        Args:
            codes: In the order of the trie's positions.
        """
        num_items, num_levels = codes.shape
        begins = torch.zeros(num_items, dtype=torch.bool, device=codes.device)
        begins[0] = True
        starts, prefix_at = [begins.nonzero().flatten()], [torch.zeros_like(begins).int()]
        for level in range(num_levels - 1):
            begins = begins.clone()
            begins[1:] |= codes[1:, level] != codes[:-1, level]
            starts.append(begins.nonzero().flatten())
            prefix_at.append(begins.cumsum(dim=0, dtype=torch.int32) - 1)
        behind = prefix_at[0].new_zeros(1)  # where the range behind the last item begins
        child_codes = [codes[rows, depth] for depth, rows in enumerate(starts[1:])]
        first_child = [prefix_at[depth + 1][rows] for depth, rows in enumerate(starts[:-1])]
        return cls(
            tuple(torch.cat([rows, behind]) for rows in prefix_at),
            (*(rows.long() for rows in first_child), starts[-1]),
            (*child_codes, codes[:, -1].contiguous()),
        )


class PrefixMass:
    """The softmax over all items of additive scores, summed below any prefix.

    The score of an item is a sum over the levels, so the sum below a prefix is that over its
    children of ``exp(score of the child's code) * (sum below the child)``. From the deepest level
    up this takes one addition per item and request, on numbers that lie side by side for all
    requests, and keeps one number per prefix. Costs ``prefixes x requests`` float64 of memory.

    Args:
        tree: Of the catalogue.
        logits: Score of each code, per level.
    """

    def __init__(self, tree: PrefixTree, logits: list[Float[Tensor, "request _"]]) -> None:
        self._tree = tree
        wide = [of_level.double() for of_level in logits]
        self._shifted = [of_level - of_level.amax(dim=1, keepdim=True) for of_level in wide]
        self._weights = [of_level.exp() for of_level in self._shifted]  # [request, code]
        below: list[Float[Tensor, "prefix request"]] = []
        for depth in reversed(range(len(logits))):
            table = self._weights[depth].T.contiguous()  # [code, request]
            codes, bags = tree.child_codes[depth], tree.first_child[depth]
            if below:
                table, codes = table[codes] * below[0], torch.arange(len(codes)).to(codes)
            below.insert(0, F.embedding_bag(codes, table, bags, mode="sum"))
        self._below = below
        self._log_total = below[0][0].clamp(min=torch.finfo(torch.float64).tiny).log()

    def scores(self, level: int) -> Float[Tensor, "request code"]:
        """Return the scores of a level's codes, up to a constant of the request."""
        return self._shifted[level]

    def of_children(
        self,
        level: int,
        prefix_scores: Float[Tensor, "request beam"],
        bounds: Int[Tensor, "request beam bound"],
    ) -> Float[Tensor, "request beam code"]:
        """Return the mass of each child of each beam, in float64; empty ones hold anything.

        Args:
            level: Of the children's codes.
            prefix_scores: Sum of ``scores`` over the beam's codes.
            bounds: Children of each beam, from ``SemanticIdTrie.child_bounds``.
        """
        counts = bounds.diff(dim=-1)
        if level + 1 < len(self._below):
            first = bounds[..., :-1].flatten()
            prefix = self._tree.prefix_at[level + 1].index_select(0, first).view(len(bounds), -1)
            below = self._below[level + 1].T.gather(1, prefix.long()).view(counts.shape)
        else:
            below = counts.double()
        share = (prefix_scores - self._log_total[:, None]).exp() * (1 - EVEN_SHARE)
        below.mul_(self._weights[level][:, None]).mul_(share[..., None])
        return below.add_(counts, alpha=EVEN_SHARE / len(self._tree.child_codes[-1]))


class WeighedSteps:
    """A model's steps, normalized over the catalogue with a prior; itself a ``beams.Step``.

    What ``beams.over_children`` makes of the prior's mass before every position, from the mass of
    prefixes alone. The search looks each beam's children up again; that takes some .2 % of its time
    and spares every search the knowledge of prior and prefixes.

    Args:
        step: The model, set to the batch's sources; its logits may lack a constant.
        trie: The catalogue.
        mass: What each request expects.
    """

    def __init__(self, step: Step, trie: SemanticIdTrie, mass: PrefixMass) -> None:
        self._step, self._trie, self._mass = step, trie, mass
        self._bounds: Tensor | None = None
        self._prefix_scores: Tensor | None = None

    def __call__(
        self,
        level: int,
        parent: Int[Tensor, "request beam"],
        codes: Int[Tensor, "request beam"],
    ) -> Float[Tensor, "request beam code"]:
        """Return log-probabilities of the codes of ``level``; very low where no item is."""
        logits = self._step(level, parent, codes)
        low, high, scores = self._ranges(level, parent, codes)
        bounds = self._trie.child_bounds(low, high, level=level)
        self._bounds, self._prefix_scores = bounds, scores
        mass = self._mass.of_children(level, scores, bounds)
        weighed = mass.float().clamp_(min=LEAST_MASS).log_().add_(logits)
        empty = bounds[..., 1:] <= bounds[..., :-1]
        return weighed.masked_fill_(empty, NO_ITEM).log_softmax(dim=-1)

    def _ranges(
        self, level: int, parent: Int[Tensor, "request beam"], codes: Int[Tensor, "request beam"]
    ) -> tuple[
        Int[Tensor, "request beam"], Int[Tensor, "request beam"], Float[Tensor, "request beam"]
    ]:
        """Return each beam's range, and the sum of its codes' scores."""
        if self._bounds is None or self._prefix_scores is None:
            low = torch.zeros_like(parent, dtype=torch.int32)
            return low, low + self._trie.num_items, low.double()
        cell, flat = parent * self._bounds.shape[2] + codes, self._bounds.flatten(1)
        scores = self._prefix_scores.gather(1, parent)
        scores = scores + self._mass.scores(level - 1).gather(1, codes)
        return flat.gather(1, cell), flat.gather(1, cell + 1), scores
