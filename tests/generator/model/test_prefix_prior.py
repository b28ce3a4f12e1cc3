import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sidrec.generator.decoding.beam_search import beam_search, over_children
from sidrec.generator.decoding.exhaustive import exact_search
from sidrec.generator.decoding.item_filters import AllItemsBut, ListedItems, Restriction
from sidrec.generator.decoding.trie import SemanticIdTrie
from sidrec.generator.model.prefix_prior import (
    PrefixMass,
    PrefixTree,
    PriorSteps,
    allowed_positions,
    rank_by_scores,
    rerank,
)
from sidrec.types import SemanticIdTable
from tests.generator.catalogues import TableSteps, catalogues, table_of, unhurried

SIZES = (3, 2)
CODES = torch.tensor([[0, 0], [0, 1], [0, 1], [2, 1]])
ALL = torch.ones(1, 4, dtype=torch.bool)


def trie_of(codes, sizes):
    return SemanticIdTrie.from_table(SemanticIdTable(codes, sizes), None)


def drawn(trie, *, num_requests=3, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(num_requests, trie.num_items, generator=generator)


def test_the_tree_by_hand():
    tree = PrefixTree.of(trie_of(CODES, SIZES))
    assert [one.tolist() for one in tree.node_at] == [[0, 0, 0, 1, 0], [0, 1, 1, 2, 0]]
    assert [one.tolist() for one in tree.first_child] == [[0, 2], [0, 1, 3]]


def test_shares_by_hand():
    trie = trie_of(CODES, SIZES)
    scores = torch.tensor([[3.0, 1.0, 1.0, 2.0]]).log()  # code 0 has 5 of 7, code 2 has 2
    mass = PrefixMass(PrefixTree.of(trie), scores, ALL)
    root = torch.tensor([[[0, 3, 3, 4]]], dtype=torch.int32)
    found = mass.log_softmax(0, torch.zeros(1, 1, 3), root).exp()
    torch.testing.assert_close(found, torch.tensor([[[5 / 7, 0.0, 2 / 7]]]))
    below = torch.tensor([[[0, 1, 3]]], dtype=torch.int32)
    found = mass.log_softmax(1, torch.zeros(1, 1, 2), below).exp()
    torch.testing.assert_close(found, torch.tensor([[[3 / 5, 2 / 5]]]))
    tilted = mass.log_softmax(1, torch.tensor([[[0.0, 3.0]]]).log(), below).exp()
    torch.testing.assert_close(tilted, torch.tensor([[[0.0, 1.0]]]))


def test_an_excluded_item_has_no_mass_and_its_lonely_prefix_is_shut():
    trie = trie_of(CODES, SIZES)
    mask = torch.tensor([[False, True, True, False]])
    mass = PrefixMass(PrefixTree.of(trie), torch.zeros(1, 4), mask)
    root = torch.tensor([[[0, 3, 3, 4]]], dtype=torch.int32)
    assert mass.log_softmax(0, torch.zeros(1, 1, 3), root).exp()[0, 0].tolist() == [1.0, 0.0, 0.0]


@unhurried
@given(catalogues(), st.sampled_from([0.0, 1.0, 20.0]), st.integers(0, 3))
def test_a_silent_model_gives_every_semantic_id_its_share_of_the_softmax(catalogue, scale, banned):
    table = table_of(catalogue)
    trie = SemanticIdTrie.from_table(table, None)
    excluded = torch.arange(banned)[None].repeat(3, 1) if banned < trie.num_items else None
    excluded = torch.zeros(3, 0, dtype=torch.long) if excluded is None else excluded
    allowed = AllItemsBut.of(trie, excluded)
    mask, scores = allowed_positions(allowed, trie, 3), drawn(trie, scale=scale)
    mass = PrefixMass(PrefixTree.of(trie), scores, mask)

    def start():
        return PriorSteps(TableSteps(table.codebook_sizes, 3), trie, mass, t5_factor=0.0)

    found = exact_search(
        start, trie, allowed, num_requests=3, top_k=trie.num_items, prefixes_at_once=2
    )
    share = scores.masked_fill(~mask, float("-inf")).softmax(dim=1)
    for row in range(3):
        for item, score in zip(*(one[row].tolist() for one in found.ranked), strict=True):
            if item < 0:
                continue
            same = trie.keys == trie.keys[trie.position[item]]
            expected = float(share[row, same].sum())
            if expected > 1e-30:
                assert score == pytest.approx(torch.tensor(expected).log().item(), abs=2e-4)
    total = found.log_probabilities.exp().sum(dim=1)
    torch.testing.assert_close(total, torch.ones(3), atol=1e-5, rtol=0)


@unhurried
@given(catalogues(), st.integers(1, 20))
def test_steps_equal_the_product_of_softmaxes_written_out(catalogue, num_beams):
    table = table_of(catalogue)
    trie, sizes = SemanticIdTrie.from_table(table, None), table.codebook_sizes
    steps, scores = TableSteps(sizes, 2), drawn(trie, num_requests=2, scale=3.0)
    allowed = torch.ones(2, trie.num_items, dtype=torch.bool)
    mass = PrefixMass(PrefixTree.of(trie), scores, allowed)
    found = beam_search(
        PriorSteps(steps, trie, mass, t5_factor=0.7),
        trie,
        num_beams=num_beams,
        top_k=num_beams,
        excluded=torch.zeros(2, 0, dtype=torch.long),
    )
    codes = table.codes[trie.items]  # by position, as the scores
    for row in range(2):
        for item, score in zip(*(one[row].tolist() for one in found.ranked), strict=True):
            if item >= 0:
                expected = chain(codes, table.codes[item], scores[row], steps, row)
                assert score == pytest.approx(expected, abs=1e-3)


def chain(codes, own, scores, steps, row):
    """The formula of the prior, item by item: no trie, no prefix sums."""
    total, prefix, inside = 0.0, 0, torch.ones(len(codes), dtype=torch.bool)
    for level, code in enumerate(own.tolist()):
        children = codes[inside, level].unique()
        logits = {
            int(c): 0.7 * steps.by_prefix[level][row, prefix, c]
            + scores[inside & (codes[:, level] == c)].logsumexp(dim=0)
            for c in children
        }
        total += float(logits[code] - torch.stack(list(logits.values())).logsumexp(dim=0))
        inside = inside & (codes[:, level] == code)
        prefix = prefix * steps.sizes[level] + code
    return total


def test_extreme_scores_rule_no_allowed_item_out():
    trie = trie_of(CODES, SIZES)
    mass = PrefixMass(PrefixTree.of(trie), torch.tensor([[1e4, 0.0, -1e4, -2e4]]), ALL)
    found = beam_search(
        PriorSteps(TableSteps(SIZES, 1), trie, mass, t5_factor=1.0),
        trie,
        num_beams=4,
        top_k=4,
        excluded=torch.zeros(1, 0, dtype=torch.long),
    )
    assert sorted(found.ranked.items[0].tolist()) == [0, 1, 2, 3]
    assert torch.isfinite(found.ranked.scores).all()


def test_the_gradient_of_a_weight_is_that_of_the_softmax():
    trie, weight = trie_of(CODES, SIZES), torch.tensor(1.5, requires_grad=True)
    scores = torch.tensor([[0.3, -1.0, 2.0, 0.5]])
    mass = PrefixMass(PrefixTree.of(trie), weight * scores, ALL)
    root = torch.tensor([[[0, 3, 3, 4]]], dtype=torch.int32)
    (found,) = torch.autograd.grad(mass.log_softmax(0, torch.zeros(1, 1, 3), root)[0, 0, 2], weight)
    share = (1.5 * scores).softmax(dim=1)
    torch.testing.assert_close(found, scores[0, 3] - (share * scores).sum())


def test_allowed_positions_of_lists_and_of_exclusions():
    trie = trie_of(torch.tensor([[2, 0], [0, 1], [0, 0]]), SIZES)  # positions: items 2, 1, 0
    excluded = AllItemsBut.of(trie, torch.tensor([[0, 0], [-1, 2]]))
    assert allowed_positions(excluded, trie, 2).tolist() == [
        [True, True, False],
        [False, True, True],
    ]
    listed = ListedItems.of(trie, [Restriction((0, 1), ()), Restriction((2,), ())])
    assert allowed_positions(listed, trie, 2).tolist() == [
        [False, True, True],
        [True, False, False],
    ]


def test_ranking_by_the_prior_alone_and_distinct_ids():
    trie = trie_of(CODES, SIZES)
    mask = torch.tensor([[True, True, True, False]])
    found = rank_by_scores(torch.tensor([[0.0, 2.0, 1.0, 9.0]]), mask, trie, top_k=4)
    assert found.ranked.items.tolist() == [[1, 2, 0, -1]]
    assert found.keys.tolist() == [[1, 0, -1, -1]]  # items 1 and 2 share an ID


def test_reranking_adds_t5s_share_and_the_scores():
    trie = trie_of(CODES[[0, 1, 3]], SIZES)
    found = rank_by_scores(torch.tensor([[2.0, 1.0, 0.0]]), ALL[:, :3], trie, top_k=2)
    again = rerank(found, torch.tensor([[0.0, 5.0, 90.0]]), trie, t5_factor=0.0, top_k=2)
    assert again.ranked.items.tolist() == [[1, 0]]  # item 2 was not found
    assert again.ranked.scores.tolist() == [[5.0, 0.0]]


def test_a_silent_model_without_a_prior_holds_all_items_for_equal():
    start = torch.zeros(1, 1, dtype=torch.int32)
    bounds = trie_of(CODES, SIZES).child_bounds(start, start + 4, level=0)
    found = over_children(torch.zeros(1, 1, 3), bounds, torch.arange(5)[None].double())
    torch.testing.assert_close(found.exp(), torch.tensor([[[0.75, 0.0, 0.25]]]))
