"""Groups give what transformers' last group beam search gave, without its repetitions."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sidrec.errors import ConfigError
from sidrec.generator.decoding.beam_search import Beams, beam_search
from sidrec.generator.decoding.diverse_beam_search import _choose, diverse_search, merged
from sidrec.generator.decoding.item_filters import AllItemsBut
from sidrec.generator.decoding.trie import SemanticIdTrie, pack
from sidrec.types import SemanticIdTable
from tests.generator.catalogues import TableSteps, catalogues, table_of, unhurried

GOLDEN = json.loads((Path(__file__).parent / "fixtures" / "diverse.json").read_text())
LOWEST = float("-inf")


def nothing(num_requests):
    return torch.zeros((num_requests, 0), dtype=torch.long)


def search(steps, trie, *, num_requests=1, top_k=None, excluded=None, **settings):
    allowed = AllItemsBut.of(trie, nothing(num_requests) if excluded is None else excluded)
    return diverse_search(
        steps,
        trie,
        allowed,
        num_requests=num_requests,
        top_k=top_k or settings["num_beams"],
        **settings,
    )


def steps_of(case):
    """Log-probabilities from the raw logits of a golden case."""
    sizes = case["codebook_sizes"]
    steps = TableSteps(sizes, 2)
    for level, size in enumerate(sizes):
        logits = torch.tensor(case["logits"][level]).view(2, -1, size)
        steps.by_prefix[level] = logits.log_softmax(dim=-1)
    return steps


def test_fixtures_come_from_the_last_release_with_groups():
    assert GOLDEN["transformers"] == "4.56.2"


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: f"groups{case['num_groups']}")
def test_groups_equal_transformers(case):
    sizes = tuple(case["codebook_sizes"])
    trie = SemanticIdTrie.from_table(SemanticIdTable(torch.tensor(case["codes"]), sizes), None)
    settings = {key: case[key] for key in ("num_beams", "num_groups", "diversity_penalty")}
    found = search(steps_of(case), trie, num_requests=2, **settings)
    for row in range(2):
        best = {}
        for codes, score in zip(case["sequences"][row], case["scores"][row], strict=True):
            key = int(pack(torch.tensor(codes), sizes))
            best[key] = max(best.get(key, LOWEST), score)
        keys = [key for key in found.keys[row].tolist() if key >= 0]
        scores = found.log_probabilities[row, : len(keys)].tolist()
        assert set(keys) == set(best)
        assert scores == sorted(scores, reverse=True)
        for key, score in zip(keys, scores, strict=True):
            assert score == pytest.approx(best[key], abs=1e-4)


def test_second_group_avoids_the_first_by_hand():
    table = SemanticIdTable(torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]]), (2, 2))
    steps = TableSteps((2, 2), 1)
    steps.by_prefix = [
        torch.tensor([[[-1.0, -1.5]]]),
        torch.tensor([[[-1.0, -2.0], [-1.0, -1.5]]]),
    ]
    trie = SemanticIdTrie.from_table(table, None)
    found = search(steps, trie, num_beams=2, num_groups=2, diversity_penalty=0.75)
    # group 1: [0, 0] at -2. Group 2: 0 costs 1.75, so 1 at 1.5; then 0 costs 1.75, so 1 at 1.5
    assert found.ranked.items.tolist() == [[0, 3]]
    assert found.ranked.scores.tolist() == [[-2.0, -3.0]]


def test_one_id_of_two_groups_appears_once_with_its_best_score():
    table = SemanticIdTable(torch.tensor([[0], [1]]), (2,))
    steps = TableSteps((2,), 1)
    steps.by_prefix = [torch.tensor([[[-1.0, -9.0]]])]
    trie = SemanticIdTrie.from_table(table, None)
    found = search(steps, trie, num_beams=2, num_groups=2, diversity_penalty=0.5)
    assert found.ranked.items.tolist() == [[0, -1]]
    assert found.ranked.scores.tolist() == [[-1.0, LOWEST]]
    assert found.keys.tolist() == [[0, -1]]


def test_merging_keeps_the_order_of_the_keys():
    beams = Beams(
        lo=torch.tensor([[4, 0, 4, 2, 0]]).int(),
        hi=torch.tensor([[5, 1, 5, 2, 1]]).int(),  # the fourth has ended
        scores=torch.tensor([[-3.0, -2.0, -1.0, LOWEST, -2.0]]),
    )
    kept = merged(beams)
    assert kept.lo.tolist() == [[0, 4, 0, 0, 0]]
    assert kept.hi.tolist() == [[1, 5, 0, 0, 0]]
    assert kept.scores.tolist() == [[-2.0, -1.0, LOWEST, LOWEST, LOWEST]]


@unhurried
@given(catalogue=catalogues(), seed=st.integers(0, 99), width=st.integers(1, 6))
def test_one_group_is_plain_beam_search(catalogue, seed, width):
    table = table_of(catalogue)
    trie = SemanticIdTrie.from_table(table, None)
    values = (0.1, 0.4)  # many ties
    made = [TableSteps(table.codebook_sizes, 1, seed=seed, values=values) for _ in range(2)]
    plain = beam_search(made[0], trie, num_beams=width, top_k=width, excluded=nothing(1))
    groups = search(made[1], trie, num_beams=width, num_groups=1, diversity_penalty=0.5)
    assert torch.equal(plain.ranked.items, groups.ranked.items)
    assert torch.equal(plain.ranked.scores, groups.ranked.scores)


@unhurried
@given(
    catalogue=catalogues(),
    seed=st.integers(0, 99),
    num_groups=st.integers(1, 4),
    group_size=st.integers(1, 3),
    data=st.data(),
)
def test_lists_are_real_distinct_and_allowed(catalogue, seed, num_groups, group_size, data):
    table = table_of(catalogue)
    trie = SemanticIdTrie.from_table(table, None)
    item = st.integers(-1, len(table.codes) - 1)
    rows = data.draw(st.lists(st.lists(item, min_size=2, max_size=2), min_size=1, max_size=3))
    found = search(
        TableSteps(table.codebook_sizes, len(rows), seed=seed),
        trie,
        num_requests=len(rows),
        excluded=torch.tensor(rows),
        num_beams=num_groups * group_size,
        num_groups=num_groups,
        diversity_penalty=0.3,
    )
    for row, gone in enumerate(rows):
        items = [item for item in found.ranked.items[row].tolist() if item >= 0]
        assert len(items) == len(set(items))
        assert set(items) <= set(range(len(table.codes))) - set(gone)
        assert bool(items) == bool(set(range(len(table.codes))) - set(gone))
        keys = [key for key in found.keys[row].tolist() if key >= 0]
        assert len(keys) == len(set(keys))


def test_a_request_does_not_see_its_neighbors():
    table = SemanticIdTable(
        torch.cartesian_prod(*[torch.arange(4)] * 3)[torch.randperm(64)[:40]], (4, 4, 4)
    )
    trie = SemanticIdTrie.from_table(table, None)
    settings = {"num_beams": 6, "num_groups": 3, "diversity_penalty": 0.4}
    together = search(TableSteps((4, 4, 4), 3), trie, num_requests=3, **settings)
    for row in range(3):
        steps = TableSteps((4, 4, 4), 3)
        steps.by_prefix = [level[row : row + 1] for level in steps.by_prefix]
        alone = search(steps, trie, **settings)
        assert torch.equal(alone.ranked.items[0], together.ranked.items[row])
        assert torch.equal(alone.ranked.scores[0], together.ranked.scores[row])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_groups": 4}, r"num_groups \(4\) must divide num_beams \(6\)"),
        ({"num_groups": 0}, r"num_groups \(0\) must divide"),
        ({"diversity_penalty": -1.0}, "at least 0, got -1.0"),
        ({"top_k": 7}, r"num_beams \(6\) must be at least top_k \(7\)"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(settings, message):
    trie = SemanticIdTrie.from_table(SemanticIdTable(torch.tensor([[0], [1]]), (2,)), None)
    given = {"num_beams": 6, "num_groups": 3, "diversity_penalty": 0.5} | settings
    with pytest.raises(ConfigError, match=message):
        search(TableSteps((2,), 1), trie, **given)


def test_a_beam_without_items_takes_no_code_from_the_groups_after_it():
    candidates = torch.tensor([[[0.0, LOWEST, LOWEST], [-3.0, -1.0, -1.25]]])  # a beam a group
    chosen = _choose(candidates, 4, num_groups=2, diversity_penalty=0.5)
    assert chosen.codes[0, [0, 2, 3]].tolist() == [0, 1, 2]
    assert chosen.scores[0].tolist() == [0.0, LOWEST, -1.0, -1.25]
