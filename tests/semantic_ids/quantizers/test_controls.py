from pathlib import Path

import numpy as np
import pytest
import torch

from sidrec.errors import ConfigError, DataError
from sidrec.semantic_ids.collisions.policies import ReassignLastLevel, group_numbers
from sidrec.semantic_ids.kmeans.sharded_rows import CHUNK_ROWS, block_of_rank
from sidrec.semantic_ids.quality.id_metrics import level_usage, relative_error
from sidrec.semantic_ids.quantizers.controls import (
    AtomicCodes,
    FittedAtomicCodes,
    FittedRandomCodes,
    RandomCodes,
    hash_rows,
)
from sidrec.semantic_ids.quantizers.registry import load_quantizer
from tests.ranks import run_on_ranks

BOTH = [RandomCodes((16, 12, 8), 1), AtomicCodes((16, 12, 8), 1)]


def test_numbers_become_digits_by_hand():
    # 4 vectors in 2 x 4 codes: numbers 0, 1, 2, 3 spread to 0, 2, 4, 6, as digits 00 02 10 12
    vectors = torch.randn(4, 3)
    fitted = AtomicCodes((2, 4), 0).fit(vectors)
    assert sorted(fitted.encode(vectors).tolist()) == [[0, 0], [0, 2], [1, 0], [1, 2]]


def test_without_sizes_an_item_is_one_code():
    vectors = torch.randn(50, 6)
    fitted = AtomicCodes(None, 0).fit(vectors)
    assert fitted.codebook_sizes == (50,)
    assert sorted(fitted.encode(vectors).flatten().tolist()) == list(range(50))


def test_atomic_ids_are_unique_and_use_every_level_evenly():
    vectors = torch.randn(1500, 6)
    codes = AtomicCodes((16, 12, 8), 1).fit(vectors).encode(vectors)
    assert len(codes.unique(dim=0)) == 1500
    for level, size in enumerate((16, 12, 8)):
        assert level_usage(codes[:, level], num_codes=size)["perplexity"] > 0.98 * size


def test_random_codes_are_uniform_and_levels_independent():
    codes = RandomCodes((16, 16), 1).fit(torch.zeros(1, 6)).encode(torch.randn(8000, 6))
    pairs = torch.bincount(codes[:, 0] * 16 + codes[:, 1], minlength=256).double()
    chi_square = ((pairs - 31.25).square() / 31.25).sum().item()
    assert 170 < chi_square < 360  # 255 degrees of freedom: mean 255, 99.99 % inside


@pytest.mark.parametrize("quantizer", BOTH)
def test_near_items_have_unrelated_codes_but_the_same_vector_the_same(quantizer):
    vectors = torch.randn(400, 6)
    fitted = quantizer.fit(vectors)
    near = fitted.encode(vectors + 1e-6)
    assert (near[:, 0] == fitted.encode(vectors)[:, 0]).double().mean() < 0.15
    assert torch.equal(fitted.encode(vectors.flip(0)).flip(0), fitted.encode(vectors))
    assert torch.equal(fitted.encode(vectors.T.contiguous().T), fitted.encode(vectors))


@pytest.mark.parametrize("quantizer", BOTH)
def test_every_code_decodes_to_the_mean(quantizer):
    vectors = torch.randn(300, 6) + 2
    fitted = quantizer.fit(vectors)
    codes = fitted.encode(vectors)
    torch.testing.assert_close(fitted.decode(codes[:2]), vectors.mean(dim=0).repeat(2, 1))
    assert relative_error(vectors, codes, fitted) == pytest.approx(1.0, abs=1e-6)
    errors = fitted.next_code_errors(vectors, codes[:, :1])
    expected = (vectors - vectors.mean(dim=0)).square().sum(dim=1)
    torch.testing.assert_close(errors[:, 3], expected)
    assert errors.shape == (300, 12)


@pytest.mark.parametrize("quantizer", BOTH)
def test_complete_keeps_the_prefix_and_collisions_can_be_resolved(quantizer):
    vectors = torch.randn(300, 6).repeat(2, 1)  # every vector twice
    fitted = quantizer.fit(vectors)
    prefix = torch.full((600, 1), 3)
    completed = fitted.encode_from_prefix(vectors, prefix)
    assert (completed[:, 0] == 3).all()
    assert torch.equal(completed[:, 1:], fitted.encode(vectors)[:, 1:])
    resolution = ReassignLastLevel().resolve(vectors, fitted.encode(vectors), fitted)
    assert len(group_numbers(resolution.codes).unique()) == 600


