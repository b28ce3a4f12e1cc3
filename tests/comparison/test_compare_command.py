"""``sidrec compare`` as a whole: with fake stages at once, with real ones slowly."""

import html
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sidrec.comparison import compare_command
from sidrec.comparison.compare_command import main
from sidrec.comparison.runner import threads_of
from sidrec.corpus.store import Corpus
from sidrec.errors import ConfigError, DataError, RunError
from sidrec.files import read_json
from sidrec.run_directory import RunDirectory
from tests.comparison.fakes import FakeLauncher, write_answers
from tests.comparison.made import edit, launch_in_process, make_comparison

IDS = Path(__file__).parents[2] / "configs" / "ids"
NASTY = '<script>alert("1")</script>'


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_comparison(tmp_path_factory.mktemp("compare")).parent


pytestmark = pytest.mark.usefixtures("_quick_disk")


@pytest.fixture
def config(folder, tmp_path):
    settings = yaml.safe_load((folder / "tiny.yaml").read_text())
    settings["out"] = str(tmp_path / "out")
    for name in ("content", "fused_svd"):
        del settings["strategies"][name]
    target = tmp_path / "tiny.yaml"
    target.write_text(yaml.safe_dump(settings, sort_keys=False))
    return target


@pytest.fixture
def launcher(folder, monkeypatch):
    fake = FakeLauncher(Corpus.load(folder / "corpus"))
    monkeypatch.setattr(compare_command, "launch_here", fake)
    return fake


def run(config, *more):
    main(["--config", str(config), *more])
    return read_json(config.parent / "out" / "report.json")


def test_a_report_in_every_form(config, launcher, capsys):
    report = run(config)
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
    assert "after Bonferroni over" in shown
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
    report = run(config)
    page = target.with_suffix(".md").read_text()
    assert page.index("![Pareto front](tiny.svg)") < page.index("Nothing *yet*.")
    assert page.index("Nothing *yet*.") < page.index("| Recall@30 |")
    assert target.with_suffix(".svg").read_text().count('id="point-') == 8
    kept = read_json(target.with_suffix(".json"))
    assert kept["systems"][0]["figures"] == report["systems"][0]["figures"]
    assert "lists" not in kept
    said.unlink()
    with pytest.raises(ConfigError, match=r"said\.md cannot be read: No such file"):
        run(config)


def test_nothing_runs_twice(config, launcher):
    first = run(config)
    ran = len(launcher.ran)
    assert run(config)["systems"] == first["systems"]
    assert len(launcher.ran) == ran


def test_stages_side_by_side_give_the_same_report(config, launcher):
    report = run(config, "--jobs", "3")
    assert launcher.num_threads == threads_of(3)
    (config.parent / "out").rename(config.parent / "at_once")
    assert run(config)["systems"] == report["systems"]
    assert launcher.num_threads is None
    for words in (["--jobs", "0"], ["--jobs", "2", "--launcher", "slurm"]):
        with pytest.raises(ConfigError, match="--jobs must be 1 or more"):
            run(config, *words)


def test_a_failing_cell_is_reported_beside_the_rest(config, launcher, capsys):
    launcher.failing = ["rec, generator"]
    with pytest.raises(RunError, match="4 stages are missing; the report holds the rest"):
        run(config)
    report = read_json(config.parent / "out" / "report.json")
    row = next(one for one in report["systems"] if one["name"] == "rec")
    assert row["missing"].keys() == {"1", "2"}
    assert row["figures"] == {}
    assert "something broke" in (config.parent / "out" / "report.html").read_text()
    assert "failed: rec, generator joint" in capsys.readouterr().err


def test_nothing_to_report_is_an_error(config, launcher):
    launcher.failing = [""]
    with pytest.raises(RunError, match="Not one run is there to compare"):
        run(config)


def test_some_systems_only(config, launcher):
    report = run(config, "--strategies", "multitask, BM25")
    assert [row["name"] for row in report["systems"]] == ["multitask", "BM25"]
    with pytest.raises(ConfigError, match="did you mean 'multitask'"):
        run(config, "--strategies", "multitsk")


def test_a_run_made_elsewhere_stands_beside(config, launcher, folder, tmp_path):
    write_answers(tmp_path / "foreign", Corpus.load(folder / "corpus"), seed=5, quality=0.9)
    edit(config, runs={"other": [str(tmp_path / "foreign")]})
    report = run(config)
    assert report["systems"][-1]["name"] == "other"
    assert report["systems"][-1]["kind"] == "run"


