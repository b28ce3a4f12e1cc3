"""What people say about MovieLens movies: tags, the tag genome, descriptions."""

import json
from pathlib import Path

import polars as pl

from sidrec.corpus.check import reading
from sidrec.corpus.delimited import scan_text
from sidrec.errors import DataError


def tags_of(folder: Path, num_tags: int) -> pl.DataFrame:
    """Return item_id, tags: the tags that most users gave, ties in alphabetical order."""
    frame = _tag_rows(folder)
    if frame is None or num_tags == 0:
        return _no_words("tags")
    counts = (
        frame.with_columns(pl.col("tag").str.strip_chars().str.to_lowercase())
        .filter(pl.col("tag").str.len_chars() > 0)
        .group_by("item_id", "tag")
        .agg(pl.col("user_id").n_unique().alias("users"))
        .sort("item_id", "users", "tag", descending=[False, True, False])
        .group_by("item_id", maintain_order=True)
        .agg(pl.col("tag").head(num_tags).alias("tags"))
    )
    with reading(str(folder / "tags")):
        return counts.collect()


def genome_tags_of(folder: Path, num_tags: int) -> pl.DataFrame:
    """Return item_id, genome_tags: the most relevant of the tag genome, ties alphabetical."""
    scores, names = folder / "genome-scores.csv", folder / "genome-tags.csv"
    if num_tags == 0 or not scores.exists() or not names.exists():
        return _no_words("genome_tags")
    words = scan_text(names, ("tagId", "tag")).select("tagId", "tag")
    relevance = pl.col("relevance").cast(pl.Float32)
    best = (
        scan_text(scores, ("movieId", "tagId", "relevance"))
        .select(pl.col("movieId").alias("item_id"), "tagId", relevance)
        .join(words, on="tagId")
        .group_by("item_id")
        .agg(
            pl.col("tag")
            .top_k_by(["relevance", "tag"], num_tags, reverse=[False, True])
            .alias("genome_tags")
        )
    )
    with reading(str(scores)):
        return best.collect(engine="streaming")


def descriptions_of(file: Path | None) -> pl.DataFrame:
    """Return item_id, description from a JSONL file of ``{"movieId", "description"}``.

    Raises:
        DataError: If a line is not such an object; names the row.
    """
    rows: dict[str, str] = {}
    if file is not None:
        for number, line in enumerate(_lines(file), start=1):
            try:
                content = json.loads(line)
                rows[str(content["movieId"])] = str(content["description"])
            except (ValueError, KeyError, TypeError, RecursionError):
                raise DataError(
                    f"{file} row {number} is not an object with movieId and description; "
                    "correct the row or take it out."
                ) from None
    schema = {"item_id": pl.String, "description": pl.String}
    with reading(str(file)):  # half a character is no text for polars
        return pl.DataFrame(
            {"item_id": list(rows), "description": list(rows.values())}, schema=schema
        )


def _lines(file: Path) -> list[str]:
    try:
        with reading(str(file)):
            return [line for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
    except (FileNotFoundError, IsADirectoryError):
        what = "is no file" if file.exists() else "does not exist"
        raise DataError(f"{file} {what}; check --descriptions.") from None


def _tag_rows(folder: Path) -> pl.LazyFrame | None:
    csv, dat = folder / "tags.csv", folder / "tags.dat"
    if csv.exists():
        columns = {"userId": "user_id", "movieId": "item_id"}
        return scan_text(csv, (*columns, "tag")).rename(columns)
    if dat.exists():  # 10M: user::movie::tag::timestamp
        text = dat.read_text(encoding="utf-8", errors="replace")
        rows = [line.split("::")[:3] for line in text.split("\n") if line.count("::") >= 3]
        schema = dict.fromkeys(("user_id", "item_id", "tag"), pl.String)
        return pl.LazyFrame(rows, schema=schema, orient="row")
    return None


def _no_words(column: str) -> pl.DataFrame:
    return pl.DataFrame(schema={"item_id": pl.String, column: pl.List(pl.String)})
