"""predictions.parquet carries everything a figure needs, there and back."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from sidrec.errors import DataError
from sidrec.figures import evaluate
from sidrec.generator.decoding.beam_search import beam_search
from sidrec.generator.decoding.trie import SemanticIdTrie
from sidrec.generator.training.predictions import (
    SCHEMA,
    predictions_of,
    predictions_of_ranked,
    read_predictions,
    write_predictions,
)
from sidrec.types import RankedItems, Request, SemanticIdTable
from tests.generator.catalogues import TableSteps

TABLE = SemanticIdTable(torch.tensor([[0], [1], [1], [2]]), (3,))
POPULARITY = torch.tensor([1, 5, 7, 0])
REQUESTS = [
    Request("q", "search", "something", (), (1, 3, 1), (3, 2, 3)),
    Request("u", "recommendation", "", (2,), (0,)),
]


@pytest.fixture
def predictions():
    trie = SemanticIdTrie.from_table(TABLE, POPULARITY)
    steps = TableSteps((3,), 2)
    steps.by_prefix = [torch.tensor([[[-3.0, -1.0, -2.0]], [[-3.0, -1.0, -2.0]]])]
    excluded = torch.tensor([[-1], [2]])
    decoded = beam_search(steps, trie, num_beams=3, top_k=3, excluded=excluded)
    return predictions_of(REQUESTS, decoded, trie, split="test")


def test_two_requests_by_hand(predictions):
    search, recommendation = predictions
    assert search.items == (2, 1, 3)
    assert search.scores == (-1.0, -1.0, -2.0)
    assert (search.relevant, search.grades) == ((1, 3), (3, 2))
    assert search.semantic_id_ranks == (0, 1)  # of the distinct IDs 1, 2, 0
    assert recommendation.items == (1, 3, 0)
    assert recommendation.semantic_id_ranks == (2,)
    assert recommendation.history_length == 1
    assert recommendation.grades == ()


def test_there_and_back(predictions, tmp_path):
    target = tmp_path / "predictions.parquet"
    write_predictions(target, [*predictions, predictions[0]])
    assert pq.read_schema(target).equals(SCHEMA)
    assert read_predictions(target) == predictions[::-1]  # sorted by task, each request once
    assert evaluate(read_predictions(target), POPULARITY) == evaluate(predictions, POPULARITY)


def test_a_target_inside_the_excluded_history_is_unanswerable():
    repeated = Request("u", "recommendation", "", (2, 0), (0,))
    partly = Request("v", "recommendation", "", (2, 0), (0, 1))
    ranked = RankedItems(torch.tensor([[1], [1]]), torch.zeros(2, 1))
    found = predictions_of_ranked([repeated, partly], ranked, split="test")
    assert [one.answerable for one in found] == [False, True]
    kept = predictions_of_ranked(
        [repeated],
        RankedItems(ranked.items[:1], ranked.scores[:1]),
        split="test",
        exclude_history=False,
    )
    assert kept[0].answerable


def test_nothing_to_write(tmp_path):
    write_predictions(tmp_path / "p.parquet", [])
    assert read_predictions(tmp_path / "p.parquet") == []


def test_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"p\.parquet does not exist; run `sidrec test"):
        read_predictions(tmp_path / "p.parquet")


def test_truncated_file_is_refused(predictions, tmp_path):
    target = tmp_path / "p.parquet"
    write_predictions(target, predictions)
    target.write_bytes(target.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"p\.parquet is damaged"):
        read_predictions(target)


def test_missing_column_is_named(tmp_path):
    pq.write_table(pa.table({"request_id": ["a"]}), tmp_path / "p.parquet")
    with pytest.raises(DataError, match="has no column 'task' of type string"):
        read_predictions(tmp_path / "p.parquet")
