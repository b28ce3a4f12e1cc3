"""Loss guard against NaN and infinity: end the run, or skip the batch."""

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sidrec.console import say
from sidrec.distributed import rank_and_world_size, sum_over_ranks
from sidrec.errors import RunError

_NAMED_ITEMS = 5


class LossGuard:
    """Check of every loss, the same on all ranks; a NaN or infinite loss changes no weight.

    Args:
        skip_at_most: Number of bad batches that a run may skip; 0 ends it at the first. A skipped
            step counts as a step, so the learning rates and the batches that follow do not change.

    Attributes:
        num_skipped: Number of batches skipped so far, over all resumes.
    """

    def __init__(self, skip_at_most: int) -> None:
        self.skip_at_most, self.num_skipped = skip_at_most, 0
        self._skips_step = False

    def mean(
        self,
        loss: Float[Tensor, ""],
        *,
        where: str,
        items: Int[Tensor, " row"] | None = None,
        item_ids: Callable[[], list[str]] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the mean of the losses of all ranks.

        Args:
            loss: Loss of this rank.
            where: Task, epoch and step, for the message.
            items: item_index of the batch's rows, for the message.
            item_ids: Returns the user's ids by item_index; called only for the message.

        Raises:
            RunError: If the mean is not finite and no more batches may be skipped; names items of
                this rank's batch if its own loss is bad.
        """
        mean = _mean_over_ranks(loss)
        if torch.isfinite(mean):
            return mean
        culprit = "a batch of another rank"
        if not torch.isfinite(loss):
            culprit = "the batch"
            if items is not None and item_ids is not None:
                culprit += f" with items {_names(items, item_ids())}"
        if self.num_skipped >= self.skip_at_most:
            raise RunError(
                f"The loss is {mean.item()} at {where}, for {culprit}; lower "
                "model.optimizer.learning_rate, use precision bf16-mixed or 32, or raise "
                f"model.optimizer.skip_bad_losses (now {self.skip_at_most})."
            )
        self.num_skipped += 1
        self._skips_step = True
        say(f"loss {mean.item()} at {where}: skipped {culprit} ({self.num_skipped} so far)")
        return mean

    def drop_bad_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Drop the gradients of a bad loss; call this before the optimizer's step."""
        if self._skips_step:
            self._skips_step = False
            for parameter in parameters:
                parameter.grad = None


def _mean_over_ranks(loss: Float[Tensor, ""]) -> Float[Tensor, ""]:
    return sum_over_ranks(loss.detach()) / rank_and_world_size()[1]


def _names(items: Int[Tensor, " row"], item_ids: list[str]) -> str:
    rows = [item for item in dict.fromkeys(items.tolist()) if item >= 0]
    named = ", ".join(f"'{item_ids[item]}'" for item in rows[:_NAMED_ITEMS])
    more = len(rows) - _NAMED_ITEMS
    return f"{named} and {more} more" if more > 0 else named
