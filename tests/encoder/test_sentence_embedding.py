"""Pooling, normalization and prompts of an encoder's folder, against sentence-transformers."""

import json
import shutil

import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from sentence_transformers import SentenceTransformer
from transformers import Qwen3Config, Qwen3Model

from sidrec.encoder.encode import encode_texts, encoder_hash
from sidrec.encoder.tower import TextTower, first_token, last_token
from sidrec.errors import ConfigError
from sidrec.pairs import encoder_files
from sidrec.pairs.encoder_files import load_tokenizer
from sidrec.pairs.sentence_embedding import SentenceEmbedding, read_sentence_embedding

TYPES = {
    "Transformer": "sentence_transformers.models.Transformer",
    "Pooling": "sentence_transformers.models.Pooling",
    "Normalize": "sentence_transformers.models.Normalize",
    "Dense": "sentence_transformers.models.Dense",
}
TEXTS = ["a heist in paris", "rain", "slow drama by the sea, with rain and more rain", "opera"]


def write_json(file, content):
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content))


def sentence_folder(encoder, folder, *, pooling, modules=("Normalize",), prompts=None, **facts):
    """Copy an encoder and put the files of sentence-transformers beside it."""
    shutil.copytree(encoder, folder)
    names = ["Transformer", "Pooling", *modules]
    paths = ["", *(f"{number}_{name}" for number, name in enumerate(names[1:], start=1))]
    write_json(
        folder / "modules.json",
        [
            {"idx": number, "name": str(number), "path": path, "type": TYPES[name]}
            for number, (name, path) in enumerate(zip(names, paths, strict=True))
        ],
    )
    for path in paths[2:]:
        (folder / path).mkdir()
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": 16} | pooling)
    write_json(
        folder / "config_sentence_transformers.json",
        {"__version__": {}, "prompts": prompts or {}} | facts,
    )
    return str(folder)


@pytest.fixture(scope="session")
def decoder(encoder, tmp_path_factory):
    """A decoder with rotary positions, whose tokenizer pads on the left: a Qwen3-Embedding."""
    folder = tmp_path_factory.mktemp("decoder") / "decoder"
    shutil.copytree(encoder, folder)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=300,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    Qwen3Model(config).save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"padding_side": "left"}))
    return str(folder)


def same_as_sentence_transformers(folder, *, normalize=None, length_groups=1):
    tower = TextTower(folder, revision=None, dropout=None, length_groups=length_groups)
    how = {"max_tokens": 50, "batch_size": 4}
    reference = SentenceTransformer(folder, device="cpu")
    for kind, encode in (("query", reference.encode_query), ("item", reference.encode_document)):
        expected = torch.from_numpy(encode(TEXTS, normalize_embeddings=bool(normalize)))
        found = encode_texts(tower, TEXTS, kind=kind, **how)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        padded = tower.eval()(tower.tokenize(TEXTS, max_tokens=50, kind=kind))
        torch.testing.assert_close(padded, expected, atol=1e-5, rtol=0)
    return tower


@pytest.mark.parametrize("length_groups", [1, 2])
@pytest.mark.parametrize(
    "pooling",
    [
        {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False},
        {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True},
        {"pooling_mode": "lasttoken"},
    ],
)
def test_poolings_with_right_padding(encoder, tmp_path, pooling, length_groups):
    folder = sentence_folder(encoder, tmp_path / "st", pooling=pooling)
    same_as_sentence_transformers(folder, length_groups=length_groups)


@pytest.mark.parametrize("length_groups", [1, 2])
@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken"])
def test_poolings_of_a_decoder_that_pads_on_the_left(decoder, tmp_path, pooling, length_groups):
    folder = sentence_folder(
        decoder,
        tmp_path / "st",
        pooling={"pooling_mode": pooling},
        prompts={"query": "search for: ", "document": ""},
    )
    same_as_sentence_transformers(folder, length_groups=length_groups)


def test_prompts_of_the_folder_go_before_queries_and_items(encoder, tmp_path):
    prompts = {"query": "search for: ", "document": "drama: "}
    pooling = {"pooling_mode": "cls"}
    folder = sentence_folder(encoder, tmp_path / "st", pooling=pooling, prompts=prompts)
    tower = same_as_sentence_transformers(folder)
    assert tower.embedding == SentenceEmbedding(
        pooling="cls", query_prompt="search for: ", item_prompt="drama: "
    )


def test_dot_product_encoder_keeps_lengths(encoder, tmp_path):
    folder = sentence_folder(
        encoder,
        tmp_path / "st",
        pooling={"pooling_mode": "mean"},
        modules=(),
        similarity_fn_name="dot",
    )
    tower = same_as_sentence_transformers(folder)
    assert not tower.embedding.normalize


def test_cosine_encoder_without_normalize_is_normalized(encoder, tmp_path):
    folder = sentence_folder(encoder, tmp_path / "st", pooling={"pooling_mode": "mean"}, modules=())
    assert same_as_sentence_transformers(folder, normalize=True).embedding.normalize


