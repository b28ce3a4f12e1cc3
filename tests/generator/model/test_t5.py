import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from sidrec.errors import ConfigError
from sidrec.generator.model.code_space import CodeVocabulary
from sidrec.generator.model.t5 import (
    code_means,
    is_tied,
    load_tokenizer_of,
    snapshot_of,
    start_codes_from_items,
    t5_from_config,
    t5_from_hub,
    t5_from_snapshot,
    train_tokenizer,
)
from tests.generator.made import SIZES, T5, TEXTS

WORDS, SPARE = 30, 4
VOCABULARY = CodeVocabulary(WORDS, SIZES)


@pytest.fixture
def published(tmp_path):
    """Save a T5 as the hub has them; with a head of its own like v1.1 and flan, or tied."""

    def save(*, own_head):
        torch.manual_seed(1)
        config = T5Config(
            vocab_size=WORDS + SPARE, decoder_start_token_id=0, **T5 | {"initializer_factor": 3.0}
        )
        weights = {
            name: weight.clone()
            for name, weight in T5ForConditionalGeneration(config).state_dict().items()
            if name.startswith(("encoder.block", "decoder.block", "shared"))
            or name.endswith("final_layer_norm.weight")
        }
        if own_head:
            weights["lm_head.weight"] = torch.randn(WORDS + SPARE, T5["d_model"]) * 0.1
        save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
        settings = config.to_dict() | {"architectures": ["T5ForConditionalGeneration"]}
        settings.pop("scale_decoder_outputs")
        settings["tie_word_embeddings"] = not own_head
        (tmp_path / "config.json").write_text(json.dumps(settings))
        return str(tmp_path), weights

    return save


@pytest.mark.parametrize("own_head", [True, False])
def test_a_published_head_is_kept_as_it_was(published, own_head):
    folder, weights = published(own_head=own_head)
    model = t5_from_hub(folder, revision=None, vocabulary=VOCABULARY)
    assert is_tied(model) != own_head
    assert all(module.training for module in model.modules())  # dropout as in its configuration
    assert len(model.shared.weight) == len(model.lm_head.weight) == VOCABULARY.num_tokens
    assert torch.equal(model.shared.weight[:WORDS], weights["shared.weight"][:WORDS])
    head = weights["lm_head.weight" if own_head else "shared.weight"]
    assert torch.equal(model.lm_head.weight[:WORDS], head[:WORDS])
    assert model.config.scale_decoder_outputs != own_head
    assert model.encoder.embed_tokens.weight is model.shared.weight
    for weight, text in (
        (model.shared.weight, weights["shared.weight"]),
        (model.lm_head.weight, head),
    ):
        assert weight[WORDS:].std().item() == pytest.approx(text[:WORDS].std().item(), rel=0.3)


@pytest.mark.parametrize("own_head", [True, False])
def test_a_snapshot_gives_the_same_model_without_the_folder(published, own_head):
    folder, _ = published(own_head=own_head)
    model = t5_from_hub(folder, revision=None, vocabulary=VOCABULARY).eval()
    again = t5_from_snapshot(snapshot_of(model)).eval()
    again.load_state_dict(model.state_dict())
    assert is_tied(again) == is_tied(model)
    ids = torch.tensor([[3, 4, 5]])
    expected = model(input_ids=ids, decoder_input_ids=ids).logits
    assert torch.equal(again(input_ids=ids, decoder_input_ids=ids).logits, expected)


@pytest.mark.parametrize("tied", [True, False])
def test_from_a_configuration_tied_or_not(tied):
    model = t5_from_config(T5 | {"tie_word_embeddings": tied}, vocabulary=VOCABULARY)
    assert is_tied(model) == tied
    assert model.config.scale_decoder_outputs == tied
    names = dict(model.named_parameters())
    assert ("lm_head.weight" in names) == (not tied)
    assert model.config.vocab_size == VOCABULARY.num_tokens


def test_configuration_refusals():
    with pytest.raises(ConfigError, match=r"\['num_leyers'\]"):
        t5_from_config(T5 | {"num_leyers": 2}, vocabulary=VOCABULARY)
    with pytest.raises(ConfigError, match=r"model\.t5: .*d_ff"):
        t5_from_config({"d_ff": {"a": 1}}, vocabulary=VOCABULARY)
    with pytest.raises(ConfigError, match=r"sidrec sets itself; leave them out: \['vocab_size'\]"):
        t5_from_config(T5 | {"vocab_size": 9}, vocabulary=VOCABULARY)


