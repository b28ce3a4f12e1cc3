"""Allowed items as packed bits, shared by the requests of a group, and less what each one had."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sidrec.generator.decoding.item_filters import AllItemsBut, AllowedItems
from sidrec.generator.decoding.trie import SemanticIdTrie

_BITS = 64


@dataclass(frozen=True, slots=True)
class PackedItems:
    """One subset of the catalogue for each group of requests, such as what a locale has in stock.

    Takes 1.5 bits an item and group where ``OnlyItems`` takes 32 bits an item and request.

    Attributes:
        words: ``words[g, w]``: bit ``b`` is set where group ``g`` may get the item at position
            ``64 * w + b`` of the trie.
        counts: Allowed items of each group before each word.
        group: Group of each request.
        num_items: Items of the catalogue.
    """

    words: Int[Tensor, "group word"]
    counts: Int[Tensor, "group word"]
    group: Int[Tensor, " request"]
    num_items: int

    @classmethod
    def of(
        cls,
        trie: SemanticIdTrie,
        allowed: Bool[Tensor, "group item"],
        group: Int[Tensor, " request"],
    ) -> "PackedItems":
        """Pack the subsets in the order of the trie.

        Args:
            trie: The catalogue.
            allowed: True at the item_index that the requests of a group may get.
            group: Row of ``allowed`` for each request.
        """
        num_words = trie.num_items // _BITS + 1  # the position after the last item has a word
        bits = allowed.new_zeros((len(allowed), num_words * _BITS))
        bits[:, : trie.num_items] = allowed[:, trie.items]
        by_word = bits.view(len(allowed), num_words, _BITS)
        powers = torch.ones(_BITS, dtype=torch.long, device=bits.device) << torch.arange(
            _BITS, device=bits.device
        )
        words = (by_word * powers).sum(dim=2)  # the last power is negative: bit 63 of an int64
        totals = by_word.sum(dim=2, dtype=torch.int32)
        counts = totals.cumsum(dim=1, dtype=torch.int32) - totals
        return cls(words, counts, group, trie.num_items)

    def before(self, position: Int[Tensor, "request ..."]) -> Int[Tensor, "request ..."]:
        """Return how many allowed items stand before each position."""
        flat = position.flatten(1).long()
        word = flat // _BITS + self.group[:, None] * self.words.shape[1]
        lower = (torch.ones_like(flat) << flat % _BITS) - 1  # bits before the position
        found = self.counts.flatten()[word] + _num_bits(self.words.flatten()[word] & lower)
        return found.int().view(position.shape)

    def position_of(self, count: Int[Tensor, "request slot"]) -> Int[Tensor, "request slot"]:
        """Return the position of the allowed item that has ``count`` allowed ones before it."""
        counts = self.counts[self.group]  # [request, word]
        word = torch.searchsorted(counts, count.int().contiguous(), right=True) - 1
        rest = count - counts.gather(1, word)
        bits = self.words[self.group].gather(1, word)[..., None] >> torch.arange(
            _BITS, device=word.device
        )
        place = ((bits & 1).cumsum(dim=2) <= rest[..., None]).sum(dim=2)
        return (word * _BITS + place).clamp(max=self.num_items - 1)


@dataclass(frozen=True, slots=True)
class AllowedBut:
    """A set of allowed items without a short list per request, such as its own history.

    Attributes:
        allowed: The set.
        ranks: The list's members of the set, as the catalogue of the allowed items counts them.
    """

    allowed: AllowedItems
    ranks: AllItemsBut

    @classmethod
    def of(
        cls, trie: SemanticIdTrie, allowed: AllowedItems, excluded: Int[Tensor, "request excluded"]
    ) -> "AllowedBut":
        """Look the items up in the trie.

        Args:
            trie: The catalogue.
            allowed: The set.
            excluded: item_index to leave out, in any order, repetitions allowed; -1 on padding.
        """
        position = AllItemsBut.of(trie, excluded).excluded  # distinct, ascending
        real = position < trie.num_items
        inside = torch.where(real, position, 0)
        rank = allowed.before(inside)
        member = real & (allowed.before(inside + 1) > rank)
        beyond = trie.num_items + position.shape[1]
        ranks = torch.where(member, rank, beyond).sort(dim=1).values
        return cls(allowed, AllItemsBut(ranks.int()))

    def before(self, position: Int[Tensor, "request ..."]) -> Int[Tensor, "request ..."]:
        """Return how many allowed items stand before each position."""
        return self.ranks.before(self.allowed.before(position))

    def position_of(self, count: Int[Tensor, "request slot"]) -> Int[Tensor, "request slot"]:
        """Return the position of the allowed item that has ``count`` allowed ones before it."""
        return self.allowed.position_of(self.ranks.position_of(count))


def _num_bits(words: Int[Tensor, "*any"]) -> Int[Tensor, "*any"]:
    """Count the bits of numbers that are not negative. Source: Hacker's Delight, chapter 5."""
    words = words - (words >> 1 & 0x5555555555555555)
    words = (words & 0x3333333333333333) + (words >> 2 & 0x3333333333333333)
    words = words + (words >> 4) & 0x0F0F0F0F0F0F0F0F
    return words * 0x0101010101010101 >> 56
