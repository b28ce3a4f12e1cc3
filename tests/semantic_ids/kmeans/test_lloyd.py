import math

import pytest
import torch

from sidrec.kernels.nearest import nearest_codes
from sidrec.semantic_ids.kmeans import sharded_rows as rows_module
from sidrec.semantic_ids.kmeans.initialization import (
    GREEDY_FRACTION,
    greedy_kmeans_pp_init,
    kmeans_pp_init,
    progressive_dims_init,
    shrunken_random_init,
    uniform_sample,
)
from sidrec.semantic_ids.kmeans.lloyd import k_means
from sidrec.semantic_ids.kmeans.sharded_rows import ShardedRows, block_of_rank, exact_sum_quantum


def nearest(rows, centroids):
    """Return the squared distance to the nearest centroid and its code."""
    codes = nearest_codes(rows, centroids)
    return (rows - centroids[codes]).square().sum(dim=1), codes


def rows_of(vectors):
    return ShardedRows(lambda a, b: vectors[a:b], len(vectors), vectors.shape[1])


def test_two_clusters_on_a_line_by_hand():
    rows = rows_of(torch.tensor([[0.0], [2.0], [10.0], [14.0]]))
    result = k_means(rows, torch.tensor([[0.0], [2.0]]), num_iterations=10, tolerance=0.0)
    assert result.centroids.flatten().tolist() == [1.0, 12.0]
    # 0 | 2 10 14 -> (0 + 0 + 64 + 144) / 4, then 0 2 | 10 14 around 0 and 26/3, then around 1, 12
    first, *_, last = result.objectives
    assert first == pytest.approx(52.0)
    assert last == pytest.approx((1 + 1 + 4 + 4) / 4)


@pytest.mark.parametrize("seed", range(5))
def test_objective_never_rises(seed):
    vectors = torch.randn(500, 6, generator=torch.Generator().manual_seed(seed))
    result = k_means(rows_of(vectors), vectors[:40].clone(), num_iterations=30, tolerance=0.0)
    rises = [b - a for a, b in zip(result.objectives, result.objectives[1:], strict=False)]
    assert len(rises) > 3
    assert max(rises) <= 1e-6 * result.objectives[0]


def test_codes_that_nobody_chose_move_to_the_farthest_rows():
    vectors = torch.tensor([[0.0], [0.1], [5.0], [9.0]])
    start = torch.tensor([[0.0], [100.0], [200.0]])
    result = k_means(rows_of(vectors), start, num_iterations=20, tolerance=0.0)
    assert sorted(result.centroids.flatten().tolist()) == pytest.approx([0.05, 5.0, 9.0], abs=1e-5)


def test_tolerance_stops_earlier():
    vectors = torch.randn(500, 6)
    runs = [
        len(k_means(rows_of(vectors), vectors[:20], num_iterations=50, tolerance=t).objectives)
        for t in (0.0, 0.05)
    ]
    assert runs[1] < runs[0]


def test_nearest_takes_the_lowest_code_on_ties():
    distances, codes = nearest(torch.tensor([[1.0]]), torch.tensor([[0.0], [2.0], [0.0]]))
    assert (distances.tolist(), codes.tolist()) == ([1.0], [0])


