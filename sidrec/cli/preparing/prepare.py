"""``sidrec prepare movielens | table | synthetic | …``: raw files -> corpus."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from sidrec.console import say
from sidrec.corpus.prepare_settings import BuildSettings
from sidrec.corpus.queries.selection import DEFAULT_WRITING, QueryWriting, chosen_queries
from sidrec.corpus.reading.column_names import DEFAULT_COLUMNS, Columns
from sidrec.errors import ConfigError
from sidrec.files import disk_errors

if TYPE_CHECKING:
    from sidrec.corpus.sources.raw_catalogue import RawCatalogue, RawQuery

_MANY_VALUES = {  # options of several values without brackets
    "table": ("--queries", "--items", "--interactions"),
    "amazon": ("--queries", "--text_fields"),
    "recbole": ("--queries", "--text_fields"),
}


def movielens(
    source: str,
    out: Path,
    descriptions: Path | None = None,
    queries: list[str] | str | None = None,
    write_queries: str | None = None,
    writer: QueryWriting = DEFAULT_WRITING,
    packaged_queries: bool = True,
    num_tags: int = 10,
    num_genome_tags: int = 10,
    **build: Any,  # noqa: ANN401 (jsonargparse reads the fields of BuildSettings)
) -> None:
    """Make a corpus of an edition of MovieLens.

    Ratings of movies that the edition does not list are left out and counted.

    Args:
        source: ml-100k, ml-latest-small, ml-1m, ml-25m or ml-32m (downloaded, verified, cached),
            or a folder or zip in a MovieLens layout.
        out: Corpus directory to write; an older corpus there is replaced as a whole.
        descriptions: JSONL of {"movieId", "description"}.
        queries: One or more JSONL files of {"query_id", "query", "movieIds", "group", "split"}.
        write_queries: Write queries: template (from metadata), hf:MODEL or openai:URL.
        writer: How a writer writes.
        packaged_queries: Use the queries that come with sidrec where no others are given.
        num_tags: Maximum number of user tags in a movie's text.
        num_genome_tags: Maximum number of tags of the tag genome in a movie's text.
        build: How to split and filter.
    """
    from sidrec.corpus.reading.download import default_cache_folder, locate_movielens
    from sidrec.corpus.sources.movielens import read_movielens

    settings = BuildSettings(unknown_items="drop", **build)
    folder = locate_movielens(source, cache_folder=default_cache_folder())
    raw = read_movielens(
        folder, descriptions=descriptions, num_tags=num_tags, num_genome_tags=num_genome_tags
    )
    build_with_queries(raw, out, settings, queries, write_queries, writer, packaged_queries)


def table(
    items: list[str] | str,
    out: Path,
    interactions: list[str] | str | None = None,
    queries: list[str] | str | None = None,
    write_queries: str | None = None,
    writer: QueryWriting = DEFAULT_WRITING,
    columns: Columns = DEFAULT_COLUMNS,
    missing_title: Literal["keep", "fill", "drop", "refuse"] = "refuse",
    timestamps: Literal["auto", "s", "ms", "us", "ns", "position"] = "auto",
    **build: Any,  # noqa: ANN401
) -> None:
    """Make a corpus of your own catalogue: CSV, TSV, JSONL or Parquet.

    A table is a file, a pattern of files (logs/*.parquet), or an address that fsspec knows
    (s3://bucket/logs/*.parquet).

    Args:
        items: Columns item_id, title, text; others become attributes. Without text it is made of
            the title and what describes the item.
        out: Corpus directory to write; an older corpus there is replaced as a whole.
        interactions: Columns user_id, item_id, timestamp, and optionally rating; none: the corpus
            trains search alone.
        queries: One or more JSONL files of {"query_id", "query", "item_ids", "group", "split"};
            without queries the corpus trains recommendation alone.
        write_queries: Write queries: template (from metadata), hf:MODEL or openai:URL.
        writer: How a writer writes.
        columns: Names of the columns in your tables.
        missing_title: Items without title but with other text: keep, fill the title with the
            beginning of the text, drop with their interactions, or refuse.
        timestamps: Unit of times that are numbers; auto recognizes it by size. position: rows
            are in the order of time.
        build: How to split and filter.
    """
    from sidrec.corpus.reading.shards import local_shards
    from sidrec.corpus.sources.user_tables import read_table

    settings = BuildSettings(**build)
    if interactions is None and not (queries or write_queries):
        raise ConfigError(
            "`sidrec prepare table` needs --interactions, --queries or --write_queries; "
            "items alone train nothing."
        )
    with ExitStack() as stack:
        raw = read_table(
            stack.enter_context(local_shards(items, near=out)),
            stack.enter_context(local_shards(interactions, near=out)) if interactions else None,
            columns=columns,
            missing_title=missing_title,
            timestamps=timestamps,
            scratch=stack.enter_context(_scratch(out)),
        )
        build_with_queries(
            raw, out, settings, queries, write_queries, writer, packaged=False, columns=columns
        )


def synthetic(
    out: Path,
    items: int = 1_000,
    users: int = 500,
    interactions: int = 20_000,
    topics: int = 20,
    zipf_exponent: float = 1.0,
    queries_per_item: int = 2,
    seed: int = 0,
    **build: Any,  # noqa: ANN401
) -> None:
    """Make a made-up corpus of any size, for tests and load.

    Args:
        out: Corpus directory to write; an older corpus there is replaced as a whole.
        items: Number of items.
        users: Number of users.
        interactions: Number of draws; repeats of a user are left out, so somewhat fewer remain.
        topics: Number of topics; each has words and fans of its own.
        zipf_exponent: How steep popularity falls within a topic.
        queries_per_item: Queries for each item, each with one paraphrase.
        seed: The same seed makes the same corpus.
        build: How to split.
    """
    from sidrec.corpus.sources.synthetic import SyntheticSettings, make_synthetic

    size = SyntheticSettings(
        items, users, interactions, topics, zipf_exponent, queries_per_item, seed
    )
    settings = BuildSettings(min_item_interactions=0, unknown_items="error", **build)
    with _scratch(out) as scratch:
        with disk_errors(out, "free space or choose another --out."):
            raw, queries = make_synthetic(size, scratch)
        build_and_report(raw, queries, out, settings)


def main(args: Sequence[str]) -> None:
    """Run ``sidrec prepare`` with the arguments that follow it.

    Raises:
        SidrecError: One line about what is wrong with the data or the settings.
    """
    from jsonargparse import auto_cli

    from sidrec.cli.parser import CommandParser
    from sidrec.cli.preparing import prepare_sources as more

    auto_cli(
        {
            **{command.__name__: command for command in (movielens, table, synthetic)},
            **{command.__name__: command for command in (more.amazon, more.recbole)},
            **{command.__name__: command for command in (more.beir, more.clicks)},
        },
        args=_bracketed(args),
        as_positional=False,
        prog="sidrec prepare",
        parser_class=CommandParser,
    )


@contextmanager
def _scratch(out: Path) -> Iterator[Path]:
    with disk_errors(out, "choose another --out."):
        out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{out.name}.", suffix=".part", dir=out.parent) as folder:
        yield Path(folder)


def build_with_queries(
    raw: "RawCatalogue",
    out: Path,
    settings: BuildSettings,
    queries: "Sequence[str | Path] | str | None",
    write_queries: str | None,
    writer: QueryWriting,
    packaged: bool,
    columns: Columns = DEFAULT_COLUMNS,
) -> None:
    """Read, write or take packaged queries for the items, then build the corpus.

    Args:
        raw: Items and interactions.
        out: Corpus directory to write.
        settings: How to split and filter.
        queries: Query files.
        write_queries: Writer of queries; None writes none.
        writer: Settings of the writer.
        packaged: Use packaged queries where no others are given.
        columns: Names of the columns of query files.
    """
    from sidrec.corpus.build.build_corpus import kept_items

    own = chosen_queries(
        kept_items(raw, settings.min_item_interactions),
        files=[str(one) for one in ([queries] if isinstance(queries, str) else queries or ())],
        near=out,
        write_queries=write_queries,
        writing=writer,
        packaged=packaged,
        columns=columns,
    )
    build_and_report(raw, own, out, settings)


def build_and_report(
    raw: "RawCatalogue", queries: "Sequence[RawQuery]", out: Path, settings: BuildSettings
) -> None:
    """Build the corpus, check that it opens, and print its facts."""
    from sidrec.corpus.build.build_corpus import build_corpus
    from sidrec.corpus.store import Corpus

    description = build_corpus(raw, queries, out, settings)
    Corpus.load(out).train_interactions()  # checks that it opens; makes mapped copies once
    read = [one.file for one in (*raw.item_files, *raw.interaction_files)]
    _summarize(description, out, read)


def _summarize(description: dict[str, Any], out: Path, files: "Sequence[Path]") -> None:
    from sidrec.corpus.build.facts import fact_lines

    lines = [*(("read", str(file)) for file in files), *fact_lines(description)]
    lines.append(("corpus", str(out)))
    if not sys.stderr.isatty():
        for name, value in lines:
            say(f"{name}: {value}")
        return
    from rich.console import Console
    from rich.table import Table

    grid = Table(title=f"Corpus of {description['source']}", show_header=False)
    for name, value in lines:
        grid.add_row(name, value)
    Console(stderr=True).print(grid)


def _bracketed(args: Sequence[str]) -> list[str]:
    """Write ``--queries a b`` as ``--queries=["a", "b"]``, the form that jsonargparse reads."""
    several = _MANY_VALUES.get(args[0] if args else "", ("--queries",))
    result: list[str] = []
    option, values = "", list[str]()
    for argument in [*args, "--"]:
        if option and not argument.startswith("--"):
            values.append(argument)
            continue
        if option:
            result.append(f"{option}={json.dumps(values)}")
        option, values = (argument, []) if argument in several else ("", [])
        if not option and argument != "--":
            result.append(argument)
    return result
