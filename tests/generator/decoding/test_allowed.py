"""Every kind of allowed set counts and finds its items, at any size of catalogue."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sidrec.generator.decoding.bitmap import AllowedBut, PackedItems
from sidrec.generator.decoding.item_filters import AllItemsBut, OnlyItems, allowed_in_children
from sidrec.generator.decoding.trie import SemanticIdTrie
from sidrec.types import SemanticIdTable
from tests.generator.catalogues import catalogues, table_of, unhurried


@unhurried
@given(catalogue=catalogues(), data=st.data())
def test_allowed_items_count_and_find(catalogue, data):
    table = table_of(catalogue)
    num_items = len(table.codes)
    trie = SemanticIdTrie.from_table(table, None)
    item = st.integers(-1, num_items - 1)
    rows = data.draw(st.lists(st.lists(item, min_size=3, max_size=3), min_size=1, max_size=3))
    bitmap = torch.ones((len(rows), num_items), dtype=torch.bool)
    for row, chosen in enumerate(rows):
        bitmap[row, [c for c in chosen if c >= 0]] = False
    everywhere = torch.arange(num_items + 1).expand(len(rows), -1).contiguous()
    each, gone = torch.arange(len(rows)), torch.tensor(rows)
    everything = PackedItems.of(trie, torch.ones((1, num_items), dtype=torch.bool), each * 0)
    for allowed in (
        AllItemsBut.of(trie, gone),
        OnlyItems.of(trie, bitmap),
        PackedItems.of(trie, bitmap, each),
        AllowedBut.of(trie, OnlyItems.of(trie, bitmap), gone),
        AllowedBut.of(trie, everything, gone),
    ):
        before = allowed.before(everywhere)
        for row in range(len(rows)):
            positions = [p for p in range(num_items) if bitmap[row, trie.items[p]]]
            assert before[row].tolist() == [
                sum(p < end for p in positions) for end in range(num_items + 1)
            ]
            found = allowed.position_of(torch.arange(len(positions)).expand(len(rows), -1))
            assert found[row].tolist() == positions


@pytest.mark.parametrize("num_items", [63, 64, 65, 128, 200])
def test_packed_items_cross_words(num_items):
    codes = torch.randperm(256)[:num_items, None]
    trie = SemanticIdTrie.from_table(SemanticIdTable(codes, (256,)), None)
    stock = torch.rand(2, num_items) < 0.5
    group = torch.tensor([1, 0, 1])
    packed, plain = PackedItems.of(trie, stock, group), OnlyItems.of(trie, stock[group])
    everywhere = torch.arange(num_items + 1).expand(3, -1).contiguous()
    assert torch.equal(packed.before(everywhere), plain.before(everywhere))
    for row, own in enumerate(stock[group]):
        slots = torch.arange(int(own.sum())).expand(3, -1).contiguous()
        assert torch.equal(packed.position_of(slots)[row], plain.position_of(slots)[row])


def test_allowed_but_by_hand():
    trie = SemanticIdTrie.from_table(SemanticIdTable(torch.arange(6)[:, None], (6,)), None)
    odd = OnlyItems.of(trie, torch.tensor([[False, True, False, True, False, True]]))
    allowed = AllowedBut.of(trie, odd, torch.tensor([[3, 2, 3, -1]]))  # 1 and 5 are left
    assert allowed.before(torch.arange(7)[None]).tolist() == [[0, 0, 1, 1, 1, 1, 2]]
    assert allowed.position_of(torch.arange(2)[None]).tolist() == [[1, 5]]


@unhurried
@given(catalogue=catalogues(), data=st.data())
def test_children_count_their_allowed_items(catalogue, data):
    table = table_of(catalogue)
    trie = SemanticIdTrie.from_table(table, None)
    item = st.integers(-1, len(table.codes) - 1)
    gone = torch.tensor([data.draw(st.lists(item, min_size=4, max_size=4))])
    allowed = AllItemsBut.of(trie, gone)
    lo = torch.zeros((1, 1), dtype=torch.int32)
    hi = lo + trie.num_items
    for level, size in enumerate(trie.codebook_sizes):
        bounds = trie.child_bounds(lo, hi, level=level)
        found = allowed.num_allowed(trie, bounds, level=level)
        assert torch.equal(found, allowed.before(bounds).diff(dim=-1))
        assert torch.equal(found, allowed_in_children(allowed, trie, bounds, level=level))
        lo, hi = bounds[..., :-1].reshape(1, -1), bounds[..., 1:].reshape(1, -1)
        assert lo.shape[1] == size * bounds.shape[1]
