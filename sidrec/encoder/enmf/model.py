"""Vectors of users and items, and how well they fit each other."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

_START_DEVIATION = 0.01


class FactorTower(nn.Module):
    """One vector per user and per item, and a weight per dimension.

    Stands where the bi-encoder has its text tower: ``encode_catalogue`` takes ``item_vectors``
    from it and reads no text.

    Args:
        num_users: user_index runs from 0.
        num_items: item_index runs from 0.
        dim: Length of the vectors.
    """

    def __init__(self, num_users: int, num_items: int, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.users = nn.Embedding(num_users, dim)
        self.items = nn.Embedding(num_items, dim)
        self.factors = nn.Parameter(torch.full((dim,), _START_DEVIATION))
        for embedding in (self.users, self.items):
            nn.init.normal_(embedding.weight, std=_START_DEVIATION)

    @torch.no_grad()
    def item_vectors(self) -> Float[Tensor, "item dim"]:
        """Return the L2-normalized item vectors, on the CPU: what is quantized."""
        return F.normalize(self.items.weight.detach().float(), dim=-1).cpu()

    @torch.no_grad()
    def questions(self, user_index: Int[Tensor, " request"]) -> Float[Tensor, "request dim"]:
        """Return for each user the vector whose inner products with the items are the scores.

        Args:
            user_index: -1 stands for a user without train interactions: all scores are 0.
        """
        known = (user_index >= 0)[:, None]
        vectors: Tensor = self.users(user_index.clamp(min=0)) * self.factors
        return vectors * known
