"""Batches that shrink until they fit in the device's memory."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from sidrec.console import say
from sidrec.errors import RunError

Result = TypeVar("Result")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that the device, or the machine, is out of memory.

    CUDA has a separate class for it; the CPU's allocator raises a plain RuntimeError.
    """
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    from lightning.pytorch.utilities.memory import is_oom_error  # a second that answers need not

    return bool(is_oom_error(error))


class FittingBatches:
    """Batcher that remembers the number of rows that fit in the device's memory.

    Args:
        device: Device of the work.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._fits = math.inf

    def run(
        self, rows: Sequence[int], work: Callable[[Sequence[int]], Result], *, batch_size: int
    ) -> Iterator[tuple[Sequence[int], Result]]:
        """Yield each batch of rows and the result of ``work``, in order.

        A batch that does not fit is halved and tried again, and so are all later ones; a line
        reports the first time.

        Raises:
            RunError: If a single row does not fit.
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
        """Return the single result, or none if the device is out of memory."""
        try:
            return (work(part),)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        if self.device.type == "cuda":  # here the error is gone, with the memory that it held
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
                f"{self.device} is out of memory with {num_rows} requests at once; continuing with "
                "half as many; a lower --batch_size avoids these attempts."
            )
        self._fits = num_rows // 2
