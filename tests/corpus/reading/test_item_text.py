import pytest

from sidrec.corpus.reading.item_text import clean_text, item_text, title_and_year


@pytest.mark.parametrize(
    ("raw", "title", "year"),
    [
        ("Toy Story (1995)", "Toy Story", 1995),
        ("American President, The (1995)", "The American President", 1995),
        ("Misérables, Les (1995)", "Les Misérables", 1995),
        ("Avventura, L' (Adventure, The) (1960)", "L'Avventura (The Adventure)", 1960),
        ("Seven (a.k.a. Se7en) (1995)", "Seven (a.k.a. Se7en)", 1995),
        ("Big Bang Theory, The (2007-)", "The Big Bang Theory", 2007),
        ("Death Note: Desu nôto (2006–2007)", "Death Note: Desu nôto", 2006),  # noqa: RUF001
        ("Cosmos", "Cosmos", None),
        ("2001: A Space Odyssey (1968)", "2001: A Space Odyssey", 1968),
        ("1984", "1984", None),
        ("(500) Days of Summer (2009)", "Days of Summer (500)", 2009),
        ("Good, the Bad and the Ugly, The (1966)", "The Good, the Bad and the Ugly", 1966),
        ("Crouching Tiger, Hidden Dragon (2000) ", "Crouching Tiger, Hidden Dragon", 2000),
    ],
)
def test_titles_by_hand(raw, title, year):
    assert title_and_year(raw) == (title, year)


def test_text_by_hand():
    text = item_text(
        "Heat",
        1995,
        genres=["Action", "Crime"],
        tags=["al pacino"],
        genome_tags=["heist", "tense"],
        description="A thief  and\na policeman.",
    )
    assert text == (
        "Heat (1995). Genres: Action, Crime. Tags: al pacino. Themes: heist, tense. "
        "A thief and a policeman."
    )


def test_what_is_missing_leaves_no_trace():
    empty = {"genres": [], "tags": [], "genome_tags": [], "description": ""}
    assert item_text("Heat", None, **empty) == "Heat."
    assert item_text("", None, **empty) == ""


@pytest.mark.parametrize(
    ("litter", "clean"),
    [
        ("plain text", "plain text"),
        ("<br />2 terminals", "2 terminals"),
        ("['', 'First.', \"Second's\"]", "First. Second's"),
        ("a.b {font-size: 10px;font-weight: bold}ul.indent {color: red;}After", "After"),
        ("<style>p {margin: 0}</style>Before<script>alert(1)</script>", "Before"),
        ("T&Uuml;RLEN &ndash; 5 &lt; 6", "TÜRLEN \u2013 5 < 6"),
        ("pressure < 5 bar > 1 bar", "pressure < 5 bar > 1 bar"),
        ("see {the appendix}", "see {the appendix}"),
        ("[not a list]", "[not a list]"),
        ("[1, 2]", "[1, 2]"),
        ("['5' long, TAZ's', 'it's\\nnew']", "5' long, TAZ's it's new"),
    ],
)
def test_litter_by_hand(litter, clean):
    assert clean_text(litter) == clean
