import math

import numpy as np
import pytest
import torch

from sidrec.corpus.store import Interactions
from sidrec.errors import ConfigError
from sidrec.generator.decoding.item_filters import AllItemsBut
from sidrec.generator.decoding.search_strategy import Decoding
from sidrec.generator.model.calibrate import calibrate, gain_over_prior, scored_batch
from sidrec.generator.scorers.dense import DenseScorer
from sidrec.generator.scorers.item_prior import ItemPrior
from sidrec.generator.scorers.lexical import LexicalScorer
from sidrec.generator.scorers.next_item import NextItemScorer
from sidrec.generator.scorers.prior_settings import NextItemSettings
from sidrec.generator.scorers.scorer import PopularityScorer
from tests.generator.made import SIZES, TEXTS, histories, searches, tiny_generator

BATCH = searches("a heist film in paris", "rain", "space opera", answers=[3, 0, 7])


def logits_of(model, batch):
    """What T5's own forward says at every level, over all tokens."""
    positions, mask, _ = model.embedder(batch)
    labels = model.space(batch.task).tokens_of(batch.target)
    return model.t5(inputs_embeds=positions, attention_mask=mask.long(), labels=labels).logits


def children(model, codes, level):
    """Number of items behind every code of ``level`` that go on from each row's prefix."""
    table, size = model.space("search").codes, SIZES[level]
    counts = torch.zeros(len(codes), size)
    for row, code in enumerate(codes):
        behind = table[(table[:, :level] == code[:level]).all(dim=1)][:, level]
        counts[row] = torch.bincount(behind, minlength=size)
    return counts


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_t5s_own_normalized_over_the_items_that_go_on(tied, smoothing):
    model = tiny_generator(t5={"tie_word_embeddings": tied})
    logits, codes = logits_of(model, BATCH), model.space("search").codes[BATCH.target]
    expected = []
    for level, ids in enumerate(model.space("search").vocabulary.level_token_ids()):
        counts = children(model, codes, level)
        weight = counts * logits[:, level][:, ids].exp()
        share = (weight / weight.sum(dim=1, keepdim=True)).log()
        own = -share.gather(1, codes[:, level, None])[:, 0]
        spread = -share.where(counts > 0, 0).sum(dim=1) / (counts > 0).sum(dim=1)
        expected.append(((1 - smoothing) * own + smoothing * spread).mean())
    found = model(BATCH, label_smoothing=smoothing)
    torch.testing.assert_close(found, torch.stack(expected))


def test_a_head_of_zeros_holds_all_items_for_equally_likely():
    model = tiny_generator()
    torch.nn.init.zeros_(model.t5.lm_head.weight)
    total = model(BATCH, label_smoothing=0.0).sum()
    assert total.item() == pytest.approx(math.log(model.space("search").trie.num_items), abs=1e-5)


def test_other_levels_and_text_tokens_do_not_count():
    model = tiny_generator()
    before = model(BATCH, label_smoothing=0.0)
    first, size = model.space("search").vocabulary.level_starts[1], SIZES[1]
    with torch.no_grad():
        rows = model.t5.lm_head.weight
        rows[: model.space("search").vocabulary.first_token] += 5
        rows[first : first + size] += torch.randn(rows.shape[1])  # the same for all codes
    torch.testing.assert_close(model(BATCH, label_smoothing=0.0), before)
    with torch.no_grad():
        rows[first] += 1
    after = model(BATCH, label_smoothing=0.0)
    assert after[1] != before[1]
    assert torch.equal(after[[0, 2]], before[[0, 2]])


def test_a_level_sees_only_the_codes_before_it():
    model = tiny_generator()
    codes = model.space("search").codes
    alike = next(
        (a, b)
        for a in range(20)
        for b in range(20)
        if torch.equal(codes[a, :2], codes[b, :2]) and codes[a, 2] != codes[b, 2]
    )
    one, other = (model(searches("rain", answers=[item]), label_smoothing=0.0) for item in alike)
    torch.testing.assert_close(one[:2], other[:2])
    assert one[2] != other[2]


def test_losses_average_over_the_batch():
    model = tiny_generator()
    parts = [
        model(searches(text, answers=[answer]), label_smoothing=0.0)
        for text, answer in zip(BATCH.texts, BATCH.target.tolist(), strict=True)
    ]
    together = model(BATCH, label_smoothing=0.0)
    torch.testing.assert_close(together, torch.stack(parts).mean(dim=0), atol=1e-5, rtol=1e-4)


def test_the_score_of_an_item_is_minus_its_loss():
    model = tiny_generator()
    decoded = model.answer(histories([2, 5]), num_beams=20, top_k=20)
    items, scores = decoded.ranked.items[0].tolist(), decoded.ranked.scores[0]
    assert sorted(items) == [-1, -1, *sorted(set(range(20)) - {2, 5})]
    for item, score in zip(items, scores, strict=True):
        if item >= 0:
            loss = model(histories([2, 5], answers=[item]), label_smoothing=0.0).sum()
            torch.testing.assert_close(score, -loss, atol=1e-4, rtol=1e-4)