@pytest.mark.parametrize(
    ("quantizer", "made"), [(BOTH[0], FittedRandomCodes), (BOTH[1], FittedAtomicCodes)]
)
def test_stored_tensors_build_the_same_quantizer(quantizer, made):
    vectors = torch.randn(300, 6)
    fitted = quantizer.fit(vectors)
    again = load_quantizer(quantizer.settings()["name"], fitted.tensors())
    assert isinstance(again, made)
    assert torch.equal(again.encode(vectors), fitted.encode(vectors))
    assert torch.equal(again.decode(again.encode(vectors)), fitted.decode(fitted.encode(vectors)))


def test_another_seed_gives_other_codes():
    vectors = torch.randn(300, 6)
    for make in (RandomCodes, AtomicCodes):
        first, second = (make((16, 32), seed).fit(vectors).encode(vectors) for seed in (1, 2))
        assert (first == second).double().mean() < 0.2


def test_hashes_tell_rows_apart_and_ignore_the_sign_of_zero():
    rows = torch.randint(-2, 3, (5000, 5)).float()
    hashes = hash_rows(rows, key=1)
    assert len(np.unique(hashes)) == len(rows.unique(dim=0))
    assert hash_rows(torch.tensor([[0.0, 1.0]]), key=1) == hash_rows(
        torch.tensor([[-0.0, 1.0]]), key=1
    )
    assert hash_rows(torch.tensor([[0.0, 1.0]]), key=1) != hash_rows(
        torch.tensor([[1.0, 0.0]]), key=1
    )


def test_wrong_sizes_are_refused():
    with pytest.raises(ConfigError, match=r"codebook_sizes is \[1\], expected .* from 2 to 32768"):
        RandomCodes((1,), 0)
    with pytest.raises(ConfigError, match=r"20 items do not fit into codebook_sizes \[4, 4\]"):
        AtomicCodes((4, 4), 0).fit(torch.randn(20, 3))


def test_wrong_vectors_are_refused():
    fitted = RandomCodes((4,), 0).fit(torch.randn(20, 3))
    with pytest.raises(DataError, match=r"Vectors have 4 dimensions but the codebooks 3"):
        fitted.encode(torch.randn(2, 4))
    broken = torch.randn(20, 3)
    broken[7, 1] = torch.nan
    with pytest.raises(DataError, match=r"1 vectors hold NaN or infinity \(first rows: \[7\]\)"):
        RandomCodes((4,), 0).fit(broken)
    with pytest.raises(DataError, match=r"no vectors to fit"):
        RandomCodes((4,), 0).fit(torch.zeros(0, 3))


VECTORS = torch.randn(CHUNK_ROWS + 500, 6, generator=torch.Generator().manual_seed(3))
ON_RANKS = [RandomCodes((16, 12), 1), AtomicCodes((256, 64), 1)]


def encode_on_rank(rank: int, world_size: int, tmp_path: Path) -> None:
    start, stop = block_of_rank(len(VECTORS))
    for number, quantizer in enumerate(ON_RANKS):
        fitted = quantizer.fit(VECTORS[start:stop])
        torch.save((fitted.encode(VECTORS), fitted.tensors()), tmp_path / f"{number}_{rank}.pt")
    block = VECTORS[start:stop].clone()
    if rank == 1:
        block[3, 0] = torch.inf
    with pytest.raises(DataError, match=rf"first rows: \[{CHUNK_ROWS + 3}\]"):
        RandomCodes((4,), 0).fit(block)


def test_two_ranks_number_items_as_one_does(tmp_path):
    run_on_ranks(encode_on_rank, tmp_path)
    for number, quantizer in enumerate(ON_RANKS):
        fitted = quantizer.fit(VECTORS)
        for rank in range(2):
            codes, tensors = torch.load(tmp_path / f"{number}_{rank}.pt", weights_only=True)
            assert torch.equal(codes, fitted.encode(VECTORS))
            assert all(torch.equal(tensors[k], v) for k, v in fitted.tensors().items())
