"""What every way of making codes offers: a quantizer is fitted once and then only encodes."""

from abc import ABC, abstractmethod
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor


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