def test_answers_do_not_depend_on_the_batch():
    model = tiny_generator()
    queries = ["a heist film in paris", "rain"]
    together = model.answer(searches(*queries), num_beams=10, top_k=5)
    for row, query in enumerate(queries):
        alone = model.answer(searches(query), num_beams=10, top_k=5)
        assert torch.equal(alone.ranked.items[0], together.ranked.items[row])


def test_every_mode_answers():
    model = tiny_generator()
    batch = searches("a heist film in paris", "rain")
    wide = model.answer(batch, num_beams=30, top_k=20)
    model.decoding = Decoding("exact")
    exact = model.answer(batch, num_beams=1, top_k=20)
    assert torch.equal(exact.ranked.items, wide.ranked.items)
    torch.testing.assert_close(exact.ranked.scores, wide.ranked.scores)
    model.decoding = Decoding("diverse", 5, 0.5)
    diverse = model.answer(batch, num_beams=10, top_k=10)
    assert not torch.equal(diverse.ranked.items, wide.ranked.items[:, :10])
    for row in diverse.ranked.items.tolist():
        assert len(set(row) - {-1}) == 10


def test_more_items_than_beams_are_refused():
    with pytest.raises(ConfigError, match=r"num_beams \(3\) must be at least top_k \(5\)"):
        tiny_generator().answer(BATCH, num_beams=3, top_k=5)


def test_training_learns_both_tasks():
    model = tiny_generator(history_input="items").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    asked = [BATCH, histories([1, 2], [4], answers=[9, 11])]
    for _ in range(50):
        loss = sum(model(batch, label_smoothing=0.0).sum() for batch in asked)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    for batch in asked:
        found = model.answer(batch, num_beams=5, top_k=1).ranked.items[:, 0]
        assert torch.equal(found, batch.target)


def with_prior(model, **settings):
    """Give a tiny generator the prior that search and recommendation have by default."""
    train = Interactions(
        np.repeat(np.arange(6), 5),
        np.random.default_rng(0).integers(0, 20, 30),
        np.arange(30),
        np.arange(0, 31, 5),
    )
    scorers = {
        "search": {"lexical": LexicalScorer.of_texts([f"{TEXTS[i % 4]} {i}" for i in range(20)])},
        "recommendation": {
            "dense": DenseScorer(model.embedder.item_vectors, half_life_items=2.0),
            "next_item": NextItemScorer.of_interactions(
                train, 20, NextItemSettings(ridge=1.0), num_folds=2
            ),
            "popularity": PopularityScorer(torch.arange(20)),
        },
    }
    model.prior = ItemPrior(scorers, corpus_fingerprint="", **settings)
    return model.eval()


QUERY, HISTORY = searches("a heist film in paris"), histories([2, 5, 7])


