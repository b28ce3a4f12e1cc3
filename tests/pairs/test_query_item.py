import numpy as np
import pytest

from sidrec.errors import DataError
from sidrec.pairs.query_item import QueryItemPairs, query_item_pairs, train_query_rows

STARTS = np.array([0, 1, 3, 6])  # three queries with one, two and three items
VALUES = np.array([4, 1, 2, 0, 3, 5])


def test_rows_are_pairs_by_hand():
    pairs = QueryItemPairs(STARTS, VALUES, "pair")
    assert len(pairs) == 6
    drawn = pairs.draw(np.array([0, 2, 3, 5]), seed=0, epoch=0)
    assert drawn.left.tolist() == [0, 1, 2, 2]
    assert drawn.right_item.tolist() == [4, 2, 0, 5]
    assert drawn.known_positives.tolist() == [[4, -1, -1], [1, 2, -1], [0, 3, 5], [0, 3, 5]]


def test_rows_are_queries_that_draw_one_item_an_epoch():
    pairs = QueryItemPairs(STARTS, VALUES, "query")
    assert len(pairs) == 3
    rows = np.arange(3)
    drawn = [pairs.draw(rows, seed=0, epoch=epoch).right_item for epoch in range(300)]
    np.testing.assert_array_equal(drawn[7], pairs.draw(rows, seed=0, epoch=7).right_item)
    first, second, third = np.stack(drawn).T
    assert set(first) == {4}
    assert 110 < (second == 1).sum() < 190  # half, 4.6 standard deviations
    assert {item: 60 < (third == item).sum() < 140 for item in (0, 3, 5)} == dict.fromkeys(
        (0, 3, 5), True
    )


def test_a_draw_does_not_depend_on_the_batch_around_it():
    pairs = QueryItemPairs(STARTS, VALUES, "query")
    whole = pairs.draw(np.arange(3), seed=5, epoch=2)
    alone = pairs.draw(np.array([2]), seed=5, epoch=2)
    assert alone.right_item[0] == whole.right_item[2]


def test_log_frequency_by_hand():
    by_query = np.exp(QueryItemPairs(STARTS, VALUES, "query").log_frequency(7))
    np.testing.assert_allclose(by_query, [1 / 9, 1 / 6, 1 / 6, 1 / 9, 1 / 3, 1 / 9, 0], atol=1e-7)
    by_pair = np.exp(QueryItemPairs(STARTS, VALUES, "pair").log_frequency(7))
    np.testing.assert_allclose(by_pair, [*[1 / 6] * 6, 0], atol=1e-7)


def test_only_train_queries_of_a_corpus(corpus):
    pairs, rows = query_item_pairs(corpus, rows="query"), train_query_rows(corpus)
    queries = corpus.queries[:]
    expected = [r for r, split in enumerate(queries["split"]) if split == "train"]
    assert rows.tolist() == expected
    assert 0 < len(expected) < len(queries["split"])
    for number, row in enumerate(expected):
        place = slice(pairs.item_starts[number], pairs.item_starts[number + 1])
        assert pairs.item_values[place].tolist() == queries["item_index"][row]


def test_refusals():
    with pytest.raises(DataError, match=r"1 train queries have no item \(first: train query 1"):
        QueryItemPairs(np.array([0, 1, 1]), np.array([3]), "query")
