"""Recall@30 of every system on all request sets of the films: made queries, people's, histories.

Usage: python benchmarks/requests_of_people.py --encoder runs/core/enc --generator runs/core/gen

Closed-form baselines need no run; without ``--encoder`` and ``--generator`` they are all there is.
People's requests are OpenDialKG's, from the folder that SIDREC_DATA names; nothing is trained on
them. Those for films outside the corpus are left out. Figures that the result file already has are
kept: remove it to measure anew. ``hybrid`` is fitted on the corpus's
validation queries, and ``hybrid (people)`` on the people's train requests. A generator is
calibrated on validation requests, so its figures there are flattered.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sidrec.comparison.baselines.run_baseline import SYSTEMS
from sidrec.comparison.baselines.simple import rank_catalogue
from sidrec.comparison.baselines.trained import dense_queries
from sidrec.comparison.plan.stages import NEEDS_A_RUN
from sidrec.corpus.requests import recommendation_requests, search_requests
from sidrec.corpus.store import Corpus, popularity
from sidrec.figures import evaluate
from sidrec.files import read_json, write_json
from sidrec.generator.model.batch import batch_of_requests
from sidrec.generator.model.generator_model import AnswerBy
from sidrec.generator.scorers.calibration import fit_scalars, flat_loss
from sidrec.generator.scorers.dense import DenseScorer
from sidrec.generator.scorers.lexical import LexicalScorer
from sidrec.generator.training.load_generator import TrainedGenerator, load_generator
from sidrec.generator.training.predictions import predictions_of_ranked
from sidrec.runs.directory import RunDirectory
from sidrec.types import TASKS, RankedItems, Request

PEOPLE = Path(os.environ.get("SIDREC_DATA", "../shared/data")) / "movies/queries_opendialkg.jsonl"
TOP_K = 30
BATCH = 64


def main() -> None:
    """Answer every request set with every system that can, and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, default=Path("data/movies-core"))
    parser.add_argument("--encoder", type=Path)
    parser.add_argument("--generator", type=Path)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/requests_core.json"))
    given = parser.parse_args()
    corpus = Corpus.load(given.corpus)
    people = requests_of_people(corpus, PEOPLE)
    asked: dict[str, Sequence[Request]] = {
        "search/valid": search_requests(corpus, "valid"),
        "search/test": search_requests(corpus, "test"),
        "search/people_train": people["train"],
        "search/people_test": people["test"],
        "recommendation/valid": recommendation_requests(corpus, "valid"),
        "recommendation/test": recommendation_requests(corpus, "test"),
    }
    systems: dict[str, tuple[Callable[..., RankedItems], tuple[str, ...]]] = {
        name: (partial(answer, run=given.encoder) if name in NEEDS_A_RUN else answer, tasks)
        for name, (answer, tasks) in SYSTEMS.items()
        if name != "enmf" and (given.encoder is not None or name not in NEEDS_A_RUN)
    }
    if given.encoder is not None:
        fitted = partial(hybrid_of_people, run=given.encoder, fit_on=people["train"])
        systems["hybrid (people)"] = (fitted, ("search",))
    if given.generator is not None:
        trained = load_generator(RunDirectory(given.generator))
        for by in ("both", "prior", "t5"):
            systems[f"sidrec ({by})"] = (partial(generator, trained=trained, by=by), TASKS)
    result: dict[str, Any] = read_json(given.out) if given.out.exists() else {"recall@30": {}}
    result |= {
        "command": " ".join(["python", *sys.argv]),
        "corpus_fingerprint": corpus.fingerprint,
        "num_items": corpus.num_items,
        "num_requests": {key: len(requests) for key, requests in asked.items()},
    }
    for name, (answer, tasks) in systems.items():
        rows = result["recall@30"].setdefault(name, {})
        for key, requests in asked.items():
            if key.startswith(tasks) and key not in rows:
                ranked = answer(corpus, requests, top_k=TOP_K)
                rows[key] = recall(corpus, requests, ranked)
                write_json(given.out, result)
        print(name, {key: round(value, 3) for key, value in rows.items()}, flush=True)
    print(f"written: {given.out}")


def requests_of_people(corpus: Corpus, file: Path) -> dict[str, list[Request]]:
    """Return people's requests by split; films that the corpus lacks are no answers."""
    index = {item_id: row for row, item_id in enumerate(corpus.item_ids())}
    found: dict[str, list[Request]] = {"train": [], "test": []}
    for line in file.read_text().splitlines():
        row = json.loads(line)
        items = tuple(index[str(one)] for one in row["movieIds"] if str(one) in index)
        if items:
            found[row["split"]].append(Request(row["query_id"], "search", row["query"], (), items))
    return found


def recall(corpus: Corpus, requests: Sequence[Request], ranked: RankedItems) -> float:
    """Return Recall@30; of several relevant items, the share that was found."""
    counts = popularity(corpus.train_interactions(), corpus.num_items)
    figures = evaluate(predictions_of_ranked(requests, ranked, split="test"), counts)
    return float(figures[f"{requests[0].task}/recall@{TOP_K}"])


def hybrid_of_people(
    corpus: Corpus,
    requests: Sequence[Request],
    *,
    run: Path,
    fit_on: Sequence[Request],
    top_k: int,
) -> RankedItems:
    """Rank by dense and BM25 scores whose two weights were fitted on other requests."""
    dense, lexical = dense_queries(corpus, run), LexicalScorer.of_texts(corpus.item_texts())

    def scores_of(asked: Sequence[Request]) -> torch.Tensor:
        texts = [request.query for request in asked]
        words = torch.from_numpy(lexical.scores(texts))
        return torch.stack([dense.embed(texts) @ dense.items.T, words])

    unit = torch.tensor([DenseScorer.initial_weight, LexicalScorer.initial_weight])
    scores, target = scores_of(fit_on), torch.tensor([one.relevant[0] for one in fit_on])
    every = torch.ones(scores.shape[1:], dtype=torch.bool)
    weights, _ = fit_scalars({0: lambda w: flat_loss(w, scores, every, target)}, unit, unit=unit)
    print("weights fitted on people's train requests:", weights.tolist())
    return rank_catalogue(
        lambda chunk: torch.tensordot(weights.float(), scores_of(chunk), dims=1).numpy(),
        requests,
        popularity(corpus.train_interactions(), corpus.num_items),
        top_k=top_k,
        exclude_history=False,
    )


@torch.inference_mode()
def generator(
    corpus: Corpus,
    requests: Sequence[Request],
    *,
    trained: TrainedGenerator,
    by: AnswerBy,
    top_k: int,
) -> RankedItems:
    """Answer with a trained generator: by both of its parts, its prior alone, or T5 alone."""
    model = trained.model
    task, length = requests[0].task, model.embedder.settings.max_history_items
    items, scores = [], []
    for first in range(0, len(requests), BATCH):
        chunk = [requests[row] for row in range(first, min(first + BATCH, len(requests)))]
        batch = batch_of_requests(
            chunk,
            task=task,
            request_rows=range(len(chunk)),
            max_history_items=length,
            exclude_history=corpus.exclude_history,
        )
        found = model.answer(batch, num_beams=trained.num_beams, top_k=top_k, by=by)
        items.append(found.ranked.items)
        scores.append(found.ranked.scores)
    return RankedItems(torch.cat(items), torch.cat(scores))


if __name__ == "__main__":
    main()
