"""Run directory of one baseline, with the same files as a tested generator's."""

from collections.abc import Callable, Sequence
from functools import partial
from inspect import signature
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
from sidrec.corpus.cold_start import cold_start_items
from sidrec.corpus.requests import recommendation_requests, search_requests
from sidrec.corpus.store import Corpus, popularity
from sidrec.errors import ConfigError
from sidrec.figures import Figures, evaluate
from sidrec.files import write_json
from sidrec.generator.training.predictions import predictions_of_ranked, write_predictions
from sidrec.plugins import find_function
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
        system: One of ``SYSTEMS``, an entry point of ``sidrec.baselines``, or the path of a
            function. It has the arguments of ``simple.bm25_baseline``, and ``run`` if it needs one;
            its attribute ``tasks`` names the tasks that it answers, both without it.
        corpus_folder: Corpus directory.
        run: Encoder run of ``dense``, ``hybrid`` and ``enmf``; None for the others.
        out: Run directory to write.

    Raises:
        ConfigError: If the system is unknown, a run is missing or too many, a plug-in returns
            something else than one ranked list for each request, or ``out`` is another run.
    """
    answer, tasks = _system(system, run)
    directory = RunDirectory(out)
    if directory.manifest.exists() and directory.stage() != "baseline":
        raise ConfigError(
            f"{out} is a run of stage '{directory.stage()}', whose figures would be replaced; give "
            "another --run_dir."
        )
    corpus = Corpus.load(corpus_folder)
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
            _answered(system, answer, corpus, asked[task]),
            split="test",
            exclude_history=corpus.exclude_history,
        )
    ]
    counts = popularity(corpus.train_interactions(), corpus.num_items)
    figures = evaluate(predictions, counts, cold=cold_start_items(corpus))
    write_predictions(directory.predictions, predictions)
    write_json(directory.metrics, figures)
    directory.write_manifest(
        state="finished", stage="baseline", system=system, corpus_fingerprint=corpus.fingerprint
    )
    return figures


def _system(system: str, run: Path | None) -> tuple[Baseline, tuple[Task, ...]]:
    if system in SYSTEMS:
        answer, tasks = SYSTEMS[system]
        needs_run = system in NEEDS_A_RUN
    else:
        answer = find_function("baselines", system, known=SYSTEMS)
        tasks = getattr(answer, "tasks", TASKS)
        needs_run = "run" in signature(answer).parameters
        if not tasks or not set(tasks) <= set(TASKS):
            raise ConfigError(f"The tasks of baseline '{system}' must be among {', '.join(TASKS)}.")
    if needs_run != (run is not None):
        raise ConfigError(
            f"Baseline '{system}' needs {'a' if needs_run else 'no'} run of an encoder: "
            f"{'give' if needs_run else 'leave out'} --from."
        )
    return (partial(answer, run=run) if needs_run else answer), tasks


def _answered(
    system: str, answer: Baseline, corpus: Corpus, requests: Sequence[Request]
) -> RankedItems:
    ranked = answer(corpus, requests, top_k=TOP_K)
    if not isinstance(ranked, RankedItems) or len(ranked.items) != len(requests):
        raise ConfigError(
            f"Baseline '{system}' must return sidrec.types.RankedItems with one row for each of "
            f"the {len(requests)} requests."
        )
    return ranked
