"""A pretrained model of each family with LoRA: what is trained, what is stored, exact resume."""

import copy
from pathlib import Path

import pytest
import torch
from lightning.fabric.plugins.environments import TorchElasticEnvironment
from safetensors.torch import load_file, save_file
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

import sidrec
from sidrec.errors import ConfigError, RunError
from sidrec.generator.model.causal.causal_settings import CausalLmSettings
from sidrec.generator.model.generator_settings import T5Settings
from sidrec.training.lora import LoraSettings, merge_lora
from tests.generator.causal.models import store_lm
from tests.generator.trained import equal, train
from tests.ranks import as_elastic, run_on_ranks
from tests.test_paper_settings import make_flan

pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
STEPS = {"max_epochs": 1, "limit_train_batches": 4}


QUERY = {  # the weight that maps a block's input to queries
    "t5": "encoder.block.1.layer.0.SelfAttention.q",
    "causal_lm": "model.layers.1.self_attn.q_proj",
}


@pytest.fixture(scope="module", params=["t5", "causal_lm"])
def family(request):
    return request.param


@pytest.fixture(scope="module")
def pretrained(corpus, family, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained")
    if family == "t5":
        make_flan(folder, corpus.item_texts())
    else:
        store_lm(folder, "qwen3", corpus.item_texts(), attention_dropout=0.1)
    return folder


@pytest.fixture(scope="module")
def model(family, pretrained):
    return settings_of(family, pretrained)


def settings_of(family, pretrained, **changes):
    if family == "t5":
        lora = LoraSettings(r=2, dropout=0.1, target_modules=("q", "v", "wo"))
        return {"t5": T5Settings(**{"pretrained": str(pretrained), "lora": lora} | changes)}
    lora = LoraSettings(r=2, dropout=0.1, target_modules=("q_proj", "v_proj", "down_proj"))
    own = {"pretrained": str(pretrained), "lora": lora, "all_positions": True} | changes
    return {"t5": T5Settings(), "causal_lm": CausalLmSettings(**own)}


@pytest.fixture(scope="module")
def trained(corpus, semantic_ids, model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    trainer, module = train(str(corpus.folder), semantic_ids, folder, every=2, model=model, **STEPS)
    return trainer, module, folder


def test_the_base_stays_and_is_in_no_checkpoint(trained, family, pretrained):
    _, module, folder = trained
    base = load_file(Path(pretrained) / "model.safetensors")
    query = module.model.t5.get_submodule(QUERY[family])
    assert torch.equal(query.base_layer.weight, base[f"{QUERY[family]}.weight"])
    assert query.lora_B.default.weight.any()
    stored = torch.load(folder / "step=4.ckpt", weights_only=True)
    trains = {n for n, w in module.named_parameters(remove_duplicate=False) if w.requires_grad}
    assert stored["state_dict"].keys() & dict(module.named_parameters()).keys() <= trains
    assert trains <= stored["state_dict"].keys()
    of_base = {name for name in trains if name.startswith("model.t5.")}
    assert all("lora_" in name or name.endswith(".original1") for name in of_base)
    assert "model.embedder.from_item.weight" in trains  # and all that is not pretrained
    num_states = len(stored["optimizer_states"][0]["state"])
    assert num_states == sum(weight.requires_grad for weight in module.parameters())
    assert stored["generator"]["base"]["name"] == str(pretrained)


def test_a_resumed_training_equals_an_undisturbed_one(
    trained, corpus, semantic_ids, model, tmp_path
):
    _, expected, folder = trained
    resume = folder / "step=2.ckpt"
    trainer, resumed = train(
        str(corpus.folder), semantic_ids, tmp_path, resume=resume, model=model, **STEPS
    )
    assert trainer.global_step == 4
    assert equal(resumed, expected)


def test_a_checkpoint_answers_as_the_trained_model_and_merges(trained, family, pretrained):
    _, module, folder = trained
    loaded = sidrec.JointGenerator.load_from_checkpoint(folder / "step=4.ckpt").eval()
    assert equal(loaded, module)
    plain = copy.deepcopy(loaded.model.t5)
    merge_lora(plain)
    auto = AutoModelForSeq2SeqLM if family == "t5" else AutoModelForCausalLM
    before = auto.from_pretrained(pretrained)
    assert plain.state_dict().keys() == before.state_dict().keys()
    tokens = {"input_ids": torch.tensor([[3, 4, 5]])}
    tokens |= {"decoder_input_ids": tokens["input_ids"]} if family == "t5" else {}
    expected, found = loaded.model.t5(**tokens).logits, plain(**tokens).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    text = slice(0, loaded.model.space("search").vocabulary.first_token)
    assert (found[..., text] - before(**tokens).logits[..., text]).abs().max() > 1e-4


def test_another_base_is_refused(trained, family, pretrained):
    _, _, folder = trained
    file = Path(pretrained) / "model.safetensors"
    before = load_file(file)
    name = f"{QUERY[family]}.weight"
    save_file(before | {name: before[name] + 1e-3}, file, metadata={"format": "pt"})
    try:
        with pytest.raises(RunError, match="has other weights than the one that the adapters"):
            sidrec.JointGenerator.load_from_checkpoint(folder / "step=4.ckpt")
    finally:
        save_file(before, file, metadata={"format": "pt"})


@pytest.mark.parametrize("kind", [T5Settings, CausalLmSettings])
def test_adapters_need_a_pretrained_model(kind):
    with pytest.raises(ConfigError, match=rf"{kind.name}\.pretrained is missing"):
        kind(lora=LoraSettings())


def test_a_module_that_does_not_exist_is_refused(
    corpus, semantic_ids, family, pretrained, tmp_path
):
    model = settings_of(family, pretrained, lora=LoraSettings(target_modules=("query",)))
    with pytest.raises(ConfigError) as caught:
        train(str(corpus.folder), semantic_ids, tmp_path, model=model, **STEPS)
    known = "k, o, q, v, wi_0, wi_1, wo"
    if family == "causal_lm":
        known = "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"
    message = str(caught.value)
    assert message.startswith("lora.target_modules names 'query', which is not a linear layer of")
    assert message.endswith(f"choose from {known}.")


def test_activation_checkpointing_changes_no_weight(
    trained, corpus, semantic_ids, family, pretrained, tmp_path, monkeypatch
):
    _, expected, _ = trained
    model, calls, own = (
        settings_of(family, pretrained, activation_checkpointing=True),
        [],
        checkpoint,
    )
    monkeypatch.setattr(
        "transformers.modeling_utils.checkpoint", lambda *a, **k: calls.append(1) or own(*a, **k)
    )
    _, module = train(str(corpus.folder), semantic_ids, tmp_path, model=model, **STEPS)
    assert len(calls) >= 4 * 2  # steps, blocks
    pairs = zip(module.parameters(), expected.parameters(), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def on_ranks(rank, world_size, tmp_path):
    """Train adapters by DDP, with activation checkpointing."""
    as_elastic(rank, world_size, port=29547)
    corpus, semantic_ids, family, pretrained = torch.load(tmp_path / "input.pt")
    lora = LoraSettings(r=2)
    _, module = train(
        corpus,
        semantic_ids,
        tmp_path,
        model=settings_of(family, pretrained, lora=lora, activation_checkpointing=True),
        data={"batch_size": 24},
        devices=2,
        strategy="ddp",
        plugins=[TorchElasticEnvironment()],
        **STEPS,
    )
    torch.save(module.state_dict(), tmp_path / f"weights-{rank}.pt")


@pytest.mark.slow
def test_two_ranks_train_the_same_adapters(corpus, semantic_ids, family, pretrained, tmp_path):
    given = (str(corpus.folder), semantic_ids, family, str(pretrained))
    torch.save(given, tmp_path / "input.pt")
    run_on_ranks(on_ranks, tmp_path)
    one, other = (torch.load(tmp_path / f"weights-{rank}.pt") for rank in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert any(value.any() for name, value in one.items() if "lora_B" in name)
