"""Dictionary encoding: an item's Semantic ID names the few atoms that its vector is made of."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sidrec.distributed import from_rank_zero, rank_and_world_size
from sidrec.errors import ConfigError
from sidrec.semantic_ids.atoms import FittedDictionary
from sidrec.semantic_ids.checked_rows import exact_mean, rows_to_fit
from sidrec.semantic_ids.codebook_sizes import check_sizes, refuse_few_items
from sidrec.semantic_ids.quantizer import FittedQuantizer, Quantizer
from sidrec.semantic_ids.starts import uniform_sample


@dataclass(frozen=True, slots=True)
class Dictionary(Quantizer):
    """Sparse coding on scikit-learn's ``MiniBatchDictionaryLearning``.

    One dictionary serves all levels; codes are the atoms of an orthogonal matching pursuit with as
    many non-zero coefficients as there are levels, in the order in which it takes them, which is
    the order in which they explain the vector. That is nearly the order of their coefficients,
    but unlike it makes the first levels independent of the later ones. Levels are coarse to fine;
    a prefix is a coarser description, but equal codes at different levels name the same atom.

    Attributes:
        codebook_sizes: Codes per level, the same for all; even if ``signed``.
        signed: Half as many atoms, each with a code for either direction. Otherwise the sign of
            the coefficient is lost, and vectors on opposite sides of an atom share a code.
        alpha: Weight of the L1 penalty while atoms are learned, ``>= 0``.
        max_iter: Most passes over the sample, ``>= 1``.
        batch_size: Rows per update of the atoms, ``>= 1``.
        fit_algorithm: ``cd`` (coordinate descent) or ``lars``.
        sample_rows: Atoms and lengths are learned from at most this many rows.
        seed: Seed of all draws.

    Raises:
        ConfigError: If a setting is out of range.

    Source:
        Mairal et al. 2009 (https://doi.org/10.1145/1553374.1553463), compared for Semantic IDs
        in https://arxiv.org/abs/2508.10478, which does not say how codes are ordered or signed.
    """

    codebook_sizes: tuple[int, ...]
    signed: bool
    alpha: float
    max_iter: int
    batch_size: int
    fit_algorithm: Literal["cd", "lars"]
    sample_rows: int
    seed: int

    def __post_init__(self) -> None:
        check_sizes(self.codebook_sizes)
        sizes = list(self.codebook_sizes)
        if len(set(sizes)) > 1 or (self.signed and sizes[0] % 2):
            raise ConfigError(
                f"codebook_sizes is {sizes}, expected one size for every level, even where codes "
                "are signed: all levels choose from the same atoms."
            )
        if len(sizes) > self.num_atoms:
            raise ConfigError(
                f"{len(sizes)} levels cannot name {self.num_atoms} atoms once each; raise "
                "codebook_sizes or drop a level."
            )
        for name, least in (("alpha", 0), ("max_iter", 1), ("batch_size", 1), ("sample_rows", 2)):
            if not getattr(self, name) >= least:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected at least {least}.")

    @property
    def num_atoms(self) -> int:
        """Atoms of the dictionary."""
        return self.codebook_sizes[0] // (2 if self.signed else 1)

    def settings(self) -> dict[str, Any]:
        """Return the settings as plain JSON types."""
        return {"name": "dictionary"} | asdict(self) | {"codebook_sizes": list(self.codebook_sizes)}

    def fit(self, vectors: Float[Tensor, "item dim"]) -> FittedQuantizer:
        """Learn atoms on rank 0 from a sample of all ranks' rows; all get the same result.

        Raises:
            DataError: If a value is not finite (names rows).
            ConfigError: If there are fewer items than atoms.
        """
        rows = rows_to_fit(vectors)
        refuse_few_items(min(rows.num_rows, self.sample_rows), (self.num_atoms,))
        mean = exact_mean(rows)
        generator = torch.Generator().manual_seed(self.seed)
        sample = uniform_sample(rows, sample_rows=self.sample_rows, generator=generator) - mean
        atoms = sample.new_zeros((self.num_atoms, rows.dim))
        if rank_and_world_size()[0] == 0:
            atoms = F.normalize(self._learn(sample).to(sample), dim=1)
        atoms = from_rank_zero(atoms)
        blank = sample.new_ones((len(self.codebook_sizes), self.codebook_sizes[0]))
        lengths = _lengths(
            sample, FittedDictionary(torch.zeros_like(mean), atoms, blank, self.signed)
        )
        return FittedDictionary(mean, atoms, from_rank_zero(lengths), self.signed)

    def _learn(self, sample: Tensor) -> Tensor:
        import warnings

        from sklearn.decomposition import MiniBatchDictionaryLearning
        from sklearn.exceptions import ConvergenceWarning

        learner = MiniBatchDictionaryLearning(
            n_components=self.num_atoms,
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
        sums = products.new_zeros(lengths.shape[1]).index_add_(0, column, products)
        counts = torch.bincount(column, minlength=lengths.shape[1])
        means = torch.where(counts > 0, sums / counts.clamp(min=1), products.mean())
        lengths[level] = means.float()
        left -= lengths[level][column].unsqueeze(1) * directions[column]
    return lengths