def test_a_run_over_another_corpus_is_refused(config, launcher, folder, tmp_path):
    corpus = Corpus.load(folder / "corpus")
    write_answers(tmp_path / "foreign", corpus, seed=5)
    manifest = tmp_path / "foreign" / "manifest.json"
    manifest.write_text(manifest.read_text().replace(corpus.fingerprint, "d" * 64))
    edit(config, runs={"other": [str(tmp_path / "foreign")]})
    with pytest.raises(DataError, match="one table holds one corpus"):
        run(config)
    assert launcher.ran == []  # said before hours of work, not after them


def test_a_run_of_another_split_is_refused(config, launcher, folder, tmp_path):
    write_answers(tmp_path / "foreign", Corpus.load(folder / "corpus"), seed=5, split="valid")
    edit(config, runs={"other": [str(tmp_path / "foreign")]})
    with pytest.raises(DataError, match="answers the split 'valid', expected 'test'"):
        run(config)
    assert launcher.ran == []


@pytest.mark.parametrize("state", ["running", "failed", None])
def test_a_half_finished_run_is_refused(config, launcher, folder, tmp_path, state):
    foreign = RunDirectory(tmp_path / "foreign")
    write_answers(foreign.root, Corpus.load(folder / "corpus"), seed=5)
    if state:
        foreign.write_manifest(state=state)
    else:
        foreign.predictions.unlink()
    edit(config, runs={"other": [str(foreign.root)]})
    with pytest.raises(RunError, match=r"finish it first|run `sidrec test --from"):
        run(config)
    assert launcher.ran == []


def test_a_stage_that_left_half_a_run_is_no_figure(config, launcher):
    """What a finished stage wrote is looked for each time."""
    run(config, "--strategies", "multitask,popularity")
    half = next((config.parent / "out").glob("runs/baseline-*"))
    RunDirectory(half).predictions.unlink()
    with pytest.raises(RunError, match="1 stages are missing"):
        run(config, "--strategies", "multitask,popularity", "--report_only")
    report = read_json(config.parent / "out" / "report.json")
    assert [row["seeds"] for row in report["systems"]] == [[1, 2], []]


def test_one_seed_is_missing(config, launcher, capsys):
    main(["--config", str(config), "--dry_run"])
    lines = capsys.readouterr().out.splitlines()
    lost = next(line.split()[4] for line in lines if "generator" in line and " rec/2" in line)
    launcher.failing_keys = {lost}
    with pytest.raises(RunError, match="2 stages are missing"):
        run(config)
    report = read_json(config.parent / "out" / "report.json")
    rows = {row["name"]: row for row in report["systems"]}
    assert rows["rec"]["seeds"] == [1]
    assert rows["rec"]["missing"].keys() == {"2"}
    assert rows["rec"]["figures"]["search/recall@30"]["deviation"] is None
    assert rows["rec"]["tests"].keys() == {"search", "recommendation"}  # one seed against two
    assert rows["multitask"]["seeds"] == [1, 2]
    assert "1 (1 missing)" in (config.parent / "out" / "report.md").read_text()


def test_nobody_answers_one_of_the_tasks(config, launcher):
    launcher.tasks = ("recommendation",)
    report = run(config)
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
    alone = {"data.recommendation_share": 0.0}
    settings["generators"]["alone"] = settings["generators"]["joint"] | {"set": alone}
    settings["strategies"]["search_only"] = settings["strategies"]["multitask"] | {
        "generator": "alone"
    }
    config.write_text(yaml.safe_dump(settings, sort_keys=False))
    report = run(config)
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


