import json
import signal
import time
from types import SimpleNamespace
from unittest import mock

import lightning as L
import pytest
import torch

from sidrec.encoder.module import BiEncoder
from sidrec.errors import SidrecError
from sidrec.runs.callbacks import (
    CheckpointFiles,
    LastCheckpoint,
    LineProgress,
    RunManifest,
    TerminalProgress,
    total_steps,
)
from sidrec.runs.directory import RunDirectory
from sidrec.runs.preemption import STOP, Preempted
from tests.ranks import run_on_ranks
from tests.stops import files_up_to

MODULE = mock.Mock(spec=L.LightningModule)


def loop_at(*, ready, is_last=False, validates=False):
    progress = SimpleNamespace(current=SimpleNamespace(ready=ready), is_last_batch=is_last)
    checks = {"batch_progress": progress, "_should_check_val_fx": lambda fetcher: validates}
    return SimpleNamespace(epoch_loop=SimpleNamespace(**checks), _data_fetcher=None)


def trainer_of(**changes):
    """Return what the callbacks read of a Trainer."""
    settings = {
        "global_step": 5,
        "is_global_zero": True,
        "fast_dev_run": False,
        "sanity_checking": False,
        "max_steps": 10,
        "max_epochs": None,
        "num_training_batches": 7,
        "accumulate_grad_batches": 1,
        "val_check_batch": 7,
        "callback_metrics": {"train/loss": 0.5, "val/recall": 0.25},
        "datamodule": SimpleNamespace(corpus=SimpleNamespace(fingerprint="f")),
        "precision": "32-true",
        "strategy": SimpleNamespace(root_device=torch.device("cpu")),
        "fit_loop": loop_at(ready=5),
    }
    trainer = mock.Mock(spec=[*dir(L.Trainer), *settings])
    trainer.configure_mock(__class__=L.Trainer, **(settings | changes))
    return trainer


def test_the_manifest_follows_the_run(tmp_path):
    run = RunDirectory(tmp_path)
    callback = RunManifest(run, "model: {}\n")
    callback.on_fit_start(trainer_of(), mock.Mock(spec=BiEncoder, stage="encoder"))
    manifest = json.loads(run.manifest.read_text())
    expected = {"state": "running", "stage": "encoder", "corpus_fingerprint": "f", "world_size": 1}
    assert manifest.items() >= expected.items()
    callback.on_exception(trainer_of(), MODULE, KeyboardInterrupt())
    assert run.state() == "interrupted"
    assert json.loads(run.manifest.read_text())["at_step"] == 5
    callback.on_exception(trainer_of(), MODULE, ZeroDivisionError())
    assert run.state() == "failed"


@pytest.mark.parametrize("changes", [{"is_global_zero": False}, {"fast_dev_run": True}])
def test_other_ranks_and_trials_write_nothing(tmp_path, changes):
    callback = RunManifest(RunDirectory(tmp_path), "")
    callback.begun = True
    callback.on_exception(trainer_of(**changes), MODULE, ValueError())
    assert not list(tmp_path.iterdir())


def test_checkpoints_follow_the_clock(tmp_path, monkeypatch):
    trainer, callback = trainer_of(), LastCheckpoint(RunDirectory(tmp_path), every_s=60.0)
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    callback.on_train_start(trainer, MODULE)
    for moment, num_saved in ((159.9, 0), (160.0, 1), (200.0, 1), (220.0, 2)):
        now[0] = moment
        callback.on_train_batch_end(trainer, MODULE, None, None, 0)
        assert trainer.save_checkpoint.call_count == num_saved
    callback.on_train_end(trainer, MODULE)
    saved = [call.args for call in trainer.save_checkpoint.call_args_list]
    assert saved == [(tmp_path / "checkpoints" / "last.ckpt",)] * 3


