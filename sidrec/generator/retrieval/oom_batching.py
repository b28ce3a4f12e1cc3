"""Batches that shrink until the device has memory for them."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from lightning.pytorch.utilities.memory import is_oom_error

from sidrec.console import say
from sidrec.errors import RunError

Result = TypeVar("Result")


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error means that the device, or the machine, is full.

    CUDA has a class of its own for it; the CPU's allocator raises a plain RuntimeError.
    """
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or is_oom_error(error)


class FittingBatches:
    """Cuts rows into batches and remembers how many of them the device has memory for.

    Args:
        device: Where the work is done.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._fits = math.inf

    def run(
        self, rows: Sequence[int], work: Callable[[Sequence[int]], Result], *, batch_size: int
    ) -> Iterator[tuple[Sequence[int], Result]]:
        """Yield each batch of rows and what ``work`` makes of it, in order.

        A batch for which there is no memory is halved and tried again, and so are all later ones;
        the first time, a line says so.

        Raises:
            RunError: If there is no memory for a single row.
        """
        start = 0
        while start < len(rows):
            part = rows[start : start + int(min(batch_size, self._fits))]
            results = self._try(part, work)
            if results:
                yield part, results[0]
                start += len(part)
            else:
                self._halve(len(part))

    def _try(
        self, part: Sequence[int], work: Callable[[Sequence[int]], Result]
    ) -> tuple[Result, ...]:
        """Return the one result, or none if the device is full."""
        try:
            return (work(part),)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        if self.device.type == "cuda":  # here the error is gone, and with it what it held
            torch.cuda.empty_cache()
        return ()

    def _halve(self, num_rows: int) -> None:
        if num_rows == 1:
            raise RunError(
                f"{self.device} is out of memory with one request alone (batch_size is down to "
                "1): lower top_k, or num_beams or max_history_items of the run, or use device cpu."
            )
        if self._fits == math.inf:
            say(
                f"{self.device} is out of memory with {num_rows} requests at once; going on with "
                "half as many. A smaller --batch_size would spare the attempts."
            )
        self._fits = num_rows // 2