def test_weights_and_biases_out_of_reach(config, launcher, capsys, monkeypatch):
    def unreachable(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("lightning.pytorch.loggers.WandbLogger", unreachable)
    edit(config, wandb={"project": "tiny", "offline": False})
    assert run(config, "--strategies", "multitask")["failures"] == []
    assert "not logged to Weights & Biases: no route to host" in capsys.readouterr().err


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
    assert "no sbatch here" in shown.err
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
    assert run(config, "--report_only")["failures"] == []
    with pytest.raises(ConfigError, match="the plan has no such stage"):
        main(["--config", str(config), "--only", "0" * 12])


def test_text_from_outside_is_escaped(config, launcher):
    settings = yaml.safe_load(config.read_text())
    settings["strategies"][NASTY] = settings["strategies"]["multitask-kept"]
    config.write_text(yaml.safe_dump(settings, sort_keys=False))
    run(config)
    page = (config.parent / "out" / "report.html").read_text()
    assert "<script" not in page
    assert html.escape(NASTY, quote=False).split("(")[0] in page


def test_the_page_opens_in_a_browser(config, launcher):
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), "")
    if not browser:
        pytest.skip("no Chromium: apt-get install chromium, or set PATH to one")
    run(config)
    page = config.parent / "out" / "report.html"
    probe = page.with_name("probe.html")
    count = "document.title = document.querySelectorAll('[id^=\"point-\"]').length"
    probe.write_text(page.read_text().replace("</body>", f"<script>{count}</script></body>"))
    words = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0"]
    words += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={page.parent}/profile"]
    opened = subprocess.run(
        [browser, *words, "--dump-dom", probe.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "<title>8</title>" in opened.stdout
    console = [line for line in opened.stderr.splitlines() if "CONSOLE" in line]
    assert console == []


@pytest.mark.slow
def test_real_stages(folder, tmp_path, monkeypatch):
    """Every kind of stage of configs/compare/movies.yaml, trained for a few steps."""
    settings = yaml.safe_load((folder / "tiny.yaml").read_text()) | {"out": str(tmp_path / "out")}
    joint = settings["generators"]["joint"]
    for name, change in {
        "no_prior": {"model.prior_scale": None},
        "search_only": {"data.recommendation_share": 0.0},
        "rec_only": {"data.search_share": 0.0},
    }.items():
        settings["generators"][name] = joint | {"set": change}
        settings["strategies"][name] = settings["strategies"]["multitask"] | {"generator": name}
    sizes, learned = {"codebook_sizes": [8, 8]}, {"num_steps": 3, "batch_size": 16}
    for name, changes in {
        "balanced": sizes,
        "dictionary": sizes,
        "rq_vae": {"method.init_args.codebook_sizes": [8, 8], **learned},
        "residual_lfq": {"method.init_args.codebook_sizes": [8, 8], **learned},
        "random": sizes,
        "atomic": {},
    }.items():
        settings["ids"][name] = {
            "configs": [str(IDS / f"{name}.yaml")],
            "set": {f"quantiser.init_args.{key}": value for key, value in changes.items()},
        }
        settings["strategies"][name] = settings["strategies"]["multitask"] | {"ids": name}
    settings["strategies"]["atomic_no_prior"] = settings["strategies"]["atomic"] | {
        "generator": "no_prior"
    }
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(settings | {"seeds": [1]}, sort_keys=False))
    monkeypatch.setattr(compare_command, "launch_here", launch_in_process)
    report = run(config)
    assert report["failures"] == []
    rows = {row["name"]: row for row in report["systems"]}
    assert all(row["figures"] for row in rows.values())
    kept = rows["multitask-kept"]
    assert kept["figures"]["search/inflation"] >= 0
    assert kept["ids"]["ids/collision_rate"] > 0
    for name, left_out in (("search_only", "recommendation"), ("rec_only", "search")):
        assert f"{left_out}/recall@30" not in rows[name]["figures"]
    assert [len(level) for level in rows["atomic"]["usage"]] == [60]  # one code per item


@pytest.mark.slow
def test_stages_as_processes(folder, tmp_path):
    """The command itself: stages side by side, each a process; a second call runs none again."""
    settings = yaml.safe_load((folder / "tiny.yaml").read_text())
    settings |= {"out": str(tmp_path / "out"), "seeds": [1]}
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(settings, sort_keys=False))
    command = [sys.executable, "-m", "sidrec", "compare", "--config", str(config), "--jobs", "2"]
    command += ["--strategies", "multitask,BM25"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "[5/5]" in done.stderr
    report = read_json(tmp_path / "out" / "report.json")
    assert report["failures"] == []
    assert [row["seeds"] for row in report["systems"]] == [[1], [1]]
    logs = sorted(file.name.split("-")[0] for file in (tmp_path / "out" / "logs").iterdir())
    assert logs == ["baseline", "embeddings", "generator", "ids", "test"]
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "[" not in again.stderr.split("written:")[0]
    assert read_json(tmp_path / "out" / "report.json")["systems"] == report["systems"]
