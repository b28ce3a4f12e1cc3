"""A bi-encoder with LoRA: checkpoints without the base, exact resume, merged copy."""

import pytest
import torch

import sidrec
from sidrec.encoder.load_encoder import load_encoder, merged_encoder
from sidrec.errors import ConfigError
from sidrec.runs.directory import RunDirectory
from sidrec.training.lora import LoraSettings
from tests.encoder import test_module as bi_encoder

pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
LORA = {"lora": LoraSettings(r=2, dropout=0.1)}
STEPS = {"max_epochs": 1, "limit_train_batches": 4}


@pytest.fixture(scope="module")
def trained(corpus, encoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    trainer, module = bi_encoder.train(
        str(corpus.folder), encoder, folder=folder, every=2, model=LORA, **STEPS
    )
    return trainer, module, folder


def test_only_adapters_are_trained_and_stored(trained):
    folder = trained[2]
    stored = torch.load(folder / "step=4.ckpt", weights_only=True)["state_dict"]
    assert stored
    assert all("lora_" in name for name in stored)
    assert any(value.any() for name, value in stored.items() if "lora_B" in name)


def test_a_resumed_training_equals_an_undisturbed_one(trained, corpus, encoder):
    _, expected, folder = trained
    resume = folder / "step=2.ckpt"
    trainer, resumed = bi_encoder.train(
        str(corpus.folder), encoder, resume=resume, model=LORA, **STEPS
    )
    assert trainer.global_step == 4
    assert bi_encoder.equal(resumed, expected)


def test_a_run_gives_the_same_embeddings_merged_or_not(trained, tmp_path):
    _, module, folder = trained
    run = RunDirectory(tmp_path)
    run.last_checkpoint.parent.mkdir()
    run.last_checkpoint.write_bytes((folder / "step=4.ckpt").read_bytes())
    run.write_manifest(state="finished")
    tower = load_encoder(run).tower
    tokens = tower.tokenize(["a film", "another film of the sea"], max_tokens=16, kind="item")
    expected = module.eval().tower(tokens)
    assert torch.equal(tower(tokens), expected)
    loaded = sidrec.BiEncoder.load_from_checkpoint(run.last_checkpoint)
    assert torch.equal(loaded.tower(tokens), expected)
    plain = merged_encoder(tower)
    assert not any("lora" in name for name in plain.state_dict())
    tower.model = plain.eval()
    torch.testing.assert_close(tower(tokens), expected, atol=1e-5, rtol=1e-4)


def test_an_unknown_module_is_refused(corpus, encoder):
    wrong = {"lora": LoraSettings(target_modules=("q_proj",))}
    with pytest.raises(ConfigError, match=r"'q_proj', which is not a linear layer of BertModel"):
        bi_encoder.train(str(corpus.folder), encoder, model=wrong, **STEPS)


def test_activation_checkpointing_runs_blocks_twice_and_changes_no_weight(
    corpus, encoder, monkeypatch
):
    from transformers.models.bert.modeling_bert import BertIntermediate

    calls, plain, found = [], BertIntermediate.forward, []
    monkeypatch.setattr(BertIntermediate, "forward", lambda *a: (calls.append(1), plain(*a))[1])
    for checkpoints in (False, True):
        calls.clear()
        choice = {"activation_checkpointing": checkpoints}
        module = bi_encoder.train(str(corpus.folder), encoder, model=choice, **STEPS)[1]
        found.append((len(calls), list(module.parameters())))
    assert found[1][0] == 2 * found[0][0] > 0
    for one, other in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
