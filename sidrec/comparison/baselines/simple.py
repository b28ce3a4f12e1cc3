"""What no generator should lose to: popularity, BM25 and item-item neighbors.

All see train interactions only, rank the whole catalogue, and leave out the user's own history.
Equal scores go to the more popular item, then to the lower item_index.
"""

from collections.abc import Callable, Iterator, Sequence

import bm25s
import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sidrec.corpus.store import Corpus, popularity
from sidrec.generator.decoding.beam_search import best_columns
from sidrec.types import RankedItems, Request

_SCORES_AT_ONCE = 1 << 24  # float32 scores in memory: 64 MiB
_LOWEST = float("-inf")

Scorer = Callable[[Sequence[Request]], Float[np.ndarray, "request item"]]


def popularity_baseline(corpus: Corpus, requests: Sequence[Request], *, top_k: int) -> RankedItems:
    """Give every request the items with the most train interactions; scores are counts."""
    counts = popularity(corpus.train_interactions(), corpus.num_items)

    def score(chunk: Sequence[Request]) -> Float[np.ndarray, "request item"]:
        return np.tile(counts.numpy().astype(np.float32), (len(chunk), 1))

    return rank_catalogue(
        score, requests, counts, top_k=top_k, exclude_history=corpus.exclude_history
    )


def bm25_baseline(corpus: Corpus, requests: Sequence[Request], *, top_k: int) -> RankedItems:
    """Match the words of the query with the words of the items' texts.

    Lucene's variant with ``k1 = 1.5`` and ``b = 0.75``, English stop words left out, no stemming;
    scores are BM25 weights.

    Source:
        Robertson et al. 1994, in the form of bm25s (arXiv 2407.03618).
    """
    index = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
    index.index(_words(corpus.item_texts()), show_progress=False)
    nothing = np.zeros(corpus.num_items, np.float32)  # bm25s refuses a query without words

    def score(chunk: Sequence[Request]) -> Float[np.ndarray, "request item"]:
        queries = _words([one.query for one in chunk])
        rows = [index.get_scores(words) if words else nothing for words in queries]
        return np.stack(rows).astype(np.float32)

    counts = popularity(corpus.train_interactions(), corpus.num_items)
    return rank_catalogue(
        score, requests, counts, top_k=top_k, exclude_history=corpus.exclude_history
    )


def item_neighbors_baseline(
    corpus: Corpus, requests: Sequence[Request], *, top_k: int, num_history: int
) -> RankedItems:
    """Add up the cosines of co-occurrence between each item and the end of the history.

    The cosine of two items is the number of users who consumed both over the geometric mean of
    the numbers who consumed either; nothing but user-by-item matrices is held in memory.

    Args:
        corpus: Its train interactions say which items occur together.
        requests: Recommendation requests.
        top_k: Length of the lists.
        num_history: How many items at the end of the history count.

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

    Equal scores go to the more popular item, then to the lower item_index.

    Args:
        score: Scores of all items for a few requests.
        requests: What is asked.
        counts: Train interactions of each item.
        top_k: Length of the lists; shorter ones are padded.
        exclude_history: Of the corpus: items of a request's own history are left out.
    """
    by_popularity = torch.argsort(counts, descending=True, stable=True)
    top_k = min(top_k, len(counts))
    items = torch.full((len(requests), top_k), -1)
    best = torch.full((len(requests), top_k), _LOWEST)
    for start, chunk in _chunks(requests, max(1, _SCORES_AT_ONCE // len(counts))):
        scores = torch.from_numpy(score(chunk))
        for row, request in enumerate(chunk if exclude_history else ()):
            scores[row, list(request.history)] = _LOWEST
        scores = scores[:, by_popularity]  # columns in the order that settles ties
        columns = best_columns(scores, top_k)
        found, order = scores.gather(1, columns).sort(dim=1, descending=True, stable=True)
        stop = start + len(chunk)
        chosen = by_popularity[columns.gather(1, order)]
        items[start:stop] = torch.where(found > _LOWEST, chosen, -1)
        best[start:stop] = found
    return RankedItems(items, best)


def _words(texts: list[str]) -> list[list[str]]:
    words: list[list[str]] = bm25s.tokenize(
        texts, stopwords="en", return_ids=False, show_progress=False
    )
    return words


def _indicator(rows: list[tuple[int, ...]], num_items: int) -> sp.csr_array:
    columns = [sorted(set(row)) for row in rows]
    starts = np.cumsum([0, *map(len, columns)])
    flat = np.array([item for row in columns for item in row], np.int64)
    return sp.csr_array((np.ones(len(flat), np.float32), flat, starts), (len(rows), num_items))


def _chunks(requests: Sequence[Request], size: int) -> Iterator[tuple[int, Sequence[Request]]]:
    for start in range(0, len(requests), size):
        yield start, [requests[row] for row in range(start, min(start + size, len(requests)))]
