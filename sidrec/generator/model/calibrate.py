"""Calibration of prior and T5 on validation requests, and T5's gain over the prior."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sidrec.console import say
from sidrec.distributed import gather_objects
from sidrec.generator.decoding.item_filters import AllItemsBut
from sidrec.generator.model.batch import GeneratorBatch
from sidrec.generator.model.generator_model import GeneratorModel
from sidrec.generator.model.prefix_prior import (
    PrefixMass,
    PrefixTree,
    TargetPath,
    allowed_positions,
    likelihood_along,
    target_log_probabilities,
)
from sidrec.generator.scorers.calibration import Scalars, fit_scalars
from sidrec.types import Task

_MOST_SCORES = 1 << 27  # float32 scores of one task in memory, on each rank: 512 MiB


_Weights = Float[Tensor, " scorer"]


class ScoredBatch(NamedTuple):
    """Inputs to the likelihood of a batch's targets, except the calibrated scalars.

    Attributes:
        scores: Exact scores of each scorer, by position in the trie.
        is_allowed: True for items that the request allows, by position in the trie.
        path: T5's logits along each target.
        tree: Prefixes of the catalogue.
        rows: True for requests of the batch with a known, allowed target; the other fields hold
            only these.
    """

    scores: Float[Tensor, "scorer request item"]
    is_allowed: Bool[Tensor, "request item"]
    path: TargetPath
    tree: PrefixTree
    rows: Bool[Tensor, " asked"]

    def log_likelihood(self, scalars: Scalars) -> Float[Tensor, " request"]:
        """Return the log-probability of each target, in nats.

        Args:
            scalars: Weight of each scorer, then the factor of T5's logits.
        """
        scalars = scalars.to(self.scores)
        total = torch.tensordot(scalars[:-1], self.scores, dims=1)
        mass = PrefixMass(self.tree, total, self.is_allowed)
        levels = target_log_probabilities(self.path, mass, t5_factor=scalars[-1])
        return likelihood_along(levels, self.path)


@torch.no_grad()
def scored_batch(model: GeneratorModel, batch: GeneratorBatch) -> ScoredBatch | None:
    """Score a batch for calibration; None if no request has a known, allowed target."""
    space = model.space(batch.task)
    trie = space.trie
    allowed = AllItemsBut.of(trie, batch.excluded)
    is_allowed = allowed_positions(allowed, trie, batch.num_requests)
    position = trie.position[batch.target.clamp(min=0)]
    rows = (batch.target >= 0) & is_allowed.gather(1, position[:, None])[:, 0]
    if not bool(rows.any()):
        return None
    reading = model.embedder(batch)
    scores = model.scorer_scores(batch, reading)
    if scores is None:
        return None
    path = model.target_path(batch._replace(target=batch.target.clamp(min=0)), reading)
    return ScoredBatch(
        scores[:, rows][:, :, trie.items],
        is_allowed[rows],
        TargetPath(
            [logits[rows].float() for logits in path.logits],
            [bounds[rows] for bounds in path.bounds],
            path.codes[rows],
            path.num_items,
        ),
        space.tree,
        rows,
    )


@torch.inference_mode(mode=False)  # scores made in inference mode cannot take part in a gradient
def calibrate(model: GeneratorModel, batches: Sequence[GeneratorBatch]) -> None:
    """Fit the prior's weights and T5's factor of each task to the targets' likelihood.

    Fits at most four scalars per task. The weights of the prior alone are fitted first; if no
    factor of T5 increases the likelihood, the factor becomes 0 and the prior ranks alone. With a
    ``calibration_floor``, scalars for answering are fitted beside those of the likelihood. Every
    rank calls this with its own batches and gets the same scalars.

    Args:
        model: Generator in evaluation mode; unchanged if it has no exact prior.
        batches: Validation requests of both tasks, of this rank.
    """
    prior = model.prior
    if prior is None:
        return
    for task in prior.names:
        if not prior.is_exact(model.space(task).trie.num_items):
            continue
        parts = _parts(model, task, batches)
        if not sum(gather_objects(len(parts))):
            say(f"{task}: no validation request; the prior keeps its weights, uncalibrated.")
            continue
        unit = prior.log_weights[task].detach().exp().double().cpu()
        alone, both = _fitted(parts, unit, unit, floor=0.0)
        if prior.calibration_floor > 0:
            for_lists = _fitted(parts, unit, alone, floor=prior.calibration_floor)
            alone, both = (torch.stack(pair) for pair in zip(for_lists, (alone, both), strict=True))
        prior.set_calibrated(task, scalars=both, alone=alone)


def _fitted(
    parts: Mapping[int, ScoredBatch], unit: _Weights, start: _Weights, *, floor: float
) -> tuple[_Weights, Scalars]:
    """Return the best weights of the prior alone, and the best weights and factor with T5.

    Args:
        parts: Scored batches of this rank.
        unit: Expected size of each weight.
        start: Initial weights.
        floor: See ``PriorSettings.calibration_floor``.
    """
    one, zero = unit.new_ones(1), unit.new_zeros(1)
    alone, loss_alone = fit_scalars(
        {n: partial(_loss_alone, part, floor) for n, part in parts.items()}, start, unit=unit
    )
    both, loss = fit_scalars(
        {n: partial(_loss, part, floor) for n, part in parts.items()},
        torch.cat([alone, one]),
        unit=torch.cat([unit, one]),
    )
    return alone, both if loss < loss_alone else torch.cat([alone, zero])


@torch.no_grad()
def gain_over_prior(model: GeneratorModel, batch: GeneratorBatch) -> Float[Tensor, " request"]:
    """Return the gain in each target's log-probability from adding T5 to the prior, in nats.

    Both sides use their own weights of the largest likelihood. A request with several relevant
    items counts its first one. The gain is NaN where the target is unknown or not allowed.
    """
    gains = torch.full((batch.num_requests,), torch.nan, dtype=torch.float64)
    prior, part = model.prior, scored_batch(model, batch)
    if prior is None or part is None or not prior.is_exact(part.path.num_items):
        return gains
    with prior.for_likelihood():
        alone, weights = prior.weights_alone(batch.task), prior.weights(batch.task)
        factor = weights.new_tensor([prior.t5_factor(batch.task)])
    both = part.log_likelihood(torch.cat([weights, factor]))
    only = part.log_likelihood(torch.cat([alone, torch.zeros_like(factor)]))
    gains[part.rows.cpu()] = (both - only).cpu()
    return gains


def _parts(
    model: GeneratorModel, task: Task, batches: Sequence[GeneratorBatch]
) -> dict[int, ScoredBatch]:
    """Score the batches of a task up to ``_MOST_SCORES``; keyed by the row of the first request."""
    parts: dict[int, ScoredBatch] = {}
    held = 0
    for batch in batches:
        if batch.task != task or batch.num_requests == 0 or held > _MOST_SCORES:
            continue
        part = scored_batch(model, batch)
        if part is not None:
            parts[int(batch.request_rows[0])] = part
            held += part.scores.numel()
    return parts


def _loss(part: ScoredBatch, floor: float, scalars: Scalars) -> Float[Tensor, ""]:
    found = part.log_likelihood(scalars)
    return -(torch.logaddexp(found, found.new_tensor(floor).log()) if floor else found).sum()


def _loss_alone(part: ScoredBatch, floor: float, weights: _Weights) -> Float[Tensor, ""]:
    return _loss(part, floor, torch.cat([weights, weights.new_zeros(1)]))
