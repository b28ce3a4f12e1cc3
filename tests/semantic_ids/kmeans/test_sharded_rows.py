import pytest
import torch

from sidrec.errors import DataError
from sidrec.semantic_ids.kmeans.sharded_rows import (
    count_checked_rows,
    gpu_chunk_rows,
    training_block,
)


def test_a_sample_holds_rows_once_and_in_order():
    vectors = torch.arange(1000.0).unsqueeze(1).half()
    sample = training_block(vectors, num_rows=100, seed=1)
    assert sample.dtype == torch.float32
    assert len(sample.unique()) == 100
    assert sample.equal(sample.sort(dim=0).values)
    assert not sample.equal(training_block(vectors, num_rows=100, seed=2))


def test_few_rows_are_all_taken_without_a_copy():
    vectors = torch.randn(50, 2)
    assert training_block(vectors, num_rows=50, seed=1) is vectors
    assert training_block(vectors, num_rows=None, seed=1) is vectors


@pytest.mark.parametrize(
    ("num_rows", "chunk_rows"),
    [(0, 4096), (131_071, 4096), (131_072, 8192), (1_048_575, 32_768), (10**9, 65_536)],
)
def test_chunks_of_a_gpu_grow_while_there_are_sixteen_of_them(num_rows, chunk_rows):
    assert gpu_chunk_rows(num_rows) == chunk_rows


def test_rows_are_counted_and_those_that_are_not_finite_named():
    assert count_checked_rows(torch.zeros(1, 3)) == 1
    with pytest.raises(DataError, match="There are no vectors to fit"):
        count_checked_rows(torch.zeros(0, 3))
    vectors = torch.zeros(5000, 2)
    vectors[3, 0], vectors[4999, 1] = torch.nan, torch.inf
    with pytest.raises(DataError, match=r"2 vectors hold NaN or .* \(first rows: \[3, 4999\]\)"):
        count_checked_rows(vectors)
