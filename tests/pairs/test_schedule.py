from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidrec.errors import ConfigError
from sidrec.pairs.schedule import PairSchedule


def make(num_rows=(100, 57), mix=None, batch_size=4, world_size=2, seed=1):
    return PairSchedule(num_rows, mix, batch_size, world_size, seed)


def epoch_of(schedule, epoch=0):
    return [
        [schedule.batch(step, epoch=epoch, rank=rank) for rank in range(schedule.world_size)]
        for step in range(len(schedule))
    ]


def test_counts_by_hand():
    assert make().num_batches == (12, 7)  # 100 // 8, 57 // 8
    assert make(mix=(1.0, 1.0)).num_batches == (7, 7)
    assert make(mix=(2.0, 1.0)).num_batches == (12, 6)
    assert make(num_rows=(100, 0), mix=None).num_batches == (12, 0)


def test_tasks_alternate_evenly():
    tasks = [ranks[0].task for ranks in epoch_of(make(num_rows=(32, 16)))]
    assert (tasks.count("search"), tasks.count("recommendation")) == (4, 2)
    assert "".join(task[0] for task in tasks).count("rr") == 0


@settings(max_examples=40, deadline=None)
@given(
    rows=st.tuples(st.integers(12, 90), st.integers(12, 90)),
    batch_size=st.integers(1, 4),
    world_size=st.integers(1, 3),
    mix=st.one_of(st.none(), st.tuples(st.floats(0.1, 5), st.floats(0.1, 5))),
    epoch=st.integers(0, 3),
)
def test_laws_of_an_epoch(rows, batch_size, world_size, mix, epoch):
    schedule = make(rows, mix, batch_size, world_size)
    seen = {"search": Counter(), "recommendation": Counter()}
    steps = Counter()
    for ranks in epoch_of(schedule, epoch):
        (task,) = {batch.task for batch in ranks}  # one task on all ranks
        steps[task] += 1
        for batch in ranks:
            assert len(batch.rows) == batch_size
            seen[task].update(batch.rows.tolist())
    assert (steps["search"], steps["recommendation"]) == schedule.num_batches
    for task, size in zip(seen, rows, strict=True):
        assert max(seen[task].values()) == 1  # no row twice
        assert set(seen[task]) <= set(range(size))


def test_ranks_only_cut_the_global_batch():
    one = epoch_of(make(batch_size=8, world_size=1))
    four = epoch_of(make(batch_size=2, world_size=4))
    for (whole,), parts in zip(one, four, strict=True):
        np.testing.assert_array_equal(whole.rows, np.concatenate([part.rows for part in parts]))


def test_epochs_and_seeds_shuffle_anew():
    first = make().batch(0, epoch=0, rank=0).rows
    assert set(first) != set(make().batch(0, epoch=1, rank=0).rows)
    assert set(first) != set(make(seed=2).batch(0, epoch=0, rank=0).rows)


def test_refusals():
    with pytest.raises(ConfigError, match=r"7 search pairs do not fill one batch of 4 on 2 ranks"):
        make(num_rows=(7, 100))
    with pytest.raises(ConfigError, match="No training pairs"):
        make(num_rows=(0, 0))
    with pytest.raises(ConfigError, match="must be positive"):
        make(mix=(1.0, 0.0))
    with pytest.raises(ConfigError, match="must be at least 1"):
        make(batch_size=0)
    with pytest.raises(IndexError):
        make().batch(19, epoch=0, rank=0)
    with pytest.raises(IndexError):
        make().batch(0, epoch=0, rank=2)
