"""A generator whose weights are sharded over two ranks: DDP's training, resumed, read whole."""

import json
import signal
from contextlib import contextmanager
from unittest import mock

import polars as pl
import pytest
import torch

from sidrec.runs.callbacks import LastCheckpoint
from sidrec.runs.checkpoints import damage_of, load_file, step_of
from sidrec.runs.directory import RunDirectory
from sidrec.runs.preemption import PREEMPTED_EXIT_CODE
from tests.ranks import as_elastic, run_on_ranks
from tests.tiny import generator_settings, sidrec, write_yaml

SHARDED = ("--trainer.strategy", "{class_path: sidrec.ShardedStrategy}")
SETTINGS = (  # what a flat shard would get wrong
    *("--model.optimizer.weight_decay", "0.3", "--model.optimizer.learning_rate", "0.01"),
    *("--trainer.gradient_clip_val", "0.5", "--trainer.val_check_interval", "3"),
    *("--trainer.devices", "2", "--trainer.max_steps", "6"),
)
T5 = ("--model.t5.activation_checkpointing", "true")
CAUSAL = {  # in place of T5
    "shape": {
        "hidden_size": 12,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 4,
    },
    "text_vocabulary_size": 200,
    "all_positions": True,
}
RUNS = {  # configuration, arguments, and whether it is told to stop in the midst
    "ddp": ("generator.yaml", (*T5, "--trainer.strategy", "ddp"), False),
    "folder": ("generator.yaml", (*T5, *SHARDED), False),
    "cut": ("generator.yaml", (*T5, *SHARDED), True),
    "causal_ddp": ("causal.yaml", ("--trainer.strategy", "ddp"), False),
    "causal": ("causal.yaml", SHARDED, False),
}


@contextmanager
def told_to_stop():
    """Let the machine ask the last rank to stop, in the second step."""
    begin = LastCheckpoint.on_train_batch_start

    def begin_and_stop(self, trainer, *arguments):
        begin(self, trainer, *arguments)
        if trainer.global_step == 1 and trainer.global_rank == trainer.world_size - 1:
            signal.raise_signal(signal.SIGUSR1)

    with mock.patch.object(LastCheckpoint, "on_train_batch_start", begin_and_stop):
        yield


def on_ranks(rank, world_size, tmp_path):
    """Train each run by the command line, as torchrun starts it."""
    as_elastic(rank, world_size, port=29581)
    encoder_run = torch.load(tmp_path / "input.pt")
    for name, (config, arguments, is_cut) in RUNS.items():
        fit = ("fit", "--config", tmp_path / config, "--from", encoder_run, *SETTINGS, *arguments)
        if is_cut:
            with told_to_stop():
                code = sidrec(*fit, "--run_dir", tmp_path / name)
            assert code == (PREEMPTED_EXIT_CODE if rank == 0 else 0)
            assert 2 < step_of(tmp_path / name / "checkpoints" / "last.ckpt") < 6
        assert sidrec(*fit, "--run_dir", tmp_path / name) == 0


def write_input(tiny, folder):
    """Write what the ranks read."""
    torch.save(str(tiny.encoder_run), folder / "input.pt")
    write_yaml(folder / "generator.yaml", generator_settings())
    causal = generator_settings()
    del causal["model"]["init_args"]["t5"]
    causal["model"]["init_args"]["causal_lm"] = CAUSAL
    write_yaml(folder / "causal.yaml", causal)


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    write_input(tiny, folder)
    run_on_ranks(on_ranks, folder)
    return {name: RunDirectory(folder / name) for name in RUNS}


def weights_of(run):
    return load_file(run.last_checkpoint, map_location="cpu")["state_dict"]


def figures_of(run, prefix):
    """Return the logged figures with a prefix, by step and name."""
    found = {}
    for file in run.logs.glob("*/metrics.csv"):
        table = pl.read_csv(file, infer_schema_length=None)
        for row in table.iter_rows(named=True):
            named = {k: v for k, v in row.items() if k.startswith(prefix) and v is not None}
            found |= {(row["step"], name): value for name, value in named.items()}
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("name", "like"), [("folder", "ddp"), ("causal", "causal_ddp")])
def test_sharded_training_is_ddp_s(runs, name, like):
    for prefix in ("train/", "val/", "optimizer/gradient_norm"):
        expected = figures_of(runs[like], prefix)
        assert expected
        assert figures_of(runs[name], prefix) == pytest.approx(expected, rel=1e-4, abs=1e-6)
    expected, found = weights_of(runs[like]), weights_of(runs[name])
    assert found.keys() == expected.keys()
    for key, weight in found.items():
        if key.endswith(("_alone", "_scalars")):  # calibrated: rounding moves a flat optimum far
            continue
        torch.testing.assert_close(weight, expected[key], atol=1e-4, rtol=1e-3)


@pytest.mark.slow
def test_a_resumed_one_is_the_undisturbed_one(runs):
    expected = weights_of(runs["folder"])
    for key, weight in weights_of(runs["cut"]).items():
        torch.testing.assert_close(weight, expected[key], atol=0, rtol=0, equal_nan=True)
    found = figures_of(runs["cut"], "train/")
    assert (5, "train/search/loss") in found
    assert found.items() <= figures_of(runs["folder"], "train/").items()  # all but at the stop


@pytest.mark.slow
def test_folders_hold_shards_and_nothing_is_left_over(runs):
    checkpoints = runs["cut"].last_checkpoint.parent
    assert {one.name for one in checkpoints.iterdir()} == {
        *("best.ckpt", "last.ckpt", "last.previous.ckpt"),
    }
    for folder in checkpoints.iterdir():
        names = {one.name for one in folder.iterdir()}
        assert names == {".metadata", "__0_0.distcp", "__1_0.distcp", "meta.pt"}
        assert damage_of(folder) is None


@pytest.mark.slow
def test_a_folder_is_tested_and_served(runs, tmp_path):
    asked = tmp_path / "requests.jsonl"
    asked.write_text(json.dumps({"id": "a", "task": "search", "query": "a film"}) + "\n")
    answers = []
    for name in ("folder", "cut"):
        root = runs[name].root
        assert sidrec("test", "--from", root, "--trainer.devices", "1") == 0
        out = tmp_path / f"{name}.jsonl"
        assert sidrec("retrieve", "--from", root, "--input", asked, "--output", out) == 0
        answers.append((runs[name].predictions.read_bytes(), out.read_bytes()))
    assert answers[0] == answers[1]
