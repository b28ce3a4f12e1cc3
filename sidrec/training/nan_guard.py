"""Loss guard against NaN and infinity: end the run, or skip the batch."""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sidrec.console import say
from sidrec.distributed import rank_and_world_size, read_later, sum_over_ranks
from sidrec.errors import RunError

_NAMED_ITEMS = 5


class _Look(NamedTuple):
    """Loss of one batch, on its way to the host: mean over ranks, then this rank's own."""

    read: Callable[[], list[float]]
    where: str
    items: Int[Tensor, " row"] | None
    item_ids: Callable[[], list[str]] | None


class LossGuard:
    """Check of every loss, the same on all ranks; a NaN or infinite loss changes no weight.

    The host asks for a loss right before the optimizer's step, when the backward pass is queued
    already: a GPU has work while it waits.

    Args:
        skip_at_most: Number of bad batches that a run may skip; 0 ends it at the first. A skipped
            step counts as a step, so the learning rates and the batches that follow do not change.

    Attributes:
        num_skipped: Number of batches skipped so far, over all resumes.
    """

    def __init__(self, skip_at_most: int) -> None:
        self.skip_at_most, self.num_skipped = skip_at_most, 0
        self._looks: list[_Look] = []  # since the last optimizer step

    def mean(
        self,
        loss: Float[Tensor, ""],
        *,
        where: str,
        items: Int[Tensor, " row"] | None = None,
        item_ids: Callable[[], list[str]] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the mean of the losses of all ranks; ``check`` judges it.

        Args:
            loss: Loss of this rank.
            where: Task, epoch and step, for the message.
            items: item_index of the batch's rows, for the message.
            item_ids: Returns the user's ids by item_index; called only for the message.
        """
        mean = _mean_over_ranks(loss)
        read = read_later(torch.stack([mean, loss.detach()]))
        self._looks.append(_Look(read, where, items, item_ids))
        return mean

    def check(self, parameters: Iterable[Tensor]) -> None:
        """Drop the gradients if a loss since the last step is bad; call this before each step.

        Raises:
            RunError: If a mean is not finite and no more batches may be skipped; names items of
                this rank's batch if its own loss is bad.
        """
        looks, self._looks = self._looks, []
        are_bad = [self._is_bad(look) for look in looks]  # every one is counted
        if any(are_bad):
            for parameter in parameters:
                parameter.grad = None

    def _is_bad(self, look: _Look) -> bool:
        mean, own = look.read()
        if math.isfinite(mean):
            return False
        culprit = "a batch of another rank"
        if not math.isfinite(own):
            culprit = "the batch"
            if look.items is not None and look.item_ids is not None:
                culprit += f" with items {_names(look.items, look.item_ids())}"
        if self.num_skipped >= self.skip_at_most:
            raise RunError(
                f"The loss is {mean} at {look.where}, for {culprit}; lower "
                "model.optimizer.learning_rate, use precision bf16-mixed or 32, or raise "
                f"model.optimizer.skip_bad_losses (now {self.skip_at_most})."
            )
        self.num_skipped += 1
        say(f"loss {mean} at {look.where}: skipped {culprit} ({self.num_skipped} so far)")
        return True


def _mean_over_ranks(loss: Float[Tensor, ""]) -> Float[Tensor, ""]:
    return sum_over_ranks(loss.detach()) / rank_and_world_size()[1]


def _names(items: Int[Tensor, " row"], item_ids: list[str]) -> str:
    rows = [item for item in dict.fromkeys(items.tolist()) if item >= 0]
    named = ", ".join(f"'{item_ids[item]}'" for item in rows[:_NAMED_ITEMS])
    more = len(rows) - _NAMED_ITEMS
    return f"{named} and {more} more" if more > 0 else named
