"""Sampling draws what the model's distribution says, without replacement, whatever the batch."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sidrec.errors import ConfigError
from sidrec.generator.decoding.gumbel import gumbel_noise, sampled_search
from sidrec.generator.decoding.item_filters import AllItemsBut
from sidrec.generator.decoding.trie import SemanticIdTrie
from sidrec.types import SemanticIdTable
from tests.generator.catalogues import TableSteps, catalogues, table_of, unhurried

LOWEST = float("-inf")


def search(steps, trie, seeds, *, excluded=None, **settings):
    nothing = torch.zeros((len(seeds), 0), dtype=torch.long)
    allowed = AllItemsBut.of(trie, nothing if excluded is None else excluded)
    given = {"temperature": 1.0, "top_k": settings["num_beams"]} | settings
    return sampled_search(steps, trie, allowed, seeds=seeds, **given)


def one_model(num_requests):
    """Return three items of probability .3, .3 and .4, and the steps of equal requests."""
    table = SemanticIdTable(torch.tensor([[0, 0], [0, 1], [1, 0]]), (2, 3))
    steps = TableSteps((2, 3), 1)
    first = torch.tensor([[[0.6, 0.4]]]).log()
    second = torch.tensor([[[0.15, 0.15, 0.7], [0.2, 0.3, 0.5]]]).log()  # most is on no item
    steps.by_prefix = [x.expand(num_requests, -1, -1) for x in (first, second)]
    return SemanticIdTrie.from_table(table, None), steps


@pytest.mark.parametrize("width", [1, 3])
def test_draws_follow_the_distribution(width):
    num_draws = 20_000
    trie, steps = one_model(num_draws)
    found = search(steps, trie, torch.arange(num_draws), num_beams=width)
    shares = torch.bincount(found.ranked.items[:, 0], minlength=3) / num_draws
    assert shares.tolist() == pytest.approx([0.3, 0.3, 0.4], abs=0.014)  # 4 standard deviations
    if width == 3:
        assert torch.equal(found.ranked.items.sort(dim=1).values[0], torch.arange(3))
        after_0 = found.ranked.items[found.ranked.items[:, 0] == 0, 1]
        assert (after_0 == 1).float().mean().item() == pytest.approx(0.3 / 0.7, abs=0.025)


def test_low_temperature_takes_the_likeliest():
    trie, steps = one_model(50)
    found = search(steps, trie, torch.arange(50), num_beams=1, temperature=0.01)
    # level by level: code 0 of the first is likelier than code 1, and below it both are as likely
    assert set(found.ranked.items.flatten().tolist()) == {0, 1}


@unhurried
@given(catalogue=catalogues(), seed=st.integers(0, 99), width=st.integers(1, 5))
def test_a_wider_search_begins_with_the_same_draws(catalogue, seed, width):
    table = table_of(catalogue)
    trie = SemanticIdTrie.from_table(table, None)
    seeds = torch.tensor([seed, -seed])
    lists = []
    for num_beams in (width, width + 3):
        steps = TableSteps(table.codebook_sizes, 2, seed=seed)
        lists.append(search(steps, trie, seeds, num_beams=num_beams).keys)
    assert torch.equal(lists[0], lists[1][:, :width])


@unhurried
@given(catalogue=catalogues(), seed=st.integers(0, 99), width=st.integers(1, 6), data=st.data())
def test_draws_are_real_distinct_and_allowed(catalogue, seed, width, data):
    table = table_of(catalogue)
    trie = SemanticIdTrie.from_table(table, None)
    item = st.integers(-1, len(table.codes) - 1)
    rows = data.draw(st.lists(st.lists(item, min_size=2, max_size=2), min_size=1, max_size=3))
    steps = TableSteps(table.codebook_sizes, len(rows), seed=seed)
    seeds = torch.arange(len(rows)) + seed
    found = search(steps, trie, seeds, excluded=torch.tensor(rows), num_beams=width)
    for row, gone in enumerate(rows):
        allowed = set(range(len(table.codes))) - set(gone)
        items = [item for item in found.ranked.items[row].tolist() if item >= 0]
        scores = found.ranked.scores[row, : len(items)].tolist()
        assert len(items) == len(set(items)) == min(width, len(allowed))
        assert set(items) <= allowed
        assert scores == sorted(scores, reverse=True)


def test_a_draw_does_not_depend_on_the_batch():
    table = SemanticIdTable(torch.cartesian_prod(*[torch.arange(4)] * 3), (4, 4, 4))
    trie = SemanticIdTrie.from_table(table, None)
    seeds = torch.tensor([7, 8, 9])
    together = search(TableSteps((4, 4, 4), 3), trie, seeds, num_beams=5)
    for row in (2, 0):
        steps = TableSteps((4, 4, 4), 3)
        steps.by_prefix = [level[row : row + 1] for level in steps.by_prefix]
        alone = search(steps, trie, seeds[row : row + 1], num_beams=5)
        assert torch.equal(alone.ranked.items[0], together.ranked.items[row])
        assert torch.equal(alone.ranked.scores[0], together.ranked.scores[row])
    assert not torch.equal(together.ranked.items[0], together.ranked.items[1])


def test_noise_is_standard_gumbel():
    noise = gumbel_noise(torch.arange(100), torch.arange(20).expand(100, -1), level=1, size=50)
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.02)  # 4.9 standard deviations
    assert noise.var().item() == pytest.approx(1.6449, abs=0.05)
    assert torch.unique(noise).numel() > 0.99 * noise.numel()
    others = gumbel_noise(torch.arange(100), torch.arange(20).expand(100, -1), level=2, size=50)
    correlation = torch.corrcoef(torch.stack([noise.flatten(), others.flatten()]))[0, 1]
    assert correlation.abs().item() < 0.02


def test_nothing_allowed_gives_an_empty_list():
    trie, steps = one_model(1)
    found = search(steps, trie, torch.tensor([0]), excluded=torch.tensor([[0, 1, 2]]), num_beams=2)
    assert found.ranked.items.tolist() == [[-1, -1]]
    assert found.ranked.scores.tolist() == [[LOWEST, LOWEST]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ({"top_k": 4}, r"num_beams \(3\) must be at least top_k \(4\)"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    trie, steps = one_model(1)
    with pytest.raises(ConfigError, match=message):
        search(steps, trie, torch.tensor([0]), num_beams=3, **settings)
