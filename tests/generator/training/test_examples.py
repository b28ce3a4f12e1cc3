import numpy as np
import pytest
import torch

from sidrec.corpus.store import Interactions
from sidrec.errors import ConfigError
from sidrec.generator.training.examples import RecommendationExamples, SearchExamples
from sidrec.generator.training.pseudo_queries import PseudoQueries
from sidrec.pairs.query_item import QueryItemPairs

# users 0 (four items), 1 (none), 2 (one), 3 (three)
ITEMS = np.array([10, 11, 12, 13, 20, 30, 31, 32])
STARTS = np.array([0, 4, 4, 5, 8])
TIMELINES = Interactions(np.repeat([0, 2, 3], [4, 1, 3]), ITEMS, np.arange(8), STARTS)


def recommendation(**changes):
    settings = {"max_history_items": 2, "target_window": 1, "history_dropout": 0.0} | changes
    return RecommendationExamples.of(TIMELINES, **settings)


def search(**changes):
    pairs = QueryItemPairs(np.array([0, 1, 3]), np.array([2, 0, 4]), "query")
    settings = {"num_indexing": 3} | changes
    return SearchExamples(
        pairs,
        ["heist", "rain by the sea"],
        [f"text {n}" for n in range(5)],
        np.arange(5),
        **settings,
    )


def test_every_item_with_one_before_it_by_hand():
    examples = recommendation()
    rows = np.arange(len(examples))
    batch = examples.batch(rows, seed=1, turn=0)
    assert batch.target.tolist() == [11, 12, 13, 31, 32]
    assert batch.history.tolist() == [[10, -1], [10, 11], [11, 12], [30, -1], [30, 31]]
    assert examples.length_of(rows).tolist() == [1, 2, 2, 1, 2]
    assert batch.task == "recommendation"


def test_padding_is_cut_to_the_batch():
    batch = recommendation(max_history_items=9).batch(np.array([3, 0]), seed=1, turn=0)
    assert batch.history.tolist() == [[30], [10]]
    assert (
        recommendation().batch(np.array([], dtype=np.int64), seed=1, turn=0).history.shape[0] == 0
    )


def test_targets_follow_within_the_window():
    examples = recommendation(target_window=2)
    rows = np.zeros(1, dtype=np.int64)
    drawn = {examples.batch(rows, seed=1, turn=turn).target.item() for turn in range(40)}
    assert drawn == {11, 12}
    last = {examples.batch(rows + 2, seed=1, turn=turn).target.item() for turn in range(40)}
    assert last == {13}  # never the next user's


def test_dropout_leaves_order_and_at_least_the_most_recent():
    examples = recommendation(max_history_items=3, history_dropout=0.9)
    rows = np.array([2])
    seen = set()
    for turn in range(200):
        history = examples.batch(rows, seed=1, turn=turn).history[0].tolist()
        seen.add(tuple(history))
    assert all(list(history) == sorted(history) and len(history) >= 1 for history in seen)
    assert (12,) in seen
    assert len(seen) > 2
    kept = sum(
        len(
            recommendation(max_history_items=3, history_dropout=0.25)
            .batch(rows, seed=1, turn=t)
            .history[0]
        )
        for t in range(400)
    )
    assert kept / 1200 == pytest.approx(0.75, abs=0.03)


def test_what_a_row_draws_does_not_depend_on_its_batch():
    examples = recommendation(max_history_items=3, history_dropout=0.5, target_window=3)
    together = examples.batch(np.arange(5), seed=7, turn=2)
    for row in range(5):
        alone = examples.batch(np.array([row]), seed=7, turn=2)
        assert alone.target[0] == together.target[row]
        kept = together.history[row][together.history[row] >= 0]
        assert torch.equal(alone.history[0], kept)


