"""Trained baselines: dense retrieval with an encoder run, and ENMF."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sidrec.comparison.baselines.simple import rank_catalogue
from sidrec.corpus.store import Corpus, popularity
from sidrec.encoder.dense_retrieval import mean_history
from sidrec.encoder.encode import encode_texts
from sidrec.encoder.enmf.datamodule import users_of
from sidrec.encoder.enmf.module import load_enmf
from sidrec.encoder.load_encoder import load_encoder
from sidrec.errors import DataError
from sidrec.runs.directory import RunDirectory
from sidrec.runs.from_run import read_config
from sidrec.semantic_ids.bundle.semantic_id_bundle import SemanticIdBundle
from sidrec.types import RankedItems, Request

_QUESTIONS_AT_ONCE = 1_024


class Nearest(NamedTuple):
    """Items with the largest inner products, best first.

    Attributes:
        scores: Inner products, not increasing along a row.
        items: Row indices of the items.
    """

    scores: Float[np.ndarray, "question rank"]
    items: Int[np.ndarray, "question rank"]


class DenseQueries(NamedTuple):
    """A finished bi-encoder and the item embeddings that it stored.

    Attributes:
        embed: Returns the embeddings of query texts.
        items: One embedding per item.
        history_items: Items at the end of a history whose mean stands for it.
    """

    embed: Callable[[list[str]], Float[Tensor, "text dim"]]
    items: Float[Tensor, "item dim"]
    history_items: int


def dense_queries(corpus: Corpus, run: Path) -> DenseQueries:
    """Load a finished bi-encoder run.

    Raises:
        DataError: If the run belongs to another corpus.
    """
    directory = RunDirectory(run)
    tower, settings = load_encoder(directory)
    bundle = SemanticIdBundle.load(directory.semantic_ids, corpus_fingerprint=corpus.fingerprint)
    embed = partial(
        encode_texts,
        tower,
        kind="query",
        max_tokens=_data_settings(directory)["tokens"]["max_query_tokens"],
        batch_size=settings["validation"]["encode_batch_size"],
    )
    return DenseQueries(embed, bundle.embeddings.vectors, settings["validation"]["history_items"])


def dense_baseline(
    corpus: Corpus, requests: Sequence[Request], *, run: Path, top_k: int
) -> RankedItems:
    """Rank items by their inner product with the query embedding or the mean of the history.

    Item embeddings are those that the run stores beside its Semantic IDs. The gap between a
    generator and this baseline is the loss through quantization and generation.

    Args:
        corpus: Corpus that the run was trained on.
        requests: Requests of one task.
        run: Finished run of a bi-encoder.
        top_k: Length of the ranked lists.

    Raises:
        DataError: If the run belongs to another corpus.
    """
    dense = dense_queries(corpus, run)
    if requests and requests[0].task == "search":
        questions = dense.embed([request.query for request in requests])
    else:
        histories = [request.history for request in requests]
        questions = mean_history(dense.items, histories, most_recent=dense.history_items)
    items = dense.items
    counts = popularity(corpus.train_interactions(), corpus.num_items)
    return retrieve(
        questions, items, requests, counts, top_k=top_k, exclude_history=corpus.exclude_history
    )


def enmf_baseline(
    corpus: Corpus, requests: Sequence[Request], *, run: Path, top_k: int
) -> RankedItems:
    """Rank items for each user by the scores of a finished ENMF run.

    The user embedding is that of training: it reflects the train interactions and ignores other
    items of the request's history.

    Raises:
        DataError: If the run belongs to another corpus.
    """
    directory = RunDirectory(run)
    model = load_enmf(directory)
    SemanticIdBundle.load(directory.semantic_ids, corpus_fingerprint=corpus.fingerprint)
    if len(model.tower.items.weight) != corpus.num_items:
        raise DataError(f"{run} was trained on a different catalogue than {corpus.folder}.")
    questions = model.tower.questions(users_of(corpus, requests))
    counts = popularity(corpus.train_interactions(), corpus.num_items)
    items = model.tower.items.weight.detach()
    row_of = {one.request_id: row for row, one in enumerate(requests)}

    def score(chunk: Sequence[Request]) -> Float[np.ndarray, "request item"]:
        rows = [row_of[one.request_id] for one in chunk]
        scored: Float[np.ndarray, "request item"] = (questions[rows] @ items.T).numpy()
        return scored

    return rank_catalogue(
        score, requests, counts, top_k=top_k, exclude_history=corpus.exclude_history
    )


def retrieve(
    questions: Float[Tensor, "request dim"],
    items: Float[Tensor, "item dim"],
    requests: Sequence[Request],
    counts: Int[Tensor, " item"],
    *,
    top_k: int,
    exclude_history: bool = True,
) -> RankedItems:
    """Return the nearest items of each request.

    Ties go to the more popular item, then to the lower item_index. Where the cut-off falls between
    equal scores, the item_index decides.

    Args:
        questions: Embeddings of the requests: row ``i`` belongs to request ``i``.
        items: Embedding of each item.
        requests: Requests whose histories are left out.
        counts: Train interactions of each item.
        top_k: Length of the ranked lists; shorter ones are padded.
        exclude_history: Setting of the corpus: leave out the items of a request's own history.
    """
    order = torch.argsort(counts, descending=True, stable=True)
    place = torch.argsort(order).numpy()
    by_popularity = np.ascontiguousarray(items[order].numpy())
    top_k = min(top_k, len(items))
    found = torch.full((len(requests), top_k), -1)
    scores = torch.full((len(requests), top_k), float("-inf"))
    for first in range(0, len(requests), _QUESTIONS_AT_ONCE):
        chunk = [
            requests[row] for row in range(first, min(first + _QUESTIONS_AT_ONCE, len(requests)))
        ]
        longest = max(len(set(one.history)) for one in chunk)
        asked = questions[first : first + len(chunk)].numpy()
        near = nearest(asked, by_popularity, k=min(len(items), top_k + longest))
        for row, request in enumerate(chunk):
            columns = near.items[row]
            kept = ~np.isin(columns, place[list(request.history if exclude_history else ())])
            columns, own = columns[kept], near.scores[row][kept]
            best = np.lexsort((columns, -own))[:top_k]
            found[first + row, : len(best)] = order[torch.from_numpy(columns[best])]
            scores[first + row, : len(best)] = torch.from_numpy(own[best])
    return RankedItems(found, scores)


def nearest(
    questions: Float[np.ndarray, "question dim"], items: Float[np.ndarray, "item dim"], *, k: int
) -> Nearest:
    """Return the ``k`` largest inner products, exact; uses faiss where installed, else torch."""
    try:
        import faiss
    except ImportError:
        return nearest_by_torch(questions, items, k=k)
    index = faiss.IndexFlatIP(items.shape[1])
    index.add(items)
    scores, columns = index.search(np.ascontiguousarray(questions), k)
    return Nearest(scores, columns)


def nearest_by_torch(
    questions: Float[np.ndarray, "question dim"], items: Float[np.ndarray, "item dim"], *, k: int
) -> Nearest:
    """Return the result of :func:`nearest`, computed by one matrix product."""
    best = torch.topk(torch.from_numpy(questions) @ torch.from_numpy(items).T, k, dim=1)
    return Nearest(best.values.numpy(), best.indices.numpy())


def _data_settings(run: RunDirectory) -> dict[str, Any]:
    data: dict[str, Any] = read_config(run.config)["data"]
    return dict(data.get("init_args", data))
