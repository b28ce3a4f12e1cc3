"""Small quantisers and bundles for the tests of this room."""

import torch

from sidrec.semantic_ids.rq_codebooks import RqKMeans
from sidrec.semantic_ids.rq_kmeans import RqKMeansQuantiser


def quantiser_of(*codebooks):
    """Return residual codebooks as given, one per level."""
    codebooks = tuple(torch.tensor(codebook) for codebook in codebooks)
    lengths = (torch.ones(1), *(torch.ones(len(codebook)) for codebook in codebooks[:-1]))
    return RqKMeans(codebooks, lengths, normalised=False)


def random_quantiser(sizes, *, dim=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    books = tuple(
        torch.randn(size, dim, generator=generator) / 3**level for level, size in enumerate(sizes)
    )
    lengths = (torch.ones(1), *(torch.ones(size) for size in sizes[:-1]))
    return RqKMeans(books, lengths, normalised=False)


def small_settings(*sizes):
    """Return settings of residual k-means that fit in milliseconds."""
    return RqKMeansQuantiser(
        codebook_sizes=sizes,
        num_iterations=3,
        tolerance=0.0,
        num_redo=1,
        init="progressive",
        sample_rows_per_code=64,
        normalise_residuals=False,
        seed=1,
    )