def test_only_train_rows_enter(corpus):
    train = corpus.train_interactions()
    examples = RecommendationExamples.of(
        train, max_history_items=50, target_window=1, history_dropout=0.0
    )
    splits = np.array(corpus.interactions["split"])
    assert len(examples) == (splits == "train").sum() - len(set(train.user_index.tolist()))
    batch = examples.batch(np.arange(len(examples)), seed=1, turn=0)
    items, row = train.item_index, 0
    for user in range(corpus.num_users):
        timeline = items[train.user_starts[user] : train.user_starts[user + 1]].tolist()
        for place in range(1, len(timeline)):
            history = batch.history[row][batch.history[row] >= 0].tolist()
            assert (history, batch.target[row].item()) == (timeline[:place], timeline[place])
            row += 1


def test_queries_then_item_texts():
    examples = search()
    assert len(examples) == 5
    batch = examples.batch(np.array([4, 0, 2]), seed=1, turn=0)
    assert batch.texts == ["text 2", "heist", "text 0"]
    assert batch.text_rows.tolist() == [-1, 0, -1]
    assert batch.indexed_item.tolist() == [2, -1, 0]
    assert batch.target.tolist() == [2, 2, 0]
    assert examples.length_of(np.array([0, 1, 2, 4])).tolist() == [5, 15, -1, -1]


def test_indexing_walks_on_through_all_items():
    examples, found = search(), []
    for turn in range(5):
        found += examples.batch(np.array([2, 3, 4]), seed=1, turn=turn).target.tolist()
    assert sorted(found) == sorted([0, 1, 2, 3, 4] * 3)


def test_indexing_rows_hold_words_drawn_anew_in_every_turn():
    texts = [f"one two three four five six of text {n}" for n in range(5)]
    pairs = QueryItemPairs(np.array([0, 1, 3]), np.array([2, 0, 4]), "query")
    words = PseudoQueries.of(texts)
    examples = SearchExamples(pairs, ["heist", "rain"], texts, np.arange(5), 3, words)
    rows = np.array([4, 0, 2, 3])
    seen = set()
    for turn in range(20):
        batch = examples.batch(rows, seed=1, turn=turn)
        assert batch.texts[1] == "heist"
        for text, item in zip(batch.texts, batch.indexed_item.tolist(), strict=True):
            assert item == -1 or {*text.split()} <= {*texts[item].split()}
        seen |= {*batch.texts[2:]}
        again = examples.batch(rows[[2, 1]], seed=1, turn=turn)
        assert again.texts == [batch.texts[2], "heist"]
    assert len(seen) > 30


def test_every_item_of_a_query_is_drawn_in_turn():
    found = {search().batch(np.array([1]), seed=1, turn=turn).target.item() for turn in range(40)}
    assert found == {0, 4}


@pytest.mark.parametrize(
    "wrong", [{"max_history_items": 0}, {"target_window": 0}, {"history_dropout": 1.0}]
)
def test_refusals(wrong):
    with pytest.raises(ConfigError, match="must be 1 or more"):
        recommendation(**wrong)


def test_weights_decide_how_often_an_interaction_is_the_target():
    """Five rows a turn; item 13 weighs 3 of 7, so it is drawn 15 / 7 times a turn in the mean."""
    weight = np.array([9, 1, 1, 3, 9, 9, 1, 1], np.float32)  # first items are no targets
    settings = {"max_history_items": 2, "target_window": 1, "history_dropout": 0.0}
    examples = RecommendationExamples.of(TIMELINES._replace(weight=weight), **settings)
    rows = np.arange(len(examples))
    turns = [examples.batch(rows, seed=1, turn=turn) for turn in range(300)]
    drawn = [batch.target.tolist() for batch in turns]
    assert all(len(one) == 5 and 2 <= one.count(13) <= 3 for one in drawn)
    means = {item: sum(one.count(item) for one in drawn) / 300 for item in (11, 12, 13, 31, 32)}
    assert means == pytest.approx({11: 5 / 7, 12: 5 / 7, 13: 15 / 7, 31: 5 / 7, 32: 5 / 7}, abs=0.1)
    before = dict(zip([11, 12, 13, 31, 32], [1, 2, 2, 1, 2], strict=True))
    for batch in turns[:20]:
        lengths = (batch.history >= 0).sum(dim=1).tolist()
        assert lengths == [before[item] for item in batch.target.tolist()]
    assert examples.length_of(rows).tolist() == [1, 2, 2, 2, 2]  # of 11, 13, 13, 13, 32
