import pytest

from sidrec.corpus.queries.title_match import TitledItem, match_titles, title_keys


def _match(title, year, *items):
    found = match_titles([(title, year)], [TitledItem(*item) for item in items])
    return found.get(0)


@pytest.mark.parametrize(
    ("title", "year", "other", "other_year"),
    [
        ("Matrix, The", 1999, "The Matrix", 1999),
        ("Matrix, The", 1999, "The Matrix (1999)", None),
        ("Seven (a.k.a. Se7en)", 1995, "Se7en", 1995),
        ("Léon: The Professional (a.k.a. The Professional)", 1994, "Professional, The", 1994),
        ("Amelie (Fabuleux destin d'Amélie Poulain, Le)", 2001, "AMÉLIE", 2001),
        ("Amelie (Fabuleux destin d'Amélie Poulain, Le)", 2001,
         "Le Fabuleux destin d\u2019Amelie Poulain", 2001),
        ("Romeo + Juliet", 1996, "Romeo & Juliet", 1996),
        ("Star Wars: Episode IV - A New Hope", 1977, "Star Wars", 1977),
        ("Empire Strikes Back, The", 1980, "Star Wars: Episode V - The Empire Strikes Back", 1980),
        ("Conan the Barbarian", 1982, "Conan the Barbarian", 1981),
        ("$", 1971, "$ (1971)", None),
    ],
)  # fmt: skip
def test_one_film_spelt_in_two_ways(title, year, other, other_year):
    assert _match(title, year, ("x", "Casablanca", year), ("y", other, other_year)) == "y"


@pytest.mark.parametrize(
    ("title", "year", "other", "other_year"),
    [
        ("King Kong", 1933, "King Kong", 1976),  # a remake
        ("King Kong", 1933, "King Kong", None),  # no year, no match
        ("Conan the Barbarian", 1982, "Conan the Barbarian", 1980),  # two years off
        ("Alien: Resurrection", 1997, "Resurrection", 1997),  # one word is too little
        ("Rocky II", 1979, "Rocky", 1979),
    ],
)
def test_two_films_are_not_taken_for_one(title, year, other, other_year):
    assert _match(title, year, ("y", other, other_year)) is None


def test_a_year_beside_counts_only_for_a_title_that_is_unique():
    items = [("a", "Emma", 1995), ("b", "Emma", 2020)]
    assert _match("Emma", 1996, *items) is None
    assert _match("Emma", 1996, items[0]) == "a"
    rivals = match_titles([("Emma", 1996), ("Emma", 1972)], [TitledItem("a", "Emma", 1995)])
    assert rivals == {}


def test_the_right_year_goes_before_the_year_beside():
    assert _match("Emma", 1996, ("a", "Emma", 1995), ("b", "Emma", 1996)) == "b"


def test_of_doubles_the_first_in_the_catalogue_answers():
    doubles = [("9", "War of the Worlds", 2005), ("1", "War of the Worlds", 2005)]
    assert _match("War of the Worlds", 2005, *doubles) == "9"


def test_a_main_title_goes_before_an_alternative_title():
    items = [("a", "Nikita (Killer)", 1990), ("b", "Killer", 1990)]
    assert _match("Killer", 1990, *items) == "b"


def test_no_item_answers_for_two_films():
    found = match_titles(
        [("Nikita", 1990), ("Killer", 1990)], [TitledItem("a", "Nikita (Killer)", 1990)]
    )
    assert found == {0: "a"}


def test_keys_of_an_empty_title():
    assert title_keys("") == ("",)
