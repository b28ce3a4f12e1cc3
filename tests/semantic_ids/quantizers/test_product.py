import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sidrec.errors import ConfigError, DataError
from sidrec.semantic_ids.kmeans.sharded_rows import CHUNK_ROWS, block_of_rank
from sidrec.semantic_ids.quality.id_metrics import relative_error
from sidrec.semantic_ids.quantizers.product import FittedProductQuantizer, ProductQuantizer
from sidrec.semantic_ids.quantizers.registry import load_quantizer
from tests.ranks import run_on_ranks

faiss = pytest.importorskip("faiss", reason="neither extra `cpu` nor `gpu` is installed")

SETTINGS = ProductQuantizer(
    codebook_sizes=(8, 8, 8),
    rotate=False,
    num_iterations=10,
    num_rotations=5,
    sample_rows=1000,
    seed=1,
)


def test_each_level_codes_its_own_part_by_hand():
    books = (torch.tensor([[0.0], [10.0]]), torch.tensor([[0.0], [4.0]]))
    fitted = FittedProductQuantizer(torch.eye(2), torch.tensor([7.0, 2.5]), books)
    assert fitted.encode(torch.tensor([[9.0, 1.0], [1.0, 3.0]])).tolist() == [[1, 0], [0, 1]]
    assert fitted.decode(torch.tensor([[1, 1], [0, 0]])).tolist() == [[10.0, 4.0], [0.0, 0.0]]
    assert fitted.decode(torch.tensor([[1]])).tolist() == [[10.0, 2.5]]  # the rest: the mean


def test_a_quarter_turn_by_hand():
    books = (torch.tensor([[0.0], [10.0]]), torch.tensor([[0.0], [4.0]]))
    turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])  # (x, y) -> (y, -x)
    fitted = FittedProductQuantizer(turn, torch.zeros(2), books)
    assert fitted.encode(torch.tensor([[-4.0, 10.0]])).tolist() == [[1, 1]]
    assert fitted.decode(torch.tensor([[1, 1]])).tolist() == [[-4.0, 10.0]]


@pytest.mark.parametrize("rotate", [False, True])
def test_codes_are_those_of_faiss(rotate):
    vectors = torch.randn(600, 12)
    fitted = replace(SETTINGS, rotate=rotate).fit(vectors)
    codec = faiss.ProductQuantizer(12, 3, 3)
    books = torch.stack(fitted.codebooks).flatten().numpy()
    faiss.copy_array_to_vector(books, codec.centroids)
    rotated = (vectors @ fitted.rotation.T).numpy()
    packed = torch.from_numpy(codec.compute_codes(rotated)).long()
    whole = packed[:, 0] + 256 * packed[:, 1]  # three codes of three bits
    expected = torch.stack([whole % 8, whole // 8 % 8, whole // 64 % 8], dim=1)
    assert torch.equal(fitted.encode(vectors), expected)


def test_a_rotation_helps_where_parts_are_uneven():
    scale = torch.tensor([4.0] * 4 + [0.1] * 8)  # all that matters lies in the first part
    vectors = torch.randn(1000, 12) * scale
    errors = {}
    for rotate in (False, True):
        fitted = replace(SETTINGS, rotate=rotate).fit(vectors)
        torch.testing.assert_close(
            fitted.rotation @ fitted.rotation.T, torch.eye(12), atol=1e-5, rtol=0
        )
        errors[rotate] = relative_error(vectors, fitted.encode(vectors), fitted)
    assert errors[True] < 0.6 * errors[False]


@pytest.mark.parametrize("rotate", [False, True])
def test_laws_that_every_quantizer_keeps(rotate):
    vectors = torch.randn(500, 12) + 1
    quantizer = replace(SETTINGS, rotate=rotate)
    fitted = quantizer.fit(vectors)
    codes = fitted.encode(vectors)
    assert torch.equal(fitted.encode_from_prefix(vectors, codes[:, :2]), codes)
    errors = fitted.next_code_errors(vectors, codes[:, :1])
    tried = torch.cat([codes[:, :1], torch.full((500, 1), 5)], dim=1)
    expected = (vectors - fitted.decode(tried)).square().sum(dim=1)
    torch.testing.assert_close(errors[:, 5], expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(errors.argmin(dim=1), codes[:, 1])
    by_levels = [relative_error(vectors, codes[:, :levels], fitted) for levels in (1, 2, 3)]
    assert 1 > by_levels[0] > by_levels[1] > by_levels[2] > 0
    again = load_quantizer(quantizer.settings()["name"], fitted.tensors())
    assert torch.equal(again.encode(vectors), codes)
    assert torch.equal(again.decode(codes), fitted.decode(codes))
    second = quantizer.fit(vectors)
    assert all(torch.equal(second.tensors()[k], v) for k, v in fitted.tensors().items())


def test_wrong_settings_and_vectors_are_refused():
    with pytest.raises(ConfigError, match=r"\[8, 4\], expected one power of two for every level"):
        replace(SETTINGS, codebook_sizes=(8, 4))
    with pytest.raises(ConfigError, match=r"\[12, 12\], expected one power of two"):
        replace(SETTINGS, codebook_sizes=(12, 12))
    with pytest.raises(ConfigError, match=r"Vectors of 10 dimensions cannot be cut into 3 equal"):
        SETTINGS.fit(torch.randn(100, 10))
    with pytest.raises(ConfigError, match=r"7 items, fewer than the 8 codes"):
        SETTINGS.fit(torch.randn(7, 12))
    with pytest.raises(DataError, match=r"Vectors have 9 dimensions but the codebooks 12"):
        SETTINGS.fit(torch.randn(100, 12)).encode(torch.randn(2, 9))


def test_encoding_needs_no_faiss(monkeypatch):
    vectors = torch.randn(100, 12)
    fitted = SETTINGS.fit(vectors)
    monkeypatch.setitem(sys.modules, "faiss", None)
    again = load_quantizer("pq", fitted.tensors())
    assert torch.equal(again.decode(again.encode(vectors)), fitted.decode(fitted.encode(vectors)))


VECTORS = torch.randn(CHUNK_ROWS + 500, 6, generator=torch.Generator().manual_seed(3))


def fit_on_rank(rank: int, world_size: int, tmp_path: Path) -> None:
    start, stop = block_of_rank(len(VECTORS))
    fitted = replace(SETTINGS, rotate=True).fit(VECTORS[start:stop])
    torch.save(fitted.tensors(), tmp_path / f"{rank}.pt")


def test_two_ranks_get_the_same_codebooks(tmp_path):
    run_on_ranks(fit_on_rank, tmp_path)
    expected = replace(SETTINGS, rotate=True).fit(VECTORS).tensors()
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
