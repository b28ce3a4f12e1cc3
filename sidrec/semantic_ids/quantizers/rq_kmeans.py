"""Residual k-means: each level clusters the residuals of the levels before it."""

from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sidrec.distributed import gather_objects, sum_over_ranks
from sidrec.errors import ConfigError
from sidrec.kernels.nearest import nearest_codes
from sidrec.semantic_ids.kmeans.backend import BACKENDS, Backend, Lloyd, lloyd_of
from sidrec.semantic_ids.kmeans.initialization import (
    greedy_kmeans_pp_init,
    kmeans_pp_init,
    progressive_dims_init,
    shrunken_random_init,
    uniform_sample,
)
from sidrec.semantic_ids.kmeans.lloyd import GRID_BITS, KMeans, sums_by_code
from sidrec.semantic_ids.kmeans.sharded_rows import (
    CHUNK_ROWS,
    ShardedRows,
    common_offset,
    count_checked_rows,
    exact_sum_quantum,
    training_block,
)
from sidrec.semantic_ids.quantizers.base import (
    FittedQuantizer,
    Quantizer,
    check_sizes,
    refuse_few_items,
)
from sidrec.semantic_ids.quantizers.rq_codebooks import FittedRqKMeans


def joint_refit(
    vectors: Float[Tensor, "item dim"], codes: Int[Tensor, "item level"], fitted: FittedRqKMeans
) -> FittedRqKMeans:
    """Refit the centroids of each level to minimize the error, others fixed; last level first.

    A level is fitted before the later levels exist; the refit corrects it for their contribution.
    With fixed codes no step raises the error. Collective; exact over ranks, like ``k_means``. A
    code without items keeps its centroid.

    Args:
        vectors: This rank's rows, cut by ``block_of_rank``.
        codes: Codes of the rows, all levels.
        fitted: Quantizer that made the codes; its stored lengths are kept.

    Source:
        Block coordinate descent on the least squares of additive quantization (Babenko and
        Lempitsky 2014, https://doi.org/10.1109/CVPR.2014.124).
    """
    largest = 0.0
    for start in range(0, len(vectors), CHUNK_ROWS):
        least, most = vectors[start : start + CHUNK_ROWS].aminmax()
        largest = max(largest, abs(least.item()), abs(most.item()))
    largest = max(gather_objects(largest))
    for level in reversed(range(len(fitted.codebooks))):
        sums, weights = _errors_by_code(vectors, codes, fitted, level, largest)
        step = torch.where(weights > 0, sums / weights.clamp(min=1e-30), 0.0)
        books = list(fitted.codebooks)
        books[level] = (books[level] + step).float()
        fitted = replace(fitted, codebooks=tuple(books))
    return fitted


def _errors_by_code(
    vectors: Tensor, codes: Tensor, fitted: FittedRqKMeans, level: int, largest: float
) -> tuple[Tensor, Tensor]:
    """Return per code the sum of error times length, and of length squared, of its items."""
    pairs = zip(fitted.codebooks, fitted.lengths, strict=True)
    decoded = sum(book.abs().max().item() * lengths.max().item() for book, lengths in pairs)
    most = fitted.lengths[level].max().item()
    unit = exact_sum_quantum(max((largest + decoded) * most, most * most) * CHUNK_ROWS, GRID_BITS)
    num_codes, dim = fitted.codebooks[level].shape
    totals = torch.zeros((num_codes, dim + 1), dtype=torch.float64, device=vectors.device)
    for start in range(0, len(vectors), CHUNK_ROWS):
        chunk = vectors[start : start + CHUNK_ROWS].float()
        part = codes[start : start + CHUNK_ROWS]
        before = part[:, level - 1] if level else torch.zeros_like(part[:, 0])
        length = fitted.lengths[level][before].unsqueeze(1)
        error = (chunk - fitted.decode(part)) * length
        sums, _ = sums_by_code(torch.cat([error, length * length], 1), part[:, level], num_codes)
        totals += sums.double().div_(unit).round_()
    totals = sum_over_ranks(totals) * unit
    return totals[:, :-1], totals[:, -1:]


Init = Literal["greedy-mixed", "greedy", "mixed", "central", "progressive", "k-means++"]
INITS: tuple[Init, ...] = get_args(Init)
_INITIALIZERS = {
    "central": shrunken_random_init,
    "greedy": greedy_kmeans_pp_init,
    "k-means++": kmeans_pp_init,
    "progressive": progressive_dims_init,
}
_BEFORE_LAST = {"greedy-mixed": "greedy", "mixed": "central"}  # the last level: progressive
_SUM_BITS = 29


