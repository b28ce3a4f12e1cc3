import numpy as np
import pytest

from sidrec.corpus.leakage import check_train_only, check_train_queries_only
from sidrec.corpus.store import Corpus, Interactions
from sidrec.errors import DataError
from tests.corpus.small import build_small


@pytest.fixture
def corpus(tmp_path):
    build_small(tmp_path / "out")
    return Corpus.load(tmp_path / "out")


def everything(corpus) -> Interactions:
    table = corpus.interactions.with_format("numpy")
    columns = (table[name][:] for name in ("user_index", "item_index", "timestamp"))
    return Interactions(*columns, np.asarray(corpus.timelines().user_starts))


def test_train_passes_whole_in_part_and_from_another_opening(corpus):
    train = corpus.train_interactions()
    check_train_only(corpus, train, "popularity")
    check_train_only(corpus, Corpus.load(corpus.folder).train_interactions(), "popularity")
    part = train._replace(
        user_index=train.user_index[1:3],
        item_index=train.item_index[1:3],
        timestamp=train.timestamp[1:3],
    )
    check_train_only(corpus, part, "popularity")
    check_train_only(corpus, np.array([0, 3, 4, 7, 8]), "pairs")
    check_train_queries_only(corpus, np.array([0, 1]), "pairs")


def test_test_rows_among_interactions_are_refused(corpus):
    with pytest.raises(
        DataError, match=r"4 of 9 interactions for item-item pairs are not train.*first at place 1"
    ):
        check_train_only(corpus, everything(corpus), "item-item pairs")


def test_test_row_numbers_are_refused(corpus):
    with pytest.raises(DataError, match=r"1 of 2 interactions for popularity .*first at place 1"):
        check_train_only(corpus, np.array([0, 6]), "popularity")
    with pytest.raises(DataError, match=r"2 of 3 interactions for popularity"):
        check_train_only(corpus, np.array([-1, 9, 0]), "popularity")


def test_interactions_of_another_corpus_are_refused(corpus, tmp_path):
    build_small(tmp_path / "other", rows=[("z", "i4", 1), ("z", "i3", 2)])
    other = Corpus.load(tmp_path / "other").train_interactions()
    with pytest.raises(DataError, match=r"2 of 2 interactions for the quantizer"):
        check_train_only(corpus, other, "the quantizer")


def test_test_queries_are_refused(corpus):
    with pytest.raises(DataError, match=r"2 of 4 queries for query-item pairs are not train"):
        check_train_queries_only(corpus, np.arange(4), "query-item pairs")
