import resource

import pytest
import torch
import torch.distributed as dist

from sidrec.distributed import on_rank_zero
from sidrec.errors import DataError
from tests.ranks import run_on_ranks

PAYLOAD = 100_000_000  # bytes


def peak_bytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def a_large_result_is_sent_once(rank, world_size, tmp_path):
    dist.all_gather_object = dist.all_gather = None  # nobody gathers
    before = peak_bytes()
    result = on_rank_zero(lambda: torch.ones(PAYLOAD, dtype=torch.uint8))
    assert result.shape == (PAYLOAD,)
    assert result[-1] == 1
    growth = (peak_bytes() - before) / PAYLOAD
    assert growth < 4.5, f"rank {rank}: {growth:.1f} x the payload"


def test_a_large_result_is_sent_once(tmp_path):
    run_on_ranks(a_large_result_is_sent_once, tmp_path)


def an_error_is_raised_everywhere(rank, world_size, tmp_path):
    def fail():
        raise DataError("bad row")

    with pytest.raises(DataError, match="bad row"):
        on_rank_zero(fail)
    assert on_rank_zero(lambda: rank) == 0


def test_an_error_is_raised_everywhere(tmp_path):
    run_on_ranks(an_error_is_raised_everywhere, tmp_path)
