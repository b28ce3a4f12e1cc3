"""The request's own vector scores the codes as dense retrieval would score the decoded items."""

import pytest
import torch

from sidrec.generator.decoding.beam_search import beam_search, over_children
from sidrec.generator.decoding.trie import SemanticIdTrie
from sidrec.generator.model.codebook_prior import CodebookPrior, code_means
from sidrec.types import SemanticIdTable

SIZES = (2, 2)
TWO = torch.tensor([[0], [1]])
CODES = torch.tensor([[0, 0], [0, 1], [0, 1], [1, 1]])  # three items behind code 0, one behind 1


def trie():
    return SemanticIdTrie.from_table(SemanticIdTable(CODES, SIZES), None)


def test_means_by_hand():
    vectors = torch.tensor([[0.0], [2.0], [4.0], [6.0]])  # mean 3: -3, -1, 1, 3
    first, second = code_means(CODES, vectors, SIZES)
    assert first.flatten().tolist() == [-1.0, 3.0]  # left: -2, 0, 2 | 0
    torch.testing.assert_close(second.flatten(), torch.tensor([-2.0, 2 / 3]))


def test_code_without_items_stands_for_nothing():
    means = code_means(torch.tensor([[0], [0]]), torch.randn(2, 3), (2,))
    assert means[0][1].tolist() == [0.0, 0.0, 0.0]


def test_mass_is_the_softmax_of_the_decoded_items_scores():
    vectors = torch.nn.functional.normalize(torch.randn(4, 3), dim=1)
    means = code_means(CODES, vectors, SIZES)
    prior = CodebookPrior(means, CODES, scale=7.0, max_history_items=3, half_life_items=1.0)
    asked = torch.nn.functional.normalize(torch.randn(5, 3), dim=1)
    decoded = sum(means[level][CODES[:, level]] for level in range(2))
    expected = torch.softmax(7.0 * asked @ decoded.T, dim=1)
    before = prior(asked, task="search")
    assert (before[:, 0] == 0).all()
    torch.testing.assert_close(before.diff(dim=1).float(), expected * 0.999 + 0.00025)


def test_a_silent_model_answers_as_dense_retrieval_over_decoded_items_would():
    generator = torch.Generator().manual_seed(3)
    table = torch.unique(torch.randint(0, 4, (30, 3), generator=generator), dim=0)
    catalogue = SemanticIdTrie.from_table(SemanticIdTable(table, (4, 4, 4)), None)
    vectors = torch.nn.functional.normalize(torch.randn(len(table), 6, generator=generator), dim=1)
    means = code_means(table, vectors, (4, 4, 4))
    codes = table[catalogue.items]
    prior = CodebookPrior(means, codes, scale=9.0, max_history_items=3, half_life_items=1.0)
    asked = torch.nn.functional.normalize(torch.randn(2, 6, generator=generator), dim=1)

    def silent(level, parent, codes):
        del level, codes
        return torch.zeros(*parent.shape, 4)

    found = beam_search(
        silent,
        catalogue,
        num_beams=64,
        top_k=5,
        excluded=torch.zeros(2, 0, dtype=torch.long),
        mass_before=prior(asked, task="search").detach(),
    )
    decoded = sum(means[level][table[:, level]] for level in range(3))
    assert torch.equal(found.ranked.items, (asked @ decoded.T).topk(5).indices)


def test_weight_of_an_item_halves_with_its_half_life():
    prior = CodebookPrior([torch.eye(2)], TWO, scale=1.0, max_history_items=4, half_life_items=1.0)
    items = torch.eye(2)[None]  # one request, two items: the first is older
    ago, real = torch.tensor([[1, 0]]), torch.tensor([[True, True]])
    vector = prior.history_vector(items, ago, real)[0]
    assert (vector[1] / vector[0]).item() == pytest.approx(2.0, abs=1e-3)
    assert vector.norm().item() == pytest.approx(1.0)


def test_padding_has_no_weight_and_an_empty_history_no_vector():
    prior = CodebookPrior([torch.eye(2)], TWO, scale=1.0, max_history_items=4, half_life_items=1.0)
    items, ago = torch.eye(2)[None].expand(2, -1, -1), torch.zeros(2, 2, dtype=torch.long)
    found = prior.history_vector(items, ago, torch.tensor([[True, False], [False, False]]))
    assert found.tolist() == [[1.0, 0.0], [0.0, 0.0]]
    found.sum().backward()
    assert torch.isfinite(prior.recency_logits.grad).all()


def test_a_silent_model_holds_all_items_for_equally_likely():
    start = torch.zeros(1, 1, dtype=torch.int32)
    bounds = trie().child_bounds(start, start + 4, level=0)
    found = over_children(torch.zeros(1, 1, 2), bounds, torch.arange(5)[None].double())
    torch.testing.assert_close(found.exp(), torch.tensor([[[0.75, 0.25]]]))


def test_probabilities_of_all_semantic_ids_sum_to_one():
    generator = torch.Generator().manual_seed(1)
    table = torch.unique(torch.randint(0, 4, (30, 3), generator=generator), dim=0)
    catalogue = SemanticIdTrie.from_table(SemanticIdTable(table, (4, 4, 4)), None)

    def step(level, parent, codes):
        del codes
        return torch.randn((*parent.shape, 4), generator=generator)

    found = beam_search(
        step,
        catalogue,
        num_beams=64,
        top_k=len(table),
        excluded=torch.zeros(2, 0, dtype=torch.long),
        mass_before=torch.rand(2, len(table) + 1, generator=generator).cumsum(dim=1).double(),
    )
    total = found.ranked.scores.exp().sum(dim=1)
    torch.testing.assert_close(total, torch.ones(2))
