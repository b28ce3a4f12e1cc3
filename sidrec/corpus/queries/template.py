"""Template queries from item metadata: weaker than those of a language model, but free."""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence

from sidrec.console import say
from sidrec.corpus.queries.llm_prompts import ItemFacts
from sidrec.corpus.queries.title_match import names_title, normalize
from sidrec.corpus.sources.raw_catalogue import RawQuery

# Per kind of query: the wording and its paraphrase, filled with the facts in order.
_WORDINGS = {
    "words": ("something about {}, {} and {}", "{1} {0} {2}"),
    "tags": ("{} and {}", "looking for something with {1}, also {0}"),
    "genre-decade-tag": ("{} from the {}s with {}", "{2} {0}, {1}s"),
    "genre-words": ("{} with {} and {}", "{1}, {2}, a {0} if possible"),
    "genres-year": ("{} and {} of the year {}", "{2} {1} {0}"),
    "genre-decade": ("{} from the {}s", "{1}s {0}"),
}
_WORD = re.compile(r"[^\W\d_]{4,}")
_MAX_SHARE = 0.2  # a word in more than this share of the descriptions is not a keyword
_RARE = 3  # fewest descriptions that hold a keyword, in a catalogue of 100 items or more
_Facts = tuple[str, ...]


def template_queries(
    items: Sequence[ItemFacts], *, num_groups: int, max_items_per_query: int
) -> list[RawQuery]:
    """Write queries from genres, years, tags and keywords of the descriptions.

    The same items give the same queries. Items that share the facts of a query share the query:
    all of them are its answers. No query contains the title of one of its items.

    Args:
        items: The catalogue.
        num_groups: Groups (a query and its paraphrase) per item, at most, the most informative
            first; ``>= 1``. An item may get more when it shares those of others.
        max_items_per_query: Queries that more items would answer are left out as too vague.

    Returns:
        The queries, grouped, without a split: the builder decides by the group.

    Raises:
        ValueError: If ``num_groups`` or ``max_items_per_query`` is less than 1.
    """
    if num_groups < 1 or max_items_per_query < 1:
        raise ValueError(
            "num_groups and max_items_per_query must be at least 1, "
            f"got {num_groups} and {max_items_per_query}"
        )
    answers = _gather(items)
    queries: list[RawQuery] = []
    count: Counter[str] = Counter()
    for (kind, facts), item_ids in answers.items():
        wanted = any(count[item_id] < num_groups for item_id in item_ids)
        if not wanted or len(item_ids) > max_items_per_query:
            continue
        count.update(item_ids)
        digest = hashlib.sha256("\0".join((kind, *facts)).encode()).hexdigest()[:16]
        queries += [
            RawQuery(
                f"template-{digest}-{end}",
                wording.format(*facts),
                item_ids,
                f"template-{digest}",
                "",
                "template",
            )
            for end, wording in zip("op", _WORDINGS[kind], strict=True)
        ]
    say(f"template: {len(queries):,} queries for {len(count):,} of {len(items):,} items")
    return queries


def _gather(items: Sequence[ItemFacts]) -> dict[tuple[str, _Facts], tuple[str, ...]]:
    """Return the items of each possible query, the most informative kinds first."""
    keywords = _keywords(items)
    answers: dict[tuple[str, _Facts], list[str]] = {}
    ranked = [list(_possible(item, words)) for item, words in zip(items, keywords, strict=True)]
    for kind in _WORDINGS:
        for item, possible in zip(items, ranked, strict=True):
            for facts in (facts for name, facts in possible if name == kind):
                texts = " | ".join(wording.format(*facts) for wording in _WORDINGS[kind])
                if not names_title(texts, item.title):
                    answers.setdefault((kind, facts), []).append(item.item_id)
    return {key: tuple(item_ids) for key, item_ids in answers.items()}


def _possible(item: ItemFacts, words: list[str]) -> Iterator[tuple[str, _Facts]]:
    genres = [genre.lower() for genre in item.genres]
    tags = [tag.lower() for tag in item.tags]
    decade = str(item.year // 10 * 10) if item.year else ""
    if len(words) >= 3:
        yield "words", tuple(words[:3])
    if len(tags) >= 2:
        yield "tags", tuple(sorted(tags[:2]))
    if genres and decade and tags:
        yield "genre-decade-tag", (genres[0], decade, tags[0])
    if genres and len(words) >= 5:
        yield "genre-words", (genres[0], words[3], words[4])
    if len(genres) >= 2 and item.year:
        yield "genres-year", (*sorted(genres[:2]), str(item.year))
    if genres and decade:
        yield "genre-decade", (genres[0], decade)


def _keywords(items: Sequence[ItemFacts]) -> list[list[str]]:
    """Return each item's keywords by TF-IDF over the descriptions, ties in alphabetical order."""
    counts = [Counter(_WORD.findall(item.description.casefold())) for item in items]
    num_items_with = Counter(word for count in counts for word in count)
    most = max(1.0, _MAX_SHARE * len(items))
    least = _RARE if len(items) >= 100 else 1
    ranked: list[list[str]] = []
    for item, count in zip(items, counts, strict=True):
        own = set(normalize(item.title).split())
        score = {
            word: times * math.log((1 + len(items)) / num_items_with[word])
            for word, times in count.items()
            if least <= num_items_with[word] <= most and normalize(word) not in own
        }
        ranked.append(sorted(score, key=lambda word, score=score: (-score[word], word))[:5])  # type: ignore[misc]
    return ranked
