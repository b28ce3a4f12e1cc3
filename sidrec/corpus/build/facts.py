"""Corpus facts: computed by prepare, kept in corpus.json, printed as a page."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from sidrec.corpus.schema import SPLITS
from sidrec.corpus.sources.raw_catalogue import RawCatalogue

_SHOWN = 160  # characters of an example
_MOMENTS = (-62_135_596_800_000_000, 253_402_300_799_000_000)  # range of datetime, in microseconds


def facts_of(folder: Path, raw: RawCatalogue, counts: dict[str, int]) -> dict[str, Any]:
    """Compute the corpus facts that its counts do not contain.

    Args:
        folder: Folder of the three tables.
        raw: Catalogue from which the tables were built.
        counts: Counts of corpus.json.
    """
    interactions, items, queries = (
        pl.scan_parquet(folder / f"{name}.parquet", glob=False, hive_partitioning=False)
        for name in ("interactions", "items", "queries")
    )
    lengths = interactions.group_by("user_index").len().collect(engine="streaming")["len"]
    lengths = pl.Series([0]) if lengths.is_empty() else lengths
    trained = (
        interactions.filter(pl.col("split") == "train")
        .select("item_index")
        .unique()
        .collect(engine="streaming")["item_index"]
    )
    asked = queries.select("split", "item_index").collect()
    cold = asked.with_columns(
        warm=pl.col("item_index").list.eval(pl.element().is_in(trained.implode())).list.any()
    )
    first = interactions.first().join(items.select("item_index", "title"), on="item_index")
    ends = interactions.select(
        pl.col("timestamp").min().alias("first"), pl.col("timestamp").max().alias("last")
    )
    return {
        "files": {
            kind: [{"name": one.file.name, "rows": one.rows, "lines": one.lines} for one in files]
            for kind, files in (("items", raw.item_files), ("interactions", raw.interaction_files))
        },
        "notes": raw.notes or {},
        "left_out_items": len(raw.left_out),
        "density": counts["interactions"] / max(1, counts["items"] * counts["users"]),
        "history_lengths": {
            "min": int(lengths.to_numpy().min()),
            "median": float(np.median(lengths.to_numpy())),
            "mean": float(lengths.to_numpy().mean()),
            "max": int(lengths.to_numpy().max()),
        },
        "moments": list(ends.collect(engine="streaming").row(0)),
        "cold_items": counts["items"] - len(trained),
        "queries_without_train_items": cold.height - int(cold["warm"].sum()),
        "examples": {
            "item": items.select("item_id", "title", "text").first().collect().to_dicts()[0],
            "interaction": first.select("user_id", "title", "timestamp", "split")
            .collect()
            .to_dicts(),
            "query": queries.select("text", "split").first().collect().to_dicts()[:1],
        },
    }


def fact_lines(description: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the facts of a corpus as names and values, in page order.

    Args:
        description: Content of corpus.json.
    """
    counts, facts = description["counts"], description["facts"]
    lengths, examples = facts["history_lengths"], facts["examples"]
    excluded = description["settings"]["exclude_history"]
    lines = [(f"{kind} read", _files(files)) for kind, files in facts["files"].items() if files]
    lines += [(name, text) for name, text in facts["notes"].items()]
    lines += [
        ("items", f"{counts['items']:,}"),
        ("users", f"{counts['users']:,}"),
        ("interactions", _by_split(counts, "interactions")),
        ("queries", _by_split(counts, "queries")),
        ("density", f"{facts['density']:.3g}"),
        (
            "interactions of a user",
            f"{lengths['min']:,} to {lengths['max']:,}, median {lengths['median']:g}, "
            f"mean {lengths['mean']:.1f}",
        ),
        *([("from, to", " to ".join(map(_moment, facts["moments"])))] if counts["users"] else []),
        ("timestamps out of order", f"{counts['interactions_out_of_order']:,}, sorted"),
        (
            "interactions of one user at one moment",
            f"{counts['interactions_at_one_moment']:,}, in the order of the rows",
        ),
        ("repeated interactions", f"{counts['interactions_repeated']:,}"),
    ]
    for split in SPLITS[1:]:
        missed, asked = counts[f"unanswerable_{split}"], counts[f"requests_{split}"]
        text = f"{missed:,} of {asked:,} have their target in their own history"
        if missed and excluded:
            text += ", which is excluded: they cannot be answered (--exclude_history false)"
        lines.append((f"{split} recommendation requests", text))
    lines += [
        ("items without train interactions", f"{facts['cold_items']:,}"),
        ("queries without train items", f"{facts['queries_without_train_items']:,}"),
        *_cold_start_lines(counts),
        ("items left out", f"{facts['left_out_items']:,}"),
        ("interactions of unknown items", f"{counts['unknown_interactions']:,}, left out"),
        ("queries of unknown items", f"{counts['queries_without_items']:,}, left out"),
        ("an item's text", _cut(examples["item"]["text"])),
        *(
            (
                "an interaction",
                f"{one['user_id']}, {_cut(one['title'])}, {_moment(one['timestamp'])}, "
                f"{one['split']}",
            )
            for one in examples["interaction"]
        ),
        *(("a query", f"{_cut(one['text'])} ({one['split']})") for one in examples["query"]),
        ("fingerprint", description["fingerprint"][:16]),
    ]
    return lines


def _cold_start_lines(counts: dict[str, int]) -> Iterator[tuple[str, str]]:
    if counts.get("items_held_out"):
        yield (
            "items held out of train and valid",
            f"{counts['items_held_out']:,}, with {counts['interactions_held_out']:,} interactions "
            f"and {counts['answers_held_out']:,} answers of queries left out",
        )
    if "cold_start_items" in counts:  # not in corpora of earlier versions, which stay valid
        yield (
            "items that only test asks for",
            f"{counts['cold_start_items']:,}, in {counts['cold_start_requests_search']:,} search "
            f"and {counts['cold_start_requests_recommendation']:,} recommendation requests",
        )


def _files(files: list[dict[str, Any]]) -> str:
    rows = sum(one["rows"] for one in files)
    text = f"{rows:,} rows of {', '.join(one['name'] for one in files)}"
    if any(one["lines"] is None for one in files):
        return text
    return f"{text} ({sum(one['lines'] for one in files):,} lines)"


def _by_split(counts: dict[str, int], what: str) -> str:
    train, valid, test = (counts[f"{what}_{split}"] for split in SPLITS)
    return f"{counts[what]:,} ({train:,} train, {valid:,} valid, {test:,} test)"


def _moment(microseconds: int) -> str:
    if not _MOMENTS[0] <= microseconds <= _MOMENTS[1]:
        return str(microseconds)
    return datetime.fromtimestamp(microseconds / 1e6, UTC).isoformat(timespec="seconds")


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else text[:_SHOWN] + " …"
