"""Popularity, BM25 and item-item neighbor baselines.

All use train interactions only, rank the whole catalogue, and leave out the user's own history
where the corpus does (``exclude_history``). Ties go to the more popular item, then to the lower
item_index.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sidrec.corpus.store import Corpus, popularity
from sidrec.generator.decoding.beam_search import best_columns
from sidrec.generator.scorers.lexical import LexicalScorer
from sidrec.types import RankedItems, Request

_SCORES_AT_ONCE = 1 << 24  # float32 scores in memory: 64 MiB
_LOWEST = float("-inf")

Scorer = Callable[[Sequence[Request]], Float[np.ndarray, "request item"]]


def popularity_baseline(corpus: Corpus, requests: Sequence[Request], *, top_k: int) -> RankedItems:
    """Rank the items with the most train interactions first; scores are counts."""
    counts = popularity(corpus.train_interactions(), corpus.num_items)

    def score(chunk: Sequence[Request]) -> Float[np.ndarray, "request item"]:
        return np.tile(counts.numpy().astype(np.float32), (len(chunk), 1))

    return rank_catalogue(
        score, requests, counts, top_k=top_k, exclude_history=corpus.exclude_history
    )


def bm25_baseline(corpus: Corpus, requests: Sequence[Request], *, top_k: int) -> RankedItems:
    """Rank items by BM25 between the query and the items' texts.

    Lucene's variant with ``k1 = 1.5`` and ``b = 0.75``, without English stop words and without
    stemming. Scores are BM25 weights.

    Source:
        Robertson et al. 1994, in the form of bm25s (arXiv 2407.03618).
    """
    lexical = LexicalScorer.of_texts(corpus.item_texts())

    def score(chunk: Sequence[Request]) -> Float[np.ndarray, "request item"]:
        return lexical.scores([one.query for one in chunk])

    counts = popularity(corpus.train_interactions(), corpus.num_items)
    return rank_catalogue(
        score, requests, counts, top_k=top_k, exclude_history=corpus.exclude_history
    )


def item_neighbors_baseline(
    corpus: Corpus, requests: Sequence[Request], *, top_k: int, num_history: int
) -> RankedItems:
    """Rank items by the sum of their co-occurrence cosines with the end of the history.

    The cosine of two items is the number of users who consumed both, divided by the geometric mean
    of their numbers of users. Memory holds user-by-item matrices only.

    Args:
        corpus: Source of the train interactions that define co-occurrence.
        requests: Recommendation requests.
        top_k: Length of the ranked lists.
        num_history: Number of items at the end of the history that count.

    Source:
        Sarwar et al. 2001, item-based collaborative filtering, on implicit feedback.
    """
    train = corpus.train_interactions()
    ones = np.ones(len(train.item_index), np.float32)
    shape = (corpus.num_users, corpus.num_items)
    consumed = sp.csr_array((ones, (train.user_index, train.item_index)), shape=shape)
    consumed.data[:] = 1.0  # repeated consumption counts once
    counts = popularity(train, corpus.num_items)
    num_users = np.asarray(consumed.sum(axis=0)).ravel()
    unit = (consumed / np.sqrt(np.maximum(num_users, 1.0))).tocsr()

    def score(chunk: Sequence[Request]) -> Float[np.ndarray, "request item"]:
        recent = _indicator([one.history[-num_history:] for one in chunk], corpus.num_items)
        own = recent * (num_users > 0)  # no item is its own neighbor
        scores: Float[np.ndarray, "request item"] = ((recent @ unit.T) @ unit - own).toarray()
        return scores.astype(np.float32)

    return rank_catalogue(
        score, requests, counts, top_k=top_k, exclude_history=corpus.exclude_history
    )


def rank_catalogue(
    score: Scorer,
    requests: Sequence[Request],
    counts: Int[Tensor, " item"],
    *,
    top_k: int,
    exclude_history: bool = True,
) -> RankedItems:
    """Rank the whole catalogue for every request by the protocol of all baselines.

    Ties go to the more popular item, then to the lower item_index.

    Args:
        score: Computes the scores of all items for a chunk of requests.
        requests: Requests to answer.
        counts: Train interactions of each item.
        top_k: Length of the ranked lists; shorter ones are padded.
        exclude_history: Setting of the corpus: leave out the items of a request's own history.
    """
    by_popularity = torch.argsort(counts, descending=True, stable=True)
    top_k = min(top_k, len(counts))
    items = torch.full((len(requests), top_k), -1)
    best = torch.full((len(requests), top_k), _LOWEST)
    for start, chunk in _chunks(requests, max(1, _SCORES_AT_ONCE // len(counts))):
        scores = torch.from_numpy(score(chunk))
        for row, request in enumerate(chunk if exclude_history else ()):
            scores[row, list(request.history)] = _LOWEST
        scores = scores[:, by_popularity]  # columns in tie-break order
        columns = best_columns(scores, top_k)
        found, order = scores.gather(1, columns).sort(dim=1, descending=True, stable=True)
        stop = start + len(chunk)
        chosen = by_popularity[columns.gather(1, order)]
        items[start:stop] = torch.where(found > _LOWEST, chosen, -1)
        best[start:stop] = found
    return RankedItems(items, best)


def _indicator(rows: list[tuple[int, ...]], num_items: int) -> sp.csr_array:
    columns = [sorted(set(row)) for row in rows]
    starts = np.cumsum([0, *map(len, columns)])
    flat = np.array([item for row in columns for item in row], np.int64)
    return sp.csr_array((np.ones(len(flat), np.float32), flat, starts), (len(rows), num_items))


def _chunks(requests: Sequence[Request], size: int) -> Iterator[tuple[int, Sequence[Request]]]:
    for start in range(0, len(requests), size):
        yield start, [requests[row] for row in range(start, min(start + size, len(requests)))]
