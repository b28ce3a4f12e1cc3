"""Settings of learned quantizers: architecture and loss, not the training schedule."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

from sidrec.errors import ConfigError
from sidrec.semantic_ids.learned.vector_quantization import LfqCore, VqCore
from sidrec.semantic_ids.quantizers.base import (
    NamedSettings,
    check_equal_powers_of_two,
    check_sizes,
)


class LearnedMethod(NamedSettings, ABC):
    """Base settings of an autoencoder with a quantized latent; YAML files name subclasses."""

    codebook_sizes: tuple[int, ...]
    hidden_sizes: tuple[int, ...]
    standardize: bool

    @property
    @abstractmethod
    def width(self) -> int:
        """Width of a latent vector."""

    @property
    @abstractmethod
    def initializes_from_data(self) -> bool:
        """Whether the core's ``initialize`` is called before the first step."""

    @abstractmethod
    def core(self, *, synchronize: bool) -> VqCore | LfqCore:
        """Return the untrained quantizer of latent vectors."""


@dataclass(frozen=True)
class RqVae(LearnedMethod):
    """RQ-VAE with measures against codebook collapse.

    Trained on raw embeddings from random codebooks, an RQ-VAE collapses: the whole catalogue uses
    a few codes. ``standardize``, ``init: k-means`` and ``dead_code_share`` prevent this.

    Attributes:
        codebook_sizes: Codes per level, coarse first, each in [2, 32768].
        hidden_sizes: Widths of the encoder's hidden layers; the decoder has them in reverse.
        latent_dim: Width of a latent vector.
        standardize: Give every dimension mean 0 and variance 1 first.
        init: Initial codebooks: ``k-means`` on the untrained encoder's output, or ``random``.
        ema_decay: Decay of the codebooks' moving averages, per step, in [0, 1).
        dead_code_share: Fraction of an even share of rows; a code used less moves to a row of the
            batch. 0 switches this off.
        commitment_weight: Factor of the distance between latent vectors and their codes.
        diversity_weight: Factor of the entropy of the codes' mean use; 0 switches it off.
        diversity_temperature: Temperature of that entropy, in squared latent distances, ``> 0``.

    Raises:
        ConfigError: If a setting is out of range.

    Source:
        Zeghidour et al. 2021, alg. 1 (https://arxiv.org/abs/2107.03312), in TIGER
        (https://arxiv.org/abs/2305.05065). Even use as a loss: LETTER
        (https://arxiv.org/abs/2405.07314). Differs: the loss is an entropy, because LETTER's
        contrast between clusters of codes cannot move codebooks that are moving averages.
    """

    codebook_sizes: tuple[int, ...] = (256, 256, 256)
    hidden_sizes: tuple[int, ...] = (256,)
    latent_dim: int = 64
    standardize: bool = True
    init: Literal["k-means", "random"] = "k-means"
    ema_decay: float = 0.95
    dead_code_share: float = 0.1
    commitment_weight: float = 0.25
    diversity_weight: float = 0.0
    diversity_temperature: float = 1.0

    name = "rq_vae"

    def __post_init__(self) -> None:
        check_sizes(self.codebook_sizes)
        _check_widths(self.hidden_sizes, self.latent_dim)
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"ema_decay is {self.ema_decay}, expected a number in [0, 1).")
        _check_weights(self, "dead_code_share", "commitment_weight", "diversity_weight")
        _check_temperature(self.diversity_temperature, "diversity_temperature")

    @property
    def width(self) -> int:
        """Width of a latent vector."""
        return self.latent_dim

    @property
    def initializes_from_data(self) -> bool:
        """Whether k-means initializes the codebooks."""
        return self.init == "k-means"

    def core(self, *, synchronize: bool) -> VqCore:
        """Return the untrained codebooks."""
        return VqCore(
            self.codebook_sizes,
            dim=self.latent_dim,
            decay=self.ema_decay,
            dead_code_share=self.dead_code_share,
            commitment_weight=self.commitment_weight,
            diversity_weight=self.diversity_weight,
            diversity_temperature=self.diversity_temperature,
            synchronize=synchronize,
        )


@dataclass(frozen=True)
class ResidualLfq(LearnedMethod):
    """Residual lookup-free quantization: a code is a row of signs, without learned codebooks.

    Attributes:
        codebook_sizes: Codes per level: one power of two for all; its exponent is the width of
            a latent vector.
        hidden_sizes: Widths of the encoder's hidden layers; the decoder has them in reverse.
        standardize: Give every dimension mean 0 and variance 1 first.
        entropy_weight: Factor of the entropy term: certain rows, evenly used codes.
        diversity_gamma: Factor of even use within that term.
        temperature: Temperature of the soft assignment, in squared latent distances, ``> 0``.
        commitment_weight: Factor of the distance between latent vectors and their codes.

    Raises:
        ConfigError: If a setting is out of range.

    Source:
        Yu et al. 2023 (https://arxiv.org/abs/2310.05737), residual as ``ResidualLFQ`` of
        vector-quantize-pytorch.
    """

    codebook_sizes: tuple[int, ...] = (256, 256, 256)
    hidden_sizes: tuple[int, ...] = (256,)
    standardize: bool = True
    entropy_weight: float = 0.1
    diversity_gamma: float = 1.0
    temperature: float = 0.01
    commitment_weight: float = 0.25

    name = "residual_lfq"

    def __post_init__(self) -> None:
        _check_widths(self.hidden_sizes, check_equal_powers_of_two(self.codebook_sizes))
        _check_weights(self, "entropy_weight", "diversity_gamma", "commitment_weight")
        _check_temperature(self.temperature, "temperature")

    @property
    def width(self) -> int:
        """Bits of a code."""
        return check_equal_powers_of_two(self.codebook_sizes)

    @property
    def initializes_from_data(self) -> bool:
        """Whether data initializes the codebooks; always False, since codes are signs."""
        return False

    def core(self, *, synchronize: bool) -> LfqCore:
        """Return the quantizer by signs."""
        del synchronize
        return LfqCore(
            num_levels=len(self.codebook_sizes),
            num_bits=self.width,
            entropy_weight=self.entropy_weight,
            diversity_gamma=self.diversity_gamma,
            temperature=self.temperature,
            commitment_weight=self.commitment_weight,
        )


def _check_widths(hidden_sizes: tuple[int, ...], latent_dim: int) -> None:
    if any(size < 1 for size in (*hidden_sizes, latent_dim)):
        raise ConfigError(
            f"hidden_sizes {list(hidden_sizes)} and latent_dim {latent_dim} must be 1 or more."
        )


def _check_weights(method: LearnedMethod, *names: str) -> None:
    for name in names:
        if not getattr(method, name) >= 0:
            raise ConfigError(f"{name} is {getattr(method, name)}, expected at least 0.")


def _check_temperature(value: float, name: str) -> None:
    if not value > 0:
        raise ConfigError(f"{name} is {value}, expected more than 0.")
