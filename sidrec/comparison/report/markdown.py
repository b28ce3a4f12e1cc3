"""Markdown form of the report, and the table cells that all forms share."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from sidrec.types import TASKS

SOURCE = "Penha et al. 2025, arXiv 2508.10478: Recall@30, mean of 5 seeds"
SCALE = (
    "MovieLens-25M, 62,138 movies, 1.24 M interactions, flan-t5-base. Figures over another "
    "catalogue cannot be compared with ours; only the order of the rows can."
)


class PaperRow(NamedTuple):
    """One row of the paper's table; None where the paper gives no figure."""

    ids: str
    search: float
    recommendation: float
    recommendation_head: float | None


STRATEGIES = (
    PaperRow("Content", 0.013, 0.023, None),
    PaperRow("Search-tuned", 0.072, 0.026, 0.090),
    PaperRow("Rec-tuned", 0.004, 0.062, 0.170),
    PaperRow("Separate", 0.028, 0.032, 0.120),
    PaperRow("Prefix-share", 0.007, 0.021, 0.058),
    PaperRow("Fused concat", 0.048, 0.018, 0.045),
    PaperRow("Fused SVD", 0.033, 0.038, 0.105),
    PaperRow("Multi-task", 0.046, 0.049, 0.135),
)
QUANTIZERS = (
    PaperRow("RQ-KMeans", 0.046, 0.049, None),
    PaperRow("Dictionary encoding", 0.019, 0.029, None),
    PaperRow("ResidualLFQ", 0.018, 0.023, None),
    PaperRow("RQ-VAE", 0.002, 0.024, None),
)


COLUMNS = (
    ("search/recall@30", "search"),
    ("recommendation/recall@30", "recommendation"),
    ("search/sid_recall@30", "search, by ID"),
    ("recommendation/sid_recall@30", "rec., by ID"),
    ("recommendation/recall@30_head", "rec. head"),
    ("recommendation/recall@30_torso", "rec. torso"),
    ("recommendation/cold_start", "rec. cold start"),
)
PARTS = "What the generator adds to its prior"
RECOMMENDATION_ALONE = tuple(
    (f"recommendation/{name}", name)
    for name in ("recall@5", "ndcg@5", "recall@10", "ndcg@10", "recall@30", "cold_start")
)


def cell(row: dict[str, Any], key: str, *, digits: int = 3) -> str:
    """Return a figure as ``mean ± deviation``, with a star where it differs from the reference."""
    figure = row["figures"].get(key)
    if figure is None or figure["mean"] is None:
        return "-"
    text = f"{figure['mean']:.{digits}f}"
    if figure["deviation"] is not None:
        text += f" ± {figure['deviation']:.{digits}f}"
    task, _, metric = key.partition("/")
    test = row["tests"].get(task) if metric == "recall@30" else None
    return text + ("*" if test and test["significant"] else "")


def harmonic_cell(row: dict[str, Any]) -> str:
    """Return the harmonic mean of both recalls."""
    mean = row["harmonic_mean"]
    if mean is None:
        return "-"
    return f"{mean['mean']:.3f}" + (
        "" if mean["deviation"] is None else f" ± {mean['deviation']:.3f}"
    )


def front_cell(row: dict[str, Any]) -> str:
    """Return membership of the Pareto front, with its share of the bootstrap draws."""
    return f"{'yes' if row['on_front'] else 'no'} ({row['front_share']:.0%})"


def inflation_cell(row: dict[str, Any]) -> str:
    """Return the inflation of SID-level over item-level recall, for search and recommendation."""
    parts = [row["figures"].get(f"{task}/inflation") for task in TASKS]
    return " / ".join("-" if part is None else f"{part:+.0%}" for part in parts)


def seeds_cell(row: dict[str, Any]) -> str:
    """Return the number of seeds, and the number of missing ones."""
    seeds = row["seeds"]
    text = "any" if seeds == [None] else str(len(seeds))
    return text + (f" ({len(row['missing'])} missing)" if row["missing"] else "")


