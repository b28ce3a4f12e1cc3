import re

import numpy as np
import pytest

from sidrec.generator.training.pseudo_queries import PseudoQueries

TEXTS = [
    "Heat (1995). The film is the story of a heist in the city of Los Angeles.",
    "The sea. The film is the story of the rain by the sea.",
    "The end",
    "—",
]


def drawn(item, *, count=400, seed=0):
    rows = np.arange(count)
    return PseudoQueries.of(TEXTS).draw(np.full(count, item), rows, seed=seed)


def test_half_are_spans_of_the_text_and_half_are_sets_of_its_words():
    words = re.findall(r"\w+", TEXTS[0])
    spans, sets = 0, 0
    for query in drawn(0):
        found = query.split()
        assert 2 <= len(found) <= 8
        assert set(found) <= set(words)
        if query in " ".join(words):
            spans += 1
        else:
            sets += 1
            assert len({word.lower() for word in found}) == len(found)
    assert spans == pytest.approx(200, abs=40)
    assert {len(query.split()) for query in drawn(0)} == set(range(2, 9))


def test_spans_begin_everywhere():
    words = re.findall(r"\w+", TEXTS[0])
    text = " ".join(words)
    firsts = {query.split()[0] for query in drawn(0, count=2000) if query in text}
    assert firsts >= set(words[:-1])
    assert any(query.endswith("Los Angeles") for query in drawn(0, count=2000) if query in text)


def test_words_of_few_texts_come_more_often_into_sets():
    text = " ".join(re.findall(r"\w+", TEXTS[0]))
    sets = [query.lower().split() for query in drawn(0, count=2000) if query not in text]
    share = {word: np.mean([word in found for found in sets]) for word in ("heist", "film", "the")}
    assert share["heist"] > share["film"] > share["the"] > 0


def test_the_same_numbers_draw_the_same_words_and_others_draw_others():
    assert drawn(0) == drawn(0)
    assert drawn(0, seed=1) != drawn(0)
    assert len(set(drawn(0))) > 200
    one = PseudoQueries.of(TEXTS).draw(np.array([0, 1]), np.array([7, 9]), seed=0)
    assert one == [drawn(0)[7], drawn(1)[9]]  # whatever else is in the batch


def test_words_of_other_scripts_stay_whole():
    words = ["हिन्दी", "फिल्म", "कहानी", "cafe\u0301"]
    drawing = PseudoQueries.of([", ".join(words) + ".", "film"])
    rows = np.arange(50)
    queries = drawing.draw(np.zeros(50, np.int64), rows, seed=0)
    assert {word for query in queries for word in query.split()} == set(words)


def test_short_texts_give_what_they_have():
    assert all({*query.split()} <= {"The", "end"} and query for query in drawn(2))
    assert set(drawn(3)) == {"—"}
