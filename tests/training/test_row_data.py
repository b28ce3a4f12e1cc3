"""Batches of one kind of rows: whole epochs, the same over any number of ranks."""

import numpy as np
import pytest

from sidrec.errors import ConfigError
from sidrec.training.row_data import RowSchedule


def epoch_of(schedule, epoch):
    return np.concatenate(
        [
            schedule.rows(step, epoch=epoch, rank=rank)
            for step in range(len(schedule))
            for rank in range(schedule.world_size)
        ]
    )


def test_every_row_once_and_the_last_batch_filled_up():
    schedule = RowSchedule(num_rows=10, batch_size=4, world_size=1, seed=0)
    rows = epoch_of(schedule, 0)
    assert len(schedule) == 3
    assert sorted(rows[:10]) == list(range(10))
    assert rows[10:].tolist() == rows[:2].tolist()


def test_epochs_differ_and_repeat():
    schedule = RowSchedule(num_rows=30, batch_size=10, world_size=1, seed=0)
    assert epoch_of(schedule, 0).tolist() != epoch_of(schedule, 1).tolist()
    assert epoch_of(schedule, 1).tolist() == epoch_of(schedule, 1).tolist()


def test_ranks_share_the_global_batch():
    alone = RowSchedule(num_rows=25, batch_size=6, world_size=1, seed=5)
    two = RowSchedule(num_rows=25, batch_size=3, world_size=2, seed=5)
    assert epoch_of(alone, 2).tolist() == epoch_of(two, 2).tolist()


def test_fewer_rows_than_a_batch():
    schedule = RowSchedule(num_rows=2, batch_size=5, world_size=1, seed=0)
    assert sorted(schedule.rows(0, epoch=0, rank=0).tolist()) in ([0, 0, 0, 1, 1], [0, 0, 1, 1, 1])


@pytest.mark.parametrize(("rows", "batch"), [(0, 1), (5, 0)])
def test_nothing_to_show_is_refused(rows, batch):
    with pytest.raises(ConfigError):
        RowSchedule(num_rows=rows, batch_size=batch, world_size=1, seed=0)


def test_steps_outside_are_refused():
    with pytest.raises(IndexError, match="step 1 of 1"):
        RowSchedule(num_rows=2, batch_size=2, world_size=1, seed=0).rows(1, epoch=0, rank=0)


def test_lengths_lie_together_and_every_row_comes_once():
    lengths = np.arange(24)[::-1] % 6
    schedule = RowSchedule(24, 2, world_size=2, seed=1, lengths=lengths, pool_batches=6)
    assert sorted(epoch_of(schedule, 0)) == list(range(24))
    batches = [
        np.concatenate([schedule.rows(step, epoch=0, rank=rank) for rank in (0, 1)])
        for step in range(6)
    ]
    assert [len(set(lengths[rows])) for rows in batches] == [1] * 6  # one pool holds all rows
    firsts = [lengths[rows[0]] for rows in batches]
    assert firsts != sorted(firsts)
    assert epoch_of(schedule, 1).tolist() != epoch_of(schedule, 0).tolist()


def test_sorted_batches_are_the_same_over_any_number_of_ranks():
    lengths = np.arange(25) % 7
    alone = RowSchedule(25, 6, world_size=1, seed=5, lengths=lengths, pool_batches=3)
    two = RowSchedule(25, 3, world_size=2, seed=5, lengths=lengths, pool_batches=3)
    for step in range(len(alone)):
        shared = [two.rows(step, epoch=1, rank=rank) for rank in (0, 1)]
        assert sorted(np.concatenate(shared)) == sorted(alone.rows(step, epoch=1, rank=0))
