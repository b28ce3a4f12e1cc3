from itertools import pairwise

import numpy as np
import pytest

from sidrec.errors import ConfigError
from sidrec.generator.training.bucketed_schedule import BucketedSchedule

NUM_ROWS = (45, 203)
LENGTHS = [np.random.default_rng(task).integers(1, 50, size) for task, size in enumerate(NUM_ROWS)]


def make(**changes):
    return BucketedSchedule(
        **{
            "num_rows": NUM_ROWS,
            "length_of": tuple(lambda rows, own=own: own[rows] for own in LENGTHS),
            "mix": (1.0, 1.0),
            "batch_size": 5,
            "world_size": 2,
            "pool_batches": 4,
            "seed": 3,
            **changes,
        }
    )


def whole(schedule, step, epoch=0):
    """The global batch: what all ranks hold at a step."""
    return [schedule.batch(step, epoch=epoch, rank=rank) for rank in range(schedule.world_size)]


def test_the_larger_task_is_seen_once_and_the_other_starts_over():
    schedule = make()
    assert schedule.num_full_batches == (4, 20)
    assert schedule.num_batches == (20, 20)
    seen = {"search": [], "recommendation": []}
    for step in range(len(schedule)):
        for task, rows, _ in whole(schedule, step):
            seen[task] += rows.tolist()
    assert len(seen["recommendation"]) == len(set(seen["recommendation"])) == 200
    turns = np.array(seen["search"]).reshape(5, 40)
    assert all(len(set(turn)) == 40 for turn in turns.tolist())
    assert len({tuple(turn) for turn in turns.tolist()}) == 5  # shuffled anew every time


def test_turns_count_on_over_epochs():
    schedule = make()
    turns = [
        schedule.batch(step, epoch=epoch, rank=0).turn
        for epoch in range(2)
        for step in range(len(schedule))
        if schedule.batch(step, epoch=epoch, rank=0).task == "search"
    ]
    assert turns == sorted(turns)
    assert sorted(set(turns)) == list(range(10))


@pytest.mark.parametrize(("mix", "expected"), [((1.0, 3.0), (7, 20)), ((2.0, 0.0), (4, 0))])
def test_mix_is_a_share_of_the_steps(mix, expected):
    schedule = make(mix=mix)
    assert schedule.num_batches == expected
    tasks = [schedule.batch(step, epoch=0, rank=0).task for step in range(len(schedule))]
    assert (tasks.count("search"), tasks.count("recommendation")) == expected
    halfway = tasks[: len(tasks) // 2].count("search")
    assert abs(halfway - expected[0] / 2) <= 1  # interleaved evenly


def test_ranks_are_disjoint_share_the_task_and_sum_to_one_process():
    schedule, alone = make(), make(batch_size=10, world_size=1)
    for step in range(len(schedule)):
        first, second = whole(schedule, step)
        assert first.task == second.task
        assert not set(first.rows.tolist()) & set(second.rows.tolist())
        together = alone.batch(step, epoch=0, rank=0)
        assert sorted([*first.rows, *second.rows]) == sorted(together.rows)


def test_batches_of_a_pool_cut_its_sorted_lengths():
    schedule, lengths = make(mix=(0.0, 1.0)), LENGTHS[1]
    for pool in range(len(schedule) // 4):
        spans = []
        for step in range(4 * pool, 4 * pool + 4):
            rows = np.concatenate([part.rows for part in whole(schedule, step)])
            spans.append((lengths[rows].min(), lengths[rows].max()))
        ordered = sorted(spans)
        assert all(a[1] <= b[0] for a, b in pairwise(ordered))


def test_bucketing_saves_padding_and_can_be_switched_off():
    def padding(pool_batches):
        schedule = make(mix=(0.0, 1.0), world_size=1, pool_batches=pool_batches)
        parts = [LENGTHS[1][schedule.batch(step, epoch=0, rank=0).rows] for step in range(40)]
        return sum(int((part.max() - part).sum()) for part in parts)

    assert padding(20) < padding(1) / 3


def test_epochs_seeds_and_steps_give_other_rows_and_calls_repeat():
    first = make().batch(3, epoch=0, rank=0).rows
    assert np.array_equal(make().batch(3, epoch=0, rank=0).rows, first)
    assert not np.array_equal(make().batch(3, epoch=1, rank=0).rows, first)
    assert not np.array_equal(make(seed=4).batch(3, epoch=0, rank=0).rows, first)


def test_refusals():
    with pytest.raises(ConfigError, match=r"45 search examples do not fill one batch of 30 on 2"):
        make(batch_size=30)
    make(batch_size=30, mix=(0.0, 1.0))
    with pytest.raises(ConfigError, match=r"one of them above 0, got 0\.0 and 0\.0"):
        make(mix=(0.0, 0.0))
    with pytest.raises(ConfigError, match=r"got -1\.0 and 1\.0"):
        make(mix=(-1.0, 1.0))
    with pytest.raises(ConfigError, match="must be 1 or more"):
        make(pool_batches=0)
    with pytest.raises(IndexError, match="step 40 of an epoch of 40"):
        make().batch(40, epoch=0, rank=0)
    with pytest.raises(IndexError, match="rank 2 of 2"):
        make().batch(0, epoch=0, rank=2)
