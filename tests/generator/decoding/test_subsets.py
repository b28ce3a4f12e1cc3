"""Lists and shared sets count as the plain table of counts does."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from sidrec.generator.decoding.item_filters import (
    AllItemsBut,
    ListedItems,
    Restriction,
    SharedItems,
    SharedSet,
    allowed_items,
    pad_items,
)
from sidrec.generator.decoding.trie import SemanticIdTrie
from sidrec.types import SemanticIdTable
from tests.generator.catalogues import OnlyItems, catalogues, table_of, unhurried

CODES = torch.tensor([[1, 1], [0, 0], [0, 1], [0, 0]])  # in the trie: items 1, 3, 2, 0


def small_trie():
    return SemanticIdTrie.from_table(SemanticIdTable(CODES, (2, 2)), None)


def bounds(num_requests, num_items):
    return torch.arange(num_items + 1, dtype=torch.int32).expand(num_requests, -1).contiguous()


def test_lists_by_hand():
    found = allowed_items(
        small_trie(), [Restriction((3, 0, 3)), Restriction((1, 2, 3), (2,))], None
    )
    assert isinstance(found, ListedItems)
    assert found.before(bounds(2, 4)).tolist() == [[0, 0, 1, 1, 2], [0, 1, 2, 2, 2]]
    assert found.position_of(torch.tensor([[0, 1], [0, 1]])).tolist() == [[1, 3], [0, 1]]


def test_a_shared_set_without_a_history_by_hand():
    shared = SharedSet.of(small_trie(), torch.tensor([True, False, True, True]))
    found = allowed_items(small_trie(), [Restriction(), Restriction(None, (2, 1, 2))], shared)
    assert isinstance(found, SharedItems)
    assert found.before(bounds(2, 4)).tolist() == [[0, 0, 1, 2, 3], [0, 0, 1, 1, 2]]
    slots = torch.tensor([[0, 1, 2], [0, 1, 1]])
    assert found.position_of(slots).tolist() == [[1, 2, 3], [1, 3, 3]]


def test_without_a_set_only_exclusions_count():
    assert isinstance(allowed_items(small_trie(), [Restriction()], None), AllItemsBut)


@st.composite
def cases(draw):
    rows, sizes = draw(catalogues())
    item = st.integers(0, len(rows) - 1)
    some = st.lists(item, max_size=8)
    excluded = draw(st.lists(some, min_size=1, max_size=3))
    return (rows, sizes), draw(st.lists(item, min_size=1)), excluded


@unhurried
@given(cases())
def test_all_ways_agree(case):
    catalogue, allowed, excluded = case
    trie = SemanticIdTrie.from_table(table_of(catalogue), None)
    shared = torch.zeros(trie.num_items, dtype=torch.bool)
    shared[allowed] = True
    expected = shared.repeat(len(excluded), 1)
    for row, out in enumerate(excluded):
        expected[row, out] = False
    plain = OnlyItems.of(trie, expected)
    listed = ListedItems.of(trie, [Restriction(tuple(allowed), tuple(out)) for out in excluded])
    together = SharedItems.of(trie, SharedSet.of(trie, shared), pad_items(excluded))
    positions = bounds(len(excluded), trie.num_items)
    fewest = int(plain.before(positions)[:, -1].min())
    slots = torch.arange(fewest).expand(len(excluded), -1).contiguous()
    for found in (listed, together):
        assert found.before(positions).tolist() == plain.before(positions).tolist()
        beams = positions[:, :, None].expand(-1, -1, 2)  # more dimensions, as beams have
        assert found.before(beams).tolist() == plain.before(beams).tolist()
        assert found.position_of(slots).tolist() == plain.position_of(slots).tolist()
