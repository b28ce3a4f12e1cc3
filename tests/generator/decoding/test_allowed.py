"""Every kind of allowed set counts and finds its items, at any size of catalogue."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from sidrec.generator.decoding.item_filters import AllItemsBut, allowed_in_children
from sidrec.generator.decoding.trie import SemanticIdTrie
from tests.generator.catalogues import OnlyItems, catalogues, table_of, unhurried


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
    gone = torch.tensor(rows)
    for allowed in (
        AllItemsBut.of(trie, gone),
        OnlyItems.of(trie, bitmap),
    ):
        before = allowed.before(everywhere)
        for row in range(len(rows)):
            positions = [p for p in range(num_items) if bitmap[row, trie.items[p]]]
            assert before[row].tolist() == [
                sum(p < end for p in positions) for end in range(num_items + 1)
            ]
            found = allowed.position_of(torch.arange(len(positions)).expand(len(rows), -1))
            assert found[row].tolist() == positions


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
