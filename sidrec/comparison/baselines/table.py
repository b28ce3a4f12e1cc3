"""Comparison table of a generator run and simple baselines, with the paths of all artifacts."""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from sidrec.comparison.baselines.hybrid import hybrid_baseline
from sidrec.comparison.baselines.linear import next_item_baseline
from sidrec.comparison.baselines.simple import (
    bm25_baseline,
    item_neighbors_baseline,
    popularity_baseline,
)
from sidrec.comparison.baselines.trained import dense_baseline
from sidrec.corpus.requests import recommendation_requests, search_requests
from sidrec.corpus.store import Corpus, popularity
from sidrec.errors import RunError
from sidrec.figures import Figures, evaluate
from sidrec.files import read_json
from sidrec.generator.training.predictions import predictions_of_ranked
from sidrec.runs.directory import RunDirectory
from sidrec.runs.from_run import read_config
from sidrec.types import TASKS, RankedItems, Request

_TOP_K = 30
_NUM_HISTORY = 10  # items at the end of a history that the neighbors look at
_HEADINGS = ("Recall@30", *TASKS)

Baseline = Callable[[Corpus, Sequence[Request]], RankedItems]


class Row(NamedTuple):
    """Recall@30 of one system on the test split; None for a task that it does not answer."""

    system: str
    search: int | float | None
    recommendation: int | float | None


def compare_with_baselines(run_folder: Path, corpus_folder: Path | None = None) -> list[Row]:
    """Print Recall@30 of a tested generator run beside baselines.

    They are popularity, BM25, item neighbors and the next-item regression; and, where the run
    reads an encoder run, dense and hybrid retrieval with that encoder.

    Args:
        run_folder: Generator run that ``sidrec test`` has evaluated.
        corpus_folder: Current folder of its corpus; None takes it from the run's configuration.

    Returns:
        Rows of the table, the run first.

    Raises:
        RunError: If the run has not finished, has no ``metrics.json``, or names no corpus.
        DataError: If the corpus cannot be read.
    """
    run = RunDirectory(run_folder)
    if not run.metrics.exists():
        run.finished_checkpoint()  # raises for a run that has not finished
        raise RunError(f"{run.metrics} does not exist; run `sidrec test --from {run_folder}`.")
    config = read_config(run.config) if run.config.exists() else {}
    corpus = Corpus.load(corpus_folder or _corpus_folder(run, config))
    rows = [_row("sidrec", read_json(run.metrics)), *baseline_rows(corpus, _encoder_run(config))]
    write_table(rows)
    sys.stdout.write("\n" + "\n".join(_places(run, corpus, config)) + "\n")
    return rows


def baseline_rows(corpus: Corpus, encoder_run: Path | None = None) -> list[Row]:
    """Return Recall@30 of each baseline on the test split of a corpus.

    Args:
        corpus: Its test split is asked.
        encoder_run: Finished bi-encoder run of dense and hybrid retrieval; None leaves them out.
    """

    def neighbors(corpus: Corpus, requests: Sequence[Request]) -> RankedItems:
        return item_neighbors_baseline(corpus, requests, top_k=_TOP_K, num_history=_NUM_HISTORY)

    def most_popular(corpus: Corpus, requests: Sequence[Request]) -> RankedItems:
        return popularity_baseline(corpus, requests, top_k=_TOP_K)

    def bm25(corpus: Corpus, requests: Sequence[Request]) -> RankedItems:
        return bm25_baseline(corpus, requests, top_k=_TOP_K)

    def next_item(corpus: Corpus, requests: Sequence[Request]) -> RankedItems:
        return next_item_baseline(corpus, requests, top_k=_TOP_K)

    search = search_requests(corpus, "test")
    recommendation = recommendation_requests(corpus, "test")
    rows = [
        _row(
            "popularity",
            _figures(most_popular, corpus, search) | _figures(most_popular, corpus, recommendation),
        ),
        _row("BM25", _figures(bm25, corpus, search)),
        _row("item-item neighbors", _figures(neighbors, corpus, recommendation)),
        _row("next-item regression", _figures(next_item, corpus, recommendation)),
    ]
    if encoder_run is None:
        return rows
    dense = partial(dense_baseline, run=encoder_run, top_k=_TOP_K)
    hybrid = partial(hybrid_baseline, run=encoder_run, top_k=_TOP_K)
    return [
        *rows,
        _row(
            "dense retrieval",
            _figures(dense, corpus, search) | _figures(dense, corpus, recommendation),
        ),
        _row("hybrid (dense + BM25)", _figures(hybrid, corpus, search)),
    ]


def write_table(rows: list[Row]) -> None:
    """Write the rows to standard output: a drawn table on a terminal, aligned text elsewhere."""
    cells = [(row.system, *map(_cell, row[1:])) for row in rows]
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        table = Table()
        for column, heading in enumerate(_HEADINGS):
            table.add_column(heading, justify="right" if column else "left")
        for line in cells:
            table.add_row(*line)
        Console().print(table)
        return
    widths = [max(map(len, column)) for column in zip(_HEADINGS, *cells, strict=True)]
    for line in (_HEADINGS, *cells):
        first, *others = line
        aligned = [text.rjust(width) for text, width in zip(others, widths[1:], strict=True)]
        sys.stdout.write("  ".join([first.ljust(widths[0]), *aligned]) + "\n")


def _figures(baseline: Baseline, corpus: Corpus, requests: Sequence[Request]) -> Figures:
    if not requests:
        return {}
    ranked = baseline(corpus, requests)
    counts = popularity(corpus.train_interactions(), corpus.num_items)
    found = predictions_of_ranked(
        requests, ranked, split="test", exclude_history=corpus.exclude_history
    )
    return evaluate(found, counts)


def _row(system: str, figures: Figures) -> Row:
    return Row(system, *(figures.get(f"{task}/recall@{_TOP_K}") for task in TASKS))


def _cell(value: int | float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _corpus_folder(run: RunDirectory, config: dict[str, Any]) -> Path:
    data = config.get("data") or {}
    folder = data.get("init_args", data).get("corpus")
    if folder is None:
        raise RunError(f"{run.config} names no data.corpus; give the corpus's folder.")
    return Path(folder)


def _encoder_run(config: dict[str, Any]) -> Path | None:
    """Return the encoder run that a generator reads, where it is still a finished one."""
    model = config.get("model") or {}
    named = model.get("init_args", model).get("encoder_run")
    run = None if named is None else RunDirectory(Path(named))
    return None if run is None or run.state() != "finished" else run.root


def _places(run: RunDirectory, corpus: Corpus, config: dict[str, Any]) -> list[str]:
    model = config.get("model") or {}
    settings = model.get("init_args", model)
    places = {
        "corpus": corpus.folder,
        "encoder run": settings.get("encoder_run"),
        "Semantic IDs": settings.get("semantic_ids"),
        "generator run": run.root,
        "figures": run.metrics,
        "ranked lists": run.predictions,
    }
    width = max(map(len, places))
    return [f"{name.ljust(width)}  {place}" for name, place in places.items() if place]
