"""MovieLens editions, read into a raw catalogue."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import polars as pl

from sidrec.corpus.reading.item_text import item_text, reading_order, title_and_year
from sidrec.corpus.reading.table_scan import reading, require_columns
from sidrec.corpus.sources.raw_catalogue import RawCatalogue
from sidrec.errors import DataError


def tags_of(folder: Path, num_tags: int) -> pl.DataFrame:
    """Return the tags that most users gave to each item (item_id, tags), ties alphabetical."""
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
    """Return the most relevant genome tags (item_id, genome_tags), ties alphabetical."""
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
    """Return descriptions (item_id, description) from JSONL of ``{"movieId", "description"}``.

    Raises:
        DataError: If a line is not such an object; the message names the row.
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
    with reading(str(file)):  # polars refuses half of a surrogate pair
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


def scan_text(
    file: Path, columns: tuple[str, ...], *, separator: str = ",", quote: str | None = '"'
) -> pl.LazyFrame:
    """Scan a delimited file, every column as text.

    Args:
        file: File with a header.
        columns: Columns that the file must have.
        separator: Character or characters between two values.
        quote: Character around values that hold a separator; None: nothing is quoted.

    Raises:
        DataError: If the file is missing, empty, cannot be read, or lacks a column.
    """
    if not file.is_file():
        raise DataError(f"{file} does not exist; the layout needs it.")
    with reading(str(file)):
        frame = pl.scan_csv(
            file, separator=separator, infer_schema=False, quote_char=quote, glob=False
        )
        require_columns(str(file), frame.collect_schema().names(), columns)
    return frame


