import torch

from sidrec.semantic_ids.kmeans.sharded_rows import training_block


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
