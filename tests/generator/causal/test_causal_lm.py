"""A causal language model from a folder and from a configuration."""

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from sidrec.errors import ConfigError
from sidrec.generator.model.causal.causal_lm import (
    causal_lm_from_config,
    causal_lm_from_hub,
    causal_lm_from_snapshot,
    config_of,
    end_token_of,
)
from sidrec.generator.model.causal.causal_settings import CausalShape
from sidrec.generator.model.code_space import CodeVocabulary
from sidrec.generator.model.t5 import load_tokenizer_of
from tests.generator.causal.models import FAMILIES, SHAPE, store_lm, tiny_lm
from tests.generator.made import SIZES, TEXTS


@pytest.fixture(params=FAMILIES)
def stored(request, tmp_path):
    return str(tmp_path), *store_lm(tmp_path, request.param)


def test_a_folder_gives_its_weights_and_room_for_the_codes(stored):
    folder, before, trained = stored
    tokenizer = load_tokenizer_of(folder, revision=None, setting="model.causal_lm")
    assert tokenizer.encode(TEXTS[0]).ids == trained.encode(TEXTS[0]).ids
    words = tokenizer.get_vocab_size()
    vocabulary = CodeVocabulary(words, SIZES)
    model = causal_lm_from_hub(folder, revision=None, vocabulary=vocabulary)
    assert end_token_of(model) == 1
    assert model.training  # transformers loads for evaluation, which leaves out dropout
    old, new = before.state_dict(), model.state_dict()
    assert old.keys() == new.keys()
    for name, weight in old.items():
        if name in ("lm_head.weight", "model.embed_tokens.weight"):
            assert len(new[name]) == vocabulary.num_tokens
            assert torch.equal(new[name][:words], weight[:words])
            codes, text = new[name][words:], weight[:words]
            assert codes.std() == pytest.approx(text.std().item(), rel=0.2)
        else:
            assert torch.equal(new[name], weight)


def test_no_such_folder_is_refused():
    for load in (
        lambda: load_tokenizer_of("./nowhere", revision=None, setting="model.causal_lm"),
        lambda: causal_lm_from_hub("./nowhere", revision=None, vocabulary=CodeVocabulary(7, SIZES)),
    ):
        with pytest.raises(ConfigError, match=r"model\.causal_lm '\./nowhere' cannot be loaded"):
            load()


def test_gaps_between_token_numbers_are_refused(tmp_path):
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "c": 5}, unk_token="a"))  # noqa: S106
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ConfigError, match=r"model\.t5 '.*' has 3 tokens, but numbers up to 5; "):
        load_tokenizer_of(str(tmp_path), revision=None)


@pytest.mark.parametrize("tied", [True, False])
def test_a_snapshot_gives_the_same_model(tied):
    model = tiny_lm("qwen3", tie_word_embeddings=tied)
    again = causal_lm_from_snapshot(config_of(model)).eval()
    again.load_state_dict(model.state_dict())
    assert (again.lm_head.weight is again.model.embed_tokens.weight) == tied
    tokens = torch.tensor([[2, 3, 8]])
    torch.testing.assert_close(again(input_ids=tokens).logits, model(input_ids=tokens).logits)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "no_such"}, "model.causal_lm: "),
        ({"d_model": 8}, r"settings that qwen3 does not know .*\['d_model'\]"),
        ({"vocab_size": 8}, r"\['vocab_size'\]"),
        ({"hidden_size": "wide"}, "model.causal_lm: "),
        ({"model_type": "qwen2"}, r"settings that qwen2 does not know .*\['head_dim'\]"),
        (
            {"head_dim": None, "hidden_size": 18},
            r"hidden_size \(18\) must be a multiple of .* \(4\)",
        ),
    ],
)
def test_wrong_shapes_are_refused(changes, message):
    shape = SHAPE | {"model_type": "qwen3"} | changes
    with pytest.raises(ConfigError, match=message):
        causal_lm_from_config(shape, vocabulary=CodeVocabulary(7, SIZES))


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_heads_share_the_width_evenly_unless_told_otherwise(family):
    shape = CausalShape(
        model_type=family, hidden_size=16, intermediate_size=24, num_hidden_layers=1
    )
    model = causal_lm_from_config(shape.arguments(), vocabulary=CodeVocabulary(7, SIZES))
    assert model.model.layers[0].self_attn.head_dim == 16 // shape.num_attention_heads