def test_many_codes_are_searched_as_few():
    rows, centroids = torch.randn(3000, 5), torch.randn(96, 5)
    centroids[70] = centroids[3]  # a tie between two groups of the search
    distances, codes = nearest(rows, centroids)
    all_distances = (rows.unsqueeze(1) - centroids).square().sum(dim=2)
    torch.testing.assert_close(distances, all_distances.min(dim=1).values, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(all_distances.gather(1, codes[:, None])[:, 0], distances)
    assert (codes == 3).any()
    assert not (codes == 70).any()


def test_means_are_those_of_float64():
    vectors = torch.randn(9000, 3) * torch.logspace(-4, 4, 3)
    start = vectors[:40].clone()
    moved = k_means(rows_of(vectors), start, num_iterations=1, tolerance=0.0).centroids
    codes = nearest(vectors, start)[1]
    means = [vectors[codes == code].double().mean(dim=0) for code in range(40)]
    torch.testing.assert_close(moved.double(), torch.stack(means), rtol=1e-5, atol=1e-3)


def test_rows_that_are_read_again_give_what_kept_rows_give(monkeypatch):
    vectors = torch.randn(9000, 3)
    kept = k_means(rows_of(vectors), vectors[:40], num_iterations=5, tolerance=0.0)
    monkeypatch.setattr(rows_module, "_CACHE_BYTES", 0)
    rows = rows_of(vectors)
    again = k_means(rows, vectors[:40], num_iterations=5, tolerance=0.0)
    assert torch.equal(kept.centroids, again.centroids)
    assert torch.equal(rows.take(torch.tensor([5, 8999])), vectors[[5, 8999]])


@pytest.mark.parametrize("largest", [1e-20, 0.3, 1.0, 7e8])
def test_grid_unit_is_a_power_of_two_of_the_right_size(largest):
    unit = exact_sum_quantum(largest, 23)
    assert math.frexp(unit)[0] == 0.5
    assert 2**22 <= largest / unit <= 2**23


def test_take_returns_rows_in_order():
    vectors = torch.arange(10_000.0).unsqueeze(1)
    taken = rows_of(vectors).take(torch.tensor([0, 4095, 4096, 9999]))
    assert taken.flatten().tolist() == [0, 4095, 4096, 9999]


def test_one_rank_holds_all_rows():
    assert block_of_rank(5000) == (0, 5000)


@pytest.mark.parametrize("start", [greedy_kmeans_pp_init, kmeans_pp_init, progressive_dims_init])
def test_starts_find_separated_clusters(start):
    centers = torch.diag(torch.tensor([50.0, 80.0, 120.0, 170.0, 240.0, 330.0]))
    vectors = (centers.repeat(50, 1) + torch.randn(300, 6)).float()
    found = start(vectors, num_codes=6, generator=torch.Generator().manual_seed(1))
    result = k_means(rows_of(vectors), found, num_iterations=10, tolerance=0.0)
    assert result.objectives[-1] < 2 * 6
    assert nearest(centers, result.centroids)[1].unique().numel() == 6


@pytest.mark.parametrize(
    "start", [shrunken_random_init, greedy_kmeans_pp_init, kmeans_pp_init, progressive_dims_init]
)
def test_starts_survive_fewer_distinct_rows_than_codes(start):
    vectors = torch.ones(8, 3)
    found = start(vectors, num_codes=4, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(found, torch.ones(4, 3))


def test_central_start_lies_a_quarter_of_the_way_from_the_mean():
    sample = torch.tensor([[0.0, 8.0], [4.0, 0.0], [8.0, 4.0]])  # mean (4, 4)
    start = shrunken_random_init(sample, num_codes=3, generator=torch.Generator().manual_seed(1))
    assert sorted(start.tolist()) == [[3.0, 5.0], [4.0, 3.0], [5.0, 4.0]]


def test_greedy_start_lies_part_of_the_way_from_the_mean_to_rows_far_apart():
    sample = torch.tensor([[0.0], [0.0], [8.0], [8.0], [4.0]])  # mean 4
    for seed in range(20):  # a second row at 4 leaves 16 more than one at the other end
        generator = torch.Generator().manual_seed(seed)
        start = greedy_kmeans_pp_init(sample, num_codes=3, generator=generator).flatten()
        assert sorted(start.tolist()) == pytest.approx([2.8, 4.0, 5.2])


def test_greedy_start_seldom_takes_a_far_row():
    # from 0, the row at 25 is drawn with probability .29, but leaves more than one at 10 does
    sample = torch.tensor([0.0] * 15 + [10.0] * 15 + [25.0]).unsqueeze(1)
    taken = {}
    for start in (greedy_kmeans_pp_init, kmeans_pp_init):
        found = [
            start(sample, num_codes=2, generator=torch.Generator().manual_seed(seed))
            for seed in range(200)
        ]
        taken[start] = sum(centroids.max() > 11 for centroids in found)
    assert taken[kmeans_pp_init] > 20
    assert taken[greedy_kmeans_pp_init] < 0.5 * taken[kmeans_pp_init]


@pytest.mark.parametrize("num_codes", [3, 40])
def test_greedy_start_leaves_less_than_plus_plus(num_codes):
    vectors = torch.randn(15 * num_codes, 8, generator=torch.Generator().manual_seed(0))
    mean, left = vectors.mean(dim=0), {}
    for start, fraction in ((greedy_kmeans_pp_init, GREEDY_FRACTION), (kmeans_pp_init, 1.0)):
        left[start] = 0.0
        for seed in range(10):
            generator = torch.Generator().manual_seed(seed)
            chosen = start(vectors, num_codes=num_codes, generator=generator)
            rows = mean + (chosen - mean) / fraction
            assert nearest(rows, vectors)[0].max() < 1e-4  # they are rows of the sample
            left[start] += nearest(vectors, rows)[0].mean().item() / 10
    assert left[greedy_kmeans_pp_init] < 0.95 * left[kmeans_pp_init]


def test_sample_has_no_row_twice():
    vectors = torch.arange(100.0).unsqueeze(1)
    sample = uniform_sample(
        rows_of(vectors), sample_rows=60, generator=torch.Generator().manual_seed(1)
    )
    assert sample.flatten().round().unique().numel() == 60
