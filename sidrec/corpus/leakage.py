"""Leakage checks: training may use train rows only."""

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int64

from sidrec.corpus.store import Corpus, Interactions
from sidrec.errors import DataError


def check_train_only(
    corpus: Corpus,
    rows_or_interactions: Int64[np.ndarray, " row"] | Interactions,
    purpose: str,
) -> None:
    """Refuse interactions that are not train interactions of this corpus.

    Args:
        corpus: Corpus that defines the split of each row.
        rows_or_interactions: Row numbers of interactions.parquet, or the interactions themselves
            (all of the train rows or some of them).
        purpose: Use of the rows, e.g. ``item-item pairs``; part of the message.

    Raises:
        DataError: If any of them is a valid or test row, or unknown to the corpus.
    """
    if isinstance(rows_or_interactions, Interactions):
        _check_interactions(corpus, rows_or_interactions, purpose)
        return
    splits = corpus.timelines().split
    rows = rows_or_interactions
    outside = (rows < 0) | (rows >= len(splits))
    wrong = outside.copy()
    wrong[~outside] = splits[rows[~outside]] != 0
    _refuse(wrong, len(rows), "interactions", purpose)


def check_train_queries_only(corpus: Corpus, rows: Int64[np.ndarray, " row"], purpose: str) -> None:
    """Refuse queries that are not train queries.

    Args:
        corpus: Corpus that defines the split of each query.
        rows: Row numbers of queries.parquet.
        purpose: Use of the queries; part of the message.

    Raises:
        DataError: If any of them is a valid or test query.
    """
    splits = corpus.queries.data.column("split").to_numpy()
    _refuse(splits[rows] != "train", len(rows), "queries", purpose)


def _check_interactions(corpus: Corpus, interactions: Interactions, purpose: str) -> None:
    train = corpus.train_interactions()
    if interactions.item_index is train.item_index:  # the corpus's own view
        return
    own, known = _table(interactions), _table(train)
    if own.equals(known):
        return
    places = own.append_column("place", pa.array(np.arange(len(own))))
    wrong = np.zeros(len(own), bool)
    wrong[places.join(known, own.column_names, join_type="left anti")["place"].to_numpy()] = True
    _refuse(wrong, len(own), "interactions", purpose)


def _table(interactions: Interactions) -> pa.Table:
    columns = ("user_index", "item_index", "timestamp")
    return pa.table({name: np.asarray(getattr(interactions, name)) for name in columns})


def _refuse(wrong: Bool[np.ndarray, " row"], total: int, what: str, purpose: str) -> None:
    num_wrong = int(wrong.sum())
    if num_wrong:
        raise DataError(
            f"{num_wrong} of {total} {what} for {purpose} are not train {what} of this corpus "
            f"(first at place {int(np.argmax(wrong))}); only train may be learned from: take them "
            "from Corpus.train_interactions() or the train split of the queries."
        )