@pytest.mark.parametrize(("takes_s", "expected_s"), [(1.0, 60.0), (3.0, 60.0), (10.0, 190.0)])
def test_saving_takes_a_twentieth_of_the_time_at_most(tmp_path, monkeypatch, takes_s, expected_s):
    trainer, callback, now = trainer_of(), LastCheckpoint(RunDirectory(tmp_path)), [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def save(path):
        now[0] += takes_s

    trainer.save_checkpoint.side_effect = save
    callback.on_train_start(trainer, MODULE)
    saves = []
    for _ in range(2000):
        now[0] += 1.0
        callback.on_train_batch_end(trainer, MODULE, None, None, 0)
        if trainer.save_checkpoint.call_count > len(saves):
            saves.append(now[0])
    callback.on_exception(trainer, MODULE, ValueError())
    assert saves[0] == 60.0 + takes_s  # how long it takes is not known before
    assert saves[2] - saves[1] == expected_s + takes_s
    assert takes_s * (len(saves) - 1) / (saves[-1] - saves[0]) <= 0.05  # from then on


def test_ctrl_c_lets_the_step_finish_and_saves(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    trainer, callback = trainer_of(), LastCheckpoint(RunDirectory(tmp_path), every_s=60.0)
    callback.on_train_start(trainer, MODULE)
    signal.raise_signal(signal.SIGINT)  # the step goes on
    assert trainer.save_checkpoint.call_count == 0
    assert signal.getsignal(signal.SIGINT) is before  # so that a second one stops at once
    with pytest.raises(KeyboardInterrupt):
        callback.on_train_batch_end(trainer, MODULE, None, None, 0)
    assert trainer.save_checkpoint.call_count == 1


def test_ctrl_c_means_what_it_did_before_once_training_is_over(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    trainer, callback = trainer_of(), LastCheckpoint(RunDirectory(tmp_path), every_s=60.0)
    callback.on_train_start(trainer, MODULE)
    assert signal.getsignal(signal.SIGINT) is not before
    callback.on_train_end(trainer, MODULE)
    assert signal.getsignal(signal.SIGINT) is before


def test_nothing_is_saved_amid_accumulation(tmp_path):
    trainer = trainer_of(accumulate_grad_batches=2)
    callback = LastCheckpoint(RunDirectory(tmp_path), every_s=0.0)
    callback.on_train_start(trainer, MODULE)
    for ready, is_last, num_saved in ((5, False, 0), (6, False, 1), (7, False, 1), (7, True, 2)):
        trainer.fit_loop = loop_at(ready=ready, is_last=is_last)
        callback.on_train_batch_end(trainer, MODULE, None, None, 0)
        assert trainer.save_checkpoint.call_count == num_saved
    callback.on_exception(trainer, MODULE, ValueError())


def test_nothing_is_saved_between_a_step_and_its_validation(tmp_path):
    trainer = trainer_of(val_check_batch=3, fit_loop=loop_at(ready=3, validates=True))
    callback = LastCheckpoint(RunDirectory(tmp_path), every_s=0.0)
    with STOP.listening():
        callback.on_train_start(trainer, MODULE)
        signal.raise_signal(signal.SIGUSR1)
        callback.on_train_batch_end(trainer, MODULE, None, None, 0)  # goes on to validate
        assert trainer.save_checkpoint.call_count == 0
        trainer.val_check_batch = 1
        with pytest.raises(Preempted):
            callback.on_train_batch_end(trainer, MODULE, None, None, 0)
        assert trainer.save_checkpoint.call_count == 1
        callback.on_exception(trainer, MODULE, Preempted())


def only_one_rank_was_told(rank, world_size, tmp_path):
    trainer = trainer_of(is_global_zero=rank == 0)
    callback = LastCheckpoint(RunDirectory(tmp_path), every_s=60.0)
    with STOP.listening():
        callback.on_train_start(trainer, MODULE)
        if rank == 1:
            signal.raise_signal(signal.SIGUSR1)
        callback.on_train_batch_end(trainer, MODULE, None, None, 0)  # asks; the answer comes later
        with pytest.raises(Preempted):
            callback.on_train_batch_end(trainer, MODULE, None, None, 1)
        callback.on_exception(trainer, MODULE, Preempted())
    assert trainer.save_checkpoint.call_count == 1


def test_all_ranks_stop_at_the_same_step(tmp_path):
    run_on_ranks(only_one_rank_was_told, tmp_path)


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({}, 10),
        ({"max_steps": -1, "max_epochs": 3}, 21),
        ({"max_steps": 10, "max_epochs": 1}, 7),
        ({"max_steps": -1, "max_epochs": 3, "accumulate_grad_batches": 2}, 12),
        ({"max_steps": -1, "max_epochs": -1}, None),
    ],
)
def test_total_steps(changes, steps):
    assert total_steps(trainer_of(**changes)) == steps


def test_progress_is_a_line_every_ten_seconds(monkeypatch, capsys):
    callback, now = LineProgress(), [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    callback.on_train_start(trainer_of(global_step=0), MODULE)
    for step in (1, 2, 3, 4):
        now[0] += 6.0
        callback.on_train_batch_end(trainer_of(global_step=step), MODULE, None, None, 0)
    callback.on_validation_end(trainer_of(global_step=4), MODULE)
    assert capsys.readouterr().err.splitlines() == [
        "training: step 0 of 10",
        "training: step 2 of 10, 48 s left, train/loss 0.5000",
        "training: step 4 of 10, 36 s left, train/loss 0.5000",
        "validation: step 4, val/recall 0.2500",
    ]


def test_progress_of_a_run_without_an_end(monkeypatch, capsys):
    callback, now = LineProgress(), [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    endless = {"max_steps": -1, "max_epochs": -1}
    callback.on_train_start(trainer_of(global_step=0, **endless), MODULE)
    now[0] = 11.0
    callback.on_train_batch_end(trainer_of(global_step=3, **endless), MODULE, None, None, 0)
    assert capsys.readouterr().err.splitlines() == [
        "training: step 0",
        "training: step 3, train/loss 0.5000",
    ]


def test_nothing_is_written_for_a_fit_that_was_refused_before_it_began(tmp_path):
    callback = RunManifest(RunDirectory(tmp_path), "model: {}\n")
    callback.on_exception(trainer_of(), MODULE, ValueError())
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_keeps_the_checkpoint_before_and_says_so(tmp_path):
    file = tmp_path / "checkpoints" / "last.ckpt"
    CheckpointFiles().save_checkpoint({"global_step": 1}, file)
    with files_up_to(10_000), pytest.raises(SidrecError) as caught:
        CheckpointFiles().save_checkpoint({"global_step": 2, "x": torch.zeros(9_000)}, str(file))
    assert str(caught.value).startswith(f"{file} cannot be written (")
    assert "the previous one is intact. Free space" in str(caught.value)
    assert torch.load(file, weights_only=True) == {"global_step": 1}
    assert list(file.parent.iterdir()) == [file]


def test_the_terminal_bar_reads_figures_once_a_second(monkeypatch):
    reads, now, bar = [], [0.0], TerminalProgress()
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr(
        "lightning.pytorch.callbacks.RichProgressBar.get_metrics",
        lambda *_: {"loss": reads.append(1) or len(reads)},
    )
    found = []
    for now[0] in (0.0, 0.5, 0.9, 1.1, 1.2):
        found.append(bar.get_metrics(trainer_of(), MODULE)["loss"])
    assert found == [1, 1, 1, 2, 2]