@pytest.mark.parametrize("batch", [QUERY, HISTORY])
def test_the_score_of_an_item_is_minus_its_loss_with_a_prior(batch):
    model = with_prior(tiny_generator())
    decoded = model.answer(batch, num_beams=20, top_k=20)
    items, scores = decoded.ranked.items[0].tolist(), decoded.ranked.scores[0]
    excluded = set(batch.excluded[0].tolist())
    assert set(items) - {-1} == set(range(20)) - excluded
    assert scores[: 20 - len(excluded)].exp().sum().item() == pytest.approx(1.0, abs=1e-5)
    for item, score in zip(items, scores, strict=True):
        if item >= 0:
            asked = batch._replace(target=torch.tensor([item]))
            loss = model(asked, label_smoothing=0.0).sum()
            torch.testing.assert_close(score, -loss, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("batch", [QUERY, HISTORY])
@pytest.mark.parametrize("has_prior", [True, False])
def test_likelihoods_are_the_losses_of_known_and_allowed_targets(batch, has_prior):
    model = with_prior(tiny_generator()) if has_prior else tiny_generator()
    for target in (4, 9):
        asked = batch._replace(target=torch.tensor([target]))
        loss = model(asked, label_smoothing=0.0).sum()
        torch.testing.assert_close(model.log_likelihood(asked).float(), -loss[None])
    unknown = batch._replace(target=torch.tensor([-1]))
    assert model.log_likelihood(unknown).isnan().all()


def test_an_excluded_target_has_no_likelihood():
    batch = histories([2, 5, 7], answers=[5])
    assert with_prior(tiny_generator()).log_likelihood(batch).isnan().all()


@pytest.mark.parametrize("batch", [QUERY, HISTORY])
def test_without_t5s_factor_the_prior_itself_ranks(batch):
    model = with_prior(tiny_generator())
    task = batch.task
    weights = model.prior.log_weights[task].exp().detach()
    model.prior.set_calibrated(task, scalars=torch.cat([weights, torch.zeros(1)]), alone=weights)
    scores = model.scorer_scores(batch, model.embedder(batch))
    total = torch.tensordot(weights, scores, dims=1)[0]
    total[batch.excluded[0]] = -torch.inf
    expected = total.log_softmax(dim=0)
    for by in ("both", "prior"):
        found = model.answer(batch, num_beams=9, top_k=9, by=by).ranked
        torch.testing.assert_close(found.scores[0], expected[found.items[0]], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.scores[0], expected.topk(9).values, atol=1e-5, rtol=1e-5)
    reading, allowed = model.embedder(batch), AllItemsBut.of(model.space(task).trie, batch.excluded)
    mass = model._mass(batch, reading, allowed)
    beams = model._t5_search(batch, reading, allowed, 20, 9, mass=mass)
    torch.testing.assert_close(beams.ranked.scores[0], found.scores[0], atol=1e-4, rtol=1e-4)


def test_training_reaches_the_weights_of_the_task_alone():
    model = with_prior(tiny_generator()).train()
    batch = histories([2, 5, 7], answers=[3])._replace(user_index=torch.tensor([1]))
    model(batch, label_smoothing=0.0).sum().backward()
    assert (model.prior.log_weights["recommendation"].grad != 0).all()
    assert (model.prior.log_weights["search"].grad == 0).all()  # DDP waits for every gradient


def test_an_example_whose_prior_is_dropped_counts_allowed_items_alike():
    model = with_prior(tiny_generator(), dropout=0.999).train()
    model.t5.lm_head.weight.data.zero_()
    loss = model(histories([2, 5, 7], answers=[3]), label_smoothing=0.0).sum()
    assert loss.item() == pytest.approx(np.log(17), abs=1e-4)


def test_a_catalogue_above_the_limit_is_searched_by_t5_and_reranked():
    model = with_prior(tiny_generator(), max_exact_items=19)
    found = model.answer(HISTORY, num_beams=6, top_k=3).ranked
    alone = model.answer(HISTORY, num_beams=6, top_k=6, by="t5").ranked
    scores = model.scorer_scores(HISTORY, model.embedder(HISTORY))
    total = torch.tensordot(model.prior.weights("recommendation"), scores, dims=1)
    total = alone.scores + total.gather(1, alone.items)
    torch.testing.assert_close(found.scores, total.topk(3).values)
    assert torch.equal(found.items, alone.items.gather(1, total.topk(3).indices))
    assert model(HISTORY, label_smoothing=0.0).isfinite().all()  # T5 trains alone


def test_calibration_never_leaves_a_generator_below_its_prior():
    model = with_prior(tiny_generator())
    batches = [
        searches(*TEXTS[:3], answers=[4, 9, 6]),
        histories([2, 5, 7], [1, 3], answers=[3, 8]),
    ]
    calibrate(model, batches)
    for batch in batches:
        assert model.prior.is_calibrated(batch.task)
        assert gain_over_prior(model, batch).mean().item() >= -1e-6
        part, factor = scored_batch(model, batch), [model.prior.t5_factor(batch.task)]
        found = torch.cat([model.prior.weights(batch.task), torch.tensor(factor)])
        start = torch.cat([model.prior.log_weights[batch.task].exp(), torch.ones(1)])
        assert part.log_likelihood(found).sum() >= part.log_likelihood(start).sum() - 1e-4


def test_a_calibration_floor_fits_answers_to_targets_within_reach():
    model = with_prior(tiny_generator(), calibration_floor=0.05)
    prior, asked = model.prior, [[2, 5, 7], [1, 3], [4, 6]]
    unknown = histories(*asked)
    likely = torch.tensordot(
        prior.weights("recommendation"),
        model.scorer_scores(unknown, model.embedder(unknown)),
        dims=1,
    ).scatter(1, unknown.excluded.clamp(min=0), -torch.inf)  # pads point at item 0
    order = likely.argsort(dim=1).tolist()  # excluded items first
    batch = histories(*asked, answers=[order[0][-1], order[1][-1], order[2][5]])
    calibrate(model, [batch])
    part = scored_batch(model, batch)

    def scalars():
        factor = torch.tensor([prior.t5_factor("recommendation")])
        return torch.cat([prior.weights("recommendation"), factor])

    for_lists = scalars()
    with prior.for_likelihood():
        likeliest = scalars()
    assert not torch.allclose(for_lists, likeliest, atol=1e-2)
    first, second = (part.log_likelihood(one) for one in (for_lists, likeliest))
    assert (first.exp() + 0.05).log().sum() >= (second.exp() + 0.05).log().sum() - 1e-4
    assert second.sum() >= first.sum() - 1e-4
    torch.testing.assert_close(model.log_likelihood(batch), second, atol=1e-4, rtol=1e-4)
    assert gain_over_prior(model, batch).mean().item() >= -1e-6
    items = model.answer(batch, num_beams=20, top_k=20).ranked
    row = (items.items[0] == order[0][-1]).nonzero()[0]
    torch.testing.assert_close(items.scores[0, row].double(), first[:1], atol=1e-4, rtol=1e-4)


def test_requests_that_cannot_be_answered_take_no_part_in_calibration(capsys):
    model = with_prior(tiny_generator())
    calibrate(model, [histories([2, 5], answers=[5])])
    assert not model.prior.is_calibrated("recommendation")
    said = capsys.readouterr().err
    assert "recommendation: no validation request; the prior keeps its weights" in said
    assert gain_over_prior(model, histories([2, 5], answers=[5])).isnan().all()
