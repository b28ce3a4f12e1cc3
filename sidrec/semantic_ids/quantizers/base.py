"""Base classes of quantizers: settings that fit, and fixed codebooks that encode and decode."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import MISSING, asdict, fields
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sidrec.errors import ConfigError
from sidrec.semantic_ids.kmeans.sharded_rows import chunks_of

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
        ConfigError: If sizes differ or are not powers of two.
    """
    check_sizes(sizes)
    bits = sizes[0].bit_length() - 1
    if set(sizes) != {1 << bits}:
        raise ConfigError(
            f"codebook_sizes is {list(sizes)}, expected one power of two for every level, "
            f"e.g. {[1 << bits] * len(sizes)}."
        )
    return bits


def refuse_few_items(num_items: int, sizes: tuple[int, ...], *, remedy: str = "") -> None:
    """Refuse a catalogue with fewer items than a codebook has codes; ``remedy`` ends the message.

    Raises:
        ConfigError: If ``num_items`` is below the largest size.
    """
    if num_items < max(sizes):
        raise ConfigError(
            f"The catalogue has {num_items} items, fewer than the {max(sizes)} codes of "
            f"codebook_sizes {list(sizes)}; choose smaller sizes, e.g. about the square root of "
            f"the number of items{remedy}."
        )


class NamedSettings:
    """Settings of a dataclass, stored under a name that identifies its class.

    Attributes:
        name: By default the class path, e.g. ``mypackage.quantizers.MyQuantizer``.
    """

    name: ClassVar[str]

    def __init_subclass__(cls, **options: Any) -> None:  # noqa: ANN401
        super().__init_subclass__(**options)
        if "name" not in cls.__dict__:
            cls.name = f"{cls.__module__}.{cls.__qualname__}"

    def settings(self) -> dict[str, Any]:
        """Return name and settings as plain JSON types, for the bundle."""
        plain: dict[str, Any] = asdict(self)  # type: ignore[call-overload]
        lists = {key: list(value) for key, value in plain.items() if isinstance(value, tuple)}
        return {"name": self.name} | plain | lists


class FittedQuantizer(ABC):
    """Fitted quantizer: maps vectors to codes and back. No method communicates between ranks.

    Subclasses are dataclasses of tensors, numbers, and tuples of both: ``tensors`` and
    ``from_tensors`` store and restore their fields. ``encode_chunk`` is the hook of a family.
    """

    @property
    @abstractmethod
    def codebook_sizes(self) -> tuple[int, ...]:
        """Number of codes at each level, coarse level first."""

    @abstractmethod
    def encode_chunk(
        self, chunk: Float[Tensor, "row dim"], prefix: Int[Tensor, "row prefix"]
    ) -> Int[Tensor, "row level"]:
        """Return codes of all levels that begin with ``prefix``; input is checked already."""

    @abstractmethod
    def decode(self, codes: Int[Tensor, "item prefix"]) -> Float[Tensor, "item dim"]:
        """Return the vectors that the codes, or their first levels alone, decode to."""

    @abstractmethod
    def next_code_errors(
        self, vectors: Float[Tensor, "item dim"], prefix: Int[Tensor, "item prefix"]
    ) -> Float[Tensor, "item code"]:
        """Return the squared error that each code would leave at the level after ``prefix``."""

    def encode(self, vectors: Float[Tensor, "item dim"]) -> Int[Tensor, "item level"]:
        """Return one code per level, int64 on the codebooks' device; ties: the lowest code.

        Works in chunks, in float32, whatever the input's dtype and strides.

        Raises:
            DataError: If the width differs from the codebooks', or a value is not finite.
        """
        return self.encode_from_prefix(vectors, torch.zeros((len(vectors), 0), dtype=torch.int64))

    def encode_from_prefix(
        self, vectors: Float[Tensor, "item dim"], prefix: Int[Tensor, "item prefix"]
    ) -> Int[Tensor, "item level"]:
        """Return codes that begin with ``prefix``; the levels after it are encoded anew.

        Raises:
            DataError: If the width differs from the codebooks', or a value is not finite.
        """
        nothing = self.decode(torch.zeros((0, 0), dtype=torch.int64))  # has dim and device
        prefix = prefix.to(nothing.device, torch.int64)
        codes = prefix.new_zeros((len(vectors), len(self.codebook_sizes)))
        for rows, chunk in chunks_of(vectors, dim=nothing.shape[1], device=nothing.device):
            codes[rows] = self.encode_chunk(chunk, prefix[rows])
        return codes

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors to store: fields by name, tuples as ``NAME.1``, …."""
        named: dict[str, Tensor] = {}
        for field in fields(self):  # type: ignore[arg-type]
            named |= _flattened(field.name, getattr(self, field.name))
        return named

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> "FittedQuantizer":
        """Build the quantizer from the output of ``tensors``.

        Raises:
            KeyError: If a field without default is missing.
        """
        values = {}
        for field in fields(cls):  # type: ignore[arg-type]
            value = _restored(field.name, tensors)
            if value is not None:
                values[field.name] = value
            elif field.default is MISSING:
                raise KeyError(field.name)
        return cls(**values)


class Quantizer(NamedSettings, ABC):
    """Quantizer settings with a ``fit`` method, which all ranks call together.

    A base class, not a Protocol: YAML files name its subclasses, and jsonargparse cannot compare
    the jaxtyping signatures of a Protocol.

    Attributes:
        fitted_class: Class that ``fit`` returns, for the bundles of classes outside sidrec.
    """

    fitted_class: ClassVar[type[FittedQuantizer]]

    @abstractmethod
    def fit(self, vectors: Float[Tensor, "item dim"]) -> FittedQuantizer:
        """Learn codebooks from this rank's block of vectors (see ``block_of_rank``).

        Raises:
            DataError: If a value is not finite (names rows), or the catalogue is empty.
            ConfigError: If there are fewer items than codes.
        """


def sum_of_codes(
    codebooks: tuple[Float[Tensor, "_ dim"], ...], codes: Int[Tensor, "item prefix"]
) -> Float[Tensor, "item dim"]:
    """Return the sum over levels of each item's centroids."""
    codes = codes.to(codebooks[0].device, torch.int64)
    total = codebooks[0].new_zeros((len(codes), codebooks[0].shape[1]))
    for level, column in enumerate(codes.unbind(dim=1)):
        total += codebooks[level][column]
    return total


