"""LoRA on any transformers model: adapters, refusals, and checkpoints without the base."""

import copy
import json

import pytest
import torch
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

from sidrec.errors import ConfigError, RunError
from sidrec.training import lora
from sidrec.training.lora import (
    LoraSettings,
    apply_lora,
    keep_adapters_only,
    merge_lora,
    restore_base,
)

IDS = torch.tensor([[3, 4, 21, 22]])


def llama(*, tied):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=24,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config).eval()


def bert():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    return BertModel(BertConfig(vocab_size=24, num_attention_heads=2, **sizes)).eval()


def moved(model):
    """Change every weight that is trained."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight += torch.randn_like(weight) * 0.3
    return model


@pytest.mark.parametrize("tied", [True, False])
def test_a_decoder_learns_new_tokens_and_merges_into_a_plain_model(tied, tmp_path):
    model, before = llama(tied=tied), llama(tied=tied)
    apply_lora(model, LoraSettings(r=2), first_new_token=20)
    torch.testing.assert_close(model(IDS).logits, before(IDS).logits)  # an adapter starts at 0
    moved(model)
    expected = model(IDS).logits
    assert (expected - before(IDS).logits).abs().max() > 0.1
    merge_lora(model)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert torch.equal(model.model.embed_tokens.weight[:20], before.model.embed_tokens.weight[:20])
    assert model.state_dict().keys() == before.state_dict().keys()
    model.save_pretrained(tmp_path)
    again = LlamaForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again(IDS).logits, expected, atol=1e-5, rtol=1e-4)


def test_an_encoder_trains_adapters_only_where_it_is_told_to():
    model = bert()
    apply_lora(model, LoraSettings(r=3, alpha=6.0, target_modules=("query", "output.dense")))
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    places = {name.split(".lora_")[0].removeprefix("encoder.layer.0.") for name in trained}
    assert places == {"attention.self.query", "attention.output.dense", "output.dense"}
    assert sum(w.numel() for n, w in model.named_parameters() if n in trained) == 3 * (32 + 32 + 40)


def test_an_unknown_module_is_one_line():
    settings = LoraSettings(target_modules=("query", "qwery"))
    with pytest.raises(ConfigError) as caught:
        apply_lora(bert(), settings)
    assert str(caught.value) == (
        "lora.target_modules names 'qwery', which is not a linear layer of BertModel; choose from "
        "dense, key, query, value."
    )


def test_a_missing_package_is_told_before_anything_is_loaded(monkeypatch):
    monkeypatch.setattr(lora, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs the package peft: pip install 'sidrec\[peft\]'"):
        LoraSettings()


def test_settings_come_back_from_a_checkpoint():
    settings = LoraSettings(r=4, target_modules=("q", "v"))
    stored = json.loads(json.dumps({**vars(settings), "target_modules": ["q", "v"]}))
    assert LoraSettings.from_plain(stored) == settings


def test_a_checkpoint_holds_no_base_and_needs_the_same_one():
    model = bert()
    apply_lora(model, LoraSettings(r=2))
    moved(model)
    checkpoint = {"state_dict": model.state_dict()}
    keep_adapters_only(checkpoint, model)
    assert all("lora_" in name for name in checkpoint["state_dict"])
    again = bert()
    apply_lora(again, LoraSettings(r=2))
    whole = copy.copy(checkpoint)
    restore_base(whole, again, base="films")
    again.load_state_dict(whole["state_dict"])
    assert all(map(torch.equal, again.state_dict().values(), model.state_dict().values()))
    with torch.no_grad():
        again.embeddings.word_embeddings.weight[3, 3] += 1e-3
    with pytest.raises(RunError, match="pretrained model films has other weights"):
        restore_base(checkpoint, again, base="films")
