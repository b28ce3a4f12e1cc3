import shutil

import pytest

from sidrec.corpus.queries.language_model import LocalModel, Sampling, hub_is_reachable
from sidrec.corpus.queries.llm_prompts import ItemFacts
from sidrec.corpus.queries.llm_writer import load_language_model, write_queries
from sidrec.errors import ConfigError

UNKNOWN, END = "<unk>", "</s>"
HEAT = ItemFacts("6", "Heat (1995)", 1995, ("Crime",), ("heist",), "Two men in Los Angeles.")
RONIN = ItemFacts("7", "Ronin", 1998, ("Action",), (), "A case is stolen.")


def _tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["heist", "cop", "robber", "night", "city", "rain", "lonely", "dream", "winter"]
    vocabulary = {word: place for place, word in enumerate([UNKNOWN, END, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=UNKNOWN, eos_token=END, model_max_length=256
    )


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    folder, tokenizer = tmp_path_factory.mktemp("models") / "tiny-gpt", _tokenizer()
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=256, n_embd=16, n_layer=1, n_head=2,
                        bos_token_id=1, eos_token_id=1, initializer_range=1.0)  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


GREEDY = Sampling(max_new_tokens=6, temperature=0.0, seed=0, batch_size=4)


def test_a_local_model_writes_queries(decoder, tmp_path):
    queries = write_queries(
        [HEAT, RONIN], model=f"hf:{decoder}", cache_folder=tmp_path, num_queries=1,
        sampling=GREEDY._replace(temperature=1.0),
    )  # fmt: skip
    assert {query.source for query in queries} == {"tiny-gpt"}
    assert {query.item_ids for query in queries} == {("6",), ("7",)}
    assert all(query.text for query in queries)


def test_padding_on_the_left_changes_no_answer(decoder):
    model = LocalModel(str(decoder), sampling=GREEDY)
    prompts = ["heist", "a long night in the city rain with a lonely robber and a cop"]
    together = model.complete(prompts)
    assert together == [model.complete([prompt])[0] for prompt in prompts]
    assert together[0] != together[1]


def test_sampling_depends_on_seed_and_prompt_alone(decoder):
    import torch

    warm = GREEDY._replace(temperature=1.0)
    first = LocalModel(str(decoder), sampling=warm).complete(["heist", "cop"])
    torch.rand(7)
    state = torch.get_rng_state()
    assert LocalModel(str(decoder), sampling=warm).complete(["heist", "cop"]) == first
    assert torch.equal(torch.get_rng_state(), state)
    other = LocalModel(str(decoder), sampling=warm._replace(seed=1)).complete(["heist", "cop"])
    assert other != first


def test_a_prompt_longer_than_the_model_is_cut_at_its_front(decoder):
    model = LocalModel(str(decoder), sampling=GREEDY)
    long = model.complete(["rain " * 1000 + "cop " * 200])
    assert long == model.complete(["rain " * 400 + "cop " * 200])
    assert long != model.complete(["rain " * 400 + "heist " * 200])
    cramped = LocalModel(str(decoder), sampling=GREEDY._replace(max_new_tokens=256))
    with pytest.raises(ConfigError, match="leaves no tokens for a prompt"):
        cramped.complete(["x"])


def test_a_chat_template_is_used(decoder, tmp_path):
    shutil.copytree(decoder, tmp_path / "chat")
    tokenizer = _tokenizer()
    tokenizer.chat_template = "{% for m in messages %}dream {{ m.content }} winter{% endfor %}"
    tokenizer.save_pretrained(tmp_path / "chat")
    chat = LocalModel(str(tmp_path / "chat"), sampling=GREEDY)
    assert chat._framed("heist") == "dream heist winter"
    assert not chat.complete(["heist"])[0].startswith("1.")
    plain = LocalModel(str(decoder), sampling=GREEDY)
    assert plain.complete(["heist"])[0].startswith("1.")


def test_an_encoder_decoder_answers_too(tmp_path):
    from transformers import T5Config, T5ForConditionalGeneration

    tokenizer = _tokenizer()
    special = {"decoder_start_token_id": 1, "eos_token_id": 1, "pad_token_id": 1}
    config = T5Config(
        vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, **special
    )
    T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    tokenizer.save_pretrained(tmp_path / "t5")
    model = load_language_model(f"hf:{tmp_path / 't5'}", sampling=GREEDY)
    answers = model.complete(["heist", "cop in the rain"])
    assert len(answers) == 2


def test_other_weights_in_the_same_folder_are_another_model(decoder, tmp_path):
    shutil.copytree(decoder, tmp_path / "m")
    before = LocalModel(str(tmp_path / "m"), sampling=GREEDY).fingerprint
    (tmp_path / "m" / "extra.txt").write_text("x")
    assert LocalModel(str(tmp_path / "m"), sampling=GREEDY).fingerprint != before


def test_a_hub_name_without_a_network_is_one_line_at_once(monkeypatch):
    import requests

    def head(*args, **kwargs):
        raise requests.ConnectionError

    monkeypatch.setattr(requests, "head", head)
    assert not hub_is_reachable()
    with pytest.raises(ConfigError, match="hf:nobody/nothing cannot be loaded") as caught:
        load_language_model("hf:nobody/nothing", sampling=GREEDY)
    assert "\n" not in str(caught.value)


def test_a_revision_reaches_every_download_and_the_fingerprint(decoder, monkeypatch):
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    asked = []
    for kind in (AutoConfig, AutoTokenizer, AutoModelForCausalLM):
        real = kind.from_pretrained

        def load(name, *, real=real, **how):
            if name == "some/model":  # transformers itself asks for parts of the folder
                asked.append((name, how.pop("revision"), how.pop("trust_remote_code")))
            return real(str(decoder), **how)

        monkeypatch.setattr(kind, "from_pretrained", load)
    pinned = load_language_model("hf:some/model", sampling=GREEDY, revision="607a30d")
    assert asked == [("some/model", "607a30d", False)] * 3
    moving = load_language_model("hf:some/model", sampling=GREEDY)
    assert asked[3:] == [("some/model", "main", False)] * 3
    assert pinned.fingerprint != moving.fingerprint


def test_what_has_no_revisions_refuses_one(decoder):
    for spec in (f"hf:{decoder}", "openai:http://localhost:1/v1#m"):
        with pytest.raises(ConfigError, match="has no revisions, only a model on the hub has"):
            load_language_model(spec, sampling=GREEDY, revision="main")
