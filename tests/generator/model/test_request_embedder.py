import pytest
import torch
from torch import nn

from sidrec.encoder.tower import TextTower
from sidrec.errors import ConfigError
from sidrec.generator.model.request_embedder import packed
from sidrec.pairs.sentence_embedding import SentenceEmbedding
from tests.generator.made import histories, input_settings, searches, tiny_generator

LONG, SHORT = "a heist film in paris", "rain"


@pytest.fixture(scope="module")
def tower(encoder):
    return TextTower(encoder, revision=None, dropout=0.0, length_groups=1).eval()


def one_of(batch, row):
    """The same request in a batch of its own, without the padding."""
    return batch._replace(
        texts=batch.texts[row : row + 1],
        history=batch.history[row : row + 1, : int((batch.history[row] >= 0).sum())],
        **{
            name: getattr(batch, name)[row : row + 1]
            for name in (
                "text_rows",
                "indexed_item",
                "target",
                "excluded",
                "user_index",
                "request_rows",
            )
        },
    )


def encoded(model, batch):
    reading = model.embedder(batch)
    return model.encode(reading), reading.mask


def ids_of(model, text):
    return model.embedder.tokenizer.encode(text, add_special_tokens=False).ids


def embedded(model, ids):
    return model.t5.shared(torch.tensor(ids))


def test_packing_by_hand():
    states = torch.arange(8.0).view(2, 4, 1)
    mask = torch.tensor([[False, True, False, True], [False, False, True, False]])
    moved, seen = packed(states, mask)
    assert moved[0, :, 0].tolist() == [1, 3]
    assert moved[1, 0, 0] == 6
    assert seen.tolist() == [[True, True], [True, False]]


def test_prompt_stands_around_the_query_and_the_end_token_behind():
    model = tiny_generator()
    positions, mask, _ = model.embedder(searches(LONG, SHORT))
    for row, text in enumerate((LONG, SHORT)):
        ids = [
            *ids_of(model, "search:"),
            *ids_of(model, text)[:6],
            *ids_of(model, "please"),
            model.embedder.tokenizer.token_to_id("</s>"),
        ]
        assert mask[row].sum() == len(ids)
        torch.testing.assert_close(positions[row, : len(ids)], embedded(model, ids))


def test_codes_stand_level_by_level_item_by_item():
    model = tiny_generator()
    positions, mask, _ = model.embedder(histories([3, 1], [2]))
    tokens = model.space("search").vocabulary.tokens_of(model.space("search").codes)
    for row, items in enumerate(([3, 1], [2])):
        ids = [
            *ids_of(model, "after"),
            *tokens[items].flatten().tolist(),
            *ids_of(model, "comes"),
            1,
        ]
        assert mask[row].sum() == len(ids)
        torch.testing.assert_close(positions[row, : len(ids)], embedded(model, ids))


@pytest.mark.parametrize("text_input", ["tokens", "encoder_states", "tokens_and_states"])
@pytest.mark.parametrize("history_input", ["codes", "items"])
def test_a_request_reads_the_same_in_any_batch(tower, text_input, history_input):
    model = tiny_generator(text_input=text_input, history_input=history_input, tower=tower)
    for batch in (searches(LONG, SHORT, "space opera"), histories([1, 2, 3, 4], [5], [])):
        source, mask = encoded(model, batch)
        for row in range(3):
            alone, own = encoded(model, one_of(batch, row))
            assert own.all()
            assert mask[row].sum() == alone.shape[1]
            torch.testing.assert_close(source[row, mask[row]], alone[0], atol=1e-5, rtol=1e-4)


def test_items_know_how_long_ago_they_were_whatever_the_padding():
    model = tiny_generator(history_input="items")
    batch = histories([7, 3], [1, 2, 3, 4])
    inner, real, _ = model.embedder.history(batch)
    assert real.tolist() == [[True, True, False, False], [True] * 4]
    with torch.no_grad():
        model.embedder.recency.weight[0, 0] += 100  # of the most recent item
    changed, _, _ = model.embedder.history(batch)
    moved = ((changed - inner).abs().amax(dim=2) > 1e-3) & real
    assert moved.tolist() == [[False, True, False, False], [False, False, False, True]]


def test_order_of_a_history_matters():
    for history_input in ("codes", "items"):
        model = tiny_generator(history_input=history_input)
        first, _ = encoded(model, histories([1, 2, 3]))
        other, _ = encoded(model, histories([3, 2, 1]))
        assert not torch.allclose(first, other, atol=1e-3)


@pytest.mark.parametrize(
    "embedding",
    [SentenceEmbedding(), SentenceEmbedding(pooling="last_token", query_prompt="drama: ")],
)
def test_a_query_is_its_embedding_and_its_token_states(tower, embedding, monkeypatch):
    monkeypatch.setattr(tower, "embedding", embedding)
    model = tiny_generator(text_input="encoder_states", tower=tower)
    embedder = model.embedder
    inner, seen, _ = embedder._query(searches(LONG))
    tokens = tower.tokenize([LONG], max_tokens=6, kind="query")
    states = tower.token_states(tokens)
    first = embedder.from_embedding(tower(tokens) * 4)  # √16: unit variance in 16 dimensions
    expected = embedder.norm(torch.cat([first[:, None], embedder.from_state(states)], dim=1))
    torch.testing.assert_close(inner, expected)
    assert seen.all()


