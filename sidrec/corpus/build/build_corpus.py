"""Corpus directory, built from a raw catalogue and its queries."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pyarrow as pa

from sidrec.corpus.build.check_catalogue import check_interactions, check_items
from sidrec.corpus.build.cold_items import ItemUse, held_out_items
from sidrec.corpus.build.facts import facts_of
from sidrec.corpus.build.partition import pieces_by_user
from sidrec.corpus.prepare_settings import BuildSettings
from sidrec.corpus.reading.table_scan import reading
from sidrec.corpus.schema import (
    GRADE_FIELD,
    INTERACTION_SCHEMA,
    INTERACTION_WEIGHT,
    QUERY_SCHEMA,
    SCHEMA_VERSION,
    SPLITS,
    WEIGHT_FIELD,
    TableWriter,
    item_schema,
)
from sidrec.corpus.sources.raw_catalogue import RawCatalogue, RawQuery
from sidrec.corpus.sources.splits import leave_last_out, query_splits, temporal, time_bounds
from sidrec.errors import ConfigError, DataError
from sidrec.files import atomic_folder, disk_errors, sha256_of_file, write_json

TIE_RULE = "interactions of one user at one moment keep the order of the rows in the files"
_ROWS_AT_ONCE = 4_000_000  # interactions sorted in memory at a time; users are not divided
_ITEMS_AT_ONCE = 131_072  # items written at a time
_ADVICE = "free space or choose another --out. What was there before is unchanged."


class _Kept(NamedTuple):
    """Interactions of the kept items, unsorted, in a file."""

    file: Path  # row, user_id, item_index, timestamp, rating, and weight where it varies
    users: pl.DataFrame  # user_index, user_id, num_rows; in order of first appearance
    schema: pa.Schema  # of interactions.parquet


def build_corpus(
    raw: RawCatalogue, queries: Sequence[RawQuery], out: Path, settings: BuildSettings
) -> dict[str, Any]:
    """Build a corpus: filter, index, sort, split and write; replaces ``out`` whole or not at all.

    Interactions are sorted by user (in order of first appearance in the source), then time at its
    full precision; interactions of one user at one moment keep the order of the source. Memory
    grows with items, users and queries, not with interactions.

    Args:
        raw: Items and interactions with the user's own ids.
        queries: Queries with the user's own ids; a query without any remaining item is left out.
        out: The corpus directory to write; may hold an older corpus, but nothing else.
        settings: All choices that shape the corpus.

    Returns:
        The content of ``corpus.json``.

    Raises:
        DataError: If an id is missing, duplicate or unknown, a text is empty, a number is NaN, or
            nothing is left. The message names file and row.
        ConfigError: If ``out`` holds something that is not a corpus.
        SidrecError: If the disk is full or may not be written.
    """
    _check_out(out)
    check_items(raw)
    refuse_unknown = settings.unknown_items == "error"
    counts = {"unknown_interactions": check_interactions(raw, refuse_unknown=refuse_unknown)}
    with disk_errors(out, _ADVICE), atomic_folder(out) as folder:
        items = kept_items(raw, settings.min_item_interactions)
        kept = _keep_interactions(raw, items, folder / "kept.parquet")
        counts |= {"items": items.height, "users": kept.users.height}
        use = ItemUse(held_out_items(items["item_id"], settings.cold_item_fraction))
        digests = {}
        with TableWriter(
            folder / "items.parquet", item_schema(items.clear().to_arrow().schema)
        ) as writer:
            for part in items.iter_slices(_ITEMS_AT_ONCE):
                writer.write(part.to_arrow())
            digests["items"] = writer.digest()
        with TableWriter(folder / "interactions.parquet", kept.schema) as writer:
            counts |= _write_interactions(kept, settings, writer, use)
            digests["interactions"] = writer.digest()
        kept.file.unlink(missing_ok=True)
        query_schema = QUERY_SCHEMA
        if any(query.weights or query.grades for query in queries):
            query_schema = query_schema.append(WEIGHT_FIELD)
        if any(query.grades for query in queries):
            query_schema = query_schema.append(GRADE_FIELD)
        with TableWriter(folder / "queries.parquet", query_schema) as writer:
            counts |= _write_queries(queries, raw, items, settings, writer, use)
            digests["queries"] = writer.digest()
        counts |= use.counts()
        content = {
            "schema_version": SCHEMA_VERSION,
            "fingerprint": _fingerprint(digests),
            "source": raw.source,
            "license": raw.license,
            "counts": dict(sorted(counts.items())),
            "settings": asdict(settings),
            "tie_rule": TIE_RULE,
            "facts": facts_of(folder, raw, counts),
            "sha256": {
                file.name: sha256_of_file(file) for file in sorted(folder.glob("*.parquet"))
            },
        }
        write_json(folder / "corpus.json", content)
    return content


def _check_out(out: Path) -> None:
    if out.is_file() or (
        out.is_dir() and any(out.iterdir()) and not (out / "corpus.json").exists()
    ):
        raise ConfigError(
            f"{out} exists and is not a corpus; choose another --out, so that nothing is lost."
        )


def kept_items(raw: RawCatalogue, min_interactions: int) -> pl.DataFrame:
    """Return the items with enough interactions, with item_index as first column.

    Raises:
        DataError: If no item has that many interactions, or an item is invalid.
    """
    check_items(raw)
    items = raw.items
    if min_interactions:
        with reading(raw.interactions_name):
            enough = (
                raw.interactions.group_by("item_id")
                .agg(pl.len().alias("count"))
                .filter(pl.col("count") >= min_interactions)
                .collect(engine="streaming")
            )
        items = items.join(
            enough.select("item_id"), on="item_id", how="semi", maintain_order="left"
        )
    if items.is_empty():
        raise DataError(
            f"No item of {raw.items_name} has {min_interactions} interactions in "
            f"{raw.interactions_name}; lower --min_item_interactions, or check the ids."
        )
    return items.with_row_index("item_index")


def _with_nanosecond(interactions: pl.LazyFrame) -> pl.LazyFrame:
    if "nanosecond" in interactions.collect_schema():
        return interactions
    return interactions.with_columns(nanosecond=pl.lit(0, pl.Int16))


def _scan(file: Path) -> pl.LazyFrame:
    return pl.scan_parquet(file, glob=False, hive_partitioning=False)


def _keep_interactions(raw: RawCatalogue, items: pl.DataFrame, file: Path) -> _Kept:
    with reading(raw.interactions_name):
        weight = ["weight"] if _weights_vary(raw.interactions) else []
        (
            _with_nanosecond(raw.interactions)
            .with_row_index("row")
            .join(items.lazy().select("item_id", "item_index"), on="item_id", how="inner")
            .select("row", "user_id", "item_index", "timestamp", "nanosecond", "rating", *weight)
            .sink_parquet(file, compression="lz4", row_group_size=1 << 18, engine="streaming")
        )
    users = (
        _scan(file)
        .group_by("user_id")
        .agg(pl.col("row").min(), pl.len().alias("num_rows"))
        .collect(engine="streaming")
        .sort("row")
        .drop("row")
        .with_row_index("user_index")
    )
    if users.is_empty() and raw.interactions_name:
        raise DataError(
            f"{raw.interactions_name} has no interaction with an item of {raw.items_name}; "
            "check that both files use the same ids."
        )
    schema = INTERACTION_SCHEMA.append(INTERACTION_WEIGHT) if weight else INTERACTION_SCHEMA
    return _Kept(file, users, schema)


def _weights_vary(interactions: pl.LazyFrame) -> bool:
    """Return whether interactions have weights that are not all the same."""
    if "weight" not in interactions.collect_schema():
        return False
    ends = interactions.select(least=pl.col("weight").min(), most=pl.col("weight").max())
    least, most = ends.collect(engine="streaming").row(0)
    return bool(least != most)


def _write_interactions(
    kept: _Kept, settings: BuildSettings, writer: TableWriter, use: ItemUse
) -> dict[str, int]:
    split = leave_last_out()
    if settings.split == "temporal" and not kept.users.is_empty():
        test, valid = settings.temporal_fractions
        moments = _scan(kept.file).select("timestamp")
        split = temporal(time_bounds(moments, test_fraction=test, valid_fraction=valid))
    counts: Counter[str] = Counter({f"interactions_{name}": 0 for name in SPLITS})
    counts.update(
        dict.fromkeys(
            (
                "interactions_out_of_order",
                "interactions_at_one_moment",
                "interactions_repeated",
                *(f"requests_{name}" for name in SPLITS[1:]),
                *(f"unanswerable_{name}" for name in SPLITS[1:]),
            ),
            0,
        )
    )
    if kept.users.is_empty():
        writer.write(INTERACTION_SCHEMA.empty_table())
        return {**counts, "interactions": 0, "interactions_held_out": 0}
    num_users = num_held_out = 0
    pieces = pieces_by_user(kept.file, kept.users, kept.file.parent, rows_at_once=_ROWS_AT_ONCE)
    for rows in pieces:
        backwards = pl.col("timestamp").diff().over("user_index") < 0
        counts["interactions_out_of_order"] += int(rows.select(backwards.sum()).item())
        order = ("user_index", "timestamp", "nanosecond")
        ordered = rows.sort(*order, maintain_order=True)
        ordered = ordered.with_columns(split=split)
        may_stay = (ordered["split"] == "test").to_numpy() | ~use.held_out[ordered["item_index"]]
        num_held_out += int((~may_stay).sum())
        ordered = ordered.filter(may_stay).with_columns(
            user_index=pl.col("user_index").rle_id().cast(pl.Int64) + num_users  # without gaps
        )
        num_users += ordered["user_index"].n_unique()
        counts.update(_repeats(ordered, order, use))
        for name, number in ordered.group_by("split").len().iter_rows():
            counts[f"interactions_{name}"] += number
        writer.write(ordered.to_arrow())
    return {
        **counts,
        "interactions": writer.num_rows,
        "interactions_held_out": num_held_out,
        "users": num_users,
    }


def _repeats(ordered: pl.DataFrame, order: tuple[str, ...], use: ItemUse) -> dict[str, int]:
    """Count ties, repeats, requests, requests whose history holds their target, and item use."""
    place = pl.int_range(pl.len())
    rows = ordered.with_columns(
        tied=pl.len().over(order) > 1,
        repeated=place.over("user_index", "item_index") > 0,
        asked=(place.over("user_index", "split") == 0) & (place.over("user_index") > 0),
    )
    counts = {
        "interactions_at_one_moment": int(rows["tied"].sum()),
        "interactions_repeated": int(rows["repeated"].sum()),
    }
    for name in SPLITS[1:]:
        asked = rows.filter(pl.col("asked") & (pl.col("split") == name))
        counts[f"requests_{name}"] = asked.height
        counts[f"unanswerable_{name}"] = int(asked["repeated"].sum())
    use.add_interactions(rows, asked)  # of test, the last in SPLITS
    return counts


def _write_queries(
    queries: Sequence[RawQuery],
    raw: RawCatalogue,
    items: pl.DataFrame,
    settings: BuildSettings,
    writer: TableWriter,
    use: ItemUse,
) -> dict[str, int]:
    named = list({item_id for query in queries for item_id in query.item_ids})
    is_named = pl.col("item_id").is_in(pl.Series(named, dtype=pl.String).implode())
    item_index = dict(items.filter(is_named).select("item_id", "item_index").iter_rows())
    listed = items if settings.unknown_items == "drop" else raw.items
    known = set(listed.filter(is_named)["item_id"])
    seen: set[str] = set()
    kept: list[RawQuery] = []
    for query in queries:
        _check_query(query, seen)
        unknown = [item_id for item_id in query.item_ids if item_id not in known]
        if unknown and settings.unknown_items == "error":
            raise DataError(
                f"{_where(query)} names item_id '{unknown[0]}', which is not in {raw.items_name}; "
                "add the item, or use --unknown_items drop."
            )
        if any(item_id in item_index for item_id in query.item_ids):
            kept.append(query)
    answers = [_answers(query, item_index) for query in kept]
    cold = use.held_out | use.late() if settings.split == "temporal" else use.held_out
    barred = [use.held_out if query.split else cold for query in kept]  # from train and valid
    splits = query_splits(
        kept,
        test_fraction=settings.test_query_fraction,
        valid_fraction=settings.valid_query_fraction,
        held_out={
            row
            for row, found in enumerate(answers)
            if all(barred[row][item] for item, _, _ in found)
        },
    )
    num_answers = sum(map(len, answers))
    answers = [
        found if split == "test" else [one for one in found if not mask[one[0]]]
        for found, mask, split in zip(answers, barred, splits, strict=True)
    ]
    use.add_queries(answers, splits)
    columns = {
        "query_id": [query.query_id for query in kept],
        "text": [query.text for query in kept],
        "item_index": [[item for item, _, _ in found] for found in answers],
        "split": splits,
        "source": [query.source for query in kept],
        WEIGHT_FIELD.name: [[weight for _, weight, _ in found] for found in answers],
        GRADE_FIELD.name: [[grade for _, _, grade in found] for found in answers],
    }
    columns = {name: columns[name] for name in writer.schema.names}
    writer.write(pa.table(columns, schema=writer.schema))
    counts = Counter(splits)
    return {
        "queries": len(kept),
        "queries_without_items": len(queries) - len(kept),
        "answers_held_out": num_answers - sum(map(len, answers)),
        **{f"queries_{name}": counts[name] for name in SPLITS},
    }


def _answers(query: RawQuery, item_index: dict[str, int]) -> list[tuple[int, float, int]]:
    """Return item_index, weight and grade of each known answer, ascending, without repetitions."""
    grades = query.grades or (1,) * len(query.item_ids)
    weights = query.weights or tuple(map(float, grades))
    given = zip(query.item_ids, weights, grades, strict=True)
    found = {item_index[one]: (w, g) for one, w, g in given if one in item_index}
    return [(item, weight, grade) for item, (weight, grade) in sorted(found.items())]


def _where(query: RawQuery) -> str:
    if query.place:
        return f"{query.place}: query '{query.query_id}'"
    return f"Query '{query.query_id}' of {query.source}"


def _check_query(query: RawQuery, seen: set[str]) -> None:
    where = _where(query)
    if query.query_id in seen:
        raise DataError(f"{where} has a query_id that was already used; give each its own.")
    if not query.text.strip():
        raise DataError(f"{where} has an empty text; fill it in or take the query out.")
    if not query.item_ids:
        raise DataError(f"{where} names no item; add its answers or take the query out.")
    seen.add(query.query_id)


def _fingerprint(digests: dict[str, str]) -> str:
    content = json.dumps([SCHEMA_VERSION, sorted(digests.items())])
    return hashlib.sha256(content.encode()).hexdigest()
