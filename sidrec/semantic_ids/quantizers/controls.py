"""Control quantizers: Semantic IDs that do not depend on the content of items.

A model can only memorize such IDs, so they are the baseline for IDs from content. Codes are hashes
of a vector's bits, so two near items have unrelated IDs. All codes decode to the mean of the
catalogue (relative error 1).
"""

import math
from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from sidrec.distributed import gather_rows
from sidrec.errors import ConfigError
from sidrec.semantic_ids.kmeans.sharded_rows import CHUNK_ROWS, exact_mean, rows_to_fit
from sidrec.semantic_ids.quantizers.base import (
    MAX_CODEBOOK_SIZE,
    FittedQuantizer,
    Quantizer,
    check_sizes,
)
from sidrec.training.counter_rng import hash_counters, key_of

_ODD = np.uint64(0x9E3779B97F4A7C15)


def hash_rows(vectors: Float[Tensor, "row dim"], *, key: int) -> npt.NDArray[np.uint64]:
    """Return a 64-bit hash per row; rows with equal float32 numbers have equal hashes.

    Among n different rows, some two have equal hashes with probability n² / 2^65.

    Args:
        vectors: Any floating dtype; compared as float32, where -0.0 equals 0.0.
        key: Chooses the hash function.
    """
    columns = np.arange(vectors.shape[1], dtype=np.int64)
    weights = hash_counters(columns, key=key) | np.uint64(1)
    found = [np.zeros(0, dtype=np.uint64)]
    for start in range(0, len(vectors), CHUNK_ROWS):
        chunk = vectors[start : start + CHUNK_ROWS].to("cpu", torch.float32) + 0.0
        bits = chunk.contiguous().numpy().view(np.uint32).astype(np.uint64)
        mixed = (bits + np.uint64(1)) * weights
        mixed = (mixed ^ (mixed >> np.uint64(29))) * _ODD
        sums = (mixed ^ (mixed >> np.uint64(32))).sum(axis=1, dtype=np.uint64)
        found.append(hash_counters(sums.view(np.int64), key=key))
    return np.concatenate(found)


@dataclass(frozen=True, slots=True)
class _ContentFree(FittedQuantizer):
    """Base of the controls: codes come from hashes, and every code decodes to the mean.

    Attributes:
        mean: Mean vector of the catalogue.
        sizes: Number of codes at each level, coarse level first.
    """

    mean: Float[Tensor, " dim"]
    sizes: tuple[int, ...]

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Number of codes at each level."""
        return self.sizes

    def encode_chunk(
        self, chunk: Float[Tensor, "row dim"], prefix: Int[Tensor, "row prefix"]
    ) -> Int[Tensor, "row level"]:
        """Return the vectors' codes with their first levels replaced by ``prefix``."""
        codes = self._codes(chunk).to(self.mean.device)
        codes[:, : prefix.shape[1]] = prefix
        return codes

    def decode(self, codes: Int[Tensor, "item prefix"]) -> Float[Tensor, "item dim"]:
        """Return the mean of the catalogue for every item."""
        return self.mean.repeat(len(codes), 1)

    def next_code_errors(
        self, vectors: Float[Tensor, "item dim"], prefix: Int[Tensor, "item prefix"]
    ) -> Float[Tensor, "item code"]:
        """Return the squared distance to the mean: no code is nearer than another."""
        left = vectors.to(self.mean.device, torch.float32) - self.mean
        size = self.sizes[prefix.shape[1]]
        return left.square().sum(dim=1, keepdim=True).repeat(1, size)

    @abstractmethod
    def _codes(self, chunk: Tensor) -> Tensor:
        """Return the codes of a chunk of vectors, on any device."""


@dataclass(frozen=True, slots=True)
class FittedRandomCodes(_ContentFree):
    """Fitted random codes: uniform, independent, and deterministic for each vector.

    Attributes:
        seed: Chooses the codes.
    """

    seed: int

    def _codes(self, chunk: Tensor) -> Tensor:
        hashes = hash_rows(chunk, key=key_of(self.seed, "random")).view(np.int64)
        columns = [
            hash_counters(hashes, key=key_of(self.seed, level)) % np.uint64(size)
            for level, size in enumerate(self.codebook_sizes)
        ]
        return torch.from_numpy(np.stack(columns, axis=1).astype(np.int64))


