"""Any bytes at all become one line of valid JSON."""

import json

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sidrec.errors import DataError
from sidrec.generator.retrieval.jsonl_stream import answer_lines
from sidrec.generator.retrieval.parse_request import (
    MAX_LINE_BYTES,
    MAX_QUERY_CHARACTERS,
    texts_in,
    understand,
)
from sidrec.generator.retrieval.retriever import RetrievedItem
from tests.generator.echo import Collected, Echo

SEARCH = {"id": "a", "task": "search", "query": "x"}
leaves = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5),
    st.sampled_from(["search", "recommendation", "i1", "i2", "\ud83d", float("inf"), 10**4000]),
)  # fmt: skip
values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3), max_leaves=5)
keys = st.sampled_from(["id", "task", "query", "history", "allowed", "excluded", "other"])
near_requests = st.fixed_dictionaries(
    {"id": values, "task": st.sampled_from(["search", "recommendation", "rank"])},
    optional={"query": values, "history": values, "allowed": values, "excluded": values},
)
as_json = st.one_of(near_requests, st.dictionaries(keys, values, max_size=6), values).map(
    lambda value: json.dumps(value).encode()
)
lines = st.one_of(st.binary(max_size=12), as_json, as_json)


def no_number(name):
    raise AssertionError(f"{name} is no JSON")


def strict(text):
    return json.loads(text, parse_constant=no_number)


def answered(given_lines):
    written = Collected()
    blocks = list(answer_lines(Echo(), given_lines, written, top_k=2, batch_size=3))
    for text in written.lines:
        assert text.endswith("\n")
        assert "\n" not in text[:-1]
        result = strict(text)
        assert result.keys() in ({"id", "items"}, {"id", "error"})
    assert sum(one["answered"] + one["errors"] for one in blocks) == len(written.lines)
    return [json.loads(text) for text in written.lines]


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(lines, min_size=8, max_size=12))
@example([b'{"id": 1e999}', b'{"id": NaN}', b"[" * 100_000, b"\xff", b" \r\n", b"{}"])
@example([b'{"id": "a", "task": 1e999}', b'{"id": ' + b"1" * 5_000 + b"}"])
def test_every_line_that_is_not_blank_gets_one(given_lines):
    given_lines = [line.replace(b"\n", b"") + b"\n" for line in given_lines]
    assert len(answered(given_lines)) == sum(bool(line.strip()) for line in given_lines)


@pytest.mark.parametrize(
    ("line", "own", "text"),
    [
        (b'{"id": NaN}', None, "NaN is not a number"),
        (b'{"id": -Infinity}', None, "-Infinity is not a number"),
        (b'{"id": 1e999}', None, "id must be a string"),
        (b'{"id": 1.5}', 1.5, "id must be a string, got 1.5"),
        (b'{"id": true}', True, "line 1: id must be a string, got true"),
        (b'{"id": 42}', 42, 'line 1: id must be a string: write "42", not 42'),
        (b'{"id": {"a": 1}}', None, "id must be a string"),
        (b'{"id": "a", "task": ["search"]}', "a", "got list"),
        (SEARCH | {"task": "x" * 1_000}, "a", "xxx…"),
        (SEARCH | {"allowed": []}, "a", r"allowed holds no item of the catalogue (0 unknown)"),
        (SEARCH | {"allowed": ["?"]}, "a", r"allowed holds no item of the catalogue (1 unknown)"),
        (SEARCH | {"allowed": "i1"}, "a", "allowed must be a list of item_id strings"),
        (
            SEARCH | {"excluded": ["i1", 42]},
            "a",
            "excluded must be a list of item_id strings, element 1 is no string: "
            'write "42", not 42',
        ),
        (SEARCH | {"alowed": ["i1"]}, "a", 'unknown key "alowed"; did you mean "allowed"?'),
        (SEARCH | {"EXCLUDED": ["i1"]}, "a", 'did you mean "excluded"?'),
        (b"x" * (MAX_LINE_BYTES + 1), None, "line is longer than 8 MiB"),
    ],
)
def test_what_is_wrong_is_said(line, own, text):
    data = line if isinstance(line, bytes) else json.dumps(line).encode()
    (result,) = answered([data])
    assert result["id"] == own
    assert text in result["error"]


def test_a_key_of_the_user_is_left_alone():
    assert not understand(json.dumps(SEARCH | {"ids": 1, "note": "x"}).encode(), Echo()).error


@pytest.mark.parametrize("form", [list, tuple, iter])
def test_any_iterable_of_texts_serves(form):
    assert texts_in(form(["glue", "tape"]), "texts") == ["glue", "tape"]


@pytest.mark.parametrize(
    ("given_argument", "said"),
    [
        ("glue", 'texts must be a list of strings, got "glue"'),
        (b"glue", "texts must be a list of strings, got bytes"),
        (None, "texts must be a list of strings, got null"),
        (["a", 7], r"texts must be a list of strings, element 1 is 7 \(int\)"),
    ],
)
def test_what_is_no_list_of_texts_is_refused(given_argument, said):
    with pytest.raises(DataError, match=said):
        texts_in(given_argument, "texts")


def test_subsets_are_looked_up_and_unknown_items_counted():
    given_line = SEARCH | {"allowed": ["i3", "?", "i1"], "excluded": ["i7", "!", "i1"]}
    found = understand(json.dumps(given_line).encode(), Echo())
    assert found.restriction == ((3, 1), (7, 1))
    assert found.num_unknown == 2
    nothing = understand(json.dumps(SEARCH | {"allowed": None, "excluded": None}).encode(), Echo())
    assert nothing.restriction == (None, ())


def test_a_very_long_query_is_cut_and_counted():
    line = json.dumps(SEARCH | {"query": " " * 9_000 + "x" * 100_000}).encode()
    found = understand(line, Echo())
    assert found.request.query == "x" * MAX_QUERY_CHARACTERS
    assert [
        one["cut"] for one in answer_lines(Echo(), [line], Collected(), top_k=1, batch_size=1)
    ] == [1]


def test_an_item_that_was_not_scored_has_a_null_and_an_empty_list_is_an_error():
    class Odd(Echo):
        def answer(self, requests, **_):
            return [[RetrievedItem("i1", None, (1,))], []]

    written = Collected()
    data = json.dumps(SEARCH).encode()
    (counts,) = answer_lines(Odd(), [data, data], written, top_k=1, batch_size=1)
    first, second = map(strict, written.lines)
    assert first["items"] == [{"item_id": "i1", "score": None, "semantic_id": [1]}]
    assert second["error"].startswith("no allowed item is left")
    assert (counts["answered"], counts["errors"]) == (1, 1)


def test_very_long_lines_make_small_blocks():
    sizes = []

    class Counting(Echo):
        def answer(self, requests, **settings):
            sizes.append(len(requests))
            return super().answer(requests, **settings)

    long = json.dumps(SEARCH | {"other": "y" * (7 << 20)}).encode()
    short = json.dumps(SEARCH).encode()
    lines = (line for line in [long] * 5 + [short] * 100)
    list(answer_lines(Counting(), lines, Collected(), top_k=1, batch_size=4, block_lines=64))
    assert sizes == [3, 64, 38]