@dataclass(frozen=True, slots=True)
class RqKMeans(Quantizer):
    """Residual k-means quantizer; the same settings give the same codes.

    Attributes:
        codebook_sizes: Codes per level, coarse first, each in [2, 32768].
        num_iterations: Most k-means iterations per level, ``>= 1``.
        tolerance: A level stops when an iteration lowers its objective by less than this
            fraction, ``>= 0``.
        num_redo: Runs per level with different random draws, ``>= 1``; the best is kept.
        init: ``greedy`` (greedy k-means++ pulled to the mean: least error), ``central`` (random
            rows pulled to the mean), ``progressive`` (growing principal dimensions: evenest codes),
            ``greedy-mixed`` and ``mixed`` (greedy or central, the last level progressive), or
            ``k-means++``.
        sample_rows_per_code: Initial centroids come from this many rows per code, drawn uniformly.
        normalize_residuals: Scale every residual to length 1 before the next level.
        seed: Seed of all draws.
        shrink: With fewer items than codes, use as many codes as items instead of an error.
        beam_width: Prefixes kept per item when encoding, ``>= 1`` (see ``FittedRqKMeans``); 1 is
            greedy. With residual normalization, wider beams compare errors after scaling back.
        num_refit_rounds: Final rounds that refit the codebooks of all levels together to the codes
            of the items (see ``joint_refit``), ``>= 0``.
        train_rows_per_code: Codebooks are fitted on at most this many rows per code of the
            largest level, drawn uniformly (faiss.Kmeans takes 256); null fits on all.
        backend: Library of the iterations: ``torch``, ``faiss``, or ``auto`` (see ``lloyd_of``).
            Initialization, residuals and encoding use torch either way.

    Raises:
        ConfigError: If a setting is out of range.
    """

    codebook_sizes: tuple[int, ...] = (256, 256, 256)
    num_iterations: int = 25
    tolerance: float = 7e-4
    num_redo: int = 1
    init: Init = "greedy-mixed"
    sample_rows_per_code: int = 32
    normalize_residuals: bool = False
    seed: int = 1234
    shrink: bool = False
    beam_width: int = 1
    num_refit_rounds: int = 3
    train_rows_per_code: int | None = 256
    backend: Backend = "torch"

    name = "rq_kmeans"

    def __post_init__(self) -> None:
        check_sizes(self.codebook_sizes)
        if self.init not in INITS:
            raise ConfigError(f"init is '{self.init}', expected one of {', '.join(INITS)}.")
        if self.backend not in BACKENDS:
            raise ConfigError(f"backend is '{self.backend}', expected {', '.join(BACKENDS)}.")
        counts = ["num_iterations", "num_redo", "sample_rows_per_code", "beam_width"]
        if self.train_rows_per_code is not None:
            counts.append("train_rows_per_code")
        for name in (*counts, "tolerance", "num_refit_rounds"):
            least = 1 if name in counts else 0
            if not getattr(self, name) >= least:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected at least {least}.")

    def fit(self, vectors: Float[Tensor, "item dim"]) -> FittedQuantizer:
        """Fit on the vectors of all ranks; every rank passes its block and gets the same result."""
        return fit_rq_kmeans(vectors, self)


