from unittest.mock import Mock

import lightning as L
import pytest
import torch
from datasets import Dataset
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from sidrec.corpus.store import Corpus
from sidrec.distributed import rank_and_world_size
from sidrec.errors import ConfigError
from sidrec.runs.directory import RunDirectory
from sidrec.semantic_ids import callback as room
from sidrec.semantic_ids.bundle.semantic_id_bundle import SemanticIdBundle
from sidrec.semantic_ids.callback import SemanticIdCallback
from sidrec.semantic_ids.collisions.policies import ReassignLastLevel
from sidrec.semantic_ids.quantizers.rq_kmeans import RqKMeans
from sidrec.types import ItemEmbeddings
from tests.ranks import run_on_ranks

NUM_ITEMS = 150


def quantizer(sizes=(8, 8, 8)):
    return RqKMeans(
        num_refit_rounds=0,
        train_rows_per_code=None,
        codebook_sizes=sizes,
        num_iterations=3,
        tolerance=0.0,
        num_redo=1,
        init="progressive",
        sample_rows_per_code=64,
        normalize_residuals=False,
        seed=1,
    )


def new_callback(sizes=(8, 8, 8)):
    return SemanticIdCallback(
        quantizer(sizes), ReassignLastLevel(), max_item_tokens=8, batch_size=4
    )


class Tower(torch.nn.Linear):
    """Item vectors are a function of the weights alone."""

    def __init__(self):
        super().__init__(4, NUM_ITEMS)


class Module(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.tower = Tower()

    def training_step(self, batch, batch_idx):
        loss = self.tower(batch).square().mean()
        self.log("score", float(batch_idx), on_step=True, on_epoch=False)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Data(L.LightningDataModule):
    def __init__(self):
        super().__init__()
        items = Dataset.from_dict({"item_id": [""] * NUM_ITEMS, "genre": ["a", "b|a"] * 75})
        self.corpus = Mock(spec=Corpus, fingerprint="f" * 64, items=items, num_items=NUM_ITEMS)
        self.corpus.item_ids.return_value = [str(row) for row in range(NUM_ITEMS)]
        self.corpus.item_titles.return_value = ["title"] * NUM_ITEMS

    def train_dataloader(self):
        return DataLoader(torch.ones(6, 4), batch_size=1)


@pytest.fixture
def calls(monkeypatch):
    """Stand-ins for the encoder; returns what encode_catalogue was asked."""
    asked = []
    _stand_in(monkeypatch.setattr, asked)
    return asked


def _stand_in(setattr_, asked):
    def encode(tower, corpus, *, max_tokens, batch_size, bf16):
        asked.append((max_tokens, batch_size, bf16))
        return ItemEmbeddings(tower.weight.detach().clone(), room.encoder_hash(tower), "f" * 64)

    setattr_(room, "encode_catalogue", encode)
    setattr_(room, "encoder_hash", lambda tower: str(tower.weight.sum().item()))
    setattr_(room, "_corpus_of", lambda trainer: Data().corpus)


def fit(tmp_path, callback, module, *, checkpoint=None, **options):
    settings = {"max_epochs": 1, "logger": CSVLogger(tmp_path, name="logs", version="")} | options
    trainer = L.Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=checkpoint is not None,
        log_every_n_steps=1,
        callbacks=[callback, *([checkpoint] if checkpoint else [])],
        **settings,
    )
    trainer.fit(module, Data())
    return trainer


def test_bundle_is_written_and_logged_at_the_end(tmp_path, calls, capsys):
    module = Module()
    fit(tmp_path, new_callback(), module)
    bundle = SemanticIdBundle.load(tmp_path / "semantic_ids", corpus_fingerprint="f" * 64)
    assert torch.equal(bundle.embeddings.vectors, module.tower.weight)
    assert bundle.quality["ids/collision_rate"] == 0
    assert bundle.quality["ids/purity_genre_level_0"] == 1.0
    assert (tmp_path / "semantic_ids" / "quality.png").exists()
    assert bundle.source == {"max_item_tokens": 8, "bf16": False}
    assert calls == [(8, 4, False)]
    assert "ids/perplexity_level_3" in (tmp_path / "logs" / "metrics.csv").read_text()
    assert "policy reassign_last_level" in capsys.readouterr().err


