"""Metrics of the prior alone and of T5 alone, and prior weights, for ``metrics.json``."""

import math
from collections.abc import Mapping
from itertools import product

from jaxtyping import Float
from torch import Tensor

from sidrec.distributed import gather_objects
from sidrec.figures import Prediction, evaluate
from sidrec.generator.model.batch import GeneratorBatch
from sidrec.generator.model.generator_model import AnswerBy, GeneratorModel
from sidrec.types import TASKS, Task

_METRICS = (*(f"recall@{k}" for k in (5, 10, 30)), *(f"ndcg@{k}" for k in (5, 10)))


class PartsAlone:
    """Collector of the results of prior alone and T5 alone during a test.

    Each rank adds its own requests; ``figures`` gathers them, so all ranks must call it.
    """

    def __init__(self) -> None:
        self._answers: dict[AnswerBy, list[Prediction]] = {"prior": [], "t5": []}
        self._gains: list[tuple[Task, int, float]] = []

    def add(
        self,
        batch: GeneratorBatch,
        answers: Mapping[AnswerBy, list[Prediction]],
        gains: Float[Tensor, " request"],
    ) -> None:
        """Add the results of one batch.

        Args:
            batch: Requests of one task.
            answers: Ranked lists of ``prior`` and ``t5``.
            gains: Gain in each target's log-probability from adding T5, in nats; NaN where the
                target is unknown or not allowed.
        """
        for by, own in self._answers.items():
            own += answers[by]
        rows = batch.request_rows.tolist()
        self._gains += [
            (batch.task, row, gain) for row, gain in zip(rows, gains.tolist(), strict=True)
        ]

    def figures(self, model: GeneratorModel) -> dict[str, int | float]:
        """Return the prior's weights and the metrics of each part alone, then clear the collector.

        ``TASK/t5_gain_nats`` is the mean gain in the target's log-probability from adding T5 to
        the prior, each side with its own calibrated weights.
        """
        names = () if model.prior is None else tuple(model.prior.names)
        found: dict[str, int | float] = {f"{task}/has_prior": int(task in names) for task in TASKS}
        if model.prior is None:
            return found
        found |= model.prior.figures()
        for by, own in self._answers.items():
            gathered = [one for rank in gather_objects(own) for one in rank]
            alone = evaluate(gathered, model.popularity.cpu())
            found |= {
                f"{task}/{by}_{metric}": alone[key]
                for task, metric in product(names, _METRICS)
                if (key := f"{task}/{metric}") in alone
            }
        gains = sorted({one for rank in gather_objects(self._gains) for one in rank})
        for task in names:
            own_gains = [gain for of, _, gain in gains if of == task and not math.isnan(gain)]
            if own_gains:
                found[f"{task}/t5_gain_nats"] = math.fsum(own_gains) / len(own_gains)
        self._answers, self._gains = {"prior": [], "t5": []}, []
        return found
