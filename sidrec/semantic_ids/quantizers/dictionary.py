"""Dictionary encoding: Semantic IDs from the components of a sparse code of the vector."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from sidrec.distributed import from_rank_zero, rank_and_world_size
from sidrec.errors import ConfigError
from sidrec.semantic_ids.kmeans.initialization import uniform_sample
from sidrec.semantic_ids.kmeans.lloyd import sums_by_code
from sidrec.semantic_ids.kmeans.sharded_rows import exact_mean, rows_to_fit
from sidrec.semantic_ids.quantizers.base import (
    FittedQuantizer,
    Quantizer,
    check_sizes,
    refuse_few_items,
)

_RIDGE = 1e-6  # keeps the projection defined where a prefix names a component twice


@dataclass(frozen=True, slots=True)
class FittedDictionary(FittedQuantizer):
    """Fitted components; a vector decodes to the mean plus, per level, a length times a direction.

    All levels choose from the same components: the code of a level names the component, and with
    ``signed`` its direction. The coefficient of the vector is not part of the code; decoding uses
    the length that was best for the fitted vectors with that code at that level.

    Attributes:
        mean: Mean vector, subtracted before coding.
        components: Component vectors of length 1.
        lengths: ``lengths[l, k]`` multiplies direction ``k`` at level ``l``.
        signed: Codes ``0 … A - 1`` are the ``A`` components and ``A … 2 A - 1`` their opposites;
            otherwise a code stands for a component in either direction.
    """

    mean: Float[Tensor, " dim"]
    components: Float[Tensor, "component dim"]
    lengths: Float[Tensor, "level code"]
    signed: bool

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Number of codes at each level, the same for all."""
        return (self.lengths.shape[1],) * self.lengths.shape[0]

    @property
    def directions(self) -> Float[Tensor, "code dim"]:
        """Direction of each code, of length 1."""
        return torch.cat([self.components, -self.components]) if self.signed else self.components

    def encode_chunk(
        self, chunk: Float[Tensor, "row dim"], prefix: Int[Tensor, "row prefix"]
    ) -> Int[Tensor, "row level"]:
        """Return components by orthogonal matching pursuit, in the order of the pursuit.

        Each level takes the component that correlates most with the residual of the least-squares
        fit on the components before it (ties: the lowest code); no component is taken twice.

        Source:
            Pati et al. 1993 (https://doi.org/10.1109/ACSSC.1993.342465).
        """
        codes = prefix
        for _ in range(prefix.shape[1], len(self.lengths)):
            code = self._best(chunk - self.mean, codes)
            codes = torch.cat([codes, code.unsqueeze(1)], dim=1)
        return codes

    def decode(self, codes: Int[Tensor, "item prefix"]) -> Float[Tensor, "item dim"]:
        """Return the vectors that the codes, or their first levels alone, decode to."""
        codes = codes.to(self.components.device, torch.int64)
        total = self.mean.repeat(len(codes), 1)
        directions = self.directions
        for level, column in enumerate(codes.unbind(dim=1)):
            total += self.lengths[level][column].unsqueeze(1) * directions[column]
        return total

    def next_code_errors(
        self, vectors: Float[Tensor, "item dim"], prefix: Int[Tensor, "item prefix"]
    ) -> Float[Tensor, "item code"]:
        """Return the squared error of the decoded vector for each code after ``prefix``."""
        left = vectors.to(self.components.device, torch.float32) - self.decode(prefix)
        lengths = self.lengths[prefix.shape[1]]
        cross = left @ self.directions.T * lengths
        return (left.square().sum(dim=1, keepdim=True) - 2 * cross + lengths.square()).clamp_(min=0)

    def _best(self, centered: Tensor, prefix: Tensor) -> Tensor:
        """Return the code that correlates most with the residual of the ``prefix`` projection."""
        scores = self._left(centered, prefix) @ self.components.T  # [row, component]
        scores = torch.cat([scores, -scores], dim=1) if self.signed else scores.abs()
        taken = prefix % len(self.components)
        if self.signed:
            taken = torch.cat([taken, taken + len(self.components)], dim=1)
        best: Tensor = scores.scatter(1, taken, -torch.inf).argmax(dim=1)
        return best

    def _left(self, centered: Tensor, prefix: Tensor) -> Tensor:
        if prefix.shape[1] == 0:
            return centered
        chosen = self.directions[prefix]  # [row, prefix, dim]
        gram = chosen @ chosen.mT + _RIDGE * torch.eye(prefix.shape[1], device=chosen.device)
        products = chosen @ centered.unsqueeze(2)  # [row, prefix, 1]
        fit: Tensor = chosen.mT @ torch.linalg.solve(gram, products)  # [row, dim, 1]
        return centered - fit.squeeze(2)


