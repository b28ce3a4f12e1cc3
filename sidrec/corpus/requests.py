"""Evaluation requests, built one at a time from memory-mapped tables."""

from collections.abc import Sequence
from typing import overload

import numpy as np
from jaxtyping import Int64

from sidrec.corpus.schema import SPLITS, Split
from sidrec.corpus.store import Corpus
from sidrec.types import Request


class _LazyRequests(Sequence[Request]):
    """Sequence of requests, each built on access."""

    def __init__(self, corpus: Corpus, rows: Int64[np.ndarray, " request"]) -> None:
        self._corpus, self._rows = corpus, rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, place: int) -> Request: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Request]: ...
    def __getitem__(self, place: int | slice) -> Request | Sequence[Request]:
        if isinstance(place, slice):
            return type(self)(self._corpus, self._rows[place])
        return self._request(int(self._rows[place]))

    def _request(self, row: int) -> Request:
        raise NotImplementedError


class _SearchRequests(_LazyRequests):
    def _request(self, row: int) -> Request:
        query = self._corpus.queries[row]
        answers, grades = tuple(query["item_index"]), tuple(query.get("grade", ()))
        return Request(query["query_id"], "search", query["text"], (), answers, grades)


class _RecommendationRequests(_LazyRequests):
    def _request(self, row: int) -> Request:
        timelines = self._corpus.timelines()
        user = int(np.searchsorted(timelines.user_starts, row, side="right")) - 1
        history = timelines.item_index[timelines.user_starts[user] : row]
        return Request(
            self._corpus.interactions[row]["user_id"],
            "recommendation",
            "",
            tuple(history.tolist()),
            (int(timelines.item_index[row]),),
        )


def search_requests(corpus: Corpus, split: Split) -> Sequence[Request]:
    """Return the search requests of a split: one per query, with the query's items as relevant.

    Args:
        corpus: Corpus with the queries.
        split: ``train``, ``valid`` or ``test``.
    """
    splits = corpus.queries.data.column("split").to_numpy()
    return _SearchRequests(corpus, np.flatnonzero(splits == split))


def recommendation_requests(corpus: Corpus, split: Split) -> Sequence[Request]:
    """Return the recommendation requests of a split: one per user, for the user's first item in it.

    The rule is the same for both ways of splitting. The target is the user's first interaction in
    ``split``; the history is every earlier interaction of the user, of any split (train for valid;
    train and valid for test), repeats included. Users without a target, or without an earlier
    interaction, have no request. With ``leave_last_out`` the target is the user's only test item;
    with ``temporal`` later test items are not targets.

    Args:
        corpus: Corpus with the interactions.
        split: ``valid`` or ``test``.

    Raises:
        ValueError: If ``split`` is ``train``, which has no recommendation requests.
    """
    if split == "train":
        raise ValueError("recommendation requests exist for 'valid' and 'test', got 'train'")
    timelines = corpus.timelines()
    rows = np.flatnonzero(timelines.split == SPLITS.index(split))
    users = np.searchsorted(timelines.user_starts, rows, side="right") - 1
    first = np.ones(len(rows), bool)
    first[1:] = users[1:] != users[:-1]
    has_history = rows > timelines.user_starts[users]
    return _RecommendationRequests(corpus, rows[first & has_history])


def is_answerable(request: Request, *, exclude_history: bool) -> bool:
    """Return whether any relevant item of a request may appear in its result list.

    Args:
        request: Request to check; one without relevant items counts as answerable.
        exclude_history: Whether the corpus excludes a user's history from recommendations.
    """
    if not exclude_history or not request.relevant:
        return True
    return not set(request.relevant) <= set(request.history)