def test_what_cannot_be_loaded_is_one_line(tmp_path):
    for load in (
        lambda: t5_from_hub(str(tmp_path), revision=None, vocabulary=VOCABULARY),
        lambda: load_tokenizer_of(str(tmp_path), revision=None),
    ):
        with pytest.raises(
            ConfigError, match="cannot be loaded from the hub or a folder"
        ) as caught:
            load()
        assert "\n" not in str(caught.value)


def test_a_published_t5_that_does_not_say_how_a_target_begins_is_refused(published, tmp_path):
    folder, _ = published(own_head=False)
    settings = json.loads((tmp_path / "config.json").read_text())
    settings.pop("decoder_start_token_id")
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match=r"has no decoder_start_token_id in its config\.json"):
        t5_from_hub(folder, revision=None, vocabulary=VOCABULARY)


def test_tokenizer_is_the_same_each_time_and_knows_its_words():
    one, other = (train_tokenizer(TEXTS, vocabulary_size=60) for _ in range(2))
    assert one.to_str() == other.to_str()
    assert [one.token_to_id(token) for token in ("<pad>", "</s>", "<unk>")] == [0, 1, 2]
    assert one.get_vocab_size() <= 60
    ids = one.encode("  Spáce OPERA", add_special_tokens=False).ids
    assert ids == one.encode("space opera", add_special_tokens=False).ids
    assert one.decode(ids).strip() == "space opera"


def test_a_published_tokenizer_neither_pads_nor_cuts(tmp_path):
    trained = train_tokenizer(TEXTS, vocabulary_size=60)
    trained.enable_padding(length=9)
    trained.enable_truncation(2)
    PreTrainedTokenizerFast(tokenizer_object=trained).save_pretrained(tmp_path)
    loaded = load_tokenizer_of(str(tmp_path), revision=None)
    lengths = [len(row.ids) for row in loaded.encode_batch(["space", "slow drama by the sea"])]
    assert lengths[0] < lengths[1]
    assert lengths[1] > 2


@pytest.mark.parametrize("tied", [True, False])
def test_codes_of_like_items_start_alike(tied):
    torch.manual_seed(0)
    centers = torch.randn(4, 32)  # of codes 0 and 1, 2 and 3 close to each other
    centers[1], centers[3] = centers[0] + 0.1 * torch.randn(32), centers[2] + 0.1 * torch.randn(32)
    first = torch.arange(40) % 4
    codes = torch.stack([first, torch.arange(40) % 2, torch.arange(40) % 4], dim=1)
    vectors = centers[first] + 0.01 * torch.randn(40, 32)
    wide = T5 | {"tie_word_embeddings": tied, "d_model": 24}
    model = t5_from_config(wide, vocabulary=VOCABULARY)
    before = {"in": model.shared.weight.clone(), "out": model.lm_head.weight.clone()}
    start_codes_from_items(model, VOCABULARY, codes, vectors, seed=0)
    for name, weight in (("in", model.shared.weight), ("out", model.lm_head.weight)):
        rows = weight[WORDS : WORDS + 4]
        near = torch.cosine_similarity(rows[[0, 2]], rows[[1, 3]])
        far = torch.cosine_similarity(rows[[0, 1]], rows[[2, 3]])
        assert near.min() > 0.9 > far.max()
        old = before[name]
        torch.testing.assert_close(rows.pow(2).mean(), old[WORDS : WORDS + 4].pow(2).mean())
        assert torch.equal(weight[:WORDS], old[:WORDS])
        unused = WORDS + SIZES[0] + 2  # code 2 of level 1, which no item has
        assert torch.equal(weight[unused], old[unused])
    again = t5_from_config(wide, vocabulary=VOCABULARY)
    start_codes_from_items(again, VOCABULARY, codes, vectors, seed=1)
    assert not torch.allclose(again.shared.weight[WORDS], model.shared.weight[WORDS], atol=0.05)


def test_means_of_codes_by_hand():
    codes = torch.tensor([[0, 0], [0, 1], [0, 1], [1, 1]])
    vectors = torch.tensor([[0.0], [2.0], [4.0], [6.0]])  # mean 3: -3, -1, 1, 3
    first, second = code_means(codes, vectors, (2, 2))
    assert first.flatten().tolist() == [-1.0, 3.0]  # left: -2, 0, 2 | 0
    torch.testing.assert_close(second.flatten(), torch.tensor([-2.0, 2 / 3]))


def test_a_code_without_items_means_zero():
    means = code_means(torch.tensor([[0], [0]]), torch.randn(2, 3), (2,))
    assert means[0][1].tolist() == [0.0, 0.0, 0.0]
