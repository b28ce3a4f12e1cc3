"""Quantizers and collision policies on a pretended GPU: the CPU's codes, and nothing refused."""

import pytest
import torch

from sidrec.errors import DataError
from sidrec.semantic_ids.collisions.policies import ExtraLevel, ReassignLastLevel
from sidrec.semantic_ids.collisions.sinkhorn import SinkhornLastLevel
from sidrec.semantic_ids.kmeans.lloyd import k_means
from sidrec.semantic_ids.kmeans.sharded_rows import CHUNK_ROWS, ShardedRows, gpu_chunk_rows
from sidrec.semantic_ids.quantizers.balanced import BalancedRqKMeans
from sidrec.semantic_ids.quantizers.controls import AtomicCodes, RandomCodes
from sidrec.semantic_ids.quantizers.dictionary import Dictionary
from sidrec.semantic_ids.quantizers.product import ProductQuantizer
from sidrec.semantic_ids.quantizers.rq_kmeans import RqKMeans
from tests.fake_gpu.device import GPU, pretended_gpu

VECTORS = torch.randn(300, 6, generator=torch.Generator().manual_seed(0))
SIZES = (8, 8)
QUANTIZERS = {
    "greedy-mixed": RqKMeans(codebook_sizes=SIZES, num_iterations=3),
    "mixed, normalized": RqKMeans(
        codebook_sizes=SIZES, num_iterations=3, init="mixed", normalize_residuals=True
    ),
    "k-means++, beams": RqKMeans(
        codebook_sizes=SIZES, num_iterations=3, init="k-means++", beam_width=3
    ),
    "balanced": BalancedRqKMeans(codebook_sizes=SIZES, num_iterations=3),
    "dictionary": Dictionary(codebook_sizes=SIZES, max_iter=1),
    "product": ProductQuantizer(codebook_sizes=SIZES, rotate=True),
    "random": RandomCodes(codebook_sizes=SIZES),
    "atomic": AtomicCodes(),
}


@pytest.mark.parametrize("name", list(QUANTIZERS))
def test_codes_are_the_cpus(name):
    quantizer = QUANTIZERS[name]
    expected = quantizer.fit(VECTORS)
    codes = expected.encode(VECTORS)
    with pretended_gpu() as gpu:
        fitted = quantizer.fit(VECTORS.to(GPU))
        assert fitted.encode(VECTORS.to(GPU)).tolist() == codes.tolist()
        assert set(gpu.any_order) <= {"index_add"}  # of whole numbers on a grid: exact


def test_vectors_far_from_zero_and_a_bad_one():
    far = VECTORS + 10_000
    expected = RqKMeans(codebook_sizes=SIZES, num_iterations=2).fit(far).encode(far)
    with pretended_gpu():
        found = RqKMeans(codebook_sizes=SIZES, num_iterations=2).fit(far.to(GPU))
        assert found.encode(far.to(GPU)).tolist() == expected.tolist()
        bad = VECTORS.clone()
        bad[7, 1] = torch.nan
        with pytest.raises(DataError, match=r"first rows: \[7\]"):
            found.encode(bad.to(GPU))


@pytest.mark.parametrize(
    "policy", [ExtraLevel(), ReassignLastLevel(capacity=8), SinkhornLastLevel(capacity=8)]
)
def test_policies_give_the_cpus_ids(policy):
    quantizer = RqKMeans(codebook_sizes=SIZES, num_iterations=2).fit(VECTORS)
    codes = quantizer.encode(VECTORS)
    expected = policy.resolve(VECTORS, codes, quantizer).codes
    with pretended_gpu():
        on_gpu = type(quantizer).from_tensors(
            {name: one.to(GPU) for name, one in quantizer.tensors().items() if one.ndim}
            | {name: one for name, one in quantizer.tensors().items() if not one.ndim}
        )
        found = policy.resolve(VECTORS.to(GPU), codes.to(GPU), on_gpu).codes
        assert found.device.type == "cpu"  # Semantic IDs are files from here on
        assert torch.equal(found, expected)


def test_a_gpu_reads_large_chunks_and_few_numbers():
    num_rows = 40 * CHUNK_ROWS
    assert [gpu_chunk_rows(n) for n in (1, 31 * CHUNK_ROWS, num_rows, 10**6, 10**9)] == [
        CHUNK_ROWS,
        CHUNK_ROWS,
        2 * CHUNK_ROWS,
        8 * CHUNK_ROWS,
        16 * CHUNK_ROWS,
    ]
    points = torch.randn(num_rows, 2, generator=torch.Generator().manual_seed(0))

    def clustered(points):
        rows = ShardedRows(lambda a, b: points[a:b], len(points), 2)
        return k_means(rows, points[:4], num_iterations=2, tolerance=0.0), rows

    expected, rows = clustered(points)
    assert rows.chunk_rows == CHUNK_ROWS
    with pretended_gpu() as gpu:
        found, rows = clustered(points.to(GPU))
        assert rows.chunk_rows == 2 * CHUNK_ROWS
        torch.testing.assert_close(found.centroids.cpu(), expected.centroids)
        a_pass = gpu.places["lloyd._objective _local_scalar_dense"]
        assert a_pass == 2  # one objective an iteration, for the host's decision to go on
