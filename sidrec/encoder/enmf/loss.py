"""The square loss over every user and every item, without sampling negatives."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def enmf_loss(
    users: Float[Tensor, "user dim"],
    items: Float[Tensor, "item dim"],
    factors: Float[Tensor, " dim"],
    *,
    positive_user: Int[Tensor, " positive"],
    positive_item: Int[Tensor, " positive"],
    negative_weights: Float[Tensor, " item"],
) -> Float[Tensor, ""]:
    """Return the weighted squared error of all scores, as if every cell had been looked at.

    The score of user u and item v is ``sum_d factors_d users_ud items_vd``; it shall be 1 where u
    consumed v (weight 1) and 0 elsewhere (weight ``negative_weights_v``). The sum over all cells
    splits into one over pairs of dimensions, which costs (users + items) × dim² in place of
    users × items × dim, and one over the positives.

    Args:
        users: Of the batch.
        items: Of the whole catalogue.
        factors: Weight of each dimension.
        positive_user: Row of ``users`` of each interaction, no interaction twice.
        positive_item: Its item_index.
        negative_weights: Weight of each item where it was not consumed.

    Returns:
        Sum over the users of the batch and all items, nothing left out.

    Source:
        Chen et al. 2020, eq. 8 and 10, https://doi.org/10.1145/3373807. Differs: keeps the
        constant that counts positives, so that the value is the naive sum's.
    """
    by_users = users.T @ users  # [dim, dim]
    by_items = (items * negative_weights[:, None]).T @ items
    everywhere = (torch.outer(factors, factors) * by_users * by_items).sum()
    scores = ((users * factors)[positive_user] * items[positive_item]).sum(dim=1)
    taken_back = negative_weights[positive_item] * scores.square()
    return everywhere + ((1 - scores).square() - taken_back).sum()


def negative_weights_of(
    popularity: Int[Tensor, " item"], *, mean_weight: float, exponent: float
) -> Float[Tensor, " item"]:
    """Weigh what was not consumed: popular items that a user left aside say more.

    Args:
        popularity: Train interactions of each item.
        mean_weight: Mean of the weights.
        exponent: Weights are as popularity to this power; 0 weighs all items alike.

    >>> negative_weights_of(torch.tensor([1, 3]), mean_weight=0.5, exponent=1.0).tolist()
    [0.25, 0.75]

    Source:
        Chen et al. 2020, eq. 4. Differs: given by the mean, theirs by the sum over the catalogue.
    """
    raised = popularity.double().clamp(min=0) ** exponent
    return (mean_weight * raised / raised.mean().clamp(min=1e-12)).float()
