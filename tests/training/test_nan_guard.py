import pytest
import torch

from sidrec.errors import RunError
from sidrec.training.nan_guard import LossGuard
from tests.ranks import run_on_ranks

IDS = [f"i{number}" for number in range(20)]


def look(guard, loss, items=(3, 4)):
    return guard.mean(
        torch.tensor(loss), where="epoch 0, step 7", items=torch.tensor(items), item_ids=lambda: IDS
    )


def judge(guard, loss, items=(3, 4)):
    look(guard, loss, items)
    guard.check([])


def test_a_good_loss_passes():
    guard = LossGuard(0)
    assert look(guard, 1.5) == 1.5
    guard.check([])


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), float("-inf")])
def test_a_bad_loss_names_step_and_items(loss):
    with pytest.raises(RunError, match=r"The loss is -?\w+ at epoch 0, step 7.*'i3', 'i4'; lower"):
        judge(LossGuard(0), loss)
    items = (3, 3, -1, 4, 5, 6, 7, 8, 9)
    with pytest.raises(RunError, match="items 'i3', 'i4', 'i5', 'i6', 'i7' and 2 more; lower"):
        judge(LossGuard(0), loss, items)


def test_without_items_the_message_names_the_batch():
    assert LossGuard(0).mean(torch.tensor(1.5), where="epoch 0, step 7") == 1.5
    guard = LossGuard(0)
    guard.mean(torch.tensor(float("nan")), where="epoch 0, step 7")
    with pytest.raises(RunError, match="nan at epoch 0, step 7, for the batch; lower"):
        guard.check([])


def test_so_many_are_skipped_and_then_no_more(capsys):
    guard, weight = LossGuard(2), torch.nn.Parameter(torch.ones(1))
    for number in (1, 2):
        weight.grad = torch.full((1,), float("nan"))
        look(guard, float("nan"))
        guard.check([weight])
        assert weight.grad is None
        assert (
            f"skipped the batch with items 'i3', 'i4' ({number} so far)" in capsys.readouterr().err
        )
    weight.grad = torch.ones(1)
    look(guard, 1.0)
    guard.check([weight])  # a good step keeps its gradient
    assert weight.grad == 1
    with pytest.raises(RunError, match=r"\(now 2\)"):
        judge(guard, float("nan"))


def test_one_bad_batch_of_an_accumulation_drops_the_whole_step():
    guard, weight = LossGuard(1), torch.nn.Parameter(torch.ones(1))
    for loss in (1.0, float("inf"), 2.0):
        look(guard, loss)
    weight.grad = torch.ones(1)
    guard.check([weight])
    assert weight.grad is None
    assert guard.num_skipped == 1


def only_rank_one_is_bad(rank, world_size, tmp_path):
    with pytest.raises(RunError) as caught:
        judge(LossGuard(0), float("nan") if rank == 1 else 1.0)
    assert ("a batch of another rank" in str(caught.value)) == (rank == 0)
    guard = LossGuard(1)
    judge(guard, float("nan") if rank == 1 else 1.0)
    assert guard.num_skipped == 1


def test_all_ranks_decide_alike(tmp_path):
    run_on_ranks(only_rank_one_is_bad, tmp_path)
