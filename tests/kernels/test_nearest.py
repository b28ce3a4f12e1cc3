import pytest
import torch

from sidrec.kernels import nearest as screen_module
from sidrec.kernels.nearest import (
    bf16_prefilter,
    nearest_codes,
    nearest_float32,
    prefilter_of,
    prefilter_pays,
    rounding_of,
)
from sidrec.semantic_ids.kmeans import lloyd as kmeans_module
from sidrec.semantic_ids.kmeans.lloyd import k_means
from sidrec.semantic_ids.kmeans.sharded_rows import ShardedRows


def near_pairs(num_rows, dim, *, seed, offset=0.0, scale=1.0):
    """Rows between two centroids each, most of them so close to the middle that it is hard."""
    generator = torch.Generator().manual_seed(seed)
    centroids = torch.randn(96, dim, generator=generator)
    centroids[50:] = centroids[:46] + torch.randn(46, dim, generator=generator) * 0.05
    pair = torch.randint(96, (2, num_rows), generator=generator)
    share = 0.5 + torch.logspace(-8, -0.4, num_rows)[:, None]
    rows = torch.lerp(centroids[pair[0]], centroids[pair[1]], share)
    return (rows + offset) * scale, (centroids + offset) * scale


def decided(rows, centroids):
    """Codes in float64, and which rows float32 can tell too."""
    distances = torch.cdist(rows.double(), centroids.double()).square()
    two = distances.topk(2, dim=1, largest=False)
    scale = rows.double().norm(dim=1) * centroids.double().norm(dim=1).max()
    return two.indices[:, 0], two.values[:, 1] - two.values[:, 0] > 1e-4 * scale


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("offset", "scale"), [(0.0, 1.0), (3.0, 1.0), (0.0, 1e-18), (0.0, 1e17), (100.0, 1e-3)]
)
def test_codes_are_those_of_float32_however_close_the_call(seed, offset, scale):
    rows, centroids = near_pairs(2500, 80, seed=seed, offset=offset, scale=scale)
    codes, num_in_doubt = bf16_prefilter(rows, prefilter_of(centroids), rounding_of(rows))
    assert torch.equal(codes, nearest_float32(rows, centroids))
    truth, is_clear = decided(rows, centroids)
    assert torch.equal(codes[is_clear], truth[is_clear])
    assert 0 < num_in_doubt <= len(rows)


def test_most_rows_that_lie_near_a_centroid_are_settled():
    generator = torch.Generator().manual_seed(1)
    centroids = torch.randn(128, 96, generator=generator)
    rows = centroids.repeat(9, 1) + torch.randn(1152, 96, generator=generator) * 0.3
    codes, num_in_doubt = bf16_prefilter(rows, prefilter_of(centroids), rounding_of(rows))
    assert torch.equal(codes, torch.arange(128).repeat(9))
    assert num_in_doubt == 0


def test_of_equal_centroids_the_first_is_taken():
    rows, centroids = near_pairs(500, 64, seed=0)
    centroids[70] = centroids[3]
    rows[::2] = centroids[3]
    codes, num_in_doubt = bf16_prefilter(rows, prefilter_of(centroids), rounding_of(rows))
    assert codes[::2].eq(3).all()
    assert num_in_doubt >= 250


def test_bounds_hold_for_every_pair():
    rows, centroids = near_pairs(200, 72, seed=4, offset=0.7)
    prefilter, rounding = prefilter_of(centroids), rounding_of(rows)
    bounds = screen_module._lengthened(rows, rounding) @ prefilter.factors
    unit = screen_module._COARSE_UNIT
    lower = bounds.double() - bounds.double().abs() * unit
    off = (
        rounding.lengths[:, None] * prefilter.per_length
        + rounding.errors[:, None] * prefilter.per_error
    )
    upper = bounds.double() + bounds.double().abs() * unit + 2.04 * (off + prefilter.always)
    distances = torch.cdist(rows.double(), centroids.double()).square()
    shared = rows.double().square().sum(1) - 2 * rows.double() @ centroids.double().mean(0)
    shared += centroids.double().mean(0).square().sum()
    score = (distances - shared[:, None]) / 2
    assert (lower <= score).all()
    assert (score <= upper).all()


@pytest.mark.parametrize("bad", [float("inf"), 1e30])
def test_overflow_is_left_to_float32(bad):
    rows, centroids = near_pairs(200, 64, seed=0)
    centroids[7] = bad
    codes, num_in_doubt = bf16_prefilter(rows, prefilter_of(centroids), rounding_of(rows))
    assert num_in_doubt == 200
    assert torch.equal(codes, nearest_float32(rows, centroids))


def test_no_rows_have_no_codes():
    centroids = torch.randn(64, 64)
    assert bf16_prefilter(centroids[:0], prefilter_of(centroids), rounding_of(centroids[:0]))[
        0
    ].shape == (0,)
    assert nearest_codes(centroids[:0], centroids).shape == (0,)


def test_it_is_used_only_where_the_processor_gains(monkeypatch):
    monkeypatch.setattr(screen_module, "_multiplies_bfloat16", lambda: True)
    assert prefilter_pays(torch.zeros(64, 64))
    assert not prefilter_pays(torch.zeros(32, 64))
    assert not prefilter_pays(torch.zeros(64, 32))
    monkeypatch.setattr(screen_module, "_multiplies_bfloat16", lambda: False)
    assert not prefilter_pays(torch.zeros(64, 64))


@pytest.mark.parametrize("offset", [0.0, 300.0])  # far from 0 rows are in doubt: it gives up
def test_k_means_is_the_same_with_and_without(monkeypatch, offset):
    vectors = torch.randn(9000, 64, generator=torch.Generator().manual_seed(1)) + offset
    found, calls = [], []

    def counted(*arguments):
        calls.append(bf16_prefilter(*arguments)[1])
        return bf16_prefilter(*arguments)

    monkeypatch.setattr(kmeans_module, "bf16_prefilter", counted)
    for pays in (True, False):
        monkeypatch.setattr(kmeans_module, "prefilter_pays", lambda _, pays=pays: pays)
        rows = ShardedRows(lambda a, b: vectors[a:b], len(vectors), 64)
        found.append(k_means(rows, vectors[:96], num_iterations=4, tolerance=0.0))
    assert torch.equal(found[0].centroids, found[1].centroids)
    assert found[0].objectives == found[1].objectives
    assert len(calls) == (3 if offset else 12)  # of three chunks, in the first pass or in all
