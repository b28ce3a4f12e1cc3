"""Prompts that make a language model write queries, and parsing of its answers."""

import re
from typing import Any, NamedTuple

import polars as pl

from sidrec.corpus.queries.title_match import names_title, normalize


class ItemFacts(NamedTuple):
    """Facts of one item, as query writers use them.

    Attributes:
        item_id: The catalogue's own id.
        title: Title; a query must not contain it.
        year: Year of release, ``None`` where unknown.
        genres: Genres or categories, possibly none.
        tags: Tags, most informative first, possibly none.
        description: Free text, possibly empty.
    """

    item_id: str
    title: str
    year: int | None
    genres: tuple[str, ...]
    tags: tuple[str, ...]
    description: str


def facts_of(items: pl.DataFrame) -> list[ItemFacts]:
    """Read the facts of every item of a catalogue.

    Args:
        items: Columns item_id, title, text, and where present year, genres (or categories), tags,
            genome_tags (lists, or text separated by ``|``) and description. Without a description
            column, the text serves as description.

    Returns:
        One record per row, in the order of the rows.
    """
    description = "description" if "description" in items.columns else "text"
    return [
        ItemFacts(
            str(row["item_id"]),
            row["title"] or "",
            _year(row.get("year")),
            _words(row.get("genres") or row.get("categories")),
            tuple(dict.fromkeys(_words(row.get("tags")) + _words(row.get("genome_tags")))),
            row.get(description) or "",
        )
        for row in items.iter_rows(named=True)
    ]


def _year(value: Any) -> int | None:  # noqa: ANN401
    try:
        return int(value) or None
    except (TypeError, ValueError):
        return None


def _words(value: Any) -> tuple[str, ...]:  # noqa: ANN401
    parts = value.split("|") if isinstance(value, str) else value or ()
    return tuple(word for part in parts if (word := str(part).strip()))


MAX_QUERY_CHARACTERS = 200

_MAX_DESCRIPTION_WORDS = 200
_MAX_TAGS = 20
_NUMBERED = re.compile(r"^[\s*_#>(\[]*(\d{1,3})\s*[.):\]]+[\s*_]*(.+)$")
_BULLET = re.compile(r"^\s*[-*\u2022]\s+(.+)$")
_THOUGHT = re.compile(r"<think>.*?(</think>|\Z)", re.DOTALL)
_WRAPPING = " \t\"'`*_\u201c\u201d\u2018\u2019\u00ab\u00bb"


def queries_prompt(item: ItemFacts, *, num_queries: int) -> str:
    """Return the prompt for queries that an item answers.

    Source:
        Penha et al. 2025 (https://arxiv.org/abs/2508.10478): queries from title, year,
        description and tags; realistic, diverse, never containing the title, some about broad
        topics, themes and genres. The wording is our own.
    """
    return (
        f"People search a catalogue in their own words. Write {num_queries} search queries for "
        "which the item below is a good answer.\n\n"
        f"{_described(item)}\n\n"
        "Rules:\n"
        "- Write what real people would type: short phrases, sometimes a whole sentence.\n"
        "- Make the queries different from one another. Some name broad topics, themes, moods or "
        "genres; some name details, people or places.\n"
        "- Never use the title or a part of it.\n"
        f"- Answer with a numbered list of {num_queries} lines, one query a line, nothing else."
    )


def paraphrases_prompt(queries: dict[int, str]) -> str:
    """Return the prompt for one paraphrase of each query, under the query's own number."""
    listed = "\n".join(f"{number}. {query}" for number, query in queries.items())
    return (
        "Rewrite each search query below so that it means the same but shares as few words with "
        "it as possible. Write what real people would type.\n\n"
        f"{listed}\n\n"
        "Answer with a numbered list, each line under the number of its query, nothing else."
    )


def read_list(answer: str, *, title: str, limit: int) -> dict[int, str]:
    """Parse the numbered list in a model's answer and keep its usable lines.

    Bold numbers, brackets, quotation marks, text around the list and the thinking text of reasoning
    models are handled; a list of bullets is numbered by position.

    Args:
        answer: What the model wrote.
        title: The item's title; lines that name it are left out.
        limit: The largest number that was asked for.

    Returns:
        Query by number. Empty and overlong lines, repetitions, and numbers seen before are left
        out.
    """
    lines = _THOUGHT.sub("", answer).splitlines()
    numbered = [(int(m[1]), m[2]) for line in lines if (m := _NUMBERED.match(line))]
    if not numbered:
        bullets = [m[1] for line in lines if (m := _BULLET.match(line))]
        numbered = list(enumerate(bullets, start=1))
    kept: dict[int, str] = {}
    seen: set[str] = set()
    for number, line in numbered:
        text = " ".join(line.split()).strip(_WRAPPING)
        key = normalize(text)
        usable = len(key) >= 3 and len(text) <= MAX_QUERY_CHARACTERS and key not in seen
        if usable and 1 <= number <= limit and number not in kept and not names_title(text, title):
            kept[number] = text
            seen.add(key)
    return kept


def _described(item: ItemFacts) -> str:
    description = " ".join(item.description.split()[:_MAX_DESCRIPTION_WORDS])
    facts = {
        "Title": item.title,
        "Year": str(item.year or ""),
        "Genres": ", ".join(item.genres),
        "Tags": ", ".join(item.tags[:_MAX_TAGS]),
        "Description": description,
    }
    return "\n".join(f"{name}: {value}" for name, value in facts.items() if value)