def encode_residual(
    vectors: Float[Tensor, "row dim"],
    prefix: Int[Tensor, "row prefix"],
    codebooks: tuple[Float[Tensor, "_ dim"], ...],
    nearest: Callable[[Float[Tensor, "row dim"], int], Int[Tensor, " row"]],
) -> Int[Tensor, "row level"]:
    """Return codes that begin with ``prefix``; ``nearest(residual, level)`` chooses the others."""
    codes = list(prefix.unbind(dim=1))
    residual = vectors - sum_of_codes(codebooks, prefix)
    for level in range(len(codes), len(codebooks)):
        codes.append(nearest(residual, level))
        residual = residual - codebooks[level][codes[-1]]
    return torch.stack(codes, dim=1)


def squared_distances(
    rows: Float[Tensor, "row dim"], centroids: Float[Tensor, "code dim"]
) -> Float[Tensor, "row code"]:
    """Return the squared distance of each row to each centroid, ``>= 0``."""
    squares = rows.square().sum(dim=1, keepdim=True) + centroids.square().sum(dim=1)
    return (squares - 2 * rows @ centroids.T).clamp_(min=0)


def _flattened(name: str, value: Any) -> dict[str, Tensor]:  # noqa: ANN401
    if value is None:
        return {}
    if not isinstance(value, tuple):
        return {name: torch.as_tensor(value)}
    parts = (_flattened(f"{name}.{number}", part) for number, part in enumerate(value, start=1))
    return {key: tensor for part in parts for key, tensor in part.items()}


def _restored(name: str, tensors: dict[str, Tensor]) -> Any:  # noqa: ANN401
    """Return a tensor, a number where it has no dimension, a tuple, or None if absent."""
    if name in tensors:
        tensor = tensors[name]
        return tensor if tensor.ndim else tensor.item()
    parts: list[Any] = []
    while (part := _restored_part(f"{name}.{len(parts) + 1}", tensors)) is not None:
        parts.append(part)
    return tuple(parts) or None


def _restored_part(name: str, tensors: dict[str, Tensor]) -> Any:  # noqa: ANN401
    is_there = any(key == name or key.startswith(f"{name}.") for key in tensors)
    return _restored(name, tensors) if is_there else None
