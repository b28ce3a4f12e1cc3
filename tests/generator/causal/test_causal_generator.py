"""The joint generator on a causal language model, beside the same laws that T5's obeys."""

import math

import pytest
import torch

from sidrec.encoder.tower import TextTower
from sidrec.generator.decoding.search_strategy import Decoding
from sidrec.training.activation_checkpointing import checkpoint_activations
from tests.generator.causal.models import FAMILIES, causal_generator
from tests.generator.made import histories, searches

QUERIES = ["a heist film in paris", "rain", "space opera"]
HISTORIES = [[1, 2, 3, 4], [5], [7, 8], [9, 3, 11]]
INPUTS = [
    {"text_input": "tokens", "history_input": "codes"},
    {"text_input": "encoder_states", "history_input": "items"},
    {"text_input": "tokens_and_states", "history_input": "items"},
]


@pytest.fixture(scope="module")
def tower(encoder):
    return TextTower(encoder, revision=None, dropout=0.0, length_groups=1).eval()


def generator(tower, inputs, family="qwen3", **changes):
    needs_tower = inputs["text_input"] != "tokens"
    return causal_generator(
        family=family, tower=tower if needs_tower else None, **inputs, **changes
    )


@pytest.mark.parametrize("inputs", INPUTS, ids=["tokens", "states", "both"])
@pytest.mark.parametrize("family", FAMILIES)
def test_lists_hold_real_items_and_equal_those_of_exhaustive_search(tower, family, inputs):
    model = generator(tower, inputs, family)
    for batch in (searches(*QUERIES), histories(*HISTORIES)):
        wide = model.answer(batch, num_beams=30, top_k=20)
        for row, excluded in zip(wide.ranked.items.tolist(), batch.excluded.tolist(), strict=True):
            allowed = set(range(20)) - set(excluded)
            assert sorted(row) == [-1] * (20 - len(allowed)) + sorted(allowed)
        model.decoding = Decoding("exact")
        exact = model.answer(batch, num_beams=1, top_k=20)
        model.decoding = Decoding()
        assert torch.equal(exact.ranked.items, wide.ranked.items)
        torch.testing.assert_close(exact.ranked.scores, wide.ranked.scores, atol=1e-4, rtol=0)


@pytest.mark.parametrize("inputs", INPUTS, ids=["tokens", "states", "both"])
def test_the_score_of_an_item_is_minus_its_loss(tower, inputs):
    model = generator(tower, inputs)
    decoded = model.answer(searches("rain"), num_beams=20, top_k=20)
    probabilities = decoded.ranked.scores[0].exp()
    assert probabilities.sum().item() == pytest.approx(1, abs=1e-5)
    for item, score in zip(decoded.ranked.items[0].tolist(), decoded.ranked.scores[0], strict=True):
        loss = model(searches("rain", answers=[item]), label_smoothing=0.0).sum()
        torch.testing.assert_close(score, -loss, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("inputs", INPUTS, ids=["tokens", "states", "both"])
def test_answers_and_losses_do_not_depend_on_the_batch(tower, inputs):
    model = generator(tower, inputs)
    for ask, rows in ((searches, QUERIES), (histories, HISTORIES)):
        answers = list(range(12, 12 + len(rows)))
        together = model.answer(ask(*rows), num_beams=10, top_k=5)
        losses = []
        for place, row in enumerate(rows):
            alone = model.answer(ask(row), num_beams=10, top_k=5)
            assert torch.equal(alone.ranked.items[0], together.ranked.items[place])
            losses.append(model(ask(row, answers=[answers[place]]), label_smoothing=0.0))
        loss = model(ask(*rows, answers=answers), label_smoothing=0.0)
        torch.testing.assert_close(loss, torch.stack(losses).mean(dim=0), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("inputs", INPUTS, ids=["tokens", "states", "both"])
@pytest.mark.parametrize("prompt", ["after {history} comes", "{history}"])
def test_one_pass_over_a_history_is_as_many_requests(tower, inputs, prompt):
    changes = {"recommendation_prompt": prompt}
    model = generator(tower, inputs, all_positions=True, **changes)
    answers = [12, 13, 14, 15]
    found = model(histories(*HISTORIES, answers=answers), label_smoothing=0.1)
    model.all_positions = False
    whole = [[*row, answer] for row, answer in zip(HISTORIES, answers, strict=True)]
    alone = [
        model(histories(row[:end], answers=[row[end]]), label_smoothing=0.1)
        for row in whole
        for end in range(1, len(row))
    ]
    assert len(alone) == 10
    torch.testing.assert_close(found, torch.stack(alone).mean(dim=0), atol=1e-5, rtol=1e-4)


def test_an_item_of_a_history_is_not_seen_before_it_is_predicted():
    model = causal_generator(all_positions=True)
    one, other = (
        model.paths_of_histories(histories([1, 2, last], answers=[9])).logits for last in (3, 4)
    )
    for level in range(3):
        torch.testing.assert_close(one[level][0], other[level][0])  # the second item's
    torch.testing.assert_close(one[0][1], other[0][1])  # the third's first code, from the first two
    assert not torch.allclose(one[0][2], other[0][2])  # the target sees the third


def test_every_weight_learns_and_dropout_follows_the_seed(tower):
    model = generator(tower, INPUTS[1], all_positions=True, input_dropout=0.3).train()
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(model(histories(*HISTORIES), label_smoothing=0.0).sum())
    assert torch.equal(losses[0], losses[1])
    assert losses[0] != losses[2]
    (losses[0] + model(searches(*QUERIES), label_smoothing=0.0).sum()).backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


def test_a_head_of_zeros_holds_all_items_for_equally_likely():
    model = causal_generator()
    torch.nn.init.zeros_(model.t5.lm_head.weight)
    total = model(searches(*QUERIES), label_smoothing=0.0).sum()
    assert total.item() == pytest.approx(math.log(20), abs=1e-5)


def test_activation_checkpointing_keeps_the_gradient():
    model = causal_generator(all_positions=True, input_dropout=0.2).train()
    found = []
    for _ in range(2):
        torch.manual_seed(1)
        model.zero_grad()
        model(histories(*HISTORIES), label_smoothing=0.0).sum().backward()
        found.append([weight.grad.clone() for weight in model.parameters()])
        checkpoint_activations(model.t5)
    for before, after in zip(*found, strict=True):
        torch.testing.assert_close(after, before)
