"""``sidrec compare`` with stages that are made up: what runs, and what is written."""

import re

import pytest
import yaml

from sidrec.cli.compare import main
from sidrec.comparison.execution.runner import threads_of
from sidrec.errors import ConfigError, RunError
from sidrec.files import read_json
from tests.comparison.made import compare, edit

pytestmark = pytest.mark.usefixtures("_quick_disk")


def test_a_report_in_every_form(config, launcher, capsys):
    report = compare(config)
    out = config.parent / "out"
    assert [row["name"] for row in report["systems"]] == [
        "multitask",
        "multitask-kept",
        "rec",
        "BM25",
        "ENMF",
        "SASRec",
        "dense-multitask",
        "popularity",
    ]
    assert report["ablation"] == ["multitask", "multitask-kept"]
    assert report["failures"] == []
    shown = capsys.readouterr().out
    assert "multitask-kept" in shown
    assert "after Holm's correction over 14 tests" in shown
    markdown = (out / "report.md").read_text()
    assert "| Multi-task | 0.046 | 0.049 | 0.135 |" in markdown
    assert "other data scale" in markdown
    page = (out / "report.html").read_text()
    assert page.count('id="point-') == 8  # the fakes answer both tasks
    assert "sidrec compare --config" in page
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)


def test_files_for_a_repository(config, launcher):
    settings = yaml.safe_load(config.read_text())["report"]
    said, target = config.parent / "said.md", config.parent / "docs" / "tiny"
    said.write_text("## What it says\n\nNothing *yet*.\n")
    edit(config, report=settings | {"publish": str(target), "discussion": str(said)})
    report = compare(config)
    page = target.with_suffix(".md").read_text()
    assert page.index("![Pareto front](tiny.svg)") < page.index("Nothing *yet*.")
    assert page.index("Nothing *yet*.") < page.index("| Recall@30 |")
    assert target.with_suffix(".svg").read_text().count('id="point-') == 8
    kept = read_json(target.with_suffix(".json"))
    assert kept["systems"][0]["figures"] == report["systems"][0]["figures"]
    assert "lists" not in kept
    said.unlink()
    with pytest.raises(ConfigError, match=r"said\.md cannot be read: No such file"):
        compare(config)


def test_nothing_runs_twice(config, launcher):
    first = compare(config)
    ran = len(launcher.ran)
    assert compare(config)["systems"] == first["systems"]
    assert len(launcher.ran) == ran


def test_stages_side_by_side_give_the_same_report(config, launcher):
    report = compare(config, "--jobs", "3")
    assert launcher.num_threads == threads_of(3)
    (config.parent / "out").rename(config.parent / "at_once")
    assert compare(config)["systems"] == report["systems"]
    assert launcher.num_threads is None
    for words in (["--jobs", "0"], ["--jobs", "2", "--launcher", "slurm"]):
        with pytest.raises(ConfigError, match="--jobs must be 1 or more"):
            compare(config, *words)


def test_some_systems_only(config, launcher):
    report = compare(config, "--strategies", "multitask, BM25")
    assert [row["name"] for row in report["systems"]] == ["multitask", "BM25"]
    with pytest.raises(ConfigError, match="did you mean 'multitask'"):
        compare(config, "--strategies", "multitsk")


def test_a_dry_run_does_nothing(config, launcher, capsys):
    main(["--config", str(config), "--dry_run"])
    assert "stages, " in capsys.readouterr().out
    assert launcher.ran == []
    assert not (config.parent / "out").exists()


def test_slurm_scripts_without_slurm(config, launcher, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    main(["--config", str(config), "--launcher", "slurm"])
    shown = capsys.readouterr()
    scripts = [line.split()[0] for line in shown.out.splitlines()]
    assert scripts[-1].endswith("compare-report.sbatch")
    assert "no sbatch on this machine" in shown.err
    assert launcher.ran == []


def test_one_stage_after_another_as_a_launcher_does(config, launcher, capsys):
    main(["--config", str(config), "--dry_run"])
    plan = capsys.readouterr().out
    keys = re.findall(r"to do    \w+ +(\w{12})", plan)
    with pytest.raises(RunError, match=r"needs .*, which is not finished"):
        main(["--config", str(config), "--only", keys[2]])
    for key in keys:
        main(["--config", str(config), "--only", key])
    assert len(launcher.ran) == len(keys)
    assert compare(config, "--report_only")["failures"] == []
    with pytest.raises(ConfigError, match="the plan has no such stage"):
        main(["--config", str(config), "--only", "0" * 12])


def test_weights_and_biases_out_of_reach(config, launcher, capsys, monkeypatch):
    def unreachable(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("lightning.pytorch.loggers.WandbLogger", unreachable)
    edit(config, wandb={"project": "tiny", "offline": False})
    assert compare(config, "--strategies", "multitask")["failures"] == []
    assert "not logged to Weights & Biases: no route to host" in capsys.readouterr().err
