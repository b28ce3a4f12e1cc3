"""A pretrained T5 with LoRA: what is trained, what a checkpoint holds, exact resume."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning.fabric.plugins.environments import TorchElasticEnvironment
from safetensors.torch import load_file, save_file

import sidrec
from sidrec.errors import ConfigError, RunError
from sidrec.generator.model.factory import merged_t5
from sidrec.generator.model.generator_settings import T5Settings
from sidrec.kernels.t5_forward import is_wrapped
from sidrec.training.lora import LoraSettings
from tests.generator.trained import equal, train
from tests.generator.training.test_ranks import as_elastic
from tests.ranks import run_on_ranks
from tests.test_paper_settings import make_flan

pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
STEPS = {"max_epochs": 1, "limit_train_batches": 4}


@pytest.fixture(scope="module")
def flan(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("flan")
    make_flan(folder, corpus.item_texts())
    return folder


@pytest.fixture(scope="module")
def model(flan):
    lora = LoraSettings(r=2, dropout=0.1, target_modules=("q", "v", "wo"))
    return {"t5": T5Settings(pretrained=str(flan), lora=lora)}


@pytest.fixture(scope="module")
def trained(corpus, semantic_ids, model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    trainer, module = train(str(corpus.folder), semantic_ids, folder, every=2, model=model, **STEPS)
    return trainer, module, folder


def test_the_base_stays_and_is_in_no_checkpoint(trained, flan):
    _, module, folder = trained
    base = load_file(Path(flan) / "model.safetensors")
    t5 = module.model.t5
    query = t5.encoder.block[1].layer[0].SelfAttention.q
    name = "encoder.block.1.layer.0.SelfAttention.q.weight"
    assert torch.equal(query.base_layer.weight, base[name])
    assert query.lora_B.default.weight.any()
    stored = torch.load(folder / "step=4.ckpt", weights_only=True)
    trains = {n for n, w in module.named_parameters(remove_duplicate=False) if w.requires_grad}
    assert stored["state_dict"].keys() & dict(module.named_parameters()).keys() <= trains
    assert trains <= stored["state_dict"].keys()
    of_t5 = {name for name in trains if name.startswith("model.t5.")}
    assert all("lora_" in name or name.endswith(".original1") for name in of_t5)
    assert "model.embedder.from_item.weight" in trains  # and all that is not T5
    num_states = len(stored["optimizer_states"][0]["state"])
    assert num_states == sum(weight.requires_grad for weight in module.parameters())
    assert stored["generator"]["base"]["name"] == str(flan)


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


def test_a_checkpoint_answers_as_the_trained_model_and_merges(trained):
    _, module, folder = trained
    loaded = sidrec.JointGenerator.load_from_checkpoint(folder / "step=4.ckpt")
    assert equal(loaded, module)
    plain, ids = merged_t5(loaded.model), torch.tensor([[3, 4, 5]])
    assert not is_wrapped(plain)
    assert is_wrapped(loaded.model.t5)  # the merged one is a copy
    expected = loaded.model.t5(input_ids=ids, decoder_input_ids=ids).logits
    found = plain.eval()(input_ids=ids, decoder_input_ids=ids).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_another_base_is_refused(trained, flan, corpus, tmp_path):
    _, _, folder = trained
    file = Path(flan) / "model.safetensors"
    before = load_file(file)
    name = "encoder.block.0.layer.0.SelfAttention.q.weight"
    save_file(before | {name: before[name] + 1e-3}, file, metadata={"format": "pt"})
    try:
        with pytest.raises(RunError, match="has other weights than the one that the adapters"):
            sidrec.JointGenerator.load_from_checkpoint(folder / "step=4.ckpt")
    finally:
        save_file(before, file, metadata={"format": "pt"})


def test_adapters_need_a_pretrained_t5():
    with pytest.raises(ConfigError, match=r"t5\.pretrained is missing"):
        T5Settings(lora=LoraSettings())


def test_activation_checkpointing_changes_no_weight(trained, corpus, semantic_ids, model, tmp_path):
    _, expected, _ = trained
    settings = T5Settings(
        pretrained=model["t5"].pretrained, lora=model["t5"].lora, activation_checkpointing=True
    )
    _, module = train(str(corpus.folder), semantic_ids, tmp_path, model={"t5": settings}, **STEPS)
    assert module.model.t5.encoder.gradient_checkpointing
    pairs = zip(module.parameters(), expected.parameters(), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def on_ranks(rank, world_size, tmp_path):
    """Train adapters by DDP, with activation checkpointing."""
    as_elastic(rank, world_size, port=29547)
    corpus, semantic_ids, pretrained = torch.load(tmp_path / "input.pt")
    settings = T5Settings(pretrained=pretrained, lora=LoraSettings(r=2))
    _, module = train(
        corpus,
        semantic_ids,
        tmp_path,
        model={"t5": replace(settings, activation_checkpointing=True)},
        data={"batch_size": 24},
        devices=2,
        strategy="ddp",
        plugins=[TorchElasticEnvironment()],
        **STEPS,
    )
    torch.save(module.state_dict(), tmp_path / f"weights-{rank}.pt")


@pytest.mark.slow
def test_two_ranks_train_the_same_adapters(corpus, semantic_ids, flan, tmp_path):
    torch.save((str(corpus.folder), semantic_ids, str(flan)), tmp_path / "input.pt")
    run_on_ranks(on_ranks, tmp_path)
    one, other = (torch.load(tmp_path / f"weights-{rank}.pt") for rank in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert any(value.any() for name, value in one.items() if "lora_B" in name)
