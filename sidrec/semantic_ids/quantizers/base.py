"""What every way of making codes offers: a quantizer is fitted once and then only encodes."""

from abc import ABC, abstractmethod
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from sidrec.errors import ConfigError

MAX_CODEBOOK_SIZE = 1 << 15  # codes are stored as int16


def check_sizes(sizes: tuple[int, ...]) -> None:
    """Refuse sizes that no codebook can have.

    Raises:
        ConfigError: If there is no level, or a size lies outside [2, 32768].
    """
    if not sizes or not all(2 <= size <= MAX_CODEBOOK_SIZE for size in sizes):
        raise ConfigError(
            f"codebook_sizes is {list(sizes)}, expected one size per level, each from 2 to "
            f"{MAX_CODEBOOK_SIZE} (codes are stored as int16); e.g. [256, 256, 256]."
        )


def check_equal_powers_of_two(sizes: tuple[int, ...]) -> int:
    """Return the number of bits of a code, the same at every level.

    Raises:
        ConfigError: If sizes differ, or are no powers of two.
    """
    check_sizes(sizes)
    bits = sizes[0].bit_length() - 1
    if set(sizes) != {1 << bits}:
        raise ConfigError(
            f"codebook_sizes is {list(sizes)}, expected one power of two for every level, "
            f"e.g. {[1 << bits] * len(sizes)}."
        )
    return bits


def refuse_few_items(num_items: int, sizes: tuple[int, ...]) -> None:
    """Refuse a catalogue with fewer items than a codebook has codes.

    Raises:
        ConfigError: If ``num_items`` is below the largest size.
    """
    if num_items < max(sizes):
        raise ConfigError(
            f"The catalogue has {num_items} items, fewer than the {max(sizes)} codes of "
            f"codebook_sizes {list(sizes)}; choose smaller sizes, e.g. about the square root of "
            "the number of items."
        )


@runtime_checkable
class FittedQuantizer(Protocol):
    """Codebooks, fixed: vectors to codes and back. Nothing here talks to other ranks."""

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Number of codes at each level, coarse level first."""

    def encode(self, vectors: Float[Tensor, "item dim"]) -> Int[Tensor, "item level"]:
        """Return one code per level."""

    def complete(
        self, vectors: Float[Tensor, "item dim"], prefix: Int[Tensor, "item prefix"]
    ) -> Int[Tensor, "item level"]:
        """Return codes that begin with ``prefix``; the levels after it are encoded anew."""

    def decode(self, codes: Int[Tensor, "item prefix"]) -> Float[Tensor, "item dim"]:
        """Return the vectors that the codes (or their first levels) stand for."""

    def candidate_errors(
        self, vectors: Float[Tensor, "item dim"], prefix: Int[Tensor, "item prefix"]
    ) -> Float[Tensor, "item code"]:
        """Return the squared error that each code would leave at the level after ``prefix``."""

    def tensors(self) -> dict[str, Tensor]:
        """Return what ``codebooks.safetensors`` stores: enough to build this object again."""


class Quantizer(ABC):
    """A way of making codes, with all its settings; ``fit`` is called on every rank at once.

    A base class, not a Protocol: YAML files name its subclasses, and jsonargparse cannot compare
    the jaxtyping signatures of a Protocol.
    """

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Return name and settings as plain JSON types, for the bundle."""

    @abstractmethod
    def fit(self, vectors: Float[Tensor, "item dim"]) -> FittedQuantizer:
        """Learn codebooks from this rank's block of vectors (see ``rows.block_of_rank``).

        Raises:
            DataError: If the vectors cannot carry so many codes.
        """
