from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sidrec.encoder.tower import TextTower, group_ends, mean_pool
from sidrec.errors import ConfigError
from sidrec.types import TextTokens


@pytest.fixture
def tower(encoder):
    return TextTower(encoder, revision=None, dropout=None, length_groups=1).eval()


def test_rows_are_unit_vectors_and_ignore_padding(tower, corpus):
    texts = corpus.item_texts()[:6]
    together = tower(tower.tokenize(texts, max_tokens=20, kind="item"))
    torch.testing.assert_close(together.norm(dim=1), torch.ones(6))
    alone = tower(tower.tokenize(texts[2:3], max_tokens=20, kind="item"))
    torch.testing.assert_close(alone[0], together[2], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("groups", [2, 3, 100])
def test_length_groups_change_nothing_but_speed(tower, corpus, groups):
    texts = [text[: 7 * (1 + row % 5)] for row, text in enumerate(corpus.item_texts()[:12])]
    tokens = tower.tokenize(texts, max_tokens=20, kind="item")
    whole = tower(tokens)
    tower.length_groups = groups
    torch.testing.assert_close(tower(tokens), whole, atol=1e-6, rtol=1e-5)


def test_token_states_are_pooled_to_the_embedding(tower, corpus):
    tokens = tower.tokenize(corpus.item_texts()[:3], max_tokens=9, kind="item")
    states = tower.token_states(tokens)
    assert states.shape == (*tokens.ids.shape, tower.dim)
    pooled = mean_pool(states, tokens.mask)
    torch.testing.assert_close(torch.nn.functional.normalize(pooled, dim=-1), tower(tokens))


def test_mean_pool_by_hand():
    states = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [99.0, 99.0]]])
    pooled = mean_pool(states, torch.tensor([[True, True, False]]))
    assert pooled.tolist() == [[2.0, 4.0]]


def test_snapshot_rebuilds_it_without_the_folder(tower, corpus):
    again = TextTower.from_snapshot(tower.snapshot(), length_groups=1)
    again.load_state_dict(tower.state_dict())
    texts = corpus.item_texts()[:4]
    torch.testing.assert_close(
        again.eval()(again.tokenize(texts, max_tokens=20, kind="item")),
        tower(tower.tokenize(texts, max_tokens=20, kind="item")),
    )


def test_every_weight_gets_a_gradient(encoder, corpus):
    tower = TextTower(encoder, revision=None, dropout=0.0, length_groups=2)
    tower(tower.tokenize(corpus.item_texts()[:4], max_tokens=20, kind="item")).sum().backward()
    assert [name for name, weight in tower.named_parameters() if weight.grad is None] == []


@pytest.mark.parametrize(("dropout", "repeats"), [(0.0, True), (0.5, False)])
def test_dropout_is_what_was_asked_for(encoder, corpus, dropout, repeats):
    tower = TextTower(encoder, revision=None, dropout=dropout, length_groups=1)
    tokens = tower.tokenize(corpus.item_texts()[:2], max_tokens=9, kind="item")
    assert tower.training
    assert torch.equal(tower(tokens), tower(tokens)) == repeats


def test_under_bf16_embeddings_stay_close_and_float32(tower, corpus):
    tokens = tower.tokenize(corpus.item_texts()[:8], max_tokens=20, kind="item")
    exact = tower(tokens)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = tower(tokens)
    assert rounded.dtype == torch.float32
    assert (exact * rounded).sum(dim=1).min() > 0.999


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=20), groups=st.integers(1, 5))
def test_groups_cover_the_batch_and_never_pad_more(lengths, groups):
    lengths = sorted(lengths)
    ends = group_ends(lengths, groups)
    assert ends == sorted(set(ends))
    assert ends[-1] == len(lengths)
    assert len(ends) <= groups
    bounds = [0, *ends]
    padded = sum((end - first) * lengths[end - 1] for first, end in pairwise(bounds))
    assert padded <= len(lengths) * lengths[-1]


def test_refusals(encoder, tmp_path):
    for changes, message in (
        ({"dropout": 1.0}, "dropout must lie"),
        ({"length_groups": 0}, "length_groups must be 1 or more, got 0"),
        ({"encoder": str(tmp_path)}, "cannot be loaded"),
    ):
        arguments = {"encoder": encoder, "dropout": None, "length_groups": 1} | changes
        with pytest.raises(ConfigError, match=message) as caught:
            TextTower(revision=None, **arguments)
        assert "\n" not in str(caught.value)


def test_tokens_are_cut(tower):
    tokens = tower.tokenize(["a b c d e f", "a"], max_tokens=5, kind="item")
    assert isinstance(tokens, TextTokens)
    assert tokens.mask.sum(dim=1).max() == 5
