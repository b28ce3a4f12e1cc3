"""Our arrangement of T5 against transformers' own forward: numbers and gradients."""

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from sidrec.kernels import t5_forward
from sidrec.kernels.t5_forward import read_positions, write_tokens

KINDS = {
    "plain": {},
    "gated": {"feed_forward_proj": "gated-gelu"},
    "tied": {"tie_word_embeddings": True},
}
TOKENS = torch.tensor([[0, 7, 9], [0, 5, 5], [0, 1, 2]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0]], dtype=torch.bool)


def make(kind, *, rate=0.0):
    config = T5Config(
        vocab_size=20,
        d_model=12,
        d_kv=5,
        d_ff=16,
        num_layers=2,
        num_decoder_layers=3,
        num_heads=2,
        dropout_rate=rate,
        decoder_start_token_id=0,
        **KINDS[kind],
    )
    model = T5ForConditionalGeneration(config).train()
    for name, weight in model.named_parameters():
        if "layer_norm" in name:
            weight.data.uniform_(0.5, 1.5)
    return model


def theirs(model, positions, *, copies=1):
    mask, tokens = MASK.repeat(copies, 1), TOKENS.repeat(copies, 1)
    source = model.encoder(
        inputs_embeds=positions.repeat(copies, 1, 1), attention_mask=mask.long()
    ).last_hidden_state
    written = model.decoder(
        input_ids=tokens,
        encoder_hidden_states=source,
        encoder_attention_mask=mask.long(),
        use_cache=False,
    ).last_hidden_state
    scale = model.model_dim**-0.5 if model.config.scale_decoder_outputs else 1.0
    return source, written * scale


def ours(model, positions, *, copies=1):
    mask, tokens = MASK.repeat(copies, 1), TOKENS.repeat(copies, 1)
    source = read_positions(model, positions.repeat(copies, 1, 1), mask)
    return source, write_tokens(model, tokens, source, mask)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_numbers_and_gradients_are_transformers_own(kind, fused, monkeypatch):
    if fused:  # what other devices than a CPU run
        monkeypatch.setattr(t5_forward, "_mix", t5_forward._mix_fused)
    model, positions, weights = make(kind), torch.randn(3, 5, 12), torch.randn(3, 3, 12)
    found = []
    for forward in (theirs, ours):
        model.zero_grad()
        asked = positions.clone().requires_grad_()
        source, written = forward(model, asked)
        (written * weights).sum().backward()
        gradients = [w.grad for n, w in model.named_parameters() if "lm_head" not in n]
        found.append([source[MASK], written, asked.grad, *gradients])
    for own, expected in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(own, expected, atol=1e-5, rtol=1e-4)


def test_bfloat16_stays_near_float32():
    model, positions = make("plain"), torch.randn(3, 5, 12)
    expected = ours(model, positions)[1]
    with torch.autocast("cpu", torch.bfloat16):
        found, own = ours(model, positions)[1], theirs(model, positions)[1]
    error, theirs_error = ((x - expected).norm() / expected.norm() for x in (found, own))
    assert error < 2 * theirs_error + 1e-3


def test_evaluation_drops_nothing_and_training_does():
    model, positions = make("plain", rate=0.5), torch.randn(3, 5, 12)
    one, other = ours(model, positions)[1], ours(model, positions)[1]
    assert not torch.equal(one, other)
    model.eval()
    one, other = ours(model, positions)[1], ours(model, positions)[1]
    assert torch.equal(one, other)
    torch.testing.assert_close(one, theirs(model, positions)[1], atol=1e-5, rtol=1e-4)


def test_the_mean_over_dropout_is_transformers_own():
    model, positions = make("plain", rate=0.1), torch.randn(3, 5, 12)
    many, moments = 2_000, []
    with torch.no_grad():
        for forward in (theirs, ours):
            written = forward(model, positions, copies=many)[1].view(many, 3, 3, 12)
            moments.append((written.mean(0), written.std(0)))
    (expected, spread), (found, own_spread) = moments
    assert ((found - expected).abs() / (spread + own_spread) * many**0.5).max() < 4
    assert own_spread.mean().item() == pytest.approx(spread.mean().item(), rel=0.02)


def test_a_request_does_not_depend_on_its_padding():
    model, positions = make("plain").eval(), torch.randn(3, 5, 12)
    source, written = ours(model, positions)
    alone = read_positions(model, positions[1:2, :2], MASK[1:2, :2])
    torch.testing.assert_close(alone, source[1:2, :2], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        write_tokens(model, TOKENS[1:2], alone, MASK[1:2, :2]), written[1:2], atol=1e-5, rtol=1e-4
    )
