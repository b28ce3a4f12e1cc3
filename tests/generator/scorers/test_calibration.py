import pytest
import torch

from sidrec.generator.scorers.calibration import fit_scalars, flat_loss


def test_a_fit_finds_the_weight_that_made_the_data():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(1, 4000, 5, generator=generator)
    target = torch.multinomial((2.0 * scores[0]).softmax(dim=1), 1, generator=generator)[:, 0]
    allowed = torch.ones(4000, 5, dtype=torch.bool)
    halves = {
        number: lambda w, part=part: flat_loss(w, scores[:, part], allowed[part], target[part])
        for number, part in enumerate((slice(0, 2000), slice(2000, 4000)))
    }
    weight, loss = fit_scalars(halves, torch.tensor([0.1]), unit=torch.tensor([0.1]))
    assert weight.item() == pytest.approx(2.0, abs=0.15)
    whole = {0: lambda w: flat_loss(w, scores, allowed, target)}
    again, same = fit_scalars(whole, torch.tensor([30.0]), unit=torch.tensor([30.0]))
    assert again.item() == pytest.approx(weight.item(), rel=1e-3)
    assert loss == pytest.approx(same, rel=1e-6)


def test_a_scorer_that_misleads_gets_no_weight():
    scores = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.9, 0.0]]])
    target, allowed = torch.tensor([0, 1]), torch.ones(2, 2, dtype=torch.bool)
    weights, _ = fit_scalars(
        {0: lambda w: flat_loss(w, scores, allowed, target) + 0.01 * (w**2).sum()},
        torch.ones(2),
        unit=torch.ones(2),
    )
    assert weights[1].item() == 0.0
    assert weights[0].item() > 1.0


def test_the_loss_counts_allowed_items_only():
    scores = torch.zeros(1, 1, 3)
    allowed = torch.tensor([[True, True, False]])
    loss = flat_loss(torch.ones(1), scores, allowed, torch.tensor([0]))
    assert loss.item() == pytest.approx(torch.tensor(2.0).log().item())
