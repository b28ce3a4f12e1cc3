"""The mass of prefixes is what the softmax over all items adds up to below them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sidrec.generator.decoding.beam_search import beam_search
from sidrec.generator.decoding.trie import SemanticIdTrie
from sidrec.generator.model.codebook_prior import CodebookPrior
from sidrec.generator.model.prefix_prior import EVEN_SHARE, PrefixMass, PrefixTree, WeighedSteps
from tests.generator.catalogues import TableSteps, catalogues, table_of

CODES = torch.tensor([[0, 0], [0, 1], [0, 1], [2, 1]])


def test_the_tree_by_hand():
    tree = PrefixTree.of(CODES)
    assert [one.tolist() for one in tree.prefix_at] == [[0, 0, 0, 0, 0], [0, 0, 0, 1, 0]]
    assert [one.tolist() for one in tree.first_child] == [[0], [0, 3]]
    assert [one.tolist() for one in tree.child_codes] == [[0, 2], [0, 1, 1, 1]]


def test_masses_by_hand():
    first, second = torch.tensor([[0.0, 9.0, math.log(2)]]), torch.tensor([[math.log(3), 0.0]])
    mass = PrefixMass(PrefixTree.of(CODES), [first, second])  # weights 3, 1, 1 | 2: sum 7
    bounds = torch.tensor([[[0, 3, 3, 4]]], dtype=torch.int32)
    root = torch.zeros(1, 1, dtype=torch.float64)
    found = mass.of_children(0, root, bounds)[0, 0]
    even = EVEN_SHARE / 4
    expected = torch.tensor([5 / 7, 2 / 7]).double() * (1 - EVEN_SHARE)
    torch.testing.assert_close(found[[0, 2]], expected + torch.tensor([3, 1]) * even)
    below = mass.of_children(
        1, root + mass.scores(0)[:, :1], torch.tensor([[[0, 1, 3]]], dtype=torch.int32)
    )[0, 0]
    expected = torch.tensor([3 / 7, 2 / 7]).double() * (1 - EVEN_SHARE)
    torch.testing.assert_close(below, expected + torch.tensor([1, 2]) * even)


@settings(deadline=None, max_examples=60)
@given(catalogues(), st.sampled_from([0.0, 1.0, 20.0, 150.0]), st.integers(1, 20))
def test_a_search_scores_as_with_the_mass_before_every_position(catalogue, scale, num_beams):
    table = table_of(catalogue)
    trie, sizes = SemanticIdTrie.from_table(table, None), table.codebook_sizes
    prior = CodebookPrior(
        [torch.randn(size, 5) / 3 for size in sizes],
        table.codes[trie.items],
        scale=scale,
        max_history_items=2,
        half_life_items=1.0,
    )
    asked = torch.nn.functional.normalize(torch.randn(3, 5), dim=1)
    steps = TableSteps(sizes, 3)
    weighed = WeighedSteps(TableSteps(sizes, 3), trie, prior.masses(asked, task="search"))
    excluded = torch.randint(-1, trie.num_items, (3, 2))
    limits = {"num_beams": num_beams, "top_k": num_beams, "excluded": excluded}
    expected = beam_search(
        steps, trie, **limits, mass_before=prior(asked, task="search").detach()
    ).ranked
    found = beam_search(weighed, trie, **limits).ranked
    torch.testing.assert_close(found.scores, expected.scores, atol=1e-5, rtol=1e-5)
    close = (expected.scores.diff(dim=1).abs() < 1e-4).any()
    assert close or torch.equal(found.items, expected.items)


@pytest.mark.parametrize("task", ["search", "recommendation"])
def test_extreme_scores_leave_finite_masses(task):
    prior = CodebookPrior(
        [torch.eye(3), -torch.eye(2, 3)], CODES, scale=1e4, max_history_items=2, half_life_items=1.0
    )
    mass = prior.masses(torch.eye(3)[:1] * 100, task=task)
    bounds = torch.tensor([[[0, 3, 3, 4]]], dtype=torch.int32)
    found = mass.of_children(0, torch.zeros(1, 1, dtype=torch.float64), bounds)
    assert torch.isfinite(found).all()
    assert (found[0, 0, [0, 2]] >= EVEN_SHARE / 4).all()