def fit_rq_kmeans(vectors: Float[Tensor, "item dim"], settings: RqKMeans) -> FittedRqKMeans:
    """Fit one codebook per level to the residuals of the levels before.

    Collective: every rank calls it with its block of the rows (cut by ``block_of_rank``).
    Codebooks have the same bits for any number of ranks on the same kind of device.

    Args:
        vectors: This rank's rows, any floating dtype and strides, on the device to work on; may
            be memory-mapped: it is read in chunks.
        settings: All that changes the result.

    Raises:
        DataError: If a value is not finite (names rows), or there are fewer items than codes.

    Source:
        Residual k-means as in OneRec, sec. 3 (https://arxiv.org/abs/2502.18965). Normalized
        residuals against the hourglass effect (https://arxiv.org/abs/2407.21488). Differs: the
        residual is taken after scaling back, so each level corrects the true decoding error.
    """
    num_items = count_checked_rows(vectors)
    sizes = settings.codebook_sizes
    if settings.shrink:
        sizes = tuple(min(size, num_items) for size in sizes)
    remedy = f", or set shrink: true to use at most {num_items} codes a level"
    refuse_few_items(num_items, sizes, remedy=remedy)
    lloyd = lloyd_of(settings.backend, vectors.device)
    per_code = settings.train_rows_per_code
    num_rows = None if per_code is None else per_code * max(sizes)
    vectors = training_block(vectors, num_rows=num_rows, seed=settings.seed)
    offset = common_offset(vectors)
    if offset is not None:
        vectors = vectors.float() - offset
    codebooks: list[Tensor] = []
    lengths: list[Tensor] = []
    codes = torch.zeros((len(vectors), 0), dtype=torch.int64, device=vectors.device)
    for level, size in enumerate(sizes):
        fitted = FittedRqKMeans(tuple(codebooks), tuple(lengths), settings.normalize_residuals)
        rows = ShardedRows(_Residuals(vectors, codes, fitted), len(vectors), vectors.shape[1])
        codebooks.append(_best_run(rows, size, level, settings, lloyd).centroids)
        lengths.append(_lengths(vectors, codes, fitted, codebooks[-1]))
        fitted = FittedRqKMeans(tuple(codebooks), tuple(lengths), settings.normalize_residuals)
        if level + 1 < len(sizes) or settings.num_refit_rounds:
            codes = fitted.encode_from_prefix(vectors, codes)
    for number in range(settings.num_refit_rounds):
        codes = fitted.encode(vectors) if number else codes
        fitted = joint_refit(vectors, codes, fitted)
    return replace(fitted, beam_width=settings.beam_width, offset=offset)


class _Residuals:
    """Reader of the residuals that the level after ``codes`` quantizes."""

    def __init__(self, vectors: Tensor, codes: Tensor, fitted: FittedRqKMeans) -> None:
        self.vectors, self.codes, self.fitted = vectors, codes, fitted

    def __call__(self, start: int, stop: int) -> Tensor:
        return self.fitted.residual(self.vectors[start:stop].float(), self.codes[start:stop])


def _best_run(rows: ShardedRows, size: int, level: int, settings: RqKMeans, lloyd: Lloyd) -> KMeans:
    init: str = settings.init
    if init in _BEFORE_LAST:
        is_last = level + 1 == len(settings.codebook_sizes)
        init = "progressive" if is_last else _BEFORE_LAST[init]
    runs = []
    for redo in range(settings.num_redo):
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + level * 1_009 + redo)
        num_rows = settings.sample_rows_per_code * size
        sample = uniform_sample(rows, sample_rows=num_rows, generator=generator)
        initial = _INITIALIZERS[init](sample, num_codes=size, generator=generator)
        runs.append(
            lloyd(
                rows,
                initial,
                num_iterations=settings.num_iterations,
                tolerance=settings.tolerance,
            )
        )
    return min(runs, key=lambda run: run.objectives[-1])


def _lengths(vectors: Tensor, codes: Tensor, fitted: FittedRqKMeans, codebook: Tensor) -> Tensor:
    """Return per code of the level before the length that decodes its residuals best."""
    level = codes.shape[1]
    if level == 0 or not fitted.normalized:
        return torch.ones(len(fitted.codebooks[-1]) if level else 1, device=vectors.device)
    read = _Residuals(vectors, codes, fitted)
    products = vectors.new_empty((len(vectors), 2), dtype=torch.float32)
    for start in range(0, len(vectors), CHUNK_ROWS):
        stop = min(start + CHUNK_ROWS, len(vectors))
        direction = codebook[nearest_codes(read(start, stop), codebook)]
        left = vectors[start:stop].float() - fitted.decode(codes[start:stop])
        products[start:stop, 0] = (left * direction).sum(dim=1)  # with the residual
        products[start:stop, 1] = direction.square().sum(dim=1)
    both = products.double()
    largest = max(gather_objects(both.abs().max().item() if len(both) else 0.0))
    unit = exact_sum_quantum(largest, _SUM_BITS)
    sums = both.new_zeros((len(fitted.codebooks[-1]), 2))
    sums.index_add_(0, codes[:, -1], (both / unit).round_())
    sums = sum_over_ranks(sums)
    overall = sums[:, 0].sum() / sums[:, 1].sum().clamp(min=1)
    own = torch.where(sums[:, 1] > 0, sums[:, 0] / sums[:, 1].clamp(min=1), overall)
    return own.clamp(min=0).float()
