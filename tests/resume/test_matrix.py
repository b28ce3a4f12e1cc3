"""A training that was stopped and resumed is the one that was left alone: every stage, to the bit.

{bi-encoder, ENMF, RQ-VAE, generator} × {1, 2 ranks} × {0, 2 loader processes} × {stopped in the
midst of an epoch, at its end, twice in one} × {with, without a warm-up schedule}: the same batches,
validation figures, weights, state of the optimizer and of its schedule on every rank.

RQ-VAE has no loader processes: its vectors lie in memory, and its data module does not offer them.
So there are 84 cells with 112 resumes. Nothing is told when to save: the last rank gets SIGUSR1 in
the midst of a step, all ranks save at its end and leave, and a new trainer begins from what the run
directory holds. A validation is due after every third step; a stop that falls on one comes a step
later, as in any run.
"""

import os

import pytest
import torch

from sidrec.distributed import rank_and_world_size, wait_for_all_ranks
from tests.ranks import run_on_ranks
from tests.resume.training import NUM_EPOCHS, train

STAGES = ("bi-encoder", "ENMF", "RQ-VAE", "generator")
WHERE = ("mid-epoch", "epoch end", "twice in one epoch")
pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")


def stops_at(where, steps_per_epoch):
    """Return the steps at whose ends a training is told to stop."""
    return {
        "mid-epoch": (steps_per_epoch // 2,),
        "epoch end": (steps_per_epoch,),
        "twice in one epoch": (steps_per_epoch + 1, steps_per_epoch + 4),
    }[where]


def compare(stage, tiny, folder, *, cells, **choice):
    """Train without a break, then each cell; return what differs, and how often it was resumed."""
    expected = train(stage, tiny, folder / "undisturbed", **choice)
    steps = len(expected.batches) // NUM_EPOCHS
    assert steps >= 6, "the stops of a cell would fall together"
    found = {}
    for where, num_workers in cells:
        name = f"{where}, {num_workers} workers"
        stops = stops_at(where, steps)
        resumed = train(stage, tiny, folder / name, stops=stops, num_workers=num_workers, **choice)
        found[name] = (resumed.difference_from(expected), resumed.num_resumes, len(stops))
    return found, expected


def cells_of(stage):
    workers = (0,) if stage == "RQ-VAE" else (0, 2)
    return [(where, num_workers) for where in WHERE for num_workers in workers]


def assert_same(found):
    for name, (what, num_resumes, num_stops) in found.items():
        assert num_resumes == num_stops, name
        assert what is None, f"{name}: {what} differs"


@pytest.mark.parametrize("stage", STAGES)
def test_two_resumes_in_one_epoch_change_nothing(stage, tiny, tmp_path):
    cells = [("twice in one epoch", 0)]
    assert_same(compare(stage, tiny, tmp_path, cells=cells, warmup=True)[0])


@pytest.mark.parametrize("stops", [(7, 10), (3, 7, 9), (7, 8, 13)])
def test_nor_does_a_stop_at_the_end_of_an_epoch_before_another(stops, tiny, tmp_path):
    """Seven batches an epoch."""
    settings = {"limit_val_batches": 0}
    expected = train("ENMF", tiny, tmp_path / "undisturbed", warmup=True, **settings)
    resumed = train("ENMF", tiny, tmp_path / "cut", stops=stops, warmup=True, **settings)
    assert resumed.num_resumes == len(stops)
    assert resumed.difference_from(expected) is None


@pytest.mark.slow
@pytest.mark.parametrize("warmup", [True, False], ids=["warmup", "constant"])
@pytest.mark.parametrize("stage", STAGES)
def test_one_rank(stage, warmup, tiny, tmp_path):
    assert_same(compare(stage, tiny, tmp_path, cells=cells_of(stage), warmup=warmup)[0])


def on_ranks(rank, world_size, tmp_path):
    """Fill in the cells of two ranks, all in one start of two processes."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29571",  # not used: the ranks know each other already
        "TORCHELASTIC_RUN_ID": "test",
    }
    wanted, tiny, settings = torch.load(tmp_path / "input.pt", weights_only=False)
    assert rank_and_world_size() == (rank, 2)
    for stage, warmup in wanted:
        folder = tmp_path / f"{stage} {warmup}"
        choice = {"num_ranks": 2, "warmup": warmup, "cells": cells_of(stage)} | settings
        found, expected = compare(stage, tiny, folder, **choice)
        torch.save((found, expected.end["weights"]), folder / f"{rank}.pt")
        wait_for_all_ranks()


@pytest.fixture(scope="module")
def on_two_ranks(tiny, tmp_path_factory, request):
    """Return the folder with what two ranks found for the tests that were chosen."""
    folder = tmp_path_factory.mktemp("ranks")
    chosen = [item.callspec.params for item in request.session.items if _needs_ranks(item)]
    wanted = [(one["stage"], one["warmup"]) for one in chosen]
    torch.save((wanted, tiny, {}), folder / "input.pt")
    run_on_ranks(on_ranks, folder)
    return folder


def _needs_ranks(item):
    return "on_two_ranks" in getattr(item, "fixturenames", ())


@pytest.mark.slow
@pytest.mark.parametrize("warmup", [True, False], ids=["warmup", "constant"])
@pytest.mark.parametrize("stage", STAGES)
def test_two_ranks(stage, warmup, on_two_ranks):
    assert_ranks_same(on_two_ranks / f"{stage} {warmup}")


def assert_ranks_same(folder):
    (first, weights), (second, others) = (torch.load(folder / f"{rank}.pt") for rank in range(2))
    assert_same(first)
    assert_same(second)
    assert all(torch.equal(weights[name], others[name]) for name in weights)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("stage", ["bi-encoder", "generator"])
def test_two_gpus(stage, tiny, tmp_path):
    settings = {"accelerator": "gpu", "deterministic": True}
    torch.save(([(stage, True)], tiny, settings), tmp_path / "input.pt")
    run_on_ranks(on_ranks, tmp_path, backend="nccl")
    for rank in range(2):
        assert_same(torch.load(tmp_path / f"{stage} True" / f"{rank}.pt", map_location="cpu")[0])


@pytest.mark.parametrize("stop", [1, 2, 3, 4, 5])
def test_nor_does_a_stop_amid_accumulation(stop, tiny, tmp_path):
    """Seven batches an epoch, two to a step: the fourth step has one batch."""
    settings = {"accumulate_grad_batches": 2, "limit_val_batches": 0}
    expected = train("ENMF", tiny, tmp_path / "undisturbed", warmup=True, **settings)
    assert expected.end["global_step"] == 8
    resumed = train("ENMF", tiny, tmp_path / "cut", stops=(stop,), warmup=True, **settings)
    assert resumed.num_resumes == 1
    assert resumed.difference_from(expected) is None


@pytest.mark.parametrize("stop", [3, 5, 7])
def test_nor_does_one_in_a_shortened_epoch(stop, tiny, tmp_path):
    settings = {"limit_train_batches": 5, "limit_val_batches": 0}
    expected = train("ENMF", tiny, tmp_path / "undisturbed", warmup=True, **settings)
    assert len(expected.batches) == 10
    resumed = train("ENMF", tiny, tmp_path / "cut", stops=(stop,), warmup=True, **settings)
    assert resumed.num_resumes == 1
    assert resumed.difference_from(expected) is None