def test_lower_case_of_the_folder(encoder, tmp_path):
    folder = sentence_folder(encoder, tmp_path / "st", pooling={"pooling_mode": "mean"})
    tokenizer = json.loads((tmp_path / "st" / "tokenizer.json").read_text())
    tokenizer["normalizer"] = None
    write_json(tmp_path / "st" / "tokenizer.json", tokenizer)
    cased = load_tokenizer(folder, revision=None)("A HEIST IN PARIS")["input_ids"]
    write_json(tmp_path / "st" / "sentence_bert_config.json", {"do_lower_case": True})
    lower = load_tokenizer(folder, revision=None)
    assert lower("A HEIST IN PARIS")["input_ids"] == lower("a heist in paris")["input_ids"] != cased


def test_arguments_win_over_the_folder(encoder, tmp_path):
    folder = sentence_folder(
        encoder, tmp_path / "st", pooling={"pooling_mode": "max"}, prompts={"query": "q: "}
    )
    found = read_sentence_embedding(
        folder, revision=None, pooling="cls", normalize=False, query_prompt="", item_prompt="i: "
    )
    assert found == SentenceEmbedding(
        pooling="cls", normalize=False, query_prompt="", item_prompt="i: "
    )


@pytest.mark.parametrize(
    ("pooling", "modules", "message"),
    [
        ({"pooling_mode": "mean"}, ("Dense", "Normalize"), "has the module Dense in modules.json"),
        ({"pooling_mode": "max"}, (), "pools by max; sidrec knows mean, cls and last_token"),
        ({"pooling_mode": ["mean", "cls"]}, (), "pools by mean and cls"),
        ({"pooling_mode": "mean", "include_prompt": False}, (), "pools without its prompt"),
    ],
)
def test_what_sidrec_cannot_apply_is_refused(encoder, tmp_path, pooling, modules, message):
    folder = sentence_folder(encoder, tmp_path / "st", pooling=pooling, modules=modules)
    with pytest.raises(ConfigError, match=message) as caught:
        TextTower(folder, revision=None, dropout=None, length_groups=1)
    assert "\n" not in str(caught.value)


def test_folder_without_tokenizer_is_refused_in_one_line(encoder, tmp_path):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(f"{encoder}/{name}", tmp_path)
    with pytest.raises(ConfigError, match=r"cannot be loaded .it has no tokenizer") as caught:
        TextTower(str(tmp_path), revision=None, dropout=None, length_groups=1)
    assert "\n" not in str(caught.value)


def test_checkpoint_keeps_them(encoder, tmp_path):
    folder = sentence_folder(
        encoder, tmp_path / "st", pooling={"pooling_mode": "cls"}, prompts={"query": "for: "}
    )
    tower = TextTower(folder, revision=None, dropout=None, length_groups=1).eval()
    again = TextTower.from_snapshot(tower.snapshot(), length_groups=1)
    again.load_state_dict(tower.state_dict())
    assert again.embedding == tower.embedding
    assert encoder_hash(again) == encoder_hash(tower)
    other = TextTower(folder, revision=None, dropout=None, length_groups=1, pooling="mean")
    assert encoder_hash(other) != encoder_hash(tower)


def test_hub_that_lacks_the_files_says_mean_pooling(monkeypatch):
    def absent(*args, **kwargs):
        raise EntryNotFoundError("404")

    monkeypatch.setattr(encoder_files, "hf_hub_download", absent)
    assert read_sentence_embedding("me/bert", revision=None) == SentenceEmbedding()


@pytest.mark.parametrize("is_known_absent", [True, False])
def test_offline_only_what_an_earlier_download_knows_is_taken(monkeypatch, is_known_absent):
    def unreachable(*args, **kwargs):
        raise LocalEntryNotFoundError("outgoing traffic is disabled")

    def cached(*args, **kwargs):
        return object() if is_known_absent else None  # as huggingface_hub says it

    monkeypatch.setattr(encoder_files, "hf_hub_download", unreachable)
    monkeypatch.setattr(encoder_files, "try_to_load_from_cache", cached)
    if is_known_absent:
        assert read_sentence_embedding("me/bert", revision=None) == SentenceEmbedding()
        return
    with pytest.raises(ConfigError, match=r"'me/bert' cannot be loaded .outgoing traffic"):
        read_sentence_embedding("me/bert", revision=None)


def test_first_and_last_token_by_hand():
    states = torch.tensor([[[1.0], [2.0], [9.0]], [[3.0], [4.0], [5.0]], [[6.0], [7.0], [8.0]]])
    mask = torch.tensor([[True, True, False], [True, True, True], [False, False, False]])
    assert first_token(states, mask).flatten().tolist() == [1.0, 3.0, 6.0]
    assert last_token(states, mask).flatten().tolist() == [2.0, 5.0, 6.0]
