"""Places by hand and by law; every system has its name in the drawing, and none covers another."""

from itertools import combinations, product

import numpy as np
import pytest
from matplotlib.text import Text

from sidrec.comparison.report.free_places import Box, beside, first_free, rings
from sidrec.comparison.report.pareto_plot import pareto_figure, pareto_svg

WHOLE = Box(0, 0, 100, 100)


def row(name, search=None, recommendation=None, *, on_front=False, kind="strategy"):
    values = {"search/recall@30": search, "recommendation/recall@30": recommendation}
    figures = {key: {"mean": value} for key, value in values.items() if value is not None}
    return {"name": name, "kind": kind, "on_front": on_front, "figures": figures}


def crowd(number, *, spread):
    draw = np.random.default_rng(0)
    places = 0.5 + spread * draw.random((number, 2))
    return [row(f"strategy_{n}", *place) for n, place in enumerate(places.tolist())]


def texts_of(figure):
    figure.draw_without_rendering()
    return {
        text.get_text(): Box(*Text.get_window_extent(text).extents.tolist())  # without its line
        for text in figure.axes[0].texts
    }


def test_boxes_by_hand():
    box = Box.around(5.0, 5.0, width=4.0, height=2.0)
    assert box == Box(3, 4, 7, 6)
    assert box.center == (5, 5)
    assert box.overlaps(Box(6, 5, 9, 9))
    assert not box.overlaps(Box(7, 4, 9, 6))  # they touch
    assert not box.overlaps(Box(3, 7, 7, 9))
    assert WHOLE.holds(box)
    assert not box.holds(WHOLE)


def test_places_beside_a_point_by_hand():
    places = beside(10.0, 10.0, width=4.0, height=2.0, gap=1.0)
    assert places == [Box(11, 9, 15, 11), Box(5, 9, 9, 11), Box(8, 11, 12, 13), Box(8, 7, 12, 9)]
    taken = [Box(12, 0, 13, 20)]
    assert first_free(places, taken, inside=WHOLE) == places[1]
    assert first_free(places, taken, inside=Box(6, 0, 100, 100)) == places[2]
    assert first_free(places, [WHOLE], inside=WHOLE) is None


def test_rings_go_outwards():
    size = {"width": 2.0, "height": 2.0}
    places = rings(0.0, 0.0, **size, radii=[3.0, 9.0], num_directions=4, first=np.pi / 2)
    centers = [place.center for place in places]
    expected = [(0, 3), (-3, 0), (3, 0), (0, -3), (0, 9), (-9, 0), (9, 0), (0, -9)]
    np.testing.assert_allclose(centers, expected, atol=1e-12)


def test_systems_far_apart_have_their_names_and_no_legend():
    figure = pareto_figure([row("search", 0.6, 0.1), row("rec", 0.1, 0.6), row("BM25", search=0.4)])
    assert set(texts_of(figure)) == {"search", "rec", "BM25"}
    assert not figure.legends


@pytest.mark.parametrize("number", [12, 40])
def test_a_crowd_is_numbered_and_nothing_covers_anything(number):
    rows = [
        *crowd(number, spread=0.1),
        row("$alone$", 0.1, 0.1),
        row("best", 0.7, 0.7, on_front=True),
    ]
    figure = pareto_figure([*rows, row("BM25", search=0.55), row("ENMF", recommendation=0.52)])
    written = texts_of(figure)
    listed = [text.get_text().split() for text in figure.legends[0].get_texts()]
    assert [n for n, _ in listed] == [str(n + 1) for n in range(len(listed))]
    names = {*written} - {n for n, _ in listed} | {name for _, name in listed}
    assert names == {one["name"] for one in rows} | {"BM25", "ENMF"}
    assert {"best", "$alone$", "BM25", "ENMF"} <= written.keys()
    means = [[figure["mean"] for figure in one["figures"].values()] for one in rows]
    dots = figure.axes[0].transData.transform(means).tolist()
    covered = [Box.around(*dot, width=4.0, height=4.0) for dot in dots]
    boxes = written.values()
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    assert not any(box.overlaps(dot) for box, dot in product(boxes, covered))


def test_the_same_figures_give_the_same_text():
    rows = [*crowd(12, spread=0.02), row("<b>", 0.1, 0.1, on_front=True)]
    drawing = pareto_svg(rows)
    assert drawing == pareto_svg(rows)
    assert drawing.count('id="point-') == 13
    assert "&lt;b&gt;" in drawing


def test_nothing_to_draw():
    assert 'id="point-' not in pareto_svg([row("none")])
