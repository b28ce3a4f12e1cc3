import bm25s
import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser

from sidrec.corpus.store import Interactions
from sidrec.errors import ConfigError, DataError
from sidrec.generator.scorers.dense import DenseScorer
from sidrec.generator.scorers.item_prior import ItemPrior
from sidrec.generator.scorers.lexical import LexicalScorer
from sidrec.generator.scorers.next_item import (
    Linear,
    NextItemScorer,
    fit_next_item,
    next_item_examples,
)
from sidrec.generator.scorers.prior_settings import NextItemSettings, PriorSettings
from sidrec.generator.scorers.scorer import (
    PopularityScorer,
    Scorer,
    ScorerQuery,
    recency_weights,
    weighted_rows,
)
from sidrec.settings import as_plain

TEXTS = ["a heist film in paris", "space opera film", "slow drama by the sea", "paris by night"]
NOBODY = torch.tensor([-1])


def search(*texts, vectors=None):
    none = torch.full((len(texts), 0), -1)
    return ScorerQuery(list(texts), vectors, none, torch.full((len(texts),), -1))


def history(*rows, users=None):
    width = max(map(len, rows))
    padded = torch.tensor([[*row, *[-1] * (width - len(row))] for row in rows])
    users = torch.full((len(rows),), -1) if users is None else torch.tensor(users)
    return ScorerQuery([], None, padded, users)


def interactions(*users):
    """Train interactions of users, each a list of items in order."""
    lengths = [len(items) for items in users]
    flat = np.array([item for items in users for item in items], np.int64)
    return Interactions(
        np.repeat(np.arange(len(users)), lengths),
        flat,
        np.arange(len(flat)),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
    )


def test_weights_halve_going_back_and_padding_has_none():
    found = recency_weights(torch.tensor([[4, 7, 9], [3, -1, -1]]), half_life_items=1.0)
    assert found.tolist() == [[0.25, 0.5, 1.0], [1.0, 0.0, 0.0]]
    table = torch.eye(10)
    rows = weighted_rows(table, torch.tensor([[4, 7, 4], [3, -1, -1]]), found)
    assert rows[0, [4, 7]].tolist() == [1.25, 0.5]  # a repeated item counts again
    assert rows[1].tolist() == table[3].tolist()
    assert weighted_rows(table, torch.zeros(2, 0, dtype=torch.long), torch.zeros(2, 0)).sum() == 0


def test_dense_scores_are_inner_products_with_the_items_own_vectors():
    items = torch.nn.functional.normalize(torch.randn(5, 3), dim=1)
    scorer, asked = DenseScorer(items, half_life_items=1.0), torch.randn(2, 3)
    torch.testing.assert_close(scorer(search("a", "b", vectors=asked)), asked @ items.T)
    mean = torch.nn.functional.normalize(items[4] + items[1] / 2, dim=0)
    torch.testing.assert_close(scorer(history([1, 4]))[0], items @ mean)


def test_lexical_scores_are_those_of_bm25s():
    index = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
    words = bm25s.tokenize(TEXTS, stopwords="en", return_ids=False, show_progress=False)
    index.index(words, show_progress=False)
    scorer = LexicalScorer.of_texts(TEXTS)
    found = scorer(search("Film of PARIS", "opera film film", "unheard words", ""))
    for row, asked in enumerate((["film", "paris"], ["opera", "film", "film"])):
        torch.testing.assert_close(found[row], torch.from_numpy(index.get_scores(asked)))
    assert found[2:].tolist() == [[0.0] * 4] * 2
    again = LexicalScorer(**scorer.state())
    assert torch.equal(again(search("film paris")), scorer(search("film paris")))


def test_popularity_is_the_same_for_everybody():
    found = PopularityScorer(torch.tensor([0, 1, 3]))(history([1], [0]))
    torch.testing.assert_close(
        found, torch.tensor([[0.0, 2.0, 4.0]]).log().clamp(min=0).expand(2, -1)
    )


