import numpy as np
import pytest
import torch

from sidrec.generator.decoding.item_filters import pad_items
from sidrec.generator.model.batch import batch_of_requests
from sidrec.types import Request
from tests.generator.made import histories, searches


def test_padding_by_hand():
    assert pad_items([[7], [], [1, 2]]).tolist() == [[7, -1], [-1, -1], [1, 2]]
    assert pad_items([]).shape == (0, 0)


def test_read_only_rows_are_copied():
    row = np.array([3, 4])
    row.flags.writeable = False  # as memory-mapped histories are
    padded = pad_items([row])
    padded[0, 0] = 9
    assert row.tolist() == [3, 4]


@pytest.mark.parametrize("exclude", [True, False])
def test_history_is_cut_but_all_of_it_excluded(exclude):
    request = Request("u", "recommendation", "", (1, 2, 3), (5, 6))
    batch = batch_of_requests(
        [request],
        task=request.task,
        request_rows=[8],
        max_history_items=2,
        exclude_history=exclude,
    )
    assert batch.history.tolist() == [[2, 3]]
    assert batch.excluded.tolist() == ([[1, 2, 3]] if exclude else [[]])
    assert batch.target.tolist() == [5]
    assert batch.request_rows.tolist() == [8]
    assert batch.texts == []


def test_search_has_texts_and_unknown_answers_are_marked():
    batch = batch_of_requests(
        [Request("q", "search", "heist", (), ())],
        task="search",
        request_rows=[0],
        max_history_items=2,
        exclude_history=True,
    )
    assert (batch.texts, batch.target.tolist(), batch.history.shape) == (["heist"], [-1], (1, 0))


def test_a_batch_is_a_tuple_that_can_be_changed_whatever_its_size():
    for batch in (searches("a", "b"), histories([1])):
        moved = batch._replace(target=torch.tensor([4]))
        assert moved.num_requests == 1
        assert len(moved) == 9
