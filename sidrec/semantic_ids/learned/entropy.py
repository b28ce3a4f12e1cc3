"""How decided each row is about its code, and how evenly all rows together use the codes."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sidrec.distributed import gather_with_grad


class AssignmentEntropy(NamedTuple):
    """Entropies of a soft assignment, in nats, at most the logarithm of the number of codes.

    Attributes:
        of_rows: Mean over rows of the entropy of one row's probabilities; 0: each is decided.
        of_mean: Entropy of the mean probabilities over the rows of all ranks; high: even use.
    """

    of_rows: Float[Tensor, ""]
    of_mean: Float[Tensor, ""]


def assignment_entropy(
    rows: Float[Tensor, "row latent"],
    codebook: Float[Tensor, "code latent"],
    *,
    temperature: float,
) -> AssignmentEntropy:
    """Assign each row softly: probabilities fall with the squared distance over ``temperature``.

    Every rank passes the same number of rows.

    Args:
        rows: What a level quantizes.
        codebook: Its codes.
        temperature: In units of a squared distance, ``> 0``.

    Source:
        Both terms of lookup-free quantization, Yu et al. 2023, sec. 3.1
        (https://arxiv.org/abs/2310.05737).
    """
    scores = 2 * rows @ codebook.T - codebook.square().sum(dim=1)  # the row's square cancels out
    logs = torch.log_softmax(scores / temperature, dim=1)
    chances = logs.exp()
    mean = gather_with_grad(chances.mean(dim=0, keepdim=True)).mean(dim=0)
    return AssignmentEntropy(
        of_rows=-(chances * logs).sum(dim=1).mean(),
        of_mean=-torch.xlogy(mean, mean.clamp(min=1e-12)).sum(),
    )