def test_examples_of_the_regression_by_hand():
    found = next_item_examples(
        interactions([2, 0, 1], [1]), 3, half_life_items=1.0, max_history_items=2
    )
    assert found.histories.toarray().tolist() == [[0.0, 0.0, 1.0], [1.0, 0.0, 0.5]]
    assert found.targets.tolist() == [0, 1]
    assert found.user_index.tolist() == [0, 0]


def test_the_regression_solves_its_normal_equations():
    train = interactions(*np.random.default_rng(0).integers(0, 6, (9, 7)).tolist())
    settings = NextItemSettings(half_life_items=2.0, ridge=3.0, max_history_items=4)
    found = next_item_examples(train, 6, half_life_items=2.0, max_history_items=4)
    x, y = found.histories.toarray(), np.eye(6)[found.targets]
    rows = fit_next_item(found, settings).rows.double().numpy()
    np.testing.assert_allclose((x.T @ x + 3 * np.eye(6)) @ rows, x.T @ y, atol=1e-5)


def test_a_score_is_the_log_of_one_and_the_gain_over_chance():
    train = interactions(*np.random.default_rng(0).integers(0, 6, (9, 7)).tolist())
    settings = NextItemSettings(half_life_items=1.0, ridge=3.0)
    examples = next_item_examples(train, 6, half_life_items=1.0, max_history_items=30)
    rows = fit_next_item(examples, settings).rows
    scores = NextItemScorer.of_interactions(train, 6, settings, num_folds=0)(history([2, 4]))
    estimate = 0.5 * rows[2] + rows[4]
    assert (estimate > 0).any()
    torch.testing.assert_close(scores[0], (6 * estimate.clamp(min=0)).log1p())


def test_a_head_that_misses_no_direction_is_the_dense_map_and_is_announced(capsys):
    train = interactions(*np.random.default_rng(1).integers(0, 5, (30, 7)).tolist())
    dense = NextItemScorer.of_interactions(train, 6, NextItemSettings(ridge=1.0), num_folds=0)
    settings = NextItemSettings(ridge=1.0, max_dense_items=5, rank=5)  # nobody had item 5
    low = NextItemScorer.of_interactions(train, 6, settings, num_folds=0)
    assert "6 items are above prior.next_item.max_dense_items (5)" in capsys.readouterr().err
    asked = history([0, 3], [4])
    torch.testing.assert_close(low(asked), dense(asked), atol=1e-5, rtol=1e-4)


def test_a_training_example_is_scored_without_its_user():
    users = np.random.default_rng(2).integers(0, 5, (8, 6)).tolist()
    settings = NextItemSettings(num_folds=2)
    scorer = NextItemScorer.of_interactions(interactions(*users), 5, settings, num_folds=2)
    odd = NextItemScorer.of_interactions(interactions(*users[1::2]), 5, settings, num_folds=0)
    everyone = NextItemScorer.of_interactions(interactions(*users), 5, settings, num_folds=0)
    found = scorer(history([1, 2], [3], [1, 2], users=[4, -1, 3]))
    torch.testing.assert_close(found[0], odd(history([1, 2]))[0])
    torch.testing.assert_close(found[1], everyone(history([3]))[0])
    again = NextItemScorer.from_state(scorer.state())
    torch.testing.assert_close(again(history([3])), everyone(history([3])), atol=1e-5, rtol=1e-3)


def prior_of(scorers, **settings):
    return ItemPrior({"search": scorers}, corpus_fingerprint="abc", **settings)


def test_training_weights_move_and_calibrated_ones_answer():
    prior = prior_of({"lexical": LexicalScorer.of_texts(TEXTS)})
    assert prior.weights("search").item() == pytest.approx(LexicalScorer.initial_weight)
    prior.set_calibrated("search", scalars=torch.tensor([0.9, 0.0]), alone=torch.tensor([0.8]))
    assert prior.weights("search").item() == pytest.approx(LexicalScorer.initial_weight)  # training
    prior.eval()
    assert prior.weights("search").item() == pytest.approx(0.9)
    assert prior.t5_factor("search") == 0.0
    assert prior.weights_alone("search").item() == pytest.approx(0.8)
    assert prior.figures()["search/t5_factor"] == 0.0


