"""Small catalogues, tiny T5s and slow but obvious searches to hold the engine against."""

import itertools
from dataclasses import dataclass

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import T5Config, T5ForConditionalGeneration

from sidrec.generator.decoding.trie import SemanticIdTrie
from sidrec.types import SemanticIdTable

PAD, END, FIRST_CODE = 0, 1, 7

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def catalogues(draw, *, max_items=12, max_levels=4, max_codes=4):
    """Draw (codes, codebook sizes): random depth, skew and shared IDs."""
    sizes = tuple(draw(st.lists(st.integers(1, max_codes), min_size=1, max_size=max_levels)))
    skewed = draw(st.booleans())  # most items share their first codes

    def code_below(size):
        drawn = st.integers(0, size * size - 1)
        return drawn.map(lambda x: max(0, x // size - x % size) if skewed else x % size)

    code = st.tuples(*(code_below(size) for size in sizes))
    rows = draw(st.lists(code, min_size=1, max_size=max_items))
    return rows, sizes


def table_of(catalogue):
    """Make the table outside of the strategy: the type checker draws random numbers."""
    rows, sizes = catalogue
    return SemanticIdTable(codes=torch.tensor(rows), codebook_sizes=sizes)


def tiny_t5(*, sizes, gated, scaled, layers=2, seed=0):
    """Random T5 whose tokens beyond FIRST_CODE are the codes, level by level, and one more."""
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=FIRST_CODE + sum(sizes) + 1,
        d_model=16,
        d_kv=6,
        d_ff=24,
        num_heads=3,
        num_layers=layers,  # generate sizes its cache by this one, the decoder's too
        num_decoder_layers=layers,
        relative_attention_num_buckets=4,
        relative_attention_max_distance=6,
        feed_forward_proj="gated-gelu" if gated else "relu",
        tie_word_embeddings=scaled,
        decoder_start_token_id=PAD,
        initializer_factor=0.8,
    )
    return T5ForConditionalGeneration(config).eval()


def level_token_ids(sizes):
    starts = [FIRST_CODE, *(FIRST_CODE + n for n in itertools.accumulate(sizes))]
    return [torch.arange(n) + start for n, start in zip(sizes, starts, strict=False)]


class TableSteps:
    """A model that is a look-up table: log-probabilities by level, by the whole prefix."""

    def __init__(self, sizes, num_requests, *, seed=0, values=None):
        generator = torch.Generator().manual_seed(seed)
        self.sizes, self.seen, self.prefixes = sizes, [], None
        self.by_prefix = []
        num_prefixes = 1
        for size in sizes:
            shape = (num_requests, num_prefixes, size)
            drawn = torch.rand(shape, generator=generator)
            if values is not None:  # few values: many ties
                drawn = torch.tensor(values)[(drawn * len(values)).long()]
            self.by_prefix.append(-drawn)
            num_prefixes *= size

    def __call__(self, level, parent, codes):
        if level == 0:
            self.prefixes = torch.zeros_like(parent)
        else:
            self.prefixes = self.prefixes.gather(1, parent) * self.sizes[level - 1] + codes
        rows = torch.arange(len(parent))[:, None]
        return self.by_prefix[level][rows, self.prefixes]

    def score(self, request, semantic_id):
        total, prefix = torch.tensor(0.0), 0
        for level, code in enumerate(semantic_id):
            total = total + self.by_prefix[level][request, prefix, code]
            prefix = prefix * self.sizes[level] + code
        return total.item()


def exhaustive(score, table, popularity, excluded, top_k):
    """Rank every item: score, then lower ID, then popularity, then item_index."""
    ids = [tuple(row) for row in table.codes.tolist()]
    items = [item for item in range(len(ids)) if item not in excluded]
    items.sort(key=lambda item: (-score(ids[item]), ids[item], -popularity[item], item))
    return items[:top_k]


@dataclass(frozen=True, slots=True)
class OnlyItems:
    """Any subset per request, counted naively: the reference for the filters of the package.

    Attributes:
        counts: ``counts[r, p]`` allowed items of request ``r`` stand before position ``p``;
            one column more than there are items.
    """

    counts: Int[Tensor, "request bound"]

    @classmethod
    def of(cls, trie: SemanticIdTrie, allowed: Bool[Tensor, "request item"]) -> "OnlyItems":
        """Look the items up in the trie.

        Args:
            trie: The catalogue.
            allowed: True at the item_index that the request may get.
        """
        counts = allowed.new_zeros((len(allowed), trie.num_items + 1), dtype=torch.int32)
        counts[:, 1:] = allowed[:, trie.items].cumsum(dim=1)
        return cls(counts)

    def before(self, position: Int[Tensor, "request ..."]) -> Int[Tensor, "request ..."]:
        """Return how many allowed items stand before each position."""
        return self.counts.gather(1, position.flatten(1).long()).view(position.shape)

    def position_of(self, count: Int[Tensor, "request slot"]) -> Int[Tensor, "request slot"]:
        """Return the position of the allowed item that has ``count`` allowed ones before it."""
        first = torch.searchsorted(self.counts, count.int(), right=True, out_int32=True) - 1
        return first.clamp(max=self.counts.shape[1] - 2)
