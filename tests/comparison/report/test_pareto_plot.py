"""Every system has a number in the drawing and its name in the legend."""

import numpy as np

from sidrec.comparison.report.pareto_plot import pareto_figure, pareto_svg


def row(name, search=None, recommendation=None, *, on_front=False, kind="strategy"):
    values = {"search/recall@30": search, "recommendation/recall@30": recommendation}
    figures = {key: {"mean": value} for key, value in values.items() if value is not None}
    return {"name": name, "kind": kind, "on_front": on_front, "figures": figures}


def crowd(number):
    places = 0.5 + 0.1 * np.random.default_rng(0).random((number, 2))
    return [row(f"strategy_{n}", *place) for n, place in enumerate(places.tolist())]


def test_points_and_lines_are_numbered_and_named():
    rows = [
        row("$a$", 0.6, 0.1),
        row("failed"),
        row("BM25", search=0.4, kind="baseline"),
        row("ENMF", recommendation=0.3),
        row("rec", 0.1, 0.6, on_front=True),
    ]
    figure = pareto_figure(rows)
    named = [text.get_text().split() for text in figure.legends[0].get_texts()]
    assert named == [["1", "$a$"], ["2", "BM25"], ["3", "ENMF"], ["4", "rec"]]
    axes = figure.axes[0]
    assert {text.get_text() for text in axes.texts} == {"1", "2", "3", "4"}
    places = {text.get_text(): text.xy for text in axes.texts if hasattr(text, "xy")}
    assert places == {"1": (0.6, 0.1), "4": (0.1, 0.6)}


def test_the_front_in_steps():
    rows = [row("b", 0.5, 0.25, on_front=True), row("a", 0.25, 0.5, on_front=True)]
    lines = pareto_figure(rows).axes[0].get_lines()
    front = next(line for line in lines if line.get_gid() == "front")
    assert front.get_xdata().tolist() == [0, 0.25, 0.25, 0.5, 0.5]
    assert front.get_ydata().tolist() == [0.5, 0.5, 0.25, 0.25, 0]


def test_the_same_figures_give_the_same_text():
    rows = [*crowd(40), row("<b>", 0.1, 0.1, on_front=True)]
    drawing = pareto_svg(rows)
    assert drawing == pareto_svg(rows)
    assert drawing.count('id="point-') == 41
    assert "&lt;b&gt;" in drawing


def test_nothing_to_draw():
    assert 'id="point-' not in pareto_svg([row("none")])
