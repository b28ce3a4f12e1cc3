"""Devices, and distributed collectives: the only module that uses torch.distributed."""

import atexit
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from torch import Tensor

from sidrec.errors import ConfigError, SidrecError

Result = TypeVar("Result")


def rank_and_world_size() -> tuple[int, int]:
    """Return ``(rank, world_size)``; ``(0, 1)`` when not distributed."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


class _GatherWithGrad(torch.autograd.Function):
    """All-gather forward, sum-and-slice backward (public collectives only)."""

    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:  # noqa: ANN401
        del ctx
        _, world_size = rank_and_world_size()
        gathered = [torch.empty_like(local) for _ in range(world_size)]
        dist.all_gather(gathered, local.contiguous())
        return torch.cat(gathered)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:  # noqa: ANN401
        del ctx
        rank, world_size = rank_and_world_size()
        total = grads[0].clone()
        dist.all_reduce(total)
        return total.chunk(world_size)[rank]


def gather_with_grad(local: Float[Tensor, "batch dim"]) -> Float[Tensor, "global_batch dim"]:
    """Concatenate ``local`` over ranks, in rank order, with gradients.

    Every rank must pass the same ``batch``: use ``drop_last=True`` in the training loader.
    """
    _, world_size = rank_and_world_size()
    if world_size == 1:
        return local
    return _GatherWithGrad.apply(local)  # type: ignore[no-any-return, no-untyped-call]


def gather_rows(local: Shaped[Tensor, "row ..."]) -> Shaped[Tensor, "all_rows ..."]:
    """Concatenate ``local`` over ranks, in rank order, without gradient.

    Ranks may pass different numbers of rows, including none; all other sizes must agree.
    """
    _, world_size = rank_and_world_size()
    if world_size == 1:
        return local
    count = torch.tensor([local.shape[0]], device=local.device)
    counts = [torch.empty_like(count) for _ in range(world_size)]
    dist.all_gather(counts, count)
    longest = int(torch.stack(counts).max())
    padded = local.new_zeros((longest, *local.shape[1:]))
    padded[: local.shape[0]] = local
    gathered = [torch.empty_like(padded) for _ in range(world_size)]
    dist.all_gather(gathered, padded)
    return torch.cat([part[: int(n)] for part, n in zip(gathered, counts, strict=True)])


def gather_equal_rows(local: Shaped[Tensor, "row ..."]) -> Shaped[Tensor, "all_rows ..."]:
    """Concatenate ``local`` over ranks, in rank order; one exchange, and the host waits for none.

    Every rank must pass the same shape.
    """
    _, world_size = rank_and_world_size()
    if world_size == 1:
        return local
    gathered = [torch.empty_like(local) for _ in range(world_size)]
    dist.all_gather(gathered, local.contiguous())
    return torch.cat(gathered)


def gather_objects(local: Any) -> list[Any]:  # noqa: ANN401
    """Return every rank's ``local``, in rank order, on every rank."""
    _, world_size = rank_and_world_size()
    if world_size == 1:
        return [local]
    gathered: list[Any] = [None] * world_size
    dist.all_gather_object(gathered, local)
    return gathered


def on_one_host() -> bool:
    """Return whether all ranks run on the same machine."""
    return len(set(gather_objects(socket.gethostname()))) == 1


def sum_over_ranks(local: Shaped[Tensor, "*any"]) -> Shaped[Tensor, "*any"]:
    """Return the sum over ranks, bitwise equal on every rank."""
    _, world_size = rank_and_world_size()
    if world_size == 1:
        return local
    total = local.clone()
    dist.all_reduce(total)
    return total


def read_later(values: Shaped[Tensor, " value"]) -> Callable[[], list[Any]]:
    """Begin to copy numbers to the host; the returned function waits for them and returns them.

    On a GPU it waits for the work that was queued before this call, not for what came after.
    """
    if not values.is_cuda:
        return values.tolist
    host = values.to("cpu", non_blocking=True)
    arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
    arrived.record()

    def wait() -> list[Any]:
        arrived.synchronize()
        return host.tolist()

    return wait


