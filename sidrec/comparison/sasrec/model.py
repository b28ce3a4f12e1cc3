"""A causal transformer over the items of a history."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

_START_DEVIATION = 0.02


class Block(nn.Module):
    """Causal self-attention and a feed-forward net, each after a norm and beside a shortcut."""

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.before_attention, self.before_net = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.queries_keys_values, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.net = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, states: Float[Tensor, "user place dim"]) -> Float[Tensor, "user place dim"]:
        """Return new states; a place sees itself and those before it."""
        users, places, dim = states.shape
        parts = self.queries_keys_values(self.before_attention(states))
        parts = parts.view(users, places, 3, self.num_heads, dim // self.num_heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        hidden = self.dropout if self.training else 0.0
        seen = F.scaled_dot_product_attention(query, key, value, dropout_p=hidden, is_causal=True)
        seen = self.out(seen.transpose(1, 2).reshape(users, places, dim))
        states = states + F.dropout(seen, self.dropout, self.training)
        return states + F.dropout(self.net(self.before_net(states)), self.dropout, self.training)


class SasRecModel(nn.Module):
    """Scores of the next item at every place of a history.

    Histories start at place 0 and are padded behind their end, where a causal model never looks.

    Args:
        num_items: item_index runs from 0.
        dim: Width; a multiple of ``num_heads``.
        num_blocks: Transformer blocks.
        num_heads: Attention heads.
        max_history_items: Places.
        dropout: Probability, everywhere.

    Source:
        Kang, McAuley 2018 (arXiv 1808.09781). Differs: norms before the sub-layers, GELU.
    """

    def __init__(
        self,
        num_items: int,
        *,
        dim: int,
        num_blocks: int,
        num_heads: int,
        max_history_items: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.items, self.places = nn.Embedding(num_items, dim), nn.Embedding(max_history_items, dim)
        self.blocks = nn.ModuleList(Block(dim, num_heads, dropout) for _ in range(num_blocks))
        self.last_norm = nn.LayerNorm(dim)
        for embedding in (self.items, self.places):
            nn.init.normal_(embedding.weight, std=_START_DEVIATION)

    def forward(self, histories: Int[Tensor, "user place"]) -> Float[Tensor, "user place dim"]:
        """Return what every place expects next; -1 pads behind the end."""
        places = torch.arange(histories.shape[1], device=histories.device)
        states = self.items(histories.clamp(min=0)) + self.places(places)
        states = F.dropout(states, self.dropout, self.training)
        for block in self.blocks:
            states = block(states)
        normed: Tensor = self.last_norm(states)
        return normed

    def scores(self, histories: Int[Tensor, "user place"]) -> Float[Tensor, "user item"]:
        """Return the score of every item as the one after the end of each history.

        A history without items expects what an average first place would: all scores 0.
        """
        lengths = (histories >= 0).sum(dim=1)
        states = self(histories)
        last = states[torch.arange(len(states), device=states.device), (lengths - 1).clamp(min=0)]
        found: Tensor = (last * (lengths > 0)[:, None]) @ self.items.weight.T
        return found


def next_item_loss(
    states: Float[Tensor, "user place dim"],
    items: Float[Tensor, "item dim"],
    targets: Int[Tensor, "user place"],
) -> Float[Tensor, ""]:
    """Return the mean cross-entropy over the whole catalogue, in nats; targets of -1 do not count.

    Source:
        Klenitskiy, Vasilev 2023 (arXiv 2309.07602): with this loss SASRec is as good as BERT4Rec.
    """
    real = targets >= 0
    return F.cross_entropy(states[real] @ items.T, targets[real])
