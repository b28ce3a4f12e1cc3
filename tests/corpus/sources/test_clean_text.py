import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidrec.corpus.reading.item_text import clean_text

WORDS = st.lists(st.from_regex(r"[A-Za-z0-9]{1,8}", fullmatch=True), min_size=1, max_size=12)
MARKUP = st.sampled_from(
    """<p>|</p>|<br/>|<a href="x.html" class=y>|<!-- note: > -->|<h2>|<LI>| |&nbsp;|<!DOCTYPE html>|
<style>.a {color: red}</style>|<script>f();</script>""".split("|")  # noqa: SIM905
)
PLAIN = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="<{&['\""))


@pytest.mark.parametrize(
    "text",
    [
        "Learn the <script> tag: a web primer",
        "CSS for all: the <style> tag explained, 2nd edition",
        "if (a < b && c > d) { return a; }",
        "std::vector<int> v; Map<String, List<Integer>> m",
        "if a <b and c> d",
        "struct point { int x; int y; };",
        "body { margin: 0 } is a rule of a style sheet",
        "Pancakes {2 cups: flour; 1 egg: beaten}, then bake",
        "https://shop.com/?id=1&copy=2&reg=3&lt=4",
        "R&D, AT&T; salt & pepper &bogus;",
        "<3 this, x<y, 5 <= 6, ->, <-, <!-- open",
        "[1, 2] and ['a' or b",
        "C:\\new\\table",
    ],
)
def test_words_that_are_no_markup_stay_letter_by_letter(text):
    assert clean_text(text) == text


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("[['Beauty', 'Hair'], ['Skin']]", "Beauty, Hair, Skin"),
        ("Strong holes.caption {font-size: 10px; color: red}After", "Strong holes After"),
        ("#dp p, .a ul li {margin:0}x", "x"),
        ("<ulu>washed</ulu> and reused", "washed and reused"),
        ("use <script> and </script> around it", "use and around it"),
        ("&amp;lt; stays one level", "&lt; stays one level"),
    ],
)
def test_litter_of_shops(text, clean):
    assert clean_text(text) == clean


@given(WORDS, st.data())
def test_markup_between_words_goes_and_every_word_stays(words, data):
    text = "".join(word + data.draw(MARKUP) + " " for word in words)
    assert clean_text(text).split() == words


@given(PLAIN)
def test_a_text_without_markup_changes_in_its_spaces_alone(text):
    assert clean_text(text).split() == text.split()


@given(st.text(st.sampled_from("<>/abp!-= '\"{}:;&#x.,[]\\ style"), max_size=300))
def test_any_text_is_cleaned(text):
    assert "\n" not in clean_text(text)


UNITS = """<|<a |<a b="|<a b='|<!--|<b|</|<style>|<script>=|</style>|{|}{|{:|.a{color:red}|.a |a|
&|&#|['a', |[|\\|'\\|<x>|</x>""".split("|")  # noqa: SIM905


@pytest.mark.parametrize("unit", UNITS)
def test_a_megabyte_takes_time_linear_in_its_length(unit):
    start = time.process_time()
    for text in (unit * (100_000 // len(unit)), "['" + unit * (100_000 // len(unit)) + "']"):
        clean_text(text)
    assert time.process_time() - start < 0.5  # quadratic steps would take a minute