def test_an_indexing_row_is_its_item_embedding_alone(tower):
    model = tiny_generator(text_input="encoder_states", tower=tower)
    batch = searches("item text", "another")._replace(indexed_item=torch.tensor([5, -1]))
    inner, seen, _ = model.embedder._query(batch)
    known = model.embedder.item_vectors[5] * 4
    torch.testing.assert_close(
        inner[0, 0], model.embedder.norm(model.embedder.from_embedding(known))
    )
    assert seen[0].sum() == 1
    assert seen[1].sum() > 1


def test_own_tokens_stand_behind_the_states(tower):
    model = tiny_generator(text_input="tokens_and_states", tower=tower)
    embedder = model.embedder
    inner, seen, embedding = embedder._query(searches(LONG, SHORT))
    tokens = tower.tokenize([LONG, SHORT], max_tokens=6, kind="query")
    for row, text in enumerate((LONG, SHORT)):
        ids, states = ids_of(model, text)[:6], tower.token_states(tokens)[row, tokens.mask[row]]
        first = embedder.from_embedding(embedding[row] * 4)[None]
        expected = torch.cat([first, embedder.from_state(states), embedded(model, ids)])
        torch.testing.assert_close(inner[row, seen[row]], embedder.norm(expected))


def test_an_indexing_row_beside_states_is_its_tokens_alone(tower):
    model = tiny_generator(text_input="tokens_and_states", tower=tower)
    batch = searches(LONG, SHORT)._replace(indexed_item=torch.tensor([5, -1]))
    inner, seen, _ = model.embedder._query(batch)
    own = model.embedder.norm(embedded(model, ids_of(model, LONG)[:6]))
    torch.testing.assert_close(inner[0, seen[0]], own)
    assert seen[1].sum() == 1 + 1 + len(ids_of(model, SHORT)[:6]) + 2  # [CLS] and [SEP]


def test_dropout_hides_query_tokens_in_training_only(tower):
    for settings in ({}, {"text_input": "encoder_states", "tower": tower}):
        model = tiny_generator(query_token_dropout=0.5, **settings)
        batch = searches(*[LONG] * 200)
        full = model.embedder(batch)[1].sum(dim=1)
        assert (full == full[0]).all()
        thinned = model.train().embedder(batch)[1].sum(dim=1)
        fixed = len(ids_of(model, "search:")) + len(ids_of(model, "please")) + 1
        fixed += "tower" in settings
        share = (thinned - fixed).sum() / (full - fixed).sum()
        assert share == pytest.approx(0.5, abs=0.06)
        assert (thinned >= fixed).all()


def test_an_empty_request_still_has_a_position():
    model = tiny_generator(search_prompt="{query}", recommendation_prompt="{history}")
    for batch in (searches(""), histories([])):
        source, mask = encoded(model, batch)
        assert mask.tolist() == [[True]]
        assert source.isfinite().all()


def test_weights_of_the_other_task_get_a_gradient_of_zero(tower):
    model = tiny_generator(text_input="encoder_states", history_input="items", tower=tower).train()
    for batch, used, unused in (
        (searches(LONG), "from_state", "from_item"),
        (histories([1, 2]), "from_item", "from_state"),
    ):
        model.zero_grad(set_to_none=True)
        model(batch, label_smoothing=0.0).sum().backward()
        assert all(weight.grad is not None for weight in model.parameters())
        assert getattr(model.embedder, used).weight.grad.abs().sum() > 0
        assert getattr(model.embedder, unused).weight.grad.abs().sum() == 0


def test_the_tower_is_no_part_of_the_weights(tower):
    model = tiny_generator(text_input="encoder_states", tower=tower)
    own = {id(weight) for weight in model.parameters()}
    assert not own & {id(weight) for weight in tower.parameters()}
    assert not any("item_vectors" in name or "codes" in name for name in model.state_dict())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"search_prompt": "find"}, r"search_prompt must hold \{query\} once, got 'find'"),
        ({"recommendation_prompt": "{history}{history}"}, r"must hold \{history\} once"),
        ({"max_query_tokens": 0}, "max_query_tokens is 0, expected at least 1"),
        ({"query_token_dropout": 1.0}, r"is 1\.0, expected at least 0 and below 1"),
    ],
)
def test_refusals(wrong, message):
    with pytest.raises(ConfigError, match=message):
        input_settings(**wrong)


def test_encoder_states_need_the_encoder_that_made_the_ids(tower):
    with pytest.raises(ConfigError, match=r"needs model\.encoder_run"):
        tiny_generator(text_input="encoder_states")
    with pytest.raises(ConfigError, match="its states have width 16, the item embeddings 8"):
        tiny_generator(text_input="encoder_states", tower=tower, dim=8)


def test_embedding_is_shared_with_t5():
    model = tiny_generator()
    assert isinstance(model.embedder._elsewhere.tokens, nn.Embedding)
    assert model.embedder._elsewhere.tokens.weight is model.t5.shared.weight
