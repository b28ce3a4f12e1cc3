"""Run directory of one baseline, with the same files as a tested generator's."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from sidrec.comparison.baselines.hybrid import hybrid_baseline
from sidrec.comparison.baselines.linear import ease_baseline, next_item_baseline
from sidrec.comparison.baselines.simple import (
    bm25_baseline,
    item_neighbors_baseline,
    popularity_baseline,
)
from sidrec.comparison.baselines.trained import dense_baseline, enmf_baseline
from sidrec.comparison.plan.stages import NEEDS_A_RUN
from sidrec.corpus.requests import recommendation_requests, search_requests
from sidrec.corpus.store import Corpus, popularity
from sidrec.errors import ConfigError
from sidrec.files import write_json
from sidrec.generator.training.predictions import predictions_of_ranked, write_predictions
from sidrec.metrics import Figures, evaluate
from sidrec.runs.directory import RunDirectory
from sidrec.types import TASKS, RankedItems, Request, Task

TOP_K = 30
NUM_HISTORY = 10  # items at the end of a history that the neighbors look at
EASE_HALF_LIFE_ITEMS = 10.0

Baseline = Callable[..., RankedItems]
SYSTEMS: dict[str, tuple[Baseline, tuple[Task, ...]]] = {
    "popularity": (popularity_baseline, TASKS),
    "bm25": (bm25_baseline, ("search",)),
    "neighbors": (
        partial(item_neighbors_baseline, num_history=NUM_HISTORY),
        ("recommendation",),
    ),
    "ease": (partial(ease_baseline, half_life_items=None), ("recommendation",)),
    "ease_recency": (
        partial(ease_baseline, half_life_items=EASE_HALF_LIFE_ITEMS),
        ("recommendation",),
    ),
    "next_item": (next_item_baseline, ("recommendation",)),
    "dense": (dense_baseline, TASKS),
    "hybrid": (hybrid_baseline, ("search",)),
    "enmf": (enmf_baseline, ("recommendation",)),
}


def run_baseline(system: str, corpus_folder: Path, *, run: Path | None, out: Path) -> Figures:
    """Answer the test split and write ``predictions.parquet`` and ``metrics.json``.

    Args:
        system: One of ``SYSTEMS``.
        corpus_folder: Corpus directory.
        run: Encoder run of ``dense``, ``hybrid`` and ``enmf``; None for the others.
        out: Run directory to write.

    Raises:
        ConfigError: If the system is unknown, or a run is missing or too many.
    """
    if system not in SYSTEMS:
        raise ConfigError(f"No baseline '{system}'; choose from {', '.join(SYSTEMS)}.")
    if (run is not None) != (system in NEEDS_A_RUN):
        raise ConfigError(f"--from belongs to the systems {', '.join(NEEDS_A_RUN)}.")
    answer, tasks = SYSTEMS[system]
    if run is not None:
        answer = partial(answer, run=run)
    corpus, directory = Corpus.load(corpus_folder), RunDirectory(out)
    asked: dict[Task, Sequence[Request]] = {
        "search": search_requests(corpus, "test"),
        "recommendation": recommendation_requests(corpus, "test"),
    }
    predictions = [
        one
        for task in tasks
        if len(asked[task])
        for one in predictions_of_ranked(
            asked[task],
            answer(corpus, asked[task], top_k=TOP_K),
            split="test",
            exclude_history=corpus.exclude_history,
        )
    ]
    figures = evaluate(predictions, popularity(corpus.train_interactions(), corpus.num_items))
    write_predictions(directory.predictions, predictions)
    write_json(directory.metrics, figures)
    directory.write_manifest(
        state="finished", stage="baseline", system=system, corpus_fingerprint=corpus.fingerprint
    )
    return figures
