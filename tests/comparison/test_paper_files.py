"""LaTeX by structure, CSV and TREC files read back."""

import csv
import math
import re

import ir_measures
import pytest
import torch
from ir_measures import RR, R, nDCG

from sidrec.comparison.paper_files import escape_latex, to_latex, trec_files
from sidrec.comparison.statistics import tested_runs
from sidrec.figures import Prediction, evaluate
from tests.comparison.made import compare

pytestmark = pytest.mark.usefixtures("_quick_disk")


def row(name, search, *, star=False):
    figures = {} if search is None else {"search/recall@30": {"mean": search, "deviation": 0.01}}
    tests = {"search": {"significant": star}}
    return {"name": name, "figures": figures, "tests": tests}


def test_latex_table():
    table = to_latex({"systems": [row("a_b", 0.4, star=True), row("c&d", 0.5), row("e", None)]})
    lines = table.splitlines()
    assert lines[:2] == [r"\begin{tabular}{lrr}", r"\toprule"]
    assert lines[-2:] == [r"\bottomrule", r"\end{tabular}"]
    body = lines[4:-2]
    assert body == [
        r"a\_b & 0.400 $\pm$ 0.010$^{*}$ & -- \\",
        r"c\&d & \textbf{0.500} $\pm$ 0.010 & -- \\",
        r"e & -- & -- \\",
    ]
    assert all(len(re.findall(r"(?<!\\)&", line)) == 2 for line in [lines[2], *body])


def test_special_characters():
    assert escape_latex(r"5%_\{~^") == r"5\%\_\textbackslash{}\{\textasciitilde{}\textasciicircum{}"


def test_qrels_hold_the_grades(tmp_path):
    answer = Prediction(
        "q 1", "search", "test", (4, 2, 0), (0.0,) * 3, (), (0, 4), 0, grades=(3, 1)
    )
    run = tested_runs.TestedRun(
        None, tmp_path, {}, {"search": {"q 1": answer}, "recommendation": {}}
    )
    files = trec_files([tested_runs.System("made", "run", [run])], "search", ["q 1"])
    assert files["search.qrels"] == "q%201 0 0 3\nq%201 0 4 1\n"
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    qrels = ir_measures.read_trec_qrels(str(tmp_path / "search.qrels"))
    ranked = ir_measures.read_trec_run(str(tmp_path / "search-made-0.run"))
    theirs = ir_measures.calc_aggregate([nDCG @ 10], qrels, ranked)[nDCG @ 10]
    figures = evaluate([answer], torch.ones(5).long())
    assert figures["search/ndcg@10"] == pytest.approx(theirs, abs=1e-6)
    assert theirs == pytest.approx((1 + 3 / 2) / (3 + 1 / math.log2(3)))


def test_files_of_a_comparison_give_the_same_figures(config, launcher):
    report = compare(config, "--strategies", "multitask,BM25")
    out = config.parent / "out"
    assert (out / "pareto.pdf").read_bytes().startswith(b"%PDF")
    assert r"\toprule" in (out / "report.tex").read_text()
    with (out / "report.csv").open(newline="") as stream:
        values = {(r["system"], r["seed"], r["figure"]): r["value"] for r in csv.DictReader(stream)}
    measures = {"recall@30": R @ 30, "recall@10": R @ 10, "ndcg@10": nDCG @ 10, "mrr@30": RR @ 30}
    for task in ("search", "recommendation"):
        qrels = list(ir_measures.read_trec_qrels(str(out / "trec" / f"{task}.qrels")))
        run = list(ir_measures.read_trec_run(str(out / "trec" / f"{task}-multitask-1.run")))
        found = ir_measures.calc_aggregate(measures.values(), qrels, run)
        figures = report["systems"][0]["figures"]
        for name, measure in measures.items():
            ours = figures[f"{task}/{name}"]["values"][1]
            assert found[measure] == pytest.approx(ours, abs=1e-6)
            assert float(values["multitask", "2", f"{task}/{name}"]) == ours
