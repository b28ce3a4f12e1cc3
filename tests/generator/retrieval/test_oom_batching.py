import pytest
import torch

from sidrec.errors import RunError
from sidrec.generator.retrieval.oom_batching import FittingBatches, is_out_of_memory

FULL = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory"
    ),
    MemoryError(),
]


class Room:
    """A device with room for a few rows at a time."""

    def __init__(self, rows, error):
        self.rows, self.error, self.asked = rows, error, []

    def __call__(self, part):
        self.asked.append(len(part))
        if len(part) > self.rows:
            raise self.error
        return [row * 10 for row in part]


@pytest.mark.parametrize("error", FULL)
def test_batches_are_halved_and_the_work_goes_on(error, capsys):
    batches, room = FittingBatches(torch.device("cpu")), Room(2, error)
    found = list(batches.run(range(9), room, batch_size=8))
    assert [row for part, _ in found for row in part] == list(range(9))
    assert all(result == [row * 10 for row in part] for part, result in found)
    assert room.asked == [8, 4, 2, 2, 2, 2, 1]
    (line,) = capsys.readouterr().err.splitlines()
    assert "cpu is out of memory with 8 requests at once" in line
    assert list(batches.run(range(4), room, batch_size=8))  # remembered
    assert room.asked[7:] == [2, 2]


def test_no_room_for_one_names_what_to_change():
    batches = FittingBatches(torch.device("cpu"))
    with pytest.raises(RunError, match=r"batch_size.*top_k.*num_beams.*max_history_items"):
        list(batches.run(range(3), Room(0, FULL[1]), batch_size=2))


def test_other_errors_come_through():
    batches = FittingBatches(torch.device("cpu"))
    with pytest.raises(RuntimeError, match="shapes"):
        list(batches.run(range(3), Room(0, RuntimeError("shapes differ")), batch_size=2))


def test_the_real_allocator_is_recognized():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
