"""Learning curves from logs, by hand: resumed runs, one task, nothing logged."""

import re

from sidrec.comparison.report.plots import as_svg, curves_figure, learning_curve

BOTH = "step,val/search/recall@30,val/recommendation/recall@30,train/search/loss\n"


def log(folder, version, text):
    place = folder / "logs" / f"version_{version}"
    place.mkdir(parents=True)
    (place / "metrics.csv").write_text(text)


def test_curve_of_a_resumed_run(tmp_path):
    log(tmp_path, 9, BOTH + "9,0.1,0.2,\n10,,,3.5\n19,0.9,0.9,\n")
    log(tmp_path, 10, BOTH + "19,0.3,0.4,\n29,0.5,0.6,\n")
    curve = learning_curve(tmp_path)
    assert curve.steps == [10, 20, 30]
    assert curve.recalls == {"search": [0.1, 0.3, 0.5], "recommendation": [0.2, 0.4, 0.6]}


def test_processor_time_of_every_validation(tmp_path):
    heading = "step,val/search/recall@30,speed/processor_s\n"
    log(tmp_path, 0, heading + "9,0.1,\n9,,60.0\n12,,99\n")
    log(tmp_path, 1, heading + "19,0.3,\n19,,180\n")
    curve = learning_curve(tmp_path)
    assert curve.processor_s == [60.0, 180.0]
    panel, _ = curves_figure(["one"], [curve._asdict()], over_time=True).get_axes()
    assert panel.get_lines()[0].get_xdata().tolist() == [1.0, 3.0]
    log(tmp_path, 2, heading + "29,0.4,\n")
    assert learning_curve(tmp_path).processor_s == []


def test_one_task(tmp_path):
    log(tmp_path, 0, "step,val/recommendation/recall@30\n4,0.5\n")
    assert learning_curve(tmp_path).recalls == {"recommendation": [0.5]}


def test_a_task_that_was_not_trained_has_no_curve(tmp_path):
    log(tmp_path, 0, BOTH + "9,0.1,0.2,\n")
    (tmp_path / "config.yaml").write_text("data: {init_args: {tasks: {search_share: 0.0}}}")
    assert learning_curve(tmp_path).recalls == {"recommendation": [0.2]}


def test_no_curve(tmp_path):
    assert learning_curve(tmp_path) is None
    log(tmp_path, 0, "step,train/search/loss\n0,3.0\n")
    assert learning_curve(tmp_path) is None


def test_drawing_names_every_system():
    curve = {"steps": [1, 2], "recalls": {"search": [0.1, 0.2], "recommendation": [0.3, 0.2]}}
    one = {"steps": [1, 2], "recalls": {"recommendation": [0.3, 0.2]}}
    drawing = as_svg(curves_figure(["multi$task", "<rec>"], [curve, one]), "curves")
    text = re.sub(r"\s+", " ", drawing)
    assert "multi$task" in text
    assert "&lt;rec&gt;" in text
    assert drawing == as_svg(curves_figure(["multi$task", "<rec>"], [curve, one]), "curves")
