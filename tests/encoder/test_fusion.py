"""Fused vectors by hand, by law, and against scikit-learn's truncated SVD."""

import pytest
import torch
from sklearn.decomposition import TruncatedSVD

from sidrec.encoder.fusion import fused_concat, fused_svd
from sidrec.errors import ConfigError


def test_concat_by_hand():
    fused = fused_concat(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 0.0, 2.0]]))
    half = 0.5**0.5
    torch.testing.assert_close(fused, torch.tensor([[0.6, 0.8, 0.0, 0.0, 1.0]]) * half)


def test_concat_averages_squared_distances():
    first, second = torch.randn(6, 3), torch.randn(6, 5)
    unit = [v / v.norm(dim=1, keepdim=True) for v in (first, second)]
    expected = sum(torch.cdist(v, v).square() for v in unit) / 2
    fused = fused_concat(first, second)
    torch.testing.assert_close(torch.cdist(fused, fused).square(), expected, atol=1e-5, rtol=1e-4)


def test_scale_of_a_space_does_not_matter():
    first, second = torch.randn(9, 4), torch.randn(9, 4)
    for fuse in (fused_concat, lambda a, b: fused_svd(a, b, dim=3, combine="sum")):
        torch.testing.assert_close(fuse(first, second * 100), fuse(first, second))


@pytest.mark.parametrize("combine", ["sum", "concat"])
def test_svd_is_that_of_scikit_learn(combine):
    first, second = torch.randn(40, 8), torch.randn(40, 6)
    parts = []
    for vectors in (first, second):
        unit = (vectors / vectors.norm(dim=1, keepdim=True)).double()
        svd = TruncatedSVD(4, algorithm="arpack").fit(unit.numpy())
        right = torch.from_numpy(svd.components_.copy())
        signs = right.gather(1, right.abs().argmax(dim=1, keepdim=True)).sign()
        parts.append(unit @ (right * signs).T)
    expected = sum(parts) if combine == "sum" else torch.cat(parts, dim=1)
    expected = expected / expected.norm(dim=1, keepdim=True)
    found = fused_svd(first, second, dim=4, combine=combine)
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-3)


def test_whole_svd_with_concat_keeps_all_distances():
    first, second = torch.randn(20, 4), torch.randn(20, 4)
    whole = fused_svd(first, second, dim=4, combine="concat")
    plain = fused_concat(first, second)
    torch.testing.assert_close(whole @ whole.T, plain @ plain.T, atol=1e-5, rtol=1e-4)


def test_zero_vectors_stay_finite():
    fused = fused_concat(torch.zeros(2, 3), torch.zeros(2, 3))
    assert torch.isfinite(fused).all()


def test_too_many_dimensions_are_refused():
    with pytest.raises(ConfigError, match="fused dimension 5 must lie between 1 and 4"):
        fused_svd(torch.randn(9, 6), torch.randn(9, 4), dim=5, combine="sum")
