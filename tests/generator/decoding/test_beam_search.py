"""Beams find what an exhaustive search finds, and never anything that is not an item."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sidrec.errors import ConfigError
from sidrec.generator.decoding.beam_search import beam_search, best_columns, search_allowed
from sidrec.generator.decoding.trie import SemanticIdTrie, pack
from sidrec.types import SemanticIdTable
from tests.generator.catalogues import (
    OnlyItems,
    TableSteps,
    catalogues,
    exhaustive,
    table_of,
    unhurried,
)

NOTHING = torch.zeros((1, 0), dtype=torch.long)


def popularity_of(table):
    return torch.arange(len(table.codes)) * 7 % 5


@st.composite
def searches(draw):
    catalogue = draw(catalogues())
    item = st.integers(-1, len(catalogue[0]) - 1)
    width = draw(st.integers(0, 4))
    excluded = draw(
        st.lists(st.lists(item, min_size=width, max_size=width), min_size=1, max_size=3)
    )
    return catalogue, excluded, width


def opened(case):
    catalogue, excluded, width = case
    padded = torch.tensor(excluded, dtype=torch.long).view(len(excluded), width)
    return table_of(catalogue), padded


def search(table, excluded, *, num_beams, top_k, seed, values=None):
    trie = SemanticIdTrie.from_table(table, popularity_of(table))
    steps = TableSteps(table.codebook_sizes, len(excluded), seed=seed, values=values)
    found = beam_search(steps, trie, num_beams=num_beams, top_k=top_k, excluded=excluded)
    return found, TableSteps(table.codebook_sizes, len(excluded), seed=seed, values=values)


def test_two_levels_by_hand():
    table = SemanticIdTable(torch.tensor([[0, 0], [0, 1], [1, 0]]), (2, 2))
    steps = TableSteps((2, 2), 1)
    steps.by_prefix = [
        torch.tensor([[[-1.0, -2.0]]]),
        torch.tensor([[[-5.0, -3.0], [-0.5, 0.0]]]),  # [1, 1] would win but is no item
    ]
    trie = SemanticIdTrie.from_table(table, None)
    found = beam_search(steps, trie, num_beams=4, top_k=4, excluded=NOTHING)
    assert found.ranked.items.tolist() == [[2, 1, 0, -1]]
    assert found.ranked.scores.tolist() == [[-2.5, -4.0, -6.0, float("-inf")]]
    assert found.keys.tolist()[0][:3] == [2, 1, 0]


def test_narrow_beam_is_greedy():
    table = SemanticIdTable(torch.tensor([[0, 0], [1, 0]]), (2, 1))
    steps = TableSteps((2, 1), 1)
    steps.by_prefix = [torch.tensor([[[-1.0, -2.0]]]), torch.tensor([[[-5.0], [-0.5]]])]
    trie = SemanticIdTrie.from_table(table, None)
    found = beam_search(steps, trie, num_beams=1, top_k=1, excluded=NOTHING)
    assert found.ranked.items.tolist() == [[0]]  # the better item fell at level 0


def test_items_of_one_id_rank_by_popularity():
    table = SemanticIdTable(torch.tensor([[1], [0], [1], [1]]), (2,))
    trie = SemanticIdTrie.from_table(table, torch.tensor([3, 1, 8, 3]))
    steps = TableSteps((2,), 1)
    steps.by_prefix = [torch.tensor([[[-2.0, -1.0]]])]
    excluded = torch.tensor([[0, -1, 0]])
    found = beam_search(steps, trie, num_beams=4, top_k=3, excluded=excluded)
    assert found.ranked.items.tolist() == [[2, 3, 1]]
    assert found.ranked.scores.tolist() == [[-1.0, -1.0, -2.0]]


@unhurried
@given(case=searches(), seed=st.integers(0, 99))
def test_width_of_the_catalogue_is_exhaustive(case, seed):
    table, excluded = opened(case)
    width = len(table.codes)
    found, steps = search(table, excluded, num_beams=width, top_k=width, seed=seed)
    for row, gone in enumerate(excluded.tolist()):
        expected = exhaustive(
            lambda semantic_id, row=row: steps.score(row, semantic_id),
            table,
            popularity_of(table).tolist(),
            gone,
            width,
        )
        items = found.ranked.items[row].tolist()
        assert items == expected + [-1] * (width - len(expected))


@unhurried
@given(case=searches(), seed=st.integers(0, 99), width=st.integers(1, 6), top_k=st.integers(1, 6))
def test_lists_are_real_distinct_allowed_and_full(case, seed, width, top_k):
    table, excluded = opened(case)
    top_k = min(width, top_k)
    found, steps = search(
        table, excluded, num_beams=width, top_k=top_k, seed=seed, values=(0.1, 0.4)
    )
    keys = pack(table.codes, table.codebook_sizes)
    for row, gone in enumerate(excluded.tolist()):
        allowed = set(range(len(table.codes))) - set(gone)
        items = [item for item in found.ranked.items[row].tolist() if item >= 0]
        scores = found.ranked.scores[row, : len(items)].tolist()
        assert len(items) == min(top_k, len(allowed))
        assert len(set(items)) == len(items)
        assert set(items) <= allowed
        assert scores == sorted(scores, reverse=True)
        for item, score in zip(items, scores, strict=True):
            own = steps.score(row, table.codes[item].tolist())
            assert score == pytest.approx(own, abs=1e-5)
        ids = [key for key in found.keys[row].tolist() if key >= 0]
        assert len(ids) == len(set(ids)) == min(width, len({int(keys[i]) for i in allowed}))


@unhurried
@given(catalogue=catalogues(), seed=st.integers(0, 99), width=st.integers(1, 12))
def test_ties_go_to_the_lower_id(catalogue, seed, width):
    table = table_of(catalogue)
    nothing = torch.zeros((1, 0), dtype=torch.long)
    found, _ = search(table, nothing, num_beams=width, top_k=width, seed=seed, values=(0.5,))
    size = len(table.codes)
    flat = exhaustive(lambda _: 0.0, table, popularity_of(table), [], size)
    assert found.ranked.items[0].tolist() == (flat + [-1] * width)[:width]


@unhurried
@given(case=searches(), seed=st.integers(0, 99))
def test_a_request_does_not_see_its_neighbors(case, seed):
    table, excluded = opened(case)
    together, _ = search(table, excluded, num_beams=3, top_k=3, seed=seed)
    trie = SemanticIdTrie.from_table(table, popularity_of(table))
    for row in range(len(excluded)):
        steps = TableSteps(table.codebook_sizes, len(excluded), seed=seed)
        steps.by_prefix = [level[row : row + 1] for level in steps.by_prefix]
        own = excluded[row : row + 1]
        alone = beam_search(steps, trie, num_beams=3, top_k=3, excluded=own)
        assert torch.equal(alone.ranked.items[0], together.ranked.items[row])


def test_allowed_subset_equals_excluding_the_rest():
    table = SemanticIdTable(torch.randint(0, 3, (20, 3)), (3, 3, 3))
    trie = SemanticIdTrie.from_table(table, popularity_of(table))
    bitmap = torch.rand(2, 20) < 0.5
    rest = torch.stack([torch.arange(20), torch.arange(20)]).masked_fill(bitmap, -1)
    first = beam_search(TableSteps((3, 3, 3), 2), trie, num_beams=5, top_k=5, excluded=rest)
    second = search_allowed(
        TableSteps((3, 3, 3), 2),
        trie,
        OnlyItems.of(trie, bitmap),
        num_requests=2,
        num_beams=5,
        top_k=5,
    )
    assert torch.equal(first.ranked.items, second.ranked.items)


def test_nothing_allowed_gives_an_empty_list():
    table = SemanticIdTable(torch.tensor([[0], [1]]), (2,))
    found, _ = search(table, torch.tensor([[0, 1]]), num_beams=2, top_k=2, seed=0)
    assert found.ranked.items.tolist() == [[-1, -1]]
    assert found.keys.tolist() == [[-1, -1]]


def test_batch_of_no_request():
    table = SemanticIdTable(torch.tensor([[0, 1], [1, 0]]), (2, 2))
    found, _ = search(table, NOTHING[:0], num_beams=3, top_k=2, seed=0)
    assert found.ranked.items.shape == (0, 2)


def test_nan_never_wins():
    table = SemanticIdTable(torch.tensor([[0], [1]]), (2,))
    steps = TableSteps((2,), 1)
    steps.by_prefix = [torch.tensor([[[float("nan"), -4.0]]])]
    trie = SemanticIdTrie.from_table(table, None)
    for width, expected in ((1, [[1]]), (2, [[1, -1]])):
        found = beam_search(steps, trie, num_beams=width, top_k=width, excluded=NOTHING)
        assert found.ranked.items.tolist() == expected


def test_best_columns_breaks_ties_by_column():
    candidates = torch.tensor([[-1.0, -0.0, 0.0, float("-inf")], [2.0, -3.0, 2.0, 2.0]])
    assert best_columns(candidates, 1).tolist() == [[1], [0]]
    assert best_columns(candidates, 3).tolist() == [[0, 1, 2], [0, 2, 3]]


@pytest.mark.parametrize(("num_beams", "top_k"), [(3, 4), (0, 0)])
def test_beam_narrower_than_the_list_is_refused(num_beams, top_k):
    table = SemanticIdTable(torch.tensor([[0]]), (2,))
    with pytest.raises(ConfigError, match=rf"num_beams \({num_beams}\) must be at least top_k"):
        search(table, NOTHING, num_beams=num_beams, top_k=top_k, seed=0)
