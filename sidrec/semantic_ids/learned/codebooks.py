"""Fitted RQ-VAE or residual LFQ: codebooks in the latent space of an autoencoder."""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from sidrec.kernels.nearest import nearest_codes
from sidrec.semantic_ids.kmeans.sharded_rows import CHUNK_ROWS
from sidrec.semantic_ids.quantizers.base import (
    FittedQuantizer,
    encode_residual,
    squared_distances,
    sum_of_codes,
)

Layer = tuple[Float[Tensor, "_ _"], Float[Tensor, " _"]]  # weight [out, in], bias [out]


def perceptron(sizes: tuple[int, ...]) -> nn.Sequential:
    """Return linear layers between these widths, with ReLU between them."""
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def layers_of(network: nn.Sequential) -> tuple[Layer, ...]:
    """Return the weights and biases of a ``perceptron``, without gradient."""
    linear = [part for part in network if isinstance(part, nn.Linear)]
    return tuple((part.weight.detach(), part.bias.detach()) for part in linear)


def apply_layers(rows: Float[Tensor, "row _"], layers: tuple[Layer, ...]) -> Float[Tensor, "row _"]:
    """Return the output of the network of these layers for the rows."""
    for number, (weight, bias) in enumerate(layers, start=1):
        rows = F.linear(rows, weight, bias)
        if number < len(layers):
            rows = F.relu(rows)
    return rows


@dataclass(frozen=True, slots=True)
class FittedLearnedQuantizer(FittedQuantizer):
    """Fitted learned quantizer: standardize, encode, quantize the latent vector level by level.

    The decoder maps the sum of the codes back to a vector. The class needs only torch.

    Attributes:
        mean: Subtracted from each dimension.
        std: Divisor of each dimension.
        encoder: Layers from vector to latent vector.
        codebooks: One per level, coarse level first, in the latent space.
        decoder: Layers from latent vector to vector.
    """

    mean: Float[Tensor, " dim"]
    std: Float[Tensor, " dim"]
    encoder: tuple[Layer, ...]
    codebooks: tuple[Float[Tensor, "_ latent"], ...]
    decoder: tuple[Layer, ...]

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Number of codes at each level."""
        return tuple(len(codebook) for codebook in self.codebooks)

    def encode_chunk(
        self, chunk: Float[Tensor, "row dim"], prefix: Int[Tensor, "row prefix"]
    ) -> Int[Tensor, "row level"]:
        """Return per level the code nearest to the residual of the latent vector."""

        def nearest(residual: Tensor, level: int) -> Tensor:
            return nearest_codes(residual, self.codebooks[level])

        return encode_residual(self._latent(chunk), prefix, self.codebooks, nearest)

    def decode(self, codes: Int[Tensor, "item prefix"]) -> Float[Tensor, "item dim"]:
        """Return the vectors that the codes, or their first levels alone, decode to."""
        codes = codes.to(self.mean.device, torch.int64)
        parts = [self.mean.new_zeros((0, len(self.mean)))]
        for start in range(0, len(codes), CHUNK_ROWS):
            latent = sum_of_codes(self.codebooks, codes[start : start + CHUNK_ROWS])
            parts.append(apply_layers(latent, self.decoder) * self.std + self.mean)
        return torch.cat(parts)

    def next_code_errors(
        self, vectors: Float[Tensor, "item dim"], prefix: Int[Tensor, "item prefix"]
    ) -> Float[Tensor, "item code"]:
        """Return the squared error of each code after ``prefix``, in the latent space.

        Encoding compares there too. Decoding every candidate would need a pass of the network.
        """
        codebook = self.codebooks[prefix.shape[1]]
        latent = self._latent(vectors.to(codebook.device, torch.float32))
        return squared_distances(latent - sum_of_codes(self.codebooks, prefix), codebook)

    def _latent(self, chunk: Tensor) -> Tensor:
        return apply_layers((chunk - self.mean) / self.std, self.encoder)
