"""Linear recommenders in closed form: next-item regression and EASE."""

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Float, Int64
from scipy.linalg.lapack import dpotrf, dpotri
from torch import Tensor

from sidrec.comparison.baselines.simple import rank_catalogue
from sidrec.corpus.store import Corpus, popularity
from sidrec.errors import DataError
from sidrec.generator.decoding.item_filters import pad_items
from sidrec.generator.scorers.next_item import Linear, NextItemScorer
from sidrec.generator.scorers.prior_settings import NextItemSettings
from sidrec.types import RankedItems, Request

EASE_RIDGE = 100.0
_MOST_EASE_ITEMS = 30_000  # a dense inverse of 30,000 items takes 7.2 GB, its weights 3.6 GB


def next_item_baseline(corpus: Corpus, requests: Sequence[Request], *, top_k: int) -> RankedItems:
    """Rank items by the generator's ``next_item`` scorer, with its default settings.

    Args:
        corpus: Its train interactions are fitted.
        requests: Recommendation requests.
        top_k: Length of the lists.

    Raises:
        DataError: If no user has two train interactions.
    """
    settings = NextItemSettings()
    scorer = NextItemScorer.of_interactions(
        corpus.train_interactions(), corpus.num_items, settings, num_folds=0
    )
    return _rank(
        corpus,
        requests,
        scorer.everyone,
        half_life_items=settings.half_life_items,
        max_history_items=settings.max_history_items,
        top_k=top_k,
    )


def ease_baseline(
    corpus: Corpus,
    requests: Sequence[Request],
    *,
    top_k: int,
    half_life_items: float | None,
    ridge: float = EASE_RIDGE,
) -> RankedItems:
    """Rank items by EASE: the linear map without self-loops that rebuilds users' item sets best.

    Args:
        corpus: Its train interactions are fitted; how often and in which order does not count.
        requests: Recommendation requests.
        top_k: Length of the lists.
        half_life_items: Items of a request's history over which a weight halves; None weighs all
            alike, which is EASE as published.
        ridge: Penalty on the squared weights, ``> 0``.

    Raises:
        DataError: If the catalogue is too large for a dense inverse.

    Source:
        Steck 2019 (https://arxiv.org/abs/1905.03375). Differs: the recency weights of answering.
    """
    if corpus.num_items > _MOST_EASE_ITEMS:
        raise DataError(
            f"EASE inverts a matrix of all items; {corpus.num_items:,} are above "
            f"{_MOST_EASE_ITEMS:,}. Use --system next_item."
        )
    train = corpus.train_interactions()
    rows = ease_weights(
        train.user_index,
        train.item_index,
        num_users=corpus.num_users,
        num_items=corpus.num_items,
        ridge=ridge,
    )
    longest = max((len(request.history) for request in requests), default=1)
    return _rank(
        corpus,
        requests,
        Linear(rows, None),
        half_life_items=float("inf") if half_life_items is None else half_life_items,
        max_history_items=max(longest, 1),
        top_k=top_k,
    )


def ease_weights(
    users: Int64[np.ndarray, " interaction"],
    items: Int64[np.ndarray, " interaction"],
    *,
    num_users: int,
    num_items: int,
    ridge: float,
) -> Float[Tensor, "item item"]:
    """Return the weights of EASE, row = item of the history; the diagonal is 0.

    With the binary user-by-item matrix ``X`` and ``P = (X'X + ridge I)^-1``, the weight from item
    ``i`` to ``j`` is ``-P_ij / P_jj``. Costs ``num_items^3`` operations in float64, by Cholesky,
    and 16 bytes per pair of items at its peak.
    """
    consumed = sp.csr_array((np.ones(len(items)), (users, items)), shape=(num_users, num_items))
    consumed.data[:] = 1.0  # repeated consumption counts once
    gram = (consumed.T @ consumed).toarray(order="F")
    gram[np.diag_indices(num_items)] += ridge
    factor, failed = dpotrf(gram, lower=True, clean=False, overwrite_a=True)
    if failed:
        raise AssertionError("X'X + ridge I is positive definite")
    inverse, _ = dpotri(factor, lower=True, overwrite_c=True)  # in place of gram
    half = torch.from_numpy(inverse.T).float()
    return (half.triu(1) + half.triu(1).T).div_(-half.diagonal())


def _rank(
    corpus: Corpus,
    requests: Sequence[Request],
    linear: Linear,
    *,
    half_life_items: float,
    max_history_items: int,
    top_k: int,
) -> RankedItems:
    """Rank the catalogue by the weighted sum of the history's rows."""

    def score(chunk: Sequence[Request]) -> Float[np.ndarray, "request item"]:
        history = pad_items([one.history[-max_history_items:] for one in chunk])
        found: Float[np.ndarray, "request item"] = linear.scores(
            history, half_life_items=half_life_items
        ).numpy()
        return found

    counts = popularity(corpus.train_interactions(), corpus.num_items)
    return rank_catalogue(
        score, requests, counts, top_k=top_k, exclude_history=corpus.exclude_history
    )