@dataclass(frozen=True, slots=True)
class FittedAtomicCodes(_ContentFree):
    """Fitted atomic codes: a number for every item, written as one code per level.

    The n hashes of the catalogue, in order, give each distinct vector its number. Numbers are
    spaced evenly over all codes, so every level is used evenly and prefixes have equally many
    items. A vector outside the catalogue gets the number of the next hash, that of an unrelated
    item.

    Attributes:
        hashes: Hashes of the catalogue's distinct vectors, ascending, as int64.
        seed: Chooses the hash function.
    """

    hashes: Int64[Tensor, " distinct"]
    seed: int

    def _codes(self, chunk: Tensor) -> Tensor:
        place = torch.searchsorted(
            self.hashes, _signed_hashes(chunk, self.seed).to(self.mean.device)
        )
        number = place.clamp(max=len(self.hashes) - 1)
        capacity = min(math.prod(self.codebook_sizes), 1 << 62)  # int64 below
        number = _evenly_spaced(number, len(self.hashes), capacity)
        columns = []
        for size in reversed(self.codebook_sizes):
            columns.append(number % size)
            number = number // size
        return torch.stack(columns[::-1], dim=1)


@dataclass(frozen=True, slots=True)
class RandomCodes(Quantizer):
    """Control ``random``: uniform codes. Items share an ID only by chance.

    Attributes:
        codebook_sizes: Codes per level, each in [2, 32768].
        seed: Chooses the codes.

    Raises:
        ConfigError: If a size is out of range.

    Source:
        "Random indexing" in Hua et al. 2023, sec. 4 (https://arxiv.org/abs/2305.06569).
    """

    codebook_sizes: tuple[int, ...] = (256, 256, 256)
    seed: int = 1234

    name = "random"

    def __post_init__(self) -> None:
        check_sizes(self.codebook_sizes)

    def fit(self, vectors: Float[Tensor, "item dim"]) -> FittedQuantizer:
        """Compute the mean of the catalogue; nothing else is learned."""
        return FittedRandomCodes(exact_mean(rows_to_fit(vectors)), self.codebook_sizes, self.seed)


@dataclass(frozen=True, slots=True)
class AtomicCodes(Quantizer):
    """Control ``atomic``: a unique ID for every distinct vector, unrelated to other IDs.

    Attributes:
        codebook_sizes: Codes per level, each in [2, 32768]; None: as few levels as possible, of
            equal sizes: one level with a code per item up to 32,768 items (an atomic ID proper).
        seed: Chooses which item gets which ID.

    Raises:
        ConfigError: If a size is out of range.

    Source:
        "Independent indexing" in Hua et al. 2023, sec. 4 (https://arxiv.org/abs/2305.06569).
        Differs: a catalogue beyond 32,768 items needs two levels, codes being int16.
    """

    codebook_sizes: tuple[int, ...] | None = None
    seed: int = 1234

    name = "atomic"

    def __post_init__(self) -> None:
        if self.codebook_sizes is not None:
            check_sizes(self.codebook_sizes)

    def fit(self, vectors: Float[Tensor, "item dim"]) -> FittedQuantizer:
        """Number the distinct vectors of all ranks.

        Raises:
            DataError: If a value is not finite.
            ConfigError: If the levels cannot number so many items.
        """
        rows = rows_to_fit(vectors)
        own = _signed_hashes(vectors, self.seed).to(vectors.device)
        hashes = torch.unique(gather_rows(own))  # ascending
        sizes = self.codebook_sizes or _fewest_levels(rows.num_rows)
        if math.prod(sizes) < len(hashes):
            raise ConfigError(
                f"{len(hashes)} items do not fit into codebook_sizes {list(sizes)} with "
                f"{math.prod(sizes)} distinct IDs; add a level or raise the sizes."
            )
        return FittedAtomicCodes(exact_mean(rows), sizes, hashes, self.seed)


def _signed_hashes(vectors: Tensor, seed: int) -> Tensor:
    return torch.from_numpy(hash_rows(vectors, key=key_of(seed, "atomic")).view(np.int64))


def _fewest_levels(num_items: int) -> tuple[int, ...]:
    num_levels = 1
    while MAX_CODEBOOK_SIZE**num_levels < num_items:
        num_levels += 1
    size = max(2, math.ceil(num_items ** (1 / num_levels)))
    return (size,) * num_levels


def _evenly_spaced(number: Tensor, count: int, capacity: int) -> Tensor:
    """Return ``number * capacity // count`` without leaving int64: distinct numbers."""
    whole, rest = divmod(capacity, count)
    return number * whole + number * rest // count