def test_indexing_examples_have_no_prior():
    prior = prior_of({"lexical": LexicalScorer.of_texts(TEXTS)})
    assert prior.dropped(torch.tensor([-1, 3])).tolist() == [False, True]
    half = prior_of({"lexical": LexicalScorer.of_texts(TEXTS)}, dropout=0.5)
    assert half.dropped(torch.full((1000,), -1)).float().mean().item() == pytest.approx(
        0.5, abs=0.06
    )


def test_settings_survive_a_checkpoint():
    settings = PriorSettings(search=("lexical",), next_item=NextItemSettings(ridge=5.0))
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--prior", type=PriorSettings | None)
    read = parser.parse_object({"prior": as_plain(settings)})
    assert parser.instantiate(read).prior == settings


def test_a_map_is_no_part_of_the_weights_of_a_checkpoint():
    low_rank = Linear(torch.ones(5, 2), torch.ones(2, 5))
    assert not NextItemScorer(low_rank, half_life_items=2.0, folds=(low_rank,)).state_dict()


def test_a_prior_comes_back_from_its_state():
    prior = prior_of({"lexical": LexicalScorer.of_texts(TEXTS)}, max_exact_items=7)
    again = ItemPrior.from_state(
        prior.state(), item_vectors=torch.zeros(4, 2), corpus_fingerprint="abc"
    )
    again.load_state_dict(prior.state_dict())
    assert again.is_exact(7)
    assert not again.is_exact(8)
    asked = search("film")
    assert torch.equal(again.scores(asked, task="search"), prior.scores(asked, task="search"))


class Broken(Scorer):
    initial_weight = 1.0

    def forward(self, query):
        return torch.full((len(query.history), 2), torch.nan)

    def state(self):
        return {}


NO_VECTORS = {"item_vectors": torch.zeros(4, 2), "corpus_fingerprint": "other"}


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        (lambda: PopularityScorer(torch.zeros(3, dtype=torch.long)), "'popularity' needs train"),
        (
            lambda: NextItemScorer.of_interactions(
                interactions([1]), 3, NextItemSettings(), num_folds=2
            ),
            "'next_item' needs users with two train interactions",
        ),
        (lambda: LexicalScorer.of_texts(["", "the"]), "'lexical' needs words"),
        (
            lambda: ItemPrior.from_state(
                prior_of({"lexical": LexicalScorer.of_texts(TEXTS)}).state(), **NO_VECTORS
            ),
            "scorers were made from corpus abc, but its Semantic IDs belong to corpus other",
        ),
        (
            lambda: prior_of({"broken": Broken()}).eval().scores(search("a"), task="search"),
            "Scorer broken of search gave NaN",
        ),
    ],
)
def test_bad_data_is_refused_by_name(refused, message):
    with pytest.raises(DataError, match=message):
        refused()


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        (lambda: DenseScorer(torch.eye(2), half_life_items=1.0)(search("a")), "encoder_states"),
        (lambda: PriorSettings(dropout=1.0), "dropout is 1.0, expected at least 0 and below 1"),
        (lambda: PriorSettings(learning_rate=0.0), "learning_rate is 0.0, expected above 0"),
        (lambda: PriorSettings(search=("lexical", "lexical")), "prior.search names a scorer twice"),
        (lambda: NextItemSettings(ridge=-1.0), "ridge is -1.0, expected above 0"),
        (lambda: NextItemSettings(num_folds=1), "num_folds is 1, expected at least 2"),
    ],
)
def test_bad_settings_are_refused_by_name(refused, message):
    with pytest.raises(ConfigError, match=message):
        refused()
