import resource
import signal
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist

from sidrec.distributed import on_rank_zero
from sidrec.errors import DataError
from tests.patience import patient
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


EXITS = """
import atexit, os, sys, time
import torch.distributed as dist
from sidrec.distributed import leave_after_other_ranks
rank, folder = int(sys.argv[1]), sys.argv[2]
delay_s, wait_s = map(float, sys.argv[3:])
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
if rank == 1:
    atexit.register(time.sleep, 1.0)  # the rest of the exit, in which a launcher sends SIGTERM
    leave_after_other_ranks(wait_s=wait_s)
    time.sleep(delay_s)
    sys.exit(0)
begin = time.monotonic()
leave_after_other_ranks(wait_s=wait_s)
print(time.monotonic() - begin, flush=True)
os._exit(85)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("delay_s", "wait_s"), [(2.0, 30.0), (8.0, 1.0)])
def test_rank_0_exits_after_the_other_rank_or_after_a_limit(tmp_path, delay_s, wait_s):
    first, other = (
        subprocess.Popen(
            [sys.executable, "-c", EXITS, str(rank), str(tmp_path), str(delay_s), str(wait_s)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    )
    output, _ = first.communicate(timeout=patient(60))
    waited = float(output.splitlines()[-1])
    other.terminate()  # as Slurm does when rank 0 exits with a code
    other.communicate(timeout=patient(30))
    assert first.returncode == 85
    if delay_s < wait_s:
        assert 1.0 < waited < wait_s
        assert other.returncode == 0
    else:
        assert wait_s <= waited < delay_s
        assert other.returncode == -signal.SIGTERM
