"""Residual k-means by others, each level or all levels, brought to one form: codes and codebooks.

Each function takes vectors, a seed and the limit of iterations, and returns codes [item, level]
and what they decode to; all make 3 x 256 codes. ``all_rows`` takes away the limit of 256 training
rows a code that faiss has by default and the others have not.
"""

from collections.abc import Callable

import numpy as np
import torch

LEVELS, CODES = 3, 256
Answer = tuple[np.ndarray, np.ndarray]
OneLevel = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]


def residually(vectors: np.ndarray, one_level: OneLevel) -> Answer:
    """Fit level after level on what the levels before leave over."""
    left, codes = np.array(vectors), []
    for level in range(LEVELS):
        book, chosen = one_level(left, level)
        codes.append(chosen)
        left -= book[chosen]
    return np.stack(codes, axis=1), vectors - left


def faiss_kmeans(vectors: np.ndarray, seed: int, iterations: int, *, all_rows: bool) -> Answer:
    """``faiss.Kmeans`` per level, its own random start."""
    import faiss

    def one_level(left: np.ndarray, level: int) -> tuple[np.ndarray, np.ndarray]:
        extra = {"max_points_per_centroid": len(left)} if all_rows else {}
        run = faiss.Kmeans(left.shape[1], CODES, niter=iterations, seed=seed * 10 + level, **extra)
        run.train(left)
        return np.asarray(run.centroids), run.index.search(left, 1)[1][:, 0]

    return residually(vectors, one_level)


def faiss_residual_quantizer(
    vectors: np.ndarray, seed: int, iterations: int, *, all_rows: bool
) -> Answer:
    """``faiss.ResidualQuantizer``: 10 progressive steps of 10 iterations, beam 5, its defaults."""
    import faiss

    del iterations  # its own: each of ten steps runs ten
    dim = vectors.shape[1]
    quantizer = faiss.ResidualQuantizer(dim, LEVELS, 8)
    quantizer.cp.seed = seed
    if all_rows:
        quantizer.cp.max_points_per_centroid = 10**9
    quantizer.train(vectors)
    codes = quantizer.compute_codes(vectors).astype(np.int64)
    books = faiss.vector_to_array(quantizer.codebooks).reshape(LEVELS, CODES, dim)
    return codes, sum(books[level][codes[:, level]] for level in range(LEVELS))


def sklearn_minibatch(vectors: np.ndarray, seed: int, iterations: int, *, all_rows: bool) -> Answer:
    """``MiniBatchKMeans`` with its defaults: k-means++, batches of 1,024, stops by itself."""
    from sklearn.cluster import MiniBatchKMeans

    del all_rows

    def one_level(left: np.ndarray, level: int) -> tuple[np.ndarray, np.ndarray]:
        run = MiniBatchKMeans(
            CODES, max_iter=iterations, random_state=seed * 10 + level, n_init=1
        ).fit(left)
        return run.cluster_centers_, run.labels_

    return residually(vectors, one_level)


def fastkmeans(vectors: np.ndarray, seed: int, iterations: int, *, all_rows: bool) -> Answer:
    """``fastkmeans.FastKMeans`` per level on the CPU."""
    from fastkmeans import FastKMeans

    def one_level(left: np.ndarray, level: int) -> tuple[np.ndarray, np.ndarray]:
        extra = {} if all_rows else {"max_points_per_centroid": 256}
        run = FastKMeans(
            left.shape[1], CODES, niter=iterations, seed=seed * 10 + level, device="cpu", **extra
        )
        run.train(left)
        return run.centroids, run.predict(left)

    return residually(vectors, one_level)


def semantic_id(vectors: np.ndarray, seed: int, iterations: int, *, all_rows: bool) -> Answer:
    """``semantic_id.RQKMeans`` (PyPI: semantic-id) on the CPU, one initialization a level."""
    from semantic_id import RQKMeans

    del all_rows
    run = RQKMeans(LEVELS, CODES, max_iter=iterations, random_state=seed, n_init=1)
    run.fit(vectors)
    codes = run.encode(vectors)
    return codes, sum(book[codes[:, level]] for level, book in enumerate(run.codebooks_))


def cornac_tiger(vectors: np.ndarray, seed: int, iterations: int, *, all_rows: bool) -> Answer:
    """The k-means with which cornac's TIGER starts its codebooks, level by level.

    cornac offers no residual k-means as such: its RQ-VAE begins with this function.
    """
    from cornac.models.tiger.tiger import _kmeans

    del all_rows

    def one_level(left: np.ndarray, level: int) -> tuple[np.ndarray, np.ndarray]:
        torch.manual_seed(seed * 10 + level)
        rows = torch.from_numpy(left)
        book = _kmeans(rows, CODES, n_iters=iterations)
        return book.numpy(), torch.cdist(rows, book).argmin(dim=1).numpy()

    return residually(vectors, one_level)


PEERS = {
    "faiss.Kmeans": faiss_kmeans,
    "faiss.ResidualQuantizer": faiss_residual_quantizer,
    "MiniBatchKMeans": sklearn_minibatch,
    "fastkmeans": fastkmeans,
    "semantic-id": semantic_id,
    "cornac": cornac_tiger,
}