def main_table(report: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return headings and cells of the main table, one row per system.

    Without search requests it has the columns of a recommendation benchmark, with four digits.
    """
    if not report["num_requests"]["search"]:
        rows = [
            [
                row["name"],
                *(cell(row, key, digits=4) for key, _ in RECOMMENDATION_ALONE),
                seeds_cell(row),
            ]
            for row in report["systems"]
        ]
        return ["system", *(title for _, title in RECOMMENDATION_ALONE), "seeds"], rows
    headings = ["Recall@30", *(title for _, title in COLUMNS)]
    headings += ["inflation s / r", "harmonic mean", "on the front", "seeds"]
    rows = [
        [
            row["name"],
            *(cell(row, key) for key, _ in COLUMNS),
            inflation_cell(row),
            harmonic_cell(row),
            front_cell(row),
            seeds_cell(row),
        ]
        for row in report["systems"]
    ]
    return headings, rows


def tests_table(report: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return headings and cells of the table of tests against the reference."""
    coverage = f"{report['settings']['interval']:.0%} interval"
    headings = ["system", "task", "difference", coverage, "p", "p (Holm)", "differs"]
    rows = [
        [
            row["name"],
            task,
            f"{test['difference']:+.3f}",
            " to ".join(f"{end:+.3f}" for end in test["interval"]),
            _p(test["p"]),
            _p(test["p_holm"]),
            "yes" if test["significant"] else "no",
        ]
        for row in report["systems"]
        for task, test in row["tests"].items()
    ]
    return headings, rows


def parts_table(report: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return headings and cells of what a generator and its prior reach apart and together.

    ``nats``: by how much the generator raises the mean log-likelihood of targets over the prior's.
    No row where no generator has a prior.
    """
    names = ("recall@5", "ndcg@5", "recall@10", "ndcg@10", "recall@30")
    parts = (("both", ""), ("prior alone", "prior_"), ("generator alone", "t5_"))
    rows = [
        [
            row["name"],
            task,
            part,
            *(cell(row, f"{task}/{prefix}{name}", digits=4) for name in names),
            "" if prefix else cell(row, f"{task}/t5_gain_nats"),
        ]
        for row in report["systems"]
        for task in TASKS
        if f"{task}/t5_gain_nats" in row["figures"]
        for part, prefix in parts
    ]
    return ["system", "task", "part", *names, "nats"], rows


def paper_rows() -> list[list[str]]:
    """Return the rows of the paper's own table."""
    return [_paper_row(row) for row in (*STRATEGIES, *QUANTIZERS)]


def notes(report: dict[str, Any]) -> list[str]:
    """Return notes on how to read the figures, one or two sentences each."""
    asked, sliced = report["num_requests"], report["num_requests_of_slices"]
    settings = report["settings"]
    slices = ", ".join(f"{key.replace('num_requests_', '')} {n:,}" for key, n in sliced.items())
    return [
        f"Item-level Recall@30 over the whole catalogue of {report['num_items']:,} items; mean ± "
        f"standard deviation over seeds. {asked['search']:,} search and "
        f"{asked['recommendation']:,} recommendation requests"
        + (f" ({slices})." if slices else "."),
        f"* differs from {settings['reference']}: t-test with seeds and requests both drawn "
        f"(queries with the same answers as one), p below {settings['family_error']:g} after "
        f"Holm's correction over {report['num_tests']} tests. A trained system "
        "of one seed has no test.",
        *_smallest(report),
        *(_notes_on_both_tasks(report) if report["num_requests"]["search"] else ()),
        "A slice without requests has no figure (-), nor has a task that a system does not answer "
        "or was not trained for.",
    ]


def _notes_on_both_tasks(report: dict[str, Any]) -> list[str]:
    return [
        "By ID counts a hit on the Semantic ID alone; inflation is by how much that exceeds the "
        "item level.",
        f"On the front: no system is at least as good in both tasks and better in one; in "
        f"brackets the share of {report['settings']['num_bootstrap']:,} draws of requests and "
        f"seeds. Hypervolume of the front: {report['hypervolume']:.4f}.",
    ]


def _smallest(report: dict[str, Any]) -> list[str]:
    seeds = max((len(row["seeds"]) for row in report["systems"]), default=0)
    parts = [
        f"{task} {one['alone']:.3f} in a single test, {one['in_family']:.3f} as the first of all"
        for task, one in report["smallest_difference"].items()
    ]
    if not parts:
        return []
    text = "; ".join(parts)
    return [f"Smallest difference that {seeds} seeds can show (median over the tests): {text}."]


def to_markdown(report: dict[str, Any], *, before_table: Sequence[str] = ()) -> str:
    """Return the report as one Markdown page; ``before_table`` holds lines to insert above it.

    Without search requests it leaves out what concerns both tasks: front, inflation by ID, and
    the table of the paper on joint search and recommendation.
    """
    parts = [f"# {report['title']}", "", f"`{report['command']}`", "", *before_table]
    parts += [*_table(*main_table(report)), ""]
    parts += [line for note in notes(report) for line in (f"- {note}",)]
    if report["failures"]:
        parts += ["", "## What failed", ""]
        parts += [
            f"- {one['label']}: {one['state']}: {one['reason']}" for one in report["failures"]
        ]
    parts += ["", f"## Against {report['settings']['reference']}", ""]
    parts += _table(*tests_table(report))
    headings, rows = parts_table(report)
    if rows:
        parts += ["", f"## {PARTS}", "", *_table(headings, rows)]
    if report["num_requests"]["search"]:
        parts += ["", "## The paper's table (other data scale)", "", SOURCE + ". " + SCALE, ""]
        parts += _table(["IDs", "search", "recommendation", "rec. head"], paper_rows())
    parts += ["", "## Where each row comes from", ""]
    for row in report["systems"]:
        parts += [f"**{row['name']}** ({', '.join(row['runs']) or 'no run'})", ""]
        parts += [f"    {command}" for command in row["commands"]] + [""]
    return "\n".join(parts)


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(headings) + " |", "|---" * len(headings) + "|"]
    clean = [[text.replace("|", "\\|").replace("\n", " ") for text in row] for row in rows]
    return lines + ["| " + " | ".join(row) + " |" for row in clean]


def _paper_row(row: PaperRow) -> list[str]:
    numbers = (row.search, row.recommendation, row.recommendation_head)
    return [row.ids, *("-" if number is None else f"{number:.3f}" for number in numbers)]


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "< .001"
