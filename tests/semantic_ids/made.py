"""Small quantizers and bundles for the tests of this room."""

import torch

from sidrec.semantic_ids.quantizers.rq_codebooks import FittedRqKMeans
from sidrec.semantic_ids.quantizers.rq_kmeans import RqKMeans


def quantizer_of(*codebooks):
    """Return residual codebooks as given, one per level."""
    codebooks = tuple(torch.tensor(codebook) for codebook in codebooks)
    lengths = (torch.ones(1), *(torch.ones(len(codebook)) for codebook in codebooks[:-1]))
    return FittedRqKMeans(codebooks, lengths, normalized=False)


def random_quantizer(sizes, *, dim=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    books = tuple(
        torch.randn(size, dim, generator=generator) / 3**level for level, size in enumerate(sizes)
    )
    lengths = (torch.ones(1), *(torch.ones(size) for size in sizes[:-1]))
    return FittedRqKMeans(books, lengths, normalized=False)


def small_settings(*sizes):
    """Return settings of residual k-means that fit in milliseconds."""
    return RqKMeans(
        num_refit_rounds=0,
        train_rows_per_code=None,
        codebook_sizes=sizes,
        num_iterations=3,
        tolerance=0.0,
        num_redo=1,
        init="progressive",
        sample_rows_per_code=64,
        normalize_residuals=False,
        seed=1,
    )
