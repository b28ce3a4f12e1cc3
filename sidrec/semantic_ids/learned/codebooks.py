"""Codebooks in the latent space of an autoencoder: what a trained RQ-VAE or Residual-LFQ is."""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from sidrec.kernels.nearest import nearest_codes
from sidrec.semantic_ids.kmeans.sharded_rows import CHUNK_ROWS, chunks_of

Layer = tuple[Float[Tensor, "_ _"], Float[Tensor, " _"]]  # weight [out, in], bias [out]


def perceptron(sizes: tuple[int, ...]) -> nn.Sequential:
    """Return linear layers between these widths, with ReLU between them."""
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def layers_of(network: nn.Sequential) -> tuple[Layer, ...]:
    """Return the weights and biases of what ``perceptron`` made, without gradient."""
    linear = [part for part in network if isinstance(part, nn.Linear)]
    return tuple((part.weight.detach(), part.bias.detach()) for part in linear)


def apply_layers(rows: Float[Tensor, "row _"], layers: tuple[Layer, ...]) -> Float[Tensor, "row _"]:
    """Return what the network of these layers makes of the rows."""
    for number, (weight, bias) in enumerate(layers, start=1):
        rows = F.linear(rows, weight, bias)
        if number < len(layers):
            rows = F.relu(rows)
    return rows


def layer_tensors(name: str, layers: tuple[Layer, ...]) -> dict[str, Tensor]:
    """Return ``NAME_N.weight`` and ``NAME_N.bias``, layers counted from 1."""
    found = {f"{name}_{n}.weight": weight for n, (weight, _) in enumerate(layers, start=1)}
    return found | {f"{name}_{n}.bias": bias for n, (_, bias) in enumerate(layers, start=1)}


def layers_from(name: str, tensors: dict[str, Tensor]) -> tuple[Layer, ...]:
    """Return the layers that ``layer_tensors`` named."""
    count = sum(key.startswith(f"{name}_") and key.endswith(".weight") for key in tensors)
    numbers = range(1, max(count, 1) + 1)
    return tuple((tensors[f"{name}_{n}.weight"], tensors[f"{name}_{n}.bias"]) for n in numbers)


@dataclass(frozen=True, slots=True)
class FittedLearnedQuantizer:
    """A vector is standardized, encoded, and its latent vector quantized level by level.

    It is decoded as the network's reading of the sum of its codes, scaled back. Needs torch alone.

    Attributes:
        mean: Subtracted from each dimension.
        spread: Each dimension is divided by it.
        encoder: Layers from vector to latent vector.
        codebooks: One per level, coarse level first, in the latent space.
        decoder: Layers from latent vector to vector.
    """

    mean: Float[Tensor, " dim"]
    spread: Float[Tensor, " dim"]
    encoder: tuple[Layer, ...]
    codebooks: tuple[Float[Tensor, "_ latent"], ...]
    decoder: tuple[Layer, ...]

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Number of codes at each level."""
        return tuple(len(codebook) for codebook in self.codebooks)

    def encode(self, vectors: Float[Tensor, "item dim"]) -> Int[Tensor, "item level"]:
        """Return per level the code nearest to what is left of the latent vector; ties: lowest.

        Raises:
            DataError: If the width differs from the network's, or a value is not finite.
        """
        return self.complete(vectors, torch.zeros((len(vectors), 0), dtype=torch.int64))

    def complete(
        self, vectors: Float[Tensor, "item dim"], prefix: Int[Tensor, "item prefix"]
    ) -> Int[Tensor, "item level"]:
        """Return codes that begin with ``prefix``, the levels after it encoded as in ``encode``."""
        device, num_levels = self.mean.device, len(self.codebooks)
        codes = torch.zeros((len(vectors), num_levels), dtype=torch.int64, device=device)
        codes[:, : prefix.shape[1]] = prefix.to(device)
        for rows, chunk in chunks_of(vectors, dim=len(self.mean), device=device):
            part = codes[rows]
            left = self._latent(chunk) - self._sum_of(part[:, : prefix.shape[1]])
            for level in range(prefix.shape[1], num_levels):
                part[:, level] = nearest_codes(left, self.codebooks[level])
                left = left - self.codebooks[level][part[:, level]]
        return codes

    def decode(self, codes: Int[Tensor, "item prefix"]) -> Float[Tensor, "item dim"]:
        """Return the vectors that the codes, or their first levels alone, stand for."""
        codes = codes.to(self.mean.device, torch.int64)
        parts = [self.mean.new_zeros((0, len(self.mean)))]
        for start in range(0, len(codes), CHUNK_ROWS):
            latent = self._sum_of(codes[start : start + CHUNK_ROWS])
            parts.append(apply_layers(latent, self.decoder) * self.spread + self.mean)
        return torch.cat(parts)

    def candidate_errors(
        self, vectors: Float[Tensor, "item dim"], prefix: Int[Tensor, "item prefix"]
    ) -> Float[Tensor, "item code"]:
        """Return the squared error of each code after ``prefix``, in the latent space.

        That is where encoding compares; to decode every candidate would cost a pass of the
        network for each.
        """
        codebook = self.codebooks[prefix.shape[1]]
        prefix = prefix.to(codebook.device, torch.int64)
        left = self._latent(vectors.to(codebook.device, torch.float32)) - self._sum_of(prefix)
        squares = left.square().sum(dim=1, keepdim=True) + codebook.square().sum(dim=1)
        return (squares - 2 * left @ codebook.T).clamp_(min=0)

    def tensors(self) -> dict[str, Tensor]:
        """Return ``mean``, ``spread``, ``level_N.codebook`` and both networks' layers."""
        named = {f"level_{n}.codebook": t for n, t in enumerate(self.codebooks, start=1)}
        named |= layer_tensors("encoder", self.encoder) | layer_tensors("decoder", self.decoder)
        return named | {"mean": self.mean, "spread": self.spread}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> "FittedLearnedQuantizer":
        """Build the quantizer from what ``tensors`` returned."""
        count = sum(name.endswith(".codebook") for name in tensors)
        return cls(
            mean=tensors["mean"],
            spread=tensors["spread"],
            encoder=layers_from("encoder", tensors),
            codebooks=tuple(tensors[f"level_{n}.codebook"] for n in range(1, count + 1)),
            decoder=layers_from("decoder", tensors),
        )

    def _latent(self, chunk: Tensor) -> Tensor:
        return apply_layers((chunk - self.mean) / self.spread, self.encoder)

    def _sum_of(self, codes: Tensor) -> Tensor:
        total = self.codebooks[0].new_zeros((len(codes), self.codebooks[0].shape[1]))
        for level, column in enumerate(codes.unbind(dim=1)):
            total += self.codebooks[level][column]
        return total
