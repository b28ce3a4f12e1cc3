"""RQ-VAE and Residual-LFQ as quantizers."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sidrec.errors import ConfigError, DataError
from sidrec.semantic_ids.kmeans.sharded_rows import CHUNK_ROWS, block_of_rank
from sidrec.semantic_ids.learned.codebooks import FittedLearnedQuantizer
from sidrec.semantic_ids.learned.method_settings import ResidualLfq, RqVae
from sidrec.semantic_ids.learned.quantizer import LearnedQuantizer
from sidrec.semantic_ids.quality.id_metrics import level_usage, relative_error
from sidrec.semantic_ids.quantizers.registry import load_quantizer
from tests.ranks import run_on_ranks

VAE = RqVae(
    codebook_sizes=(16, 8),
    hidden_sizes=(16,),
    latent_dim=4,
    standardize=True,
    init="k-means",
    ema_decay=0.9,
    dead_code_share=0.1,
    commitment_weight=0.25,
    diversity_weight=0.0,
    diversity_temperature=1.0,
)
LFQ = ResidualLfq(
    codebook_sizes=(16, 16),
    hidden_sizes=(16,),
    standardize=True,
    entropy_weight=0.05,
    diversity_gamma=1.0,
    temperature=0.1,
    commitment_weight=0.1,
)
SHORT = LearnedQuantizer(
    method=VAE,
    num_steps=5,
    batch_size=64,
    learning_rate=3e-3,
    weight_decay=0.0,
    warmup_fraction=0.0,
    sample_rows=10_000,
    seed=1,
)


def clustered(num_rows):
    return torch.randn(12, 6)[torch.randint(12, (num_rows,))] + 0.3 * torch.randn(num_rows, 6)


def same(first, second):
    left, right = first.tensors(), second.tensors()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def test_standardized_coded_and_scaled_back_by_hand():
    identity = ((torch.eye(2), torch.zeros(2)),)
    books = (torch.tensor([[0.0, 0.0], [3.0, 0.0]]), torch.tensor([[0.0, 0.0], [0.0, 1.0]]))
    fitted = FittedLearnedQuantizer(
        torch.tensor([5.0, 5.0]), torch.tensor([2.0, 1.0]), identity, books, identity
    )
    # (11, 6) - 5, over (2, 1): (3, 1), codes 1 and 1, decoded 2 * 3 + 5 and 1 + 5
    assert fitted.encode(torch.tensor([[11.0, 6.0]])).tolist() == [[1, 1]]
    assert fitted.decode(torch.tensor([[1, 1], [0, 0]])).tolist() == [[11.0, 6.0], [5.0, 5.0]]
    assert fitted.next_code_errors(torch.tensor([[11.0, 6.0]]), torch.tensor([[1]])).tolist() == [
        [1.0, 0.0]
    ]


@pytest.mark.parametrize("method", [VAE, LFQ], ids=["rq_vae", "residual_lfq"])
def test_training_reconstructs_and_uses_the_codes(method):
    vectors = clustered(600)
    start, end = (replace(SHORT, method=method, num_steps=n).fit(vectors) for n in (1, 60))
    errors = [relative_error(vectors, fitted.encode(vectors), fitted) for fitted in (start, end)]
    assert errors[1] < 0.8 * errors[0]
    codes = end.encode(vectors)
    assert level_usage(codes[:, 0], num_codes=16)["perplexity"] > 5


@pytest.mark.parametrize("method", [VAE, LFQ], ids=["rq_vae", "residual_lfq"])
def test_laws_that_every_quantizer_keeps(method):
    vectors, quantizer = clustered(300), replace(SHORT, method=method)
    fitted = quantizer.fit(vectors)
    codes = fitted.encode(vectors)
    assert torch.equal(fitted.encode_from_prefix(vectors, codes[:, :1]), codes)
    assert torch.equal(fitted.next_code_errors(vectors, codes[:, :1]).argmin(dim=1), codes[:, 1])
    assert fitted.decode(codes[:, :0]).shape == vectors.shape
    again = load_quantizer(quantizer.settings()["name"], fitted.tensors())
    assert torch.equal(again.encode(vectors), codes)
    assert torch.equal(again.decode(codes), fitted.decode(codes))
    assert same(quantizer.fit(vectors), fitted)
    assert not same(replace(quantizer, seed=2).fit(vectors), fitted)


def test_units_of_the_vectors_do_not_matter_when_standardized():
    vectors, scale = clustered(300), torch.tensor([1.0, 8.0, 0.125, 2.0, 1.0, 4.0])
    codes = SHORT.fit(vectors).encode(vectors)
    scaled = vectors * scale + 0.5
    agree = SHORT.fit(scaled).encode(scaled)
    assert (agree == codes).double().mean() > 0.95


def test_fitting_leaves_no_trace_outside(capfd):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with torch.inference_mode():
        SHORT.fit(clustered(100))
        torch.manual_seed(5)
        SHORT.fit(torch.ones(100, 6))
    assert torch.equal(torch.rand(3), expected)
    shown = capfd.readouterr()
    assert shown.out + shown.err == ""
    assert logging.getLogger("lightning.pytorch").level != logging.ERROR


def test_signs_are_found_again_by_the_nearest_code():
    vectors = clustered(300)
    fitted = replace(SHORT, method=LFQ).fit(vectors)
    assert fitted.codebooks[0].unique().tolist() == [-1.0, 1.0]
    assert fitted.codebooks[1].unique().tolist() == [-0.5, 0.5]


def test_settings_out_of_range_are_refused():
    with pytest.raises(ConfigError, match=r"\[16, 8\], expected one power of two for every level"):
        replace(LFQ, codebook_sizes=(16, 8))
    with pytest.raises(ConfigError, match=r"ema_decay is 1.0, expected a number in \[0, 1\)"):
        replace(VAE, ema_decay=1.0)
    with pytest.raises(ConfigError, match=r"commitment_weight is -1.0, expected at least 0"):
        replace(LFQ, commitment_weight=-1.0)
    with pytest.raises(ConfigError, match=r"temperature is 0.0, expected more than 0"):
        replace(LFQ, temperature=0.0)
    with pytest.raises(ConfigError, match=r"num_steps is 0, expected at least 1"):
        replace(SHORT, num_steps=0)
    with pytest.raises(ConfigError, match=r"12 items, fewer than the 16 codes"):
        SHORT.fit(torch.randn(12, 6))
    with pytest.raises(DataError, match=r"hold NaN or infinity \(first rows: \[0\]\)"):
        SHORT.fit(torch.full((1, 6), torch.nan))
    with pytest.raises(DataError, match=r"Vectors have 5 dimensions but the codebooks 6"):
        SHORT.fit(clustered(100)).encode(torch.randn(2, 5))


torch.manual_seed(3)
VECTORS = clustered(CHUNK_ROWS + 500)


def fit_on_rank(rank: int, world_size: int, tmp_path: Path) -> None:
    start, stop = block_of_rank(len(VECTORS))
    torch.save(SHORT.fit(VECTORS[start:stop]).tensors(), tmp_path / f"{rank}.pt")


@pytest.mark.slow
def test_two_ranks_train_the_same_network(tmp_path):
    run_on_ranks(fit_on_rank, tmp_path)
    expected = SHORT.fit(VECTORS).tensors()
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