LICENSE = (
    "MovieLens data by GroupLens: research use only, no commercial use without permission; "
    "cite Harper & Konstan 2015, https://doi.org/10.1145/2827872; see the README of the edition."
)
_GENRES_100K = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime"),
    *("Documentary", "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery"),
    *("Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
_NO_GENRE = "(no genres listed)"
_RATING_COLUMNS = ("userId", "movieId", "rating", "timestamp")


def read_movielens(
    folder: Path, *, descriptions: Path | None, num_tags: int, num_genome_tags: int
) -> RawCatalogue:
    """Read a MovieLens folder of any layout.

    Layouts: csv (latest-small, 20M, 25M, 32M), ``.dat`` (1M, 10M), ``u.data`` (100k), and
    RecBole's atomic files (``*.inter``, ``*.item``).

    Args:
        folder: Folder of the files.
        descriptions: JSONL of ``{"movieId", "description"}``, or ``None``.
        num_tags: User tags in an item's text, at most, those of most users first.
        num_genome_tags: Genome tags in an item's text, at most, the most relevant first.

    Returns:
        Items in the order of the movie file, with columns item_id, title, text, year, genres,
        tags, genome_tags, description.

    Raises:
        DataError: If no layout is recognized, a file lacks a column, or a row cannot be read.
    """
    movies, ratings, names = _layout(folder)
    text_columns = {
        "tags": tags_of(folder, num_tags),
        "genome_tags": genome_tags_of(folder, num_genome_tags),
    }
    for column, frame in text_columns.items():
        movies = movies.join(frame, on="item_id", how="left", maintain_order="left")
        movies = movies.with_columns(pl.col(column).fill_null([]))
    movies = movies.join(
        descriptions_of(descriptions), on="item_id", how="left", maintain_order="left"
    ).with_columns(pl.col("description").fill_null(""))
    texts = [
        item_text(
            row["title"],
            row["year"],
            genres=row["genres"],
            tags=row["tags"],
            genome_tags=row["genome_tags"],
            description=row["description"],
        )
        for row in movies.iter_rows(named=True)
    ]
    movies = movies.insert_column(2, pl.Series("text", texts, dtype=pl.String))
    return RawCatalogue(
        movies, ratings, names[0], names[1], source=f"movielens {folder.name}", license=LICENSE
    )


_Layout = tuple[pl.DataFrame, pl.LazyFrame, tuple[str, str]]


def _layout(folder: Path) -> _Layout:
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; give a folder in a MovieLens layout.")
    readers: tuple[tuple[str, Callable[[Path], _Layout]], ...] = (
        ("ratings.csv", _read_csv),
        ("ratings.dat", _read_dat),
        ("u.data", _read_100k),
        ("*.inter", _read_atomic),
    )
    for pattern, read in readers:
        for found in sorted(folder.glob(pattern)):
            if found.stat().st_size == 0:
                raise DataError(f"{found} is empty; fetch it again.")
            return read(folder)
    below = [child for child in sorted(folder.iterdir()) if child.is_dir()]
    if len(below) == 1:
        return _layout(below[0])
    raise DataError(
        f"{folder} holds no MovieLens layout that is known; expected one of "
        f"{', '.join(pattern for pattern, _ in readers)}."
    )


def _read_csv(folder: Path) -> _Layout:
    movies_file, ratings_file = folder / "movies.csv", folder / "ratings.csv"
    with reading(str(movies_file)):
        movies = scan_text(movies_file, ("movieId", "title", "genres")).collect()
    return (
        _movies(movies["movieId"], movies["title"], movies["genres"].str.split("|")),
        _scan_columns(ratings_file, ",", _RATING_COLUMNS),
        (str(movies_file), str(ratings_file)),
    )


def _read_dat(folder: Path) -> _Layout:
    movies_file, ratings_file = folder / "movies.dat", folder / "ratings.dat"
    rows = _split_lines(movies_file, "::", 3)
    movies = pl.DataFrame(
        rows, schema=dict.fromkeys(("id", "title", "genres"), pl.String), orient="row"
    )
    # "1::1193::5::978300760" read with ":" leaves an empty column between any two
    names = ["user_id", "", "item_id", "", "rating", "", "timestamp"]
    columns = [name or f"empty_{place}" for place, name in enumerate(names)]
    ratings = _scan_without_header(ratings_file, ":", columns)
    return (
        _movies(movies["id"], movies["title"], movies["genres"].str.split("|")),
        _typed(ratings),
        (str(movies_file), str(ratings_file)),
    )


def _read_100k(folder: Path) -> _Layout:
    movies_file, ratings_file = folder / "u.item", folder / "u.data"
    rows = _split_lines(movies_file, "|", 5 + len(_GENRES_100K))
    genres = [
        [name for name, flag in zip(_GENRES_100K, row[5:], strict=True) if flag == "1"]
        for row in rows
    ]
    columns = ("user_id", "item_id", "rating", "timestamp")
    ratings = _scan_without_header(ratings_file, "\t", columns)
    ids, titles = pl.Series([row[0] for row in rows]), pl.Series([row[1] for row in rows])
    return (
        _movies(ids, titles, pl.Series(genres, dtype=pl.List(pl.String))),
        _typed(ratings),
        (str(movies_file), str(ratings_file)),
    )


def _read_atomic(folder: Path) -> _Layout:
    ratings_file = next(iter(sorted(folder.glob("*.inter"))))
    movies_file = ratings_file.with_suffix(".item")
    columns = ("item_id:token", "movie_title:token_seq", "release_year:token", "class:token_seq")
    ratings_columns = ("user_id:token", "item_id:token", "rating:float", "timestamp:float")
    with reading(str(movies_file)):
        movies = scan_text(movies_file, columns, separator="\t", quote=None).collect()
    titles = movies[columns[1]].fill_null("").map_elements(reading_order, return_dtype=pl.String)
    frame = _movies(
        movies[columns[0]], titles, movies[columns[3]].fill_null("").str.split(" ")
    ).with_columns(movies[columns[2]].cast(pl.Int64, strict=False).alias("year"))
    return (
        frame,
        _scan_columns(ratings_file, "\t", ratings_columns),
        (str(movies_file), str(ratings_file)),
    )


def _movies(ids: pl.Series, raw_titles: pl.Series, genres: pl.Series) -> pl.DataFrame:
    titles, years = [], []
    for raw in raw_titles.fill_null("").to_list():
        title, year = title_and_year(raw)
        titles.append(title)
        years.append(year)
    wanted = pl.element().is_in([_NO_GENRE, "unknown", ""]).not_()
    return pl.DataFrame(
        {
            "item_id": ids.cast(pl.String),
            "title": pl.Series(titles, dtype=pl.String),
            "year": pl.Series(years, dtype=pl.Int64),
            "genres": genres.cast(pl.List(pl.String)),
        }
    ).with_columns(pl.col("genres").fill_null([]).list.eval(pl.element().filter(wanted)))


def _scan_columns(file: Path, separator: str, columns: tuple[str, ...]) -> pl.LazyFrame:
    """Scan user, item, rating and timestamp, in this order of ``columns``, as typed columns."""
    frame = scan_text(file, columns, separator=separator)
    names = ("user_id", "item_id", "rating", "timestamp")
    return _typed(frame.rename(dict(zip(columns, names, strict=True))))


def _scan_without_header(file: Path, separator: str, columns: Sequence[str]) -> pl.LazyFrame:
    with reading(str(file)):
        rows = pl.scan_csv(
            file,
            separator=separator,
            has_header=False,
            infer_schema=False,
            quote_char=None,
            glob=False,
        )
        found = rows.collect_schema().names()
    if len(found) != len(columns):
        raise DataError(
            f"{file} has no rows of four fields (user, item, rating, time): the longest of its "
            f"first rows has {len(found)} parts between {separator!r}, expected {len(columns)}."
        )
    return rows.rename(dict(zip(found, columns, strict=True)))


def _typed(ratings: pl.LazyFrame) -> pl.LazyFrame:
    # other values become NaN (rating) or null (timestamp), which the builder refuses
    return ratings.select(
        "user_id",
        "item_id",
        (pl.col("timestamp").cast(pl.Float64, strict=False) * 1_000_000).cast(
            pl.Int64, strict=False
        ),
        pl.col("rating").cast(pl.Float32, strict=False).fill_null(float("nan")),
    )


def _split_lines(file: Path, separator: str, num_fields: int) -> list[list[str]]:
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{file} does not exist; the layout needs it.") from None
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    rows = [line.rstrip("\r").split(separator) for line in text.split("\n") if line.strip()]
    for number, row in enumerate(rows, start=1):
        if len(row) != num_fields:
            raise DataError(
                f"{file} row {number} has {len(row)} fields, expected {num_fields} separated by "
                f"'{separator}'; download the edition again."
            )
    return rows
