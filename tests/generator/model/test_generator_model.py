import math

import pytest
import torch

from sidrec.errors import ConfigError
from sidrec.generator.decoding.search_strategy import Decoding
from tests.generator.made import SIZES, histories, searches, tiny_generator

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