def test_the_best_checkpoint_is_encoded_and_the_last_weights_stay(tmp_path, calls):
    module = Module()
    best = ModelCheckpoint(
        tmp_path / "checkpoints", monitor="score", mode="min", every_n_train_steps=1
    )
    fit(tmp_path, new_callback(), module, checkpoint=best)
    stored = torch.load(best.best_model_path, weights_only=True)["state_dict"]["tower.weight"]
    bundle = SemanticIdBundle.load(tmp_path / "semantic_ids")
    assert torch.equal(bundle.embeddings.vectors, stored)
    assert not torch.equal(module.tower.weight, stored)


def test_the_same_weights_keep_the_bundle_other_settings_remake_it(tmp_path, calls):
    module = Module()
    fit(tmp_path, new_callback(), module, logger=False)
    written = (tmp_path / "semantic_ids" / "semantic_ids.json").stat().st_mtime_ns
    fit(tmp_path, new_callback(), module, max_steps=0, max_epochs=None, logger=False)
    assert len(calls) == 1
    assert (tmp_path / "semantic_ids" / "semantic_ids.json").stat().st_mtime_ns == written
    fit(tmp_path, new_callback((16, 16)), module, max_steps=0, max_epochs=None, logger=False)
    assert len(calls) == 2
    assert SemanticIdBundle.load(tmp_path / "semantic_ids").table.codebook_sizes == (16, 16)


def test_a_preempted_run_makes_no_ids(tmp_path, calls):
    RunDirectory(tmp_path).write_manifest(state="preempted")
    fit(tmp_path, new_callback(), Module())
    assert calls == []
    assert not (tmp_path / "semantic_ids").exists()


def test_a_datamodule_without_corpus_is_refused():
    with pytest.raises(ConfigError, match="needs a datamodule with a corpus"):
        room._corpus_of(Mock(spec=L.Trainer, datamodule=None))


def _finish_on_rank(rank, world_size, tmp_path):
    _stand_in(setattr, [])
    torch.manual_seed(3)
    module = Module()
    assert rank_and_world_size() == (rank, world_size)
    trainer = Mock(
        spec=L.Trainer,
        default_root_dir=str(tmp_path / "run"),
        fast_dev_run=False,
        precision="32-true",
        checkpoint_callbacks=[],
        loggers=[],
        is_global_zero=rank == 0,
        global_step=1,
    )
    new_callback().on_fit_end(trainer, module)
    with pytest.raises(ConfigError, match="150 items, fewer than the 256"):
        new_callback((256,)).on_fit_end(trainer, module)
    with pytest.raises(ConfigError, match="150 items do not fit"):  # found on rank 0 alone
        new_callback((8, 8)).on_fit_end(trainer, module)


@pytest.mark.slow  # two processes import Lightning
def test_two_ranks_write_the_bundle_of_one_and_share_errors(tmp_path, calls):
    run_on_ranks(_finish_on_rank, tmp_path)
    torch.manual_seed(3)
    fit(tmp_path / "alone", new_callback(), Module(), max_steps=0, max_epochs=None)
    hashes = {
        SemanticIdBundle.load(tmp_path / run / "semantic_ids").hash for run in ("run", "alone")
    }
    assert len(hashes) == 1


def test_yaml_names_the_parts():
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--callbacks", type=list[L.Callback])
    parts = {
        "quantizer": {
            "class_path": "sidrec.RqKMeans",
            "init_args": quantizer().settings() | {"name": None},
        },
        "policy": {"class_path": "sidrec.ReassignLastLevel"},
        "max_item_tokens": 64,
        "batch_size": 32,
    }
    del parts["quantizer"]["init_args"]["name"]
    path = "sidrec.SemanticIdCallback"
    config = parser.parse_object({"callbacks": [{"class_path": path, "init_args": parts}]})
    (made,) = parser.instantiate(config).callbacks
    assert made.quantizer == quantizer()
    assert made.policy == ReassignLastLevel()
