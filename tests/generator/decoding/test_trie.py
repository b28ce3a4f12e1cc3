"""The trie knows every real Semantic ID, every item on it, and nothing else."""

import itertools

import pytest
import torch
from hypothesis import given

from sidrec.errors import DataError
from sidrec.generator.decoding.transitions import ChildTable
from sidrec.generator.decoding.trie import SemanticIdTrie, pack, unpack
from sidrec.types import SemanticIdTable
from tests.generator.catalogues import catalogues, table_of, unhurried


def walk(trie, semantic_id):
    """Items reached by following ``semantic_id`` from the root."""
    lo = torch.zeros((1, 1), dtype=torch.int32)
    hi = lo + trie.num_items
    for level, code in enumerate(semantic_id):
        bounds = trie.child_bounds(lo, hi, level=level)
        assert bounds.shape == (1, 1, trie.codebook_sizes[level] + 1)
        lo, hi = bounds[:, :, code], bounds[:, :, code + 1]
    return trie.items[int(lo) : int(hi)].tolist()


def test_three_items_by_hand():
    table = SemanticIdTable(torch.tensor([[1, 0], [0, 2], [1, 0]]), (2, 3))
    trie = SemanticIdTrie.from_table(table, torch.tensor([5, 9, 6]))
    assert trie.keys.tolist() == [2, 3, 3]
    assert trie.items.tolist() == [1, 2, 0]  # item 2 is more popular than item 0
    assert trie.position.tolist() == [2, 0, 1]
    above, below = trie.children
    assert above.bounds.tolist() == [[0, 1, 3], [0, 0, 0]]
    assert below.bounds.tolist() == [[0, 0, 0, 1], [1, 3, 3, 3], [0, 0, 0, 0]]
    assert below.row_of.tolist() == [0, 1, 1, 2]


@pytest.mark.parametrize(("max_dense_entries", "few"), [(7, 2), (9, 1)])
def test_a_level_without_a_table_lists_its_children(max_dense_entries, few):
    table = SemanticIdTable(torch.tensor([[1, 0], [0, 2], [1, 0], [1, 2]]), (2, 3))
    trie = SemanticIdTrie.from_table(table, None, max_dense_entries=max_dense_entries)
    assert isinstance(trie.children[0], ChildTable)
    listed = trie.children[1]
    assert listed.codes.tolist() == [2, 0, 2]
    assert listed.starts.tolist() == [0, 1, 3, 4]
    assert listed.few == few  # with room for one row, prefix 1 and its two children have it
    assert len(listed.many.bounds) == 1 + (few == 1)
    lo, hi = torch.tensor([[1, 0, 0]]).int(), torch.tensor([[4, 1, 0]]).int()
    bounds = trie.child_bounds(lo, hi, level=1)
    assert bounds.tolist() == [[[1, 3, 3, 4], [0, 0, 0, 1], [0, 0, 0, 0]]]


@pytest.mark.parametrize("max_dense_entries", [0, 12, 1 << 20])
@unhurried
@given(catalogue=catalogues())
def test_only_real_items_can_be_reached(max_dense_entries, catalogue):
    table = table_of(catalogue)
    popularity = torch.arange(len(table.codes)) % 3
    trie = SemanticIdTrie.from_table(table, popularity, max_dense_entries=max_dense_entries)
    expected = {}
    for item in sorted(range(len(popularity)), key=lambda i: (-int(popularity[i]), i)):
        expected.setdefault(tuple(table.codes[item].tolist()), []).append(item)
    for semantic_id in itertools.product(*map(range, table.codebook_sizes)):
        assert walk(trie, semantic_id) == expected.get(semantic_id, [])


@unhurried
@given(catalogue=catalogues())
def test_packing_keeps_order_and_comes_back(catalogue):
    table = table_of(catalogue)
    keys = pack(table.codes, table.codebook_sizes)
    assert torch.equal(unpack(keys, table.codebook_sizes), table.codes)
    by_key = sorted(range(len(keys)), key=lambda i: (int(keys[i]), i))
    by_code = sorted(range(len(keys)), key=lambda i: (table.codes[i].tolist(), i))
    assert by_key == by_code


def test_ended_beam_has_no_children():
    table = SemanticIdTable(torch.tensor([[1, 0], [1, 1]]), (2, 2))
    trie = SemanticIdTrie.from_table(table, None)
    ended = torch.zeros((1, 1), dtype=torch.int32)
    assert trie.child_bounds(ended, ended, level=1).tolist() == [[[0, 0, 0]]]


def test_rank_of_a_semantic_id():
    table = SemanticIdTable(torch.tensor([[0], [2], [2], [1]]), (3,))
    trie = SemanticIdTrie.from_table(table, None)
    keys = torch.tensor([[2, 0, -1]])
    assert trie.semantic_id_ranks(keys, torch.tensor([[1, 2, 0, 3, -1]])).tolist() == [
        [0, 0, 1, -1, -1]
    ]


def test_moving_keeps_everything():
    table = SemanticIdTable(torch.tensor([[1], [0]]), (2,))
    moved = SemanticIdTrie.from_table(table, None).to("meta")
    assert all(t.device.type == "meta" for t in (moved.keys, moved.items, moved.position))
    assert all(level.bounds.device.type == "meta" for level in moved.children)
    assert moved.codebook_sizes == (2,)


def test_empty_catalogue_is_refused():
    with pytest.raises(DataError, match="table is empty"):
        SemanticIdTrie.from_table(
            SemanticIdTable(torch.zeros((0, 1), dtype=torch.long), (2,)), None
        )


def test_ids_beyond_63_bits_are_refused():
    table = SemanticIdTable(torch.zeros((1, 8), dtype=torch.long), (256,) * 8)
    with pytest.raises(DataError, match="do not fit in 63 bits"):
        SemanticIdTrie.from_table(table, None)
