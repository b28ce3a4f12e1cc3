"""What ``sidrec compare`` says of failed stages, missing seeds and tasks that nobody answers."""

import pytest
import yaml

from sidrec.cli.compare import main
from sidrec.errors import RunError
from sidrec.files import read_json
from sidrec.runs.directory import RunDirectory
from tests.comparison.made import compare

pytestmark = pytest.mark.usefixtures("_quick_disk")


def test_a_failing_cell_is_reported_beside_the_rest(config, launcher, capsys):
    launcher.failing = ["rec, generator"]
    with pytest.raises(RunError, match="4 stages have no result; the report covers the others"):
        compare(config)
    report = read_json(config.parent / "out" / "report.json")
    row = next(one for one in report["systems"] if one["name"] == "rec")
    assert row["missing"].keys() == {"1", "2"}
    assert row["figures"] == {}
    assert "something broke" in (config.parent / "out" / "report.html").read_text()
    assert "failed: rec, generator joint" in capsys.readouterr().err


def test_nothing_to_report_is_an_error(config, launcher):
    launcher.failing = [""]
    with pytest.raises(RunError, match="There is no run to compare"):
        compare(config)


def test_a_stage_that_left_half_a_run_is_no_figure(config, launcher):
    """What a finished stage wrote is looked for each time."""
    compare(config, "--strategies", "multitask,popularity")
    half = next((config.parent / "out").glob("runs/baseline-*"))
    RunDirectory(half).predictions.unlink()
    with pytest.raises(RunError, match="1 stages have no result"):
        compare(config, "--strategies", "multitask,popularity", "--report_only")
    report = read_json(config.parent / "out" / "report.json")
    assert [row["seeds"] for row in report["systems"]] == [[1, 2], []]


def test_one_seed_is_missing(config, launcher, capsys):
    main(["--config", str(config), "--dry_run"])
    lines = capsys.readouterr().out.splitlines()
    lost = next(line.split()[4] for line in lines if "generator" in line and " rec/2" in line)
    launcher.failing_keys = {lost}
    with pytest.raises(RunError, match="2 stages have no result"):
        compare(config)
    report = read_json(config.parent / "out" / "report.json")
    rows = {row["name"]: row for row in report["systems"]}
    assert rows["rec"]["seeds"] == [1]
    assert rows["rec"]["missing"].keys() == {"2"}
    assert rows["rec"]["figures"]["search/recall@30"]["deviation"] is None
    assert rows["rec"]["tests"] == {}  # one seed of two shows nothing of the seeds
    assert rows["multitask"]["seeds"] == [1, 2]
    assert "1 (1 missing)" in (config.parent / "out" / "report.md").read_text()


def test_nobody_answers_one_of_the_tasks(config, launcher):
    launcher.tasks = ("recommendation",)
    report = compare(config)
    assert report["num_requests"]["search"] == 0
    assert report["front"] == []
    assert report["hypervolume"] == 0
    for row in report["systems"]:
        assert {key.split("/")[0] for key in row["figures"]} == {"recommendation"}
        assert row["harmonic_mean"] is None
    page = (config.parent / "out" / "report.html").read_text()
    assert 'id="point-' not in page


def test_a_generator_of_one_task(config, launcher, folder):
    """As search_only and rec_only of configs/compare/movies.yaml."""
    settings = yaml.safe_load(config.read_text())
    alone = {"data.tasks.recommendation_share": 0.0}
    settings["generators"]["alone"] = settings["generators"]["joint"] | {"set": alone}
    settings["strategies"]["search_only"] = settings["strategies"]["multitask"] | {
        "generator": "alone"
    }
    config.write_text(yaml.safe_dump(settings, sort_keys=False))
    report = compare(config)
    rows = {row["name"]: row for row in report["systems"]}
    assert {key.split("/")[0] for key in rows["search_only"]["figures"]} == {"search"}
    assert rows["search_only"]["tests"].keys() == {"search"}
    assert not rows["search_only"]["on_front"]
    assert {key.split("/")[0] for key in rows["multitask"]["figures"]} == {
        "search",
        "recommendation",
    }
    line = next(
        line
        for line in (config.parent / "out" / "report.md").read_text().splitlines()
        if line.startswith("| search_only |")
    )
    assert [cell.strip() for cell in line.split("|")][3] == "-"
