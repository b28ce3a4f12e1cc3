"""Path of the beams through the trie, recorded while a request is answered."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sidrec.generator.decoding.beam_search import Beams, Decoded, Step, follow, over_children
from sidrec.generator.decoding.item_filters import AllowedItems
from sidrec.generator.decoding.search_strategy import Decoding
from sidrec.generator.decoding.trie import SemanticIdTrie, unpack

if TYPE_CHECKING:
    from sidrec.generator.retrieval.retriever import Retriever


class Prefix(NamedTuple):
    """Prefix that the search kept.

    Attributes:
        codes: Codes, coarse level first.
        score: Log-probability of the prefix, in nats.
        num_items: Number of items of the catalogue below it.
    """

    codes: tuple[int, ...]
    score: float
    num_items: int


class _Call(NamedTuple):
    parent: Int[Tensor, "request beam"]
    codes: Int[Tensor, "request beam"]
    log_probabilities: Float[Tensor, "request beam code"]


@dataclass(frozen=True)
class _Recorded(Decoding):
    """The same search; it keeps what it asks of the model and what it finds.

    Attributes:
        paths: Kept prefixes of the first request, one list per level, of each search.
    """

    paths: list[list[list[Prefix]]] = field(default_factory=list)

    def search(
        self,
        start: Callable[[], Step],
        trie: SemanticIdTrie,
        allowed: AllowedItems,
        **options: Any,  # noqa: ANN401
    ) -> Decoded:
        """Search, and record; see ``Decoding.search``."""
        calls: list[_Call] = []

        def recorded() -> Step:
            step = start()

            def ask(
                level: int, parent: Int[Tensor, "request beam"], codes: Int[Tensor, "request beam"]
            ) -> Float[Tensor, "request beam code"]:
                found = step(level, parent, codes)
                calls.append(_Call(parent, codes, found))
                return found

            return ask

        found = Decoding.search(self, recorded, trie, allowed, **options)
        if self.mode != "exact":  # which has no beams
            levels = [
                *_levels_before_last(calls, trie, options["mass_before"]),
                _last_level(found, trie),
            ]
            self.paths.append([sorted(one, key=lambda prefix: -prefix.score) for one in levels])
        return found


@contextmanager
def recorded_paths(retriever: "Retriever") -> Iterator[list[list[list[Prefix]]]]:
    """Record the searches of a retriever while the block runs; each appends its path."""
    before = [(model, model.decoding) for model in retriever.models]
    paths: list[list[list[Prefix]]] = []
    for model, decoding in before:
        model.decoding = _Recorded(**asdict(decoding), paths=paths)
    try:
        yield paths
    finally:
        for model, decoding in before:
            model.decoding = decoding


def as_json(path: list[list[Prefix]], *, most: int) -> list[dict[str, Any]]:
    """Return the best ``most`` prefixes of each level, and how many there are in all."""
    return [
        {"num_kept": len(level), "prefixes": [prefix._asdict() for prefix in level[:most]]}
        for level in path
    ]


def _levels_before_last(
    calls: list[_Call], trie: SemanticIdTrie, mass_before: Float[Tensor, "request bound"] | None
) -> Iterator[list[Prefix]]:
    """Repeat the steps of the search along the beams that it chose."""
    beams = Beams.at_root(trie, len(calls[0].parent))
    chosen: list[tuple[int, ...]] = [()]
    for level, (call, after) in enumerate(pairwise(calls)):
        bounds = trie.child_bounds(beams.lo, beams.hi, level=level)
        scores = call.log_probabilities.float()
        if mass_before is not None:
            scores = over_children(scores, bounds, mass_before)
        total = (scores + beams.scores[..., None]).flatten(1)
        cell = after.parent * scores.shape[2] + after.codes
        beams = follow(bounds, after.parent, after.codes, total.gather(1, cell))
        parents, codes = after.parent[0].tolist(), after.codes[0].tolist()
        chosen = [(*chosen[parent], code) for parent, code in zip(parents, codes, strict=True)]
        yield _prefixes(chosen, beams.scores[0], (beams.hi - beams.lo)[0])


def _last_level(found: Decoded, trie: SemanticIdTrie) -> list[Prefix]:
    keys = found.keys[0][found.keys[0] >= 0]
    ends = torch.searchsorted(trie.keys, keys, right=True)
    codes = [tuple(one) for one in unpack(keys, trie.codebook_sizes).tolist()]
    counts = ends - torch.searchsorted(trie.keys, keys)
    return _prefixes(codes, found.log_probabilities[0][found.keys[0] >= 0], counts)


def _prefixes(
    codes: list[tuple[int, ...]], scores: Float[Tensor, " beam"], counts: Int[Tensor, " beam"]
) -> list[Prefix]:
    """Return the prefixes that hold items; the others are ended beams."""
    rows = zip(codes, scores.tolist(), counts.tolist(), strict=True)
    return [Prefix(*row) for row in rows if row[2] > 0]
