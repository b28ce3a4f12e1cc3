"""Query sources of a corpus: files, a query writer, or the packaged queries."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sidrec.console import say
from sidrec.corpus.reading.column_names import DEFAULT_COLUMNS
from sidrec.errors import ConfigError

if TYPE_CHECKING:
    import polars as pl

    from sidrec.corpus.reading.column_names import Columns
    from sidrec.corpus.sources.raw_catalogue import RawQuery


@dataclass(frozen=True)  # no slots: jsonargparse reads __dict__
class QueryWriting:
    """Query writing for ``--write_queries``.

    Attributes:
        num_queries: Queries for each item, each with one paraphrase.
        max_items_per_query: Template queries that more items would answer are left out.
        temperature: Temperature of the language model, unitless; 0 takes the most likely token each
            time.
        max_new_tokens: Limit of one answer of the language model, in tokens.
        batch_size: Prompts that the language model answers at once.
        seed: Seed of the language model.
        revision: Commit, tag or branch of an ``hf:`` model on the hub; null takes the newest.

    Raises:
        ConfigError: If a number is below 1.
    """

    num_queries: int = 10
    max_items_per_query: int = 20
    temperature: float = 0.7
    max_new_tokens: int = 512
    batch_size: int = 8
    seed: int = 0
    revision: str | None = None

    def __post_init__(self) -> None:
        for name in ("num_queries", "max_items_per_query", "max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"writer.{name} must be 1 or more, got {getattr(self, name)}.")


DEFAULT_WRITING = QueryWriting()


def chosen_queries(
    items: "pl.DataFrame",
    *,
    files: Sequence[str],
    near: Path,
    write_queries: str | None,
    writing: QueryWriting,
    packaged: bool,
    columns: "Columns | None" = None,
) -> "list[RawQuery]":
    """Collect the queries of all chosen sources.

    Args:
        items: Items that the corpus keeps; a writer writes about them.
        files: Query files, patterns or addresses, read first.
        near: Folder beside which files of an object store are fetched.
        write_queries: ``template``, ``hf:MODEL``, ``openai:URL``, or ``None``.
        writing: Settings of the writer.
        packaged: Whether to take the queries that come with sidrec when neither files nor a
            writer are given; items are matched by title and year.
        columns: Column names of the query files.
    """
    queries: list[RawQuery] = []
    if files:
        from sidrec.corpus.reading.shards import local_shards

        with local_shards(files, near=near) as shards:
            queries += _from_files(shards.files, columns)
    if write_queries is not None:
        queries += _written(items, write_queries, writing)
    if packaged and not files and write_queries is None:
        from sidrec.corpus.queries.query_files import packaged_queries

        queries += packaged_queries(items.select("item_id", "title", "year").iter_rows())
    return queries


def _from_files(files: Sequence[Path], columns: "Columns | None") -> "list[RawQuery]":
    from sidrec.corpus.queries.query_files import load_query_files
    from sidrec.corpus.reading.compressed import format_of
    from sidrec.corpus.sources.user_tables import read_query_table

    queries: list[RawQuery] = []
    for file in files:
        as_table = format_of(file) in (".csv", ".tsv", ".parquet")
        found = (
            read_query_table(file, columns or DEFAULT_COLUMNS)
            if as_table
            else load_query_files([file])
        )
        if not found:
            say(f"warning: {file} holds no queries; check the path")
        queries += found
    return queries


def _written(items: "pl.DataFrame", how: str, writing: QueryWriting) -> "list[RawQuery]":
    from sidrec.corpus.queries.llm_prompts import facts_of

    facts = facts_of(items)
    if how == "template":
        from sidrec.corpus.queries.template import template_queries

        return template_queries(
            facts,
            num_groups=writing.num_queries,
            max_items_per_query=writing.max_items_per_query,
        )
    from sidrec.corpus.queries.language_model import Sampling
    from sidrec.corpus.queries.llm_writer import write_queries
    from sidrec.corpus.reading.download import default_cache_folder

    return write_queries(
        facts,
        model=how,
        cache_folder=default_cache_folder(),
        num_queries=writing.num_queries,
        sampling=Sampling(
            writing.max_new_tokens, writing.temperature, writing.seed, writing.batch_size
        ),
        revision=writing.revision,
    )
