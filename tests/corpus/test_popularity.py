import inspect

import numpy as np
import pytest

from sidrec.corpus.store import Corpus, popularity
from sidrec.errors import DataError
from tests.corpus.small import build_small


@pytest.fixture
def corpus(tmp_path):
    build_small(tmp_path / "out")
    return Corpus.load(tmp_path / "out")


def test_small_corpus_by_hand(corpus):
    # train rows: i1 twice (b, c), i2 twice (a, c), i3 once (a); i4 only in test
    assert popularity(corpus.train_interactions(), corpus.num_items).tolist() == [2, 2, 1, 0]


def test_test_rows_cannot_be_counted(corpus):
    unchecked = inspect.unwrap(popularity)  # as users run it: without the type checker of tests
    with pytest.raises(DataError, match=r"counts train rows only, got Timelines; pass Corpus"):
        unchecked(corpus.timelines(), corpus.num_items)


def test_items_of_another_catalogue_are_refused(corpus):
    with pytest.raises(DataError, match=r"interactions name item 2, the catalogue has 2 items"):
        popularity(corpus.train_interactions(), 2)


def test_nobody_consumed_anything(corpus):
    nothing = np.zeros(0, np.int64)
    interactions = corpus.train_interactions()._replace(
        user_index=nothing, item_index=nothing, timestamp=nothing
    )
    assert popularity(interactions, 3).tolist() == [0, 0, 0]
