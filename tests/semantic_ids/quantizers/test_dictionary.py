from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch

from sidrec.errors import ConfigError, DataError
from sidrec.semantic_ids.kmeans.sharded_rows import CHUNK_ROWS, block_of_rank
from sidrec.semantic_ids.quality.id_metrics import relative_error
from sidrec.semantic_ids.quantizers.dictionary import Dictionary, FittedDictionary
from sidrec.semantic_ids.quantizers.registry import load_quantizer
from tests.ranks import run_on_ranks

SETTINGS = Dictionary(
    codebook_sizes=(16, 16, 16),
    signed=True,
    alpha=0.5,
    max_iter=20,
    batch_size=64,
    fit_algorithm="cd",
    sample_rows=1000,
    seed=1,
)


def test_atoms_are_taken_by_size_and_named_with_their_direction():
    components = FittedDictionary(torch.zeros(3), torch.eye(3), torch.ones(2, 6), signed=True)
    vectors = torch.tensor([[0.1, -5.0, 2.0], [3.0, 0.0, -4.0]])
    assert components.encode(vectors).tolist() == [[4, 2], [5, 0]]  # -e1 e2; -e2 e0
    assert components.decode(torch.tensor([[4, 2]])).tolist() == [[0.0, -1.0, 1.0]]
    unsigned = FittedDictionary(torch.zeros(3), torch.eye(3), torch.ones(2, 3), signed=False)
    assert unsigned.encode(vectors).tolist() == [[1, 2], [2, 0]]


def test_stored_lengths_by_hand():
    lengths = torch.tensor([[2.0, 3.0], [5.0, 7.0]])
    components = FittedDictionary(torch.tensor([1.0, 1.0]), torch.eye(2), lengths, signed=False)
    assert components.decode(torch.tensor([[0, 1], [1, 0]])).tolist() == [[3.0, 8.0], [6.0, 4.0]]
    assert components.decode(torch.zeros((1, 0), dtype=torch.int64)).tolist() == [[1.0, 1.0]]


def pursuit_by_hand(vector, components, num_levels):
    """Orthogonal matching pursuit with a least-squares solver, one vector at a time."""
    chosen, left = [], vector
    for _ in range(num_levels):
        scores = (components @ left).abs()
        scores[chosen] = -1
        chosen.append(int(scores.argmax()))
        basis = components[chosen].T
        left = vector - basis @ torch.linalg.lstsq(basis, vector.unsqueeze(1)).solution.squeeze(1)
    signs = [int(components[component] @ vector < 0) for component in chosen]
    return chosen, signs


@pytest.mark.parametrize("signed", [False, True])
def test_encode_is_orthogonal_matching_pursuit(signed):
    vectors = torch.randn(200, 6)
    fitted = replace(SETTINGS, signed=signed).fit(vectors)
    codes = fitted.encode(vectors[:50]) % len(fitted.components)
    for vector, row in zip(vectors[:50], codes.tolist(), strict=True):
        assert row == pursuit_by_hand(vector - fitted.mean, fitted.components, 3)[0]


def test_a_catalogue_made_of_atoms_is_found_again():
    truth = torch.linalg.qr(torch.randn(16, 8)).Q.T  # 8 orthonormal directions in 16 dimensions
    pairs = torch.tensor([pair for pair in product(range(8), repeat=2) if pair[0] != pair[1]])
    sign = torch.tensor([1.0, -1.0])[torch.randint(2, (40 * len(pairs), 2))].unsqueeze(2)
    vectors = (sign * torch.tensor([[[2.0], [1.0]]]) * truth[pairs.repeat(40, 1)]).sum(dim=1)
    fitted = replace(SETTINGS, codebook_sizes=(16, 16), sample_rows=4000).fit(vectors)
    assert relative_error(vectors, fitted.encode(vectors), fitted) < 0.02


@pytest.mark.parametrize("signed", [False, True])
def test_more_levels_err_less_and_a_sign_is_worth_having(signed):
    vectors = torch.randn(1500, 6)
    fitted = replace(SETTINGS, signed=signed).fit(vectors)
    codes = fitted.encode(vectors)
    errors = [relative_error(vectors, codes[:, :levels], fitted) for levels in (1, 2, 3)]
    if signed:
        assert 0.9 > errors[0] > errors[1] > errors[2] > 0
    else:
        assert errors[2] > 0.5


@pytest.mark.parametrize("signed", [False, True])
def test_laws_that_every_quantizer_keeps(signed):
    vectors = torch.randn(300, 6)
    fitted = replace(SETTINGS, signed=signed).fit(vectors)
    codes = fitted.encode(vectors)
    assert torch.equal(fitted.encode_from_prefix(vectors, codes[:, :2]), codes)
    assert len({*map(len, codes.unique(dim=0).tolist())}) == 1
    errors = fitted.next_code_errors(vectors, codes[:, :1])
    tried = torch.cat([codes[:, :1], torch.full((300, 1), 5)], dim=1)
    expected = (vectors - fitted.decode(tried)).square().sum(dim=1)
    torch.testing.assert_close(errors[:, 5], expected, rtol=1e-4, atol=1e-5)
    again = load_quantizer("dictionary", fitted.tensors())
    assert torch.equal(again.encode(vectors), codes)
    assert torch.equal(again.decode(codes), fitted.decode(codes))
    second = replace(SETTINGS, signed=signed).fit(vectors)
    assert all(torch.equal(second.tensors()[k], v) for k, v in fitted.tensors().items())


def test_no_atom_is_taken_twice_even_when_nothing_is_left():
    fitted = SETTINGS.fit(torch.randn(300, 6))
    codes = fitted.encode(
        torch.cat([fitted.mean.unsqueeze(0), fitted.mean + 2 * fitted.components])
    )
    assert all(len({code % 8 for code in row}) == 3 for row in codes.tolist())
    doubled = torch.tensor([[3, 3], [3, 11]])  # a collision policy may ask for such prefixes
    assert fitted.encode_from_prefix(torch.randn(2, 6), doubled)[:, :2].equal(doubled)


def test_settings_out_of_range_are_refused():
    with pytest.raises(ConfigError, match=r"\[16, 8\], expected one size for every level"):
        replace(SETTINGS, codebook_sizes=(16, 8))
    with pytest.raises(ConfigError, match=r"expected one size for every level, even where"):
        replace(SETTINGS, codebook_sizes=(15, 15))
    with pytest.raises(ConfigError, match=r"3 levels cannot name 2 components once each"):
        replace(SETTINGS, codebook_sizes=(4, 4, 4))
    with pytest.raises(ConfigError, match=r"alpha is -1.0, expected at least 0"):
        replace(SETTINGS, alpha=-1.0)
    with pytest.raises(ConfigError, match=r"7 items, fewer than the 8 codes"):
        SETTINGS.fit(torch.randn(7, 6))
    with pytest.raises(DataError, match=r"Vectors have 5 dimensions but the codebooks 6"):
        SETTINGS.fit(torch.randn(100, 6)).encode(torch.randn(2, 5))


VECTORS = torch.randn(CHUNK_ROWS + 500, 6, generator=torch.Generator().manual_seed(3))


def fit_on_rank(rank: int, world_size: int, tmp_path: Path) -> None:
    start, stop = block_of_rank(len(VECTORS))
    torch.save(SETTINGS.fit(VECTORS[start:stop]).tensors(), tmp_path / f"{rank}.pt")


def test_two_ranks_learn_the_same_atoms(tmp_path):
    run_on_ranks(fit_on_rank, tmp_path)
    expected = SETTINGS.fit(VECTORS).tensors()
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