def from_rank_zero(local: Shaped[Tensor, "*any"]) -> Shaped[Tensor, "*any"]:
    """Return rank 0's tensor on every rank; all ranks pass the same shape and dtype."""
    _, world_size = rank_and_world_size()
    if world_size == 1:
        return local
    shared = local.clone().contiguous()
    dist.broadcast(shared, src=0)
    return shared


def on_rank_zero(work: Callable[[], Result]) -> Result:
    """Run ``work`` on rank 0 and return its result, or raise its error, on every rank.

    Otherwise an error on rank 0 would leave the other ranks waiting. The result is sent to every
    rank, so return only what they need.

    Raises:
        SidrecError: If ``work`` raises it, likewise OSError. Other errors end rank 0 alone.
    """
    outcome: tuple[Result | None, Exception | None] = (None, None)
    if rank_and_world_size()[0] == 0:
        try:
            outcome = work(), None
        except (SidrecError, OSError) as error:
            outcome = None, error
    result, failure = _broadcast_object(outcome)
    if failure is not None:
        raise failure
    return result  # type: ignore[no-any-return]


def _broadcast_object(local: Any) -> Any:  # noqa: ANN401
    _, world_size = rank_and_world_size()
    shared = [local]
    if world_size > 1:
        dist.broadcast_object_list(shared, src=0)
    return shared[0]


def silent_ranks(*, wait_s: float) -> list[int]:
    """Return the ranks that have not called this function after ``wait_s`` seconds.

    Use it on a rank that gave up waiting for another one. It uses the key-value store of the
    rendezvous, since the process group itself is blocked.
    """
    rank, world_size = rank_and_world_size()
    if world_size == 1:
        return []
    store = dist.distributed_c10d._get_default_store()
    keys = [f"sidrec/gave_up/{other}" for other in range(world_size)]
    store.set(keys[rank], "yes")
    end = time.monotonic() + wait_s
    while time.monotonic() < end and not store.check(keys):
        time.sleep(0.1)
    return [other for other, key in enumerate(keys) if not store.check([key])]


def leave_after_other_ranks(*, wait_s: float) -> None:
    """Make rank 0 wait until all other ranks exit, ``wait_s`` seconds at most.

    Call it on every rank before an early exit. Launchers such as Slurm send SIGTERM to all ranks
    when one fails; from the report of its exit on, a rank other than 0 ignores it.
    """
    rank, world_size = rank_and_world_size()
    if world_size == 1:
        return
    store = dist.distributed_c10d._get_default_store()
    if rank > 0:
        atexit.register(_report_exit, store, f"sidrec/exits/{rank}")
        return
    keys = [f"sidrec/exits/{other}" for other in range(1, world_size)]
    end = time.monotonic() + wait_s
    while time.monotonic() < end and not store.check(keys):
        time.sleep(0.1)


def _report_exit(store: dist.distributed_c10d.Store, key: str) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with suppress(RuntimeError):  # rank 0, which holds the store, is gone
        store.set(key, "yes")


def wait_for_all_ranks() -> None:
    """Wait until every rank has called this function."""
    _, world_size = rank_and_world_size()
    if world_size > 1:
        dist.barrier()


def device_named(name: str) -> torch.device:
    """Return the device for ``auto`` (CUDA if available), ``cpu`` or ``cuda``.

    Raises:
        ConfigError: If the name is unknown, or no GPU is visible.
    """
    has_cuda = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if has_cuda else "cpu")
    if name.startswith("cuda") and not has_cuda:
        raise ConfigError("--device cuda: no GPU is visible; use --device cpu.")
    try:
        return torch.device(name)
    except RuntimeError:
        raise ConfigError(f"--device must be auto, cpu or cuda, got '{name}'.") from None
