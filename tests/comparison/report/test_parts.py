"""What prior and generator reach apart, over seeds."""

from sidrec.comparison.plan.comparison_settings import ReportSettings
from sidrec.comparison.report.markdown import parts_table, to_markdown
from sidrec.comparison.statistics import tested_runs
from sidrec.comparison.statistics.judge import evaluate_systems
from sidrec.figures import Prediction

NAMES = ("recall@5", "ndcg@5", "recall@10", "ndcg@10", "recall@30")
PARTS = {"both": "", "prior alone": "prior_", "generator alone": "t5_"}
SETTINGS = ReportSettings(
    reference="without",
    family_error=0.05,
    interval=0.95,
    num_bootstrap=20,
    seed=0,
    requests_per_task=1,
)


def system(name, folder, figures):
    """Return a system of two seeds that finds the one answer of its one request."""
    answer = Prediction("u", "recommendation", "test", (1, 0), (0.0,) * 2, (), (1,), 0)
    answers = {"search": {}, "recommendation": {"u": answer}}
    runs = [tested_runs.TestedRun(seed, folder, own, answers) for seed, own in enumerate(figures)]
    return tested_runs.System(name, "strategy", runs)


def with_prior(gain):
    """Return figures whose digits say of which name and which part they are."""
    figures = {"recommendation/t5_gain_nats": gain}
    for part, prefix in enumerate(PARTS.values(), 1):
        for place, name in enumerate(NAMES, 1):
            figures[f"recommendation/{prefix}{name}"] = place / 10 + part / 100 + gain
    return figures


def test_every_part_stands_in_its_row_and_column(tmp_path):
    systems = [
        system("with_prior", tmp_path, [with_prior(0.0), with_prior(0.2)]),
        system("without", tmp_path, [{"recommendation/recall@5": 0.5}] * 2),
    ]
    report = evaluate_systems(systems, {"recommendation": ["u"]}, SETTINGS)
    headings, rows = parts_table(report)
    assert headings == ["system", "task", "part", *NAMES, "nats"]
    assert [row[:3] for row in rows] == [["with_prior", "recommendation", part] for part in PARTS]
    for part, row in enumerate(rows, 1):
        expected = [f"{place / 10 + part / 100 + 0.1:.4f} ± 0.1414" for place in range(1, 6)]
        if part == 1:  # counted from the answers: every request has its one
            expected[-1] = "1.0000 ± 0.0000"
        assert row[3:-1] == expected
    assert [row[-1] for row in rows] == ["0.100 ± 0.141", "", ""]
    given = {"title": "", "command": "", "num_items": 2, "failures": [], "settings": vars(SETTINGS)}
    assert "## What the generator adds to its prior" in to_markdown(report | given)
    report["systems"] = report["systems"][1:]
    assert "adds to its prior" not in to_markdown(report | given)
