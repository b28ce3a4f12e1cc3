"""What the pretended GPU refuses and counts."""

import pytest
import torch

from tests.fake_gpu.device import GPU, pretended_gpu


@pytest.fixture
def gpu():
    with pretended_gpu() as device:
        yield device


def test_numbers_are_the_cpus_and_gradients_flow(gpu):
    weight = torch.eye(2).to("cuda").requires_grad_()
    rows = torch.arange(4.0, device="cuda").view(2, 2)
    loss = (rows @ weight).square().sum()
    loss.backward()
    assert rows.device == weight.grad.device == GPU
    assert rows.is_cuda
    assert weight.grad.tolist() == [[8.0, 12.0], [12.0, 20.0]]


def test_operands_of_both_devices_are_refused(gpu):
    with pytest.raises(RuntimeError, match="operands on cuda:0 and on the CPU"):
        torch.ones(2, device=GPU) + torch.ones(2)
    assert (torch.ones(2, device=GPU) + torch.tensor(1.0)).sum() == 4


@pytest.mark.parametrize(
    ("read", "name"),
    [
        (lambda x: x[0].item(), "_local_scalar_dense"),
        (lambda x: bool((x > 1).all()), "_local_scalar_dense"),
        (lambda x: x.tolist(), "to_cpu"),
        (lambda x: x.cpu(), "to_cpu"),
        (lambda x: x.nonzero(), "nonzero"),
        (lambda x: x[x > 1], "mask_as_index"),
        (lambda x: x.unique(), "_unique2"),
    ],
)
def test_reads_are_counted(gpu, read, name):
    values = torch.arange(3.0, device=GPU)
    gpu.reset()
    read(values)
    assert gpu.reads == {name: 1}


def test_a_copy_that_nobody_waits_for_is_no_read(gpu):
    values = torch.arange(3.0, device=GPU)
    values.to("cpu", non_blocking=True)
    assert not gpu.reads


@pytest.mark.parametrize(
    "sums",
    [lambda x: x.cumsum(dim=0), lambda x: torch.bincount(x.long(), x), lambda x: x.median(dim=0)],
)
def test_what_has_no_deterministic_form_on_cuda_is_refused(gpu, sums):
    values = torch.arange(3.0, device=GPU)
    with pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
        sums(values)
    assert values.long().cumsum(dim=0).tolist() == [0, 1, 3]


def test_sums_in_any_order_are_counted(gpu):
    places = torch.tensor([0, 0], device=GPU)
    torch.zeros(2, device=GPU).index_add_(0, places, torch.ones(2, device=GPU))
    assert gpu.any_order == {"index_add": 1}
