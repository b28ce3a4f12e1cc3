"""Backend of Lloyd's k-means iterations: torch (any device, any ranks) or faiss (one process)."""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sidrec.console import say
from sidrec.distributed import rank_and_world_size
from sidrec.errors import ConfigError
from sidrec.semantic_ids.kmeans.lloyd import KMeans, k_means
from sidrec.semantic_ids.kmeans.sharded_rows import ShardedRows

Backend = Literal["auto", "torch", "faiss"]
BACKENDS: tuple[Backend, ...] = ("auto", "torch", "faiss")
Lloyd = Callable[..., KMeans]  # with the arguments of k_means


def lloyd_of(backend: Backend, device: torch.device) -> Lloyd:
    """Return the function that runs Lloyd's iterations.

    Args:
        backend: ``torch``; ``faiss``, which must be installed and works in one process; ``auto``
            takes faiss where it can do the work, else torch, and says which on one line.
        device: Device of the vectors. On CUDA faiss must see a GPU; otherwise it would silently
            train on the CPU.

    Raises:
        ConfigError: If faiss is asked for and cannot do the work.
    """
    if backend == "torch":
        return k_means
    obstacle = _obstacle(device)
    if backend == "auto":
        chosen = f"torch ({obstacle})" if obstacle else f"faiss on {device.type}"
        if rank_and_world_size()[0] == 0:
            say(f"k-means backend: {chosen}")
    elif obstacle:
        raise ConfigError(f"backend is 'faiss', but {obstacle}; set backend: torch.")
    return k_means if obstacle else partial(faiss_k_means, on_gpu=device.type == "cuda")


def faiss_k_means(
    rows: ShardedRows,
    initial: Float[Tensor, "code dim"],
    *,
    num_iterations: int,
    tolerance: float,
    on_gpu: bool,
) -> KMeans:
    """Improve ``initial`` as ``k_means`` does, by ``faiss.Kmeans``; reads all rows into memory.

    Differs: a code that no row chose splits a large cluster; faiss before 1.13 has no tolerance and
    runs all iterations. The same seed and version give the same centroids on the CPU.

    Source:
        https://github.com/facebookresearch/faiss, ``Clustering``.
    """
    import faiss

    points = torch.cat(list(rows.chunks())).cpu().numpy()
    extra: dict[str, Any] = {}
    if hasattr(faiss.ClusteringParameters(), "early_stop_threshold"):
        extra["early_stop_threshold"] = tolerance
    runner = faiss.Kmeans(
        rows.dim,
        len(initial),
        niter=num_iterations,
        min_points_per_centroid=1,
        max_points_per_centroid=max(rows.num_rows, 1),
        gpu=on_gpu,
        **extra,
    )
    runner.train(points, init_centroids=initial.cpu().numpy())
    centroids = torch.from_numpy(runner.centroids).to(initial.device)
    objectives: list[float] = list(runner.obj if runner.obj is not None else [])
    return KMeans(centroids, [float(total) / rows.num_rows for total in objectives])


def _obstacle(device: torch.device) -> str | None:
    """Return why faiss cannot do the work, or None."""
    _, world_size = rank_and_world_size()
    if world_size > 1:
        return f"there are {world_size} ranks and faiss works in one process"
    if device.type not in ("cpu", "cuda"):
        return f"the vectors are on {device.type}, which faiss does not know"
    if find_spec("faiss") is None:
        return "faiss is not installed (pip install 'sidrec[cpu]' or 'sidrec[gpu]')"
    if device.type == "cuda":
        import faiss

        if not getattr(faiss, "get_num_gpus", int)():
            return "the vectors are on a GPU and this build of faiss sees none"
    return None
