"""What a search left empty is filled by popularity, whatever else it found."""

import torch

from sidrec.generator.decoding.backfill import popular_first, top_up
from sidrec.generator.decoding.item_filters import AllItemsBut, Restriction, allowed_items
from sidrec.generator.decoding.trie import SemanticIdTrie
from sidrec.types import RankedItems, SemanticIdTable

NOTHING = float("-inf")


def trie_of(num_items):
    codes = torch.randperm(num_items)[:, None]
    return SemanticIdTrie.from_table(SemanticIdTable(codes, (num_items,)), None)


def test_by_hand():
    trie = trie_of(6)
    ranked = RankedItems(
        torch.tensor([[4, -1, -1], [5, 0, 1], [-1, -1, -1]]),
        torch.tensor([[-1.0, NOTHING, NOTHING], [-1.0, -2.0, -3.0], [NOTHING] * 3]),
    )
    allowed = AllItemsBut.of(trie, torch.tensor([[2, -1], [-1, -1], [3, 2]]))
    order = popular_first(torch.tensor([5, 1, 9, 7, 7, 1]))
    assert order.tolist() == [2, 3, 4, 0, 1, 5]
    found = top_up(ranked, trie=trie, allowed=allowed, fill_order=order)
    assert found.items.tolist() == [[4, 3, 0], [5, 0, 1], [4, 0, 1]]
    assert found.scores.tolist() == [[-1, NOTHING, NOTHING], [-1, -2, -3], [NOTHING] * 3]
    assert ranked.items[0].tolist() == [4, -1, -1]


def test_fewer_allowed_items_give_a_shorter_list():
    trie = trie_of(5)
    restrictions = [Restriction((0, 4)), Restriction((1,), (1,))]
    empty = RankedItems(torch.full((2, 3), -1), torch.full((2, 3), NOTHING))
    found = top_up(
        empty,
        trie=trie,
        allowed=allowed_items(trie, restrictions, None),
        fill_order=torch.tensor([3, 4, 2, 1, 0]),
    )
    assert found.items.tolist() == [[4, 0, -1], [-1, -1, -1]]


def test_far_down_the_order():
    trie = trie_of(20_000)
    order = torch.arange(20_000)
    restriction = Restriction((19_999, 150, 7_000))
    found = top_up(
        RankedItems(torch.full((1, 3), -1), torch.full((1, 3), NOTHING)),
        trie=trie,
        allowed=allowed_items(trie, [restriction], None),
        fill_order=order,
    )
    assert found.items.tolist() == [[150, 7_000, 19_999]]
