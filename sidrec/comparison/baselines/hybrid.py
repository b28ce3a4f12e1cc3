"""Hybrid retrieval: dense and BM25 scores, weighed on the validation split."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sidrec.comparison.baselines.simple import rank_catalogue
from sidrec.comparison.baselines.trained import dense_queries
from sidrec.console import say
from sidrec.corpus.requests import search_requests
from sidrec.corpus.store import Corpus, popularity
from sidrec.generator.scorers.calibration import fit_scalars, flat_loss
from sidrec.generator.scorers.dense import DenseScorer
from sidrec.generator.scorers.lexical import LexicalScorer
from sidrec.types import RankedItems, Request

_MOST_SCORES = 1 << 27  # float32 scores of the fit in memory: 512 MiB


def hybrid_baseline(
    corpus: Corpus, requests: Sequence[Request], *, run: Path, top_k: int
) -> RankedItems:
    """Rank items by a weighted sum of the query's dense and BM25 scores.

    The two weights maximize the likelihood of the validation queries' first items. Without
    validation queries they are the scorers' initial weights, and a line says so.

    Args:
        corpus: The one that the run was trained on.
        requests: Search requests.
        run: Finished run of a bi-encoder.
        top_k: Length of the lists.

    Raises:
        DataError: If the run belongs to another corpus, or no item text has a word.
    """
    dense, lexical = dense_queries(corpus, run), LexicalScorer.of_texts(corpus.item_texts())

    def scores_of(asked: Sequence[Request]) -> Float[Tensor, "scorer request item"]:
        texts = [request.query for request in asked]
        words = torch.from_numpy(lexical.scores(texts))
        return torch.stack([dense.embed(texts) @ dense.items.T, words])

    weights = _fitted_weights(corpus, scores_of)

    def score(chunk: Sequence[Request]) -> Float[np.ndarray, "request item"]:
        total: Float[np.ndarray, "request item"] = torch.tensordot(
            weights, scores_of(chunk), dims=1
        ).numpy()
        return total

    counts = popularity(corpus.train_interactions(), corpus.num_items)
    return rank_catalogue(score, requests, counts, top_k=top_k, exclude_history=False)


def _fitted_weights(
    corpus: Corpus, scores_of: Callable[[Sequence[Request]], Tensor]
) -> Float[Tensor, " scorer"]:
    """Return the weights of dense and BM25 scores that validation queries find likeliest."""
    unit = torch.tensor([DenseScorer.initial_weight, LexicalScorer.initial_weight])
    asked = [one for one in search_requests(corpus, "valid") if one.relevant]
    asked = asked[: max(1, _MOST_SCORES // (2 * corpus.num_items))]
    if not asked:
        say("hybrid: no validation query; dense and BM25 keep their initial weights.")
        return unit
    scores, target = scores_of(asked), torch.tensor([one.relevant[0] for one in asked])
    every = torch.ones(scores.shape[1:], dtype=torch.bool)
    weights, _ = fit_scalars({0: lambda w: flat_loss(w, scores, every, target)}, unit, unit=unit)
    return weights.float()
