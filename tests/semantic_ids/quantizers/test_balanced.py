import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sidrec.errors import ConfigError, DataError
from sidrec.semantic_ids.kmeans.sharded_rows import CHUNK_ROWS, block_of_rank
from sidrec.semantic_ids.quality.id_metrics import relative_error
from sidrec.semantic_ids.quantizers.balanced import BalancedRqKMeans, FittedBalancedRqKMeans
from sidrec.semantic_ids.quantizers.capacity_duals import fit_capacity_duals, nearest_with_duals
from sidrec.semantic_ids.quantizers.registry import load_quantizer
from tests.ranks import run_on_ranks

SETTINGS = BalancedRqKMeans(
    codebook_sizes=(16, 8),
    slack=1.1,
    num_iterations=10,
    num_balancings=1,
    dual_step=1e-3,
    sample_rows=10_000,
    seed=1,
)


def clustered(num_rows):
    """Clusters of very different sizes."""
    centers = torch.randn(10, 6) * 1.5
    which = (torch.rand(num_rows).square() * 10).long()
    return centers[which] + torch.randn(num_rows, 6)


def test_a_price_sends_the_farthest_away_by_hand():
    rows = torch.tensor([[0.0], [1.0], [2.0], [9.0]])
    centroids = torch.tensor([[0.0], [10.0]])
    # distances to 0 and 10: 0|100, 1|81, 4|64, 81|1; the margin of row 2 is 60, of row 1 it is 80
    duals = fit_capacity_duals(rows, centroids, capacity=2, step=1e-3)
    assert 60 < duals[0] < 80
    assert duals[1] == 0
    assert nearest_with_duals(rows, centroids, duals).tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("slack", [1.0, 1.2, 2.0])
def test_no_code_is_overfull_and_the_error_is_near_the_least(slack):
    from scipy.optimize import linear_sum_assignment

    rows, centroids = clustered(120), torch.randn(6, 6) * 3
    capacity = math.ceil(slack * 120 / 6)
    codes = nearest_with_duals(
        rows, centroids, fit_capacity_duals(rows, centroids, capacity=capacity, step=1e-4)
    )
    assert torch.bincount(codes).max() <= capacity
    costs = (rows.unsqueeze(1) - centroids).square().sum(dim=2)
    seats = costs.repeat_interleave(capacity, dim=1)  # [row, code * capacity]
    best = seats[linear_sum_assignment(seats)].sum()
    assert costs[torch.arange(120), codes].sum() <= 1.1 * best


def test_without_crowding_nothing_costs():
    rows = torch.randn(100, 6)
    duals = fit_capacity_duals(rows, rows[:50], capacity=100, step=1e-3)
    assert not duals.any()
    with pytest.raises(ValueError, match="50 codes of 1 rows cannot hold 100 rows"):
        fit_capacity_duals(rows, rows[:50], capacity=1, step=1e-3)


def test_equal_rows_stay_together_and_it_ends():
    rows, centroids = torch.ones(30, 6), torch.randn(4, 6)
    codes = nearest_with_duals(
        rows, centroids, fit_capacity_duals(rows, centroids, capacity=8, step=0.1)
    )
    assert len(codes.unique()) == 1


@pytest.mark.parametrize("slack", [1.05, 1.3])
def test_no_level_has_an_overfull_code(slack):
    vectors = clustered(2000)
    fitted = replace(SETTINGS, slack=slack).fit(vectors)
    codes = fitted.encode(vectors)
    plain = FittedBalancedRqKMeans(fitted.codebooks, tuple(map(torch.zeros_like, fitted.duals)))
    for level, size in enumerate(fitted.codebook_sizes):
        limit = math.ceil(slack * 2000 / size)
        assert torch.bincount(codes[:, level]).max() <= limit
    assert torch.bincount(plain.encode(vectors)[:, 0]).max() > 1.3 * 2000 / 16


def test_with_much_slack_it_is_residual_k_means():
    vectors = clustered(1000)
    fitted = replace(SETTINGS, slack=20.0).fit(vectors)
    assert not any(dual.any() for dual in fitted.duals)
    codes = fitted.encode(vectors)
    distances = (vectors.unsqueeze(1) - fitted.codebooks[0]).square().sum(dim=2)
    assert torch.equal(codes[:, 0], distances.argmin(dim=1))
    errors = [relative_error(vectors, codes[:, :levels], fitted) for levels in (1, 2)]
    assert 1 > errors[0] > errors[1] > 0


def test_laws_that_every_quantizer_keeps():
    vectors = clustered(600)
    fitted = SETTINGS.fit(vectors)
    codes = fitted.encode(vectors)
    assert torch.equal(fitted.encode_from_prefix(vectors, codes[:, :1]), codes)
    errors = fitted.next_code_errors(vectors, codes[:, :1])
    tried = torch.cat([codes[:, :1], torch.full((600, 1), 5)], dim=1)
    expected = (vectors - fitted.decode(tried)).square().sum(dim=1)
    torch.testing.assert_close(errors[:, 5], expected, rtol=1e-4, atol=1e-4)
    again = load_quantizer("balanced_rq_kmeans", fitted.tensors())
    assert torch.equal(again.encode(vectors), codes)
    assert torch.equal(again.decode(codes), fitted.decode(codes))
    second = SETTINGS.fit(vectors)
    assert all(torch.equal(second.tensors()[k], v) for k, v in fitted.tensors().items())
    assert fitted.decode(codes[:, :0]).abs().max() == 0


def test_settings_and_vectors_out_of_range_are_refused():
    with pytest.raises(ConfigError, match=r"slack is 0.9, expected at least 1"):
        replace(SETTINGS, slack=0.9)
    with pytest.raises(ConfigError, match=r"dual_step is 0.0, expected more than 0"):
        replace(SETTINGS, dual_step=0.0)
    with pytest.raises(ConfigError, match=r"12 items, fewer than the 16 codes"):
        SETTINGS.fit(torch.randn(12, 6))
    with pytest.raises(DataError, match=r"hold NaN or infinity \(first rows: \[0\]\)"):
        SETTINGS.fit(torch.full((1, 6), torch.nan))


torch.manual_seed(3)
VECTORS = clustered(CHUNK_ROWS + 500)


def fit_on_rank(rank: int, world_size: int, tmp_path: Path) -> None:
    start, stop = block_of_rank(len(VECTORS))
    torch.save(SETTINGS.fit(VECTORS[start:stop]).tensors(), tmp_path / f"{rank}.pt")


def test_two_ranks_get_the_same_codebooks_and_prices(tmp_path):
    run_on_ranks(fit_on_rank, tmp_path)
    expected = SETTINGS.fit(VECTORS).tensors()
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
