import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from torch import nn

from sidrec.encoder.loss import contrastive_loss, is_known
from tests.ranks import run_on_ranks


def loss(left, right, *, items=None, known=None, frequency=None, symmetric=False, temperature=0.5):
    items = torch.arange(len(left)) if items is None else torch.tensor(items)
    known = items[:, None] if known is None else torch.tensor(known)
    return contrastive_loss(
        left,
        right,
        temperature=temperature,
        right_item=items,
        known_positives=known,
        right_log_frequency=frequency,
        symmetric=symmetric,
    )


def test_two_orthogonal_pairs_by_hand():
    pairs = torch.eye(2)  # cosines 1 and 0, over temperature: 2 and 0, so the loss is ln(1 + e^-2)
    assert loss(pairs, pairs).item() == pytest.approx(0.126928, abs=1e-6)
    assert loss(pairs, pairs, symmetric=True).item() == pytest.approx(0.126928, abs=1e-6)


def test_the_same_item_twice_is_no_negative():
    pairs = torch.eye(3)  # rows 0 and 1 hold item 5: each has row 2 as its only negative
    two, three = math.log(1 + math.exp(-2)), math.log(1 + 2 * math.exp(-2))
    found = loss(pairs, pairs, items=[5, 5, 6])
    assert found.item() == pytest.approx((2 * two + three) / 3, abs=1e-6)


def test_known_positives_are_no_negatives():
    pairs = torch.eye(3)  # row 0 knows item 2 too; nobody holds item 9
    two, three = math.log(1 + math.exp(-2)), math.log(1 + 2 * math.exp(-2))
    found = loss(pairs, pairs, known=[[0, 2, -1], [1, 9, -1], [2, -1, -1]])
    assert found.item() == pytest.approx((two + 2 * three) / 3, abs=1e-6)


def test_symmetric_masks_the_anchor_that_knows_the_item():
    pairs, known = torch.eye(3), [[0, 2], [1, -1], [2, -1]]
    two, three = math.log(1 + math.exp(-2)), math.log(1 + 2 * math.exp(-2))
    forward = (two + 2 * three) / 3
    backward = (two + 2 * three) / 3  # item 2 does not look at anchor 0
    found = loss(pairs, pairs, known=known, symmetric=True)
    assert found.item() == pytest.approx((forward + backward) / 2, abs=1e-6)
    left = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    right = torch.tensor([[0.8, 0.6], [0.0, 1.0], [1.0, 0.0]])
    scores = left @ right.T / 0.5
    scores[0, 2] = -torch.inf
    own = torch.arange(3)
    expected = (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)) / 2
    torch.testing.assert_close(loss(left, right, known=known, symmetric=True), expected)


def test_logq_by_hand():
    pairs = torch.eye(2)  # item 0 drawn with 0.8, item 1 with 0.2
    found = loss(pairs, pairs, frequency=torch.tensor([0.8, 0.2]).log())
    first = -math.log((math.exp(2) / 0.8) / (math.exp(2) / 0.8 + 1 / 0.2))
    second = -math.log((math.exp(2) / 0.2) / (math.exp(2) / 0.2 + 1 / 0.8))
    assert found.item() == pytest.approx((first + second) / 2, abs=1e-6)


def test_equal_frequencies_correct_nothing():
    left, right = torch.randn(5, 3), torch.randn(5, 3)
    corrected = loss(left, right, frequency=torch.full((5,), -3.0))
    torch.testing.assert_close(corrected, loss(left, right))


def test_order_of_pairs_does_not_matter():
    left, right, order = torch.randn(5, 3), torch.randn(5, 3), torch.randperm(5)
    items, known = torch.tensor([3, 1, 3, 0, 2]), torch.tensor([[0], [1], [2], [3], [4]])
    before = loss(left, right, items=items.tolist(), known=known.tolist(), symmetric=True)
    after = loss(
        left[order],
        right[order],
        items=items[order].tolist(),
        known=known[order].tolist(),
        symmetric=True,
    )
    torch.testing.assert_close(after, before)


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_is_known_equals_looking_one_by_one(data):
    number = st.integers(-1, 6)
    known = data.draw(
        st.integers(1, 4).flatmap(
            lambda width: st.lists(
                st.lists(number, min_size=width, max_size=width), min_size=1, max_size=5
            )
        )
    )
    items = data.draw(st.lists(st.integers(0, 6), min_size=1, max_size=6))
    found = is_known(torch.tensor(known), torch.tensor(items))
    assert found.tolist() == [[item in row for item in items] for row in known]


def tower_and_pairs():
    generator = torch.Generator().manual_seed(0)
    tower = nn.Linear(4, 3, bias=False)
    tower.weight.data = torch.randn(3, 4, generator=generator)
    left, right = (torch.randn(6, 4, generator=generator) for _ in range(2))
    items = torch.tensor([0, 1, 2, 1, 4, 5])
    known = torch.tensor([[0, 5, -1], [1, -1, -1], [2, -1, -1], [1, 4, -1], [4, -1, -1], [5, 2, 0]])
    frequency = torch.randn(6, generator=generator)
    return tower, left, right, items, known, frequency


def whole_loss(encode, left, right, items, known, frequency):
    return contrastive_loss(
        encode(left),
        encode(right),
        temperature=0.5,
        right_item=items,
        known_positives=known,
        right_log_frequency=frequency,
        symmetric=True,
    )


def half_the_pairs(rank, world_size, tmp_path, *, device="cpu"):
    tower, *parts = tower_and_pairs()
    encode = nn.parallel.DistributedDataParallel(tower.to(device))
    own = [part.chunk(world_size)[rank].to(device) for part in parts]
    own[3] = own[3][:, : 2 + rank]  # ranks need not have the same width of known positives
    found = whole_loss(encode, *own)
    found.backward()
    torch.save((found.detach().cpu(), tower.weight.grad.cpu()), tmp_path / f"{rank}.pt")


TWO_GPUS = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


@pytest.mark.parametrize(
    ("device", "backend"),
    [("cpu", "gloo"), pytest.param("cuda", "nccl", marks=[pytest.mark.gpu, TWO_GPUS])],
)
def test_two_ranks_equal_one(device, backend, tmp_path):
    run_on_ranks(partial(half_the_pairs, device=device), tmp_path, backend=backend)
    losses, grads = zip(*(torch.load(tmp_path / f"{rank}.pt") for rank in range(2)), strict=True)
    tower, *parts = tower_and_pairs()
    expected = whole_loss(tower, *parts)
    expected.backward()
    torch.testing.assert_close(torch.stack(losses).mean(), expected.detach())
    torch.testing.assert_close(grads[0], tower.weight.grad)
    torch.testing.assert_close(grads[1], tower.weight.grad)


def test_wrong_shape_is_caught():
    with pytest.raises(TypeCheckError, match="positives"):
        loss(torch.randn(3, 4), torch.randn(2, 4))


def test_message_names_the_value():
    with pytest.raises(ValueError, match=r"temperature must be positive, got -1"):
        loss(torch.eye(2), torch.eye(2), temperature=-1.0)


def test_a_frequent_negative_counts_less_by_hand():
    """Both negatives score as the positive; one is drawn e times as often, so it weighs 1/e."""
    same = torch.ones(3, 1)
    corrected = loss(same, same, items=[1, 2, 3], frequency=torch.tensor([0.0, 1.0, 0.0]))
    rows = [1 + math.exp(-1) + 1, (1 + math.exp(-1) + 1) * math.e, 1 + math.exp(-1) + 1]
    assert corrected.item() == pytest.approx(sum(math.log(row) for row in rows) / 3, abs=1e-6)
