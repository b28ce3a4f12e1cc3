"""What wraps a T5 is called, in training, encoder and decoding: nothing is silently left out."""

import pytest
import torch
from torch import nn

from sidrec.generator.model.seq2seq import Seq2SeqDecoder
from sidrec.generator.model.t5_decoder import T5Decoder
from sidrec.kernels.t5_forward import has_wrapped_decoder, is_wrapped
from sidrec.training.activation_checkpointing import checkpoint_activations
from sidrec.training.lora import LoraSettings, apply_lora, merge_lora
from tests.generator.made import histories, searches, tiny_generator

LORA = LoraSettings(r=2, alpha=8.0)


def adapted(model, *, settings=LORA):
    """Give a generator adapters whose weights are not zero."""
    first = model.embedder.tokenizer.get_vocab_size()
    apply_lora(model.t5, settings, first_new_token=first)
    for name, weight in model.t5.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.3)
    return model


def numbers(model, batch):
    """Losses in training mode, the encoder's states, and the answers."""
    losses = model.train()(batch, label_smoothing=0.0)
    model.eval()
    reading = model.embedder(batch)
    answer = model.answer(batch, num_beams=20, top_k=20)
    return losses, model.encode(reading)[reading.mask], answer.ranked.scores, answer.ranked.items


@pytest.mark.parametrize("tied", [True, False])
def test_adapters_change_training_encoder_and_decoding_and_merge(tied):
    shape = {"tie_word_embeddings": tied}
    batch = searches("a heist film", "space", answers=[1, 2])
    plain = numbers(tiny_generator(t5=shape), batch)
    model = adapted(tiny_generator(t5=shape))
    found = numbers(model, batch)
    assert isinstance(model.decoder, T5Decoder)  # it calls the adapted layers as modules
    for before, now in zip(plain[:3], found[:3], strict=True):
        assert (before - now).abs().max() > 1e-2
    merge_lora(model.t5)
    assert not is_wrapped(model.t5)
    assert (model.t5.lm_head.weight is model.t5.shared.weight) == tied
    for merged, one in zip(numbers(model, batch), found, strict=True):
        torch.testing.assert_close(merged, one, atol=2e-5, rtol=1e-4)


def test_only_adapters_and_rows_of_codes_get_gradients():
    model = adapted(tiny_generator()).train()
    model(searches("a heist film", "space", answers=[1, 2]), label_smoothing=0.0).sum().backward()
    with_gradient = {n for n, w in model.t5.named_parameters() if w.grad is not None}
    assert with_gradient == {n for n, w in model.t5.named_parameters() if w.requires_grad}
    assert all("lora_" in name or name.endswith("weight.original1") for name in with_gradient)
    rows = model.t5.shared.parametrizations.weight.original1
    assert len(rows) == 12  # the codes of all levels
    assert rows.grad.any()


def hook_on_attention(t5, calls):
    t5.decoder.block[0].layer[0].SelfAttention.register_forward_hook(lambda *_: calls.append(1))
    t5.encoder.block[0].register_forward_hook(lambda *_: calls.append(1))


def own_forward(t5, calls):
    for stack in (t5.encoder, t5.decoder):
        plain = stack.block[1].forward
        stack.block[1].forward = lambda *args, plain=plain, **named: (
            calls.append(1),
            plain(*args, **named),
        )[1]


def compiled(t5, calls):
    def backend(graph, inputs):
        calls.append(1)
        return graph.forward

    for stack in (t5.encoder, t5.decoder):
        stack.block[0].layer[0].compile(backend=backend)


@pytest.mark.parametrize("wrap", [hook_on_attention, own_forward])
def test_what_wraps_a_module_is_called_and_changes_no_number(wrap):
    batch, calls = histories((1, 2, 3), (4,), answers=[5, 6]), []
    expected = numbers(tiny_generator(), batch)
    model = tiny_generator()
    assert not is_wrapped(model.t5)
    assert isinstance(model.decoder, T5Decoder)
    wrap(model.t5, calls)
    assert isinstance(model.decoder, Seq2SeqDecoder)
    model.train()(batch, label_smoothing=0.0)
    assert len(calls) == 2  # encoder and decoder
    found = numbers(model, batch)
    assert len(calls) > 6  # and each step of the search
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)


def test_a_compiled_module_is_seen():
    model = tiny_generator()
    compiled(model.t5, [])
    assert is_wrapped(model.t5)
    assert has_wrapped_decoder(model.t5)
    assert is_wrapped(torch.compile(tiny_generator().t5, backend="eager"))


def test_activation_checkpointing_runs_every_block_twice(monkeypatch):
    batch, calls = searches("a heist film", "space", answers=[1, 2]), []
    layer = type(tiny_generator().t5.encoder.block[0].layer[0])
    plain = layer.forward
    monkeypatch.setattr(layer, "forward", lambda *a, **k: (calls.append(1), plain(*a, **k))[1])
    found = []
    for checkpoints in (False, True):
        model = tiny_generator(t5={"dropout_rate": 0.3}).train()
        model.t5.encoder.block[1].register_forward_hook(lambda *_: None)  # transformers' forward
        if checkpoints:
            checkpoint_activations(model.t5)
        calls.clear()
        torch.manual_seed(3)
        loss = model(batch, label_smoothing=0.0).sum()
        assert len(calls) == 4  # two blocks each in encoder and decoder
        loss.backward()
        gradients = [w.grad for w in model.parameters() if w.grad is not None]
        found.append((len(calls), [loss.detach(), *gradients]))
    assert [count for count, _ in found] == [4, 8]
    for one, other in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(one, other)
    assert isinstance(model.eval().decoder, T5Decoder)  # nothing is kept outside training
