import polars as pl
import pytest

from sidrec.corpus.queries.llm_prompts import ItemFacts, facts_of
from sidrec.corpus.queries.template import template_queries
from sidrec.corpus.queries.title_match import names_title

HEAT = ItemFacts("6", "Heat (1995)", 1995, ("Crime", "Action"), ("heist", "gritty"), "")
RONIN = ItemFacts("7", "Ronin", 1998, ("Crime", "Action"), ("heist", "cars"), "")


def _texts(queries, item_id):
    return [query.text for query in queries if item_id in query.item_ids]


def test_queries_of_one_item_by_hand():
    queries = template_queries([HEAT], num_groups=9, max_items_per_query=9)
    assert _texts(queries, "6") == [
        "gritty and heist",
        "looking for something with heist, also gritty",
        "crime from the 1990s with heist",
        "heist crime, 1990s",
        "action and crime of the year 1995",
        "1995 crime action",
        "crime from the 1990s",
        "1990s crime",
    ]
    assert {query.split for query in queries} == {""}
    assert [query.group for query in queries[:2]] == [queries[0].query_id[:-2]] * 2


def test_items_with_the_same_facts_share_the_query():
    queries = template_queries([HEAT, RONIN], num_groups=9, max_items_per_query=9)
    shared = [query.text for query in queries if query.item_ids == ("6", "7")]
    assert shared == [
        "crime from the 1990s with heist",
        "heist crime, 1990s",
        "crime from the 1990s",
        "1990s crime",
    ]
    strict = template_queries([HEAT, RONIN], num_groups=9, max_items_per_query=1)
    assert all(len(query.item_ids) == 1 for query in strict)


def test_the_number_of_groups_is_held_and_the_most_telling_come_first():
    queries = template_queries([HEAT], num_groups=1, max_items_per_query=9)
    assert [query.text for query in queries] == [
        "gritty and heist",
        "looking for something with heist, also gritty",
    ]


def test_telling_words_come_from_the_description():
    common = "the story of people who live"
    items = [
        ItemFacts(str(k), f"T{k}", None, (), (), f"{common} {words}")
        for k, words in enumerate(["submarine reactor leak", "wedding planner", "clown"])
    ]
    queries = template_queries(items, num_groups=3, max_items_per_query=3)
    assert [query.text for query in queries] == [
        "something about leak, reactor and submarine",
        "reactor leak submarine",
    ]


def test_the_title_is_never_in_a_query():
    item = ItemFacts("1", "Heist, The", 2001, ("Crime",), ("heist", "gold"), "The heist " * 9)
    queries = template_queries([item], num_groups=9, max_items_per_query=9)
    assert [query.text for query in queries] == ["crime from the 2000s", "2000s crime"]
    assert not any(names_title(query.text, item.title) for query in queries)


def test_the_same_catalogue_gives_the_same_queries_and_ids_are_unique():
    one = template_queries([HEAT, RONIN], num_groups=3, max_items_per_query=9)
    assert one == template_queries([HEAT, RONIN], num_groups=3, max_items_per_query=9)
    assert len({query.query_id for query in one}) == len(one)


def test_an_item_without_facts_gets_no_query(capsys):
    bare = ItemFacts("1", "X", None, (), (), "")
    assert template_queries([bare], num_groups=3, max_items_per_query=9) == []
    assert "0 queries for 0 of 1 items" in capsys.readouterr().err


def test_a_number_below_one_is_refused():
    with pytest.raises(ValueError, match="at least 1, got 0 and 9"):
        template_queries([HEAT], num_groups=0, max_items_per_query=9)


def test_facts_are_read_from_lists_and_from_text():
    frame = pl.DataFrame(
        {
            "item_id": ["1", "2"],
            "title": ["A", "B"],
            "text": ["about a", None],
            "genres": ["Crime|Drama", None],
            "tags": [["x"], None],
            "genome_tags": [["x", "y"], []],
            "year": [1999, None],
        }
    )
    assert facts_of(frame) == [
        ItemFacts("1", "A", 1999, ("Crime", "Drama"), ("x", "y"), "about a"),
        ItemFacts("2", "B", None, (), (), ""),
    ]


@pytest.mark.parametrize(
    ("text", "title", "named"),
    [
        ("like THE  Matrix?", "Matrix, The (1999)", True),
        ("a space opera like star wars", "Star Wars: Episode IV - A New Hope", True),
        ("an amélie film", "Amelie (Fabuleux destin d'Amélie Poulain, Le) (2001)", True),
        ("what is it about", "It (2017)", False),
        ("sweaty", "We", False),
        ("anything", "", False),
    ],
)
def test_a_title_is_found_in_any_spelling(text, title, named):
    assert names_title(text, title) is named