@dataclass(frozen=True, slots=True)
class Dictionary(Quantizer):
    """Dictionary quantizer: sparse coding with scikit-learn's ``MiniBatchDictionaryLearning``.

    All levels use one dictionary. Codes are the components of an orthogonal matching pursuit with
    as many non-zero coefficients as levels, in the order of the pursuit. This is nearly the order
    of their coefficients, and it makes the first levels independent of the later ones. A prefix is
    a coarser description. Equal codes at different levels name the same component.

    Attributes:
        codebook_sizes: Codes per level, the same for all; even if ``signed``.
        signed: Half as many components, each with one code per direction. Otherwise the sign of the
            coefficient is lost, and vectors on opposite sides of a component share a code.
        alpha: Weight of the L1 penalty while components are learned, ``>= 0``.
        max_iter: Most passes over the sample, ``>= 1``.
        batch_size: Rows per update of the components, ``>= 1``.
        fit_algorithm: ``cd`` (coordinate descent) or ``lars``.
        sample_rows: Components and lengths are learned from at most this many rows.
        seed: Seed of all draws.

    Raises:
        ConfigError: If a setting is out of range.

    Source:
        Mairal et al. 2009 (https://doi.org/10.1145/1553374.1553463), compared for Semantic IDs
        in https://arxiv.org/abs/2508.10478, which does not say how codes are ordered or signed.
    """

    codebook_sizes: tuple[int, ...] = (256, 256, 256)
    signed: bool = True
    alpha: float = 0.1
    max_iter: int = 10
    batch_size: int = 256
    fit_algorithm: Literal["cd", "lars"] = "cd"
    sample_rows: int = 65_536
    seed: int = 1234

    name = "dictionary"

    def __post_init__(self) -> None:
        check_sizes(self.codebook_sizes)
        sizes = list(self.codebook_sizes)
        if len(set(sizes)) > 1 or (self.signed and sizes[0] % 2):
            raise ConfigError(
                f"codebook_sizes is {sizes}, expected one size for every level, even where codes "
                "are signed: all levels choose from the same components."
            )
        if len(sizes) > self.num_components:
            raise ConfigError(
                f"{len(sizes)} levels cannot name {self.num_components} components once each; "
                "raise codebook_sizes or drop a level."
            )
        for name, least in (("alpha", 0), ("max_iter", 1), ("batch_size", 1), ("sample_rows", 2)):
            if not getattr(self, name) >= least:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected at least {least}.")

    @property
    def num_components(self) -> int:
        """Number of components of the dictionary."""
        return self.codebook_sizes[0] // (2 if self.signed else 1)

    def fit(self, vectors: Float[Tensor, "item dim"]) -> FittedQuantizer:
        """Learn components on rank 0 from a sample of all ranks' rows; all get the same result.

        Raises:
            DataError: If a value is not finite (names rows).
            ConfigError: If there are fewer items than components.
        """
        rows = rows_to_fit(vectors)
        refuse_few_items(min(rows.num_rows, self.sample_rows), (self.num_components,))
        mean = exact_mean(rows)
        generator = torch.Generator().manual_seed(self.seed)
        sample = uniform_sample(rows, sample_rows=self.sample_rows, generator=generator) - mean
        components = sample.new_zeros((self.num_components, rows.dim))
        if rank_and_world_size()[0] == 0:
            components = F.normalize(self._learn(sample).to(sample), dim=1)
        components = from_rank_zero(components)
        blank = sample.new_ones((len(self.codebook_sizes), self.codebook_sizes[0]))
        lengths = _lengths(
            sample, FittedDictionary(torch.zeros_like(mean), components, blank, self.signed)
        )
        return FittedDictionary(mean, components, from_rank_zero(lengths), self.signed)

    def _learn(self, sample: Tensor) -> Tensor:
        import warnings

        from sklearn.decomposition import MiniBatchDictionaryLearning
        from sklearn.exceptions import ConvergenceWarning

        learner = MiniBatchDictionaryLearning(
            n_components=self.num_components,
            alpha=self.alpha,
            max_iter=self.max_iter,
            batch_size=min(self.batch_size, len(sample)),
            fit_algorithm=self.fit_algorithm,
            random_state=self.seed,
        )
        with warnings.catch_warnings():  # a rough sparse code is enough for the next update
            warnings.simplefilter("ignore", ConvergenceWarning)
            learner.fit(sample.double().cpu().numpy())
        return torch.from_numpy(learner.components_)


def _lengths(sample: Tensor, fitted: FittedDictionary) -> Tensor:
    """Return per level and code the length that decodes best, given the levels before."""
    codes, directions = fitted.encode(sample), fitted.directions
    left = sample.clone()
    lengths = torch.zeros_like(fitted.lengths)
    for level, column in enumerate(codes.unbind(dim=1)):
        products = (left * directions[column]).sum(dim=1, dtype=torch.float64)
        sums, counts = sums_by_code(products.unsqueeze(1), column, lengths.shape[1])
        means = torch.where(counts > 0, sums[:, 0] / counts.clamp(min=1), products.mean())
        lengths[level] = means.float()
        left -= lengths[level][column].unsqueeze(1) * directions[column]
    return lengths
