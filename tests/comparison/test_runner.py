"""Stages are run once, go on after an interruption, and fail alone."""

import os
import signal
import subprocess
import sys

import pytest

from sidrec.comparison.cells import cells_of
from sidrec.comparison.done import is_done
from sidrec.comparison.runner import (
    PREEMPTED,
    StagePreemptedError,
    launch_here,
    plan_lines,
    run_stages,
    stages_hear_signals,
)
from sidrec.comparison.settings import read_comparison
from sidrec.comparison.slurm import array_jobs, submit, write_scripts
from sidrec.comparison.stages import in_order
from sidrec.corpus.store import Corpus
from sidrec.errors import RunError
from tests.comparison.fakes import FakeLauncher
from tests.comparison.made import make_comparison

pytestmark = pytest.mark.usefixtures("_quick_disk")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    config = make_comparison(tmp_path_factory.mktemp("runner"))
    comparison = read_comparison(config).only(["multitask", "rec", "ENMF", "BM25"])
    corpus = Corpus.load(comparison.corpus)
    cells = cells_of(comparison, fingerprint=corpus.fingerprint)
    return corpus, cells, in_order(cells)


def test_everything_runs_once_and_is_kept(made, tmp_path):
    corpus, _, stages = made
    launch = FakeLauncher(corpus)
    outcomes = run_stages(stages, tmp_path, launch=launch)
    assert {one.state for one in outcomes.values()} == {"done"}
    assert len(launch.ran) == len(stages)
    again = FakeLauncher(corpus)
    outcomes = run_stages(stages, tmp_path, launch=again)
    assert again.ran == []
    assert {one.state for one in outcomes.values()} == {"kept"}


def test_a_failure_blocks_its_readers_only(made, tmp_path):
    corpus, cells, stages = made
    launch = FakeLauncher(corpus, failing=["embeddings enmf"])
    outcomes = run_stages(stages, tmp_path, launch=launch)
    state = {cell.system: outcomes[cell.last.key].state for cell in cells}
    for system in ("rec", "ENMF"):
        assert state.pop(system) == "blocked"
    assert set(state.values()) == {"done"}
    reason = next(one.reason for one in outcomes.values() if one.state == "failed")
    assert reason.startswith("exit code 1: sidrec: something broke (")
    mended = FakeLauncher(corpus)
    run_stages(stages, tmp_path, launch=mended)
    assert "embeddings enmf" in mended.ran
    assert "embeddings multitask" not in mended.ran


def test_an_interruption_loses_one_stage_at_most(made, tmp_path):
    corpus, _, stages = made
    whole = FakeLauncher(corpus)

    def interrupted(stage, arguments, log):
        if len(whole.ran) == 5:
            raise KeyboardInterrupt
        return whole(stage, arguments, log)

    with pytest.raises(KeyboardInterrupt):
        run_stages(stages, tmp_path, launch=interrupted)
    rest = FakeLauncher(corpus)
    run_stages(stages, tmp_path, launch=rest)
    assert len(whole.ran) + len(rest.ran) == len(stages)


def test_preemption_ends_everything_with_its_code(made, tmp_path):
    _, _, stages = made
    with pytest.raises(StagePreemptedError, match="run the same command again") as stop:
        run_stages(stages, tmp_path, launch=lambda *_: PREEMPTED)
    assert stop.value.exit_code == 85


@pytest.mark.parametrize("damage", ["changed", "gone", "half a marker"])
def test_what_is_no_longer_valid_runs_again(made, tmp_path, damage):
    corpus, _, stages = made
    run_stages(stages, tmp_path, launch=FakeLauncher(corpus))
    victim = next(stage for stage in stages if stage.kind == "test")
    if damage == "half a marker":
        (tmp_path / "done" / f"{victim.key}.json").write_text('{"kind": "te')
    elif damage == "gone":
        (victim.folder(tmp_path) / "predictions.parquet").unlink()
    else:
        (victim.folder(tmp_path) / "metrics.json").write_text("{}")
    assert not is_done(victim, tmp_path)
    launch = FakeLauncher(corpus)
    run_stages(stages, tmp_path, launch=launch)
    assert launch.ran == [victim.label]


def test_success_without_files_is_a_failure(made, tmp_path):
    _, _, stages = made
    outcomes = run_stages(stages[:1], tmp_path, launch=lambda *_: 0)
    assert "does not exist; give --from" in outcomes[stages[0].key].reason


def test_the_plan_names_state_cells_and_command(made, tmp_path):
    corpus, cells, stages = made
    run_stages(stages[:1], tmp_path, launch=FakeLauncher(corpus))
    lines = plan_lines(cells, stages, tmp_path)
    assert "finished embeddings" in lines[0]
    assert lines[1].strip().startswith("sidrec fit --config")
    assert lines[-1] == f"{len(cells)} cells, {len(stages)} stages, {len(stages) - 1} to do"


def test_a_stage_is_a_process_with_a_log(made, tmp_path, monkeypatch):
    _, _, stages = made
    monkeypatch.setenv("WANDB_RUN_GROUP", "mine")
    log = tmp_path / "log"
    assert launch_here(stages[0], ["--version"], log) == 0
    assert log.read_text().startswith("$ sidrec --version\nsidrec ")
    assert launch_here(stages[0], ["fiit"], log) == 2
    assert "did you mean 'fit'?" in log.read_text()


def test_a_warning_reaches_the_stage_and_not_its_keeper():
    with stages_hear_signals():
        os.kill(os.getpid(), signal.SIGUSR1)
        stage = "import signal; print(signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL)"
        shown = subprocess.run([sys.executable, "-c", stage], capture_output=True, check=True)
    assert shown.stdout == b"True\n"
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


def test_arrays_wait_for_what_they_read(made):
    _, _, stages = made
    jobs = array_jobs(stages)
    place = {stage.key: n for n, job in enumerate(jobs) for stage in job.stages}
    assert len(place) == len(stages)
    for stage in stages:
        assert all(place[one.stage.key] < place[stage.key] for one in stage.inputs)
    assert [stage.kind for stage in jobs[-1].stages] == ["test"] * len(jobs[-1].stages)


def test_scripts_are_bash_and_name_every_stage(made, tmp_path):
    _, _, stages = made
    compare = ["python", "-m", "sidrec", "compare", "--config", "a file.yaml"]
    scripts = write_scripts(array_jobs(stages[:9]), compare, tmp_path)
    for script in scripts:
        subprocess.run(["bash", "-n", str(script)], check=True)
    text = "".join(script.read_text() for script in scripts)
    assert all(stage.key in text for stage in stages[:9])
    assert "'a file.yaml'" in text
    assert scripts[-1].read_text().rstrip().endswith("--report_only")
    assert f"--array=0-{len(array_jobs(stages[:9])[0].stages) - 1}" in scripts[0].read_text()


def test_a_task_runs_the_stage_of_its_number(made, tmp_path):
    """The script itself, with a srun that prints what it should start."""
    _, _, stages = made
    job = array_jobs(stages)[0]
    script = write_scripts([job], ["compare"], tmp_path)[0]
    (tmp_path / "srun").write_text('#!/bin/bash\necho "$@"\n')
    (tmp_path / "srun").chmod(0o755)
    variables = {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_ARRAY_TASK_ID": "1",
    }
    done = subprocess.run(
        ["bash", str(script)], env=variables, capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[-2:] == ["--only", job.stages[1].key]


def test_jobs_are_chained(made, tmp_path, monkeypatch):
    _, _, stages = made
    scripts = write_scripts(array_jobs(stages), ["compare"], tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    assert submit(scripts) == []
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    sbatch = tmp_path / "sbatch"
    sbatch.write_text(f'#!/bin/bash\necho "$@" >> {tmp_path}/asked\nwc -l < {tmp_path}/asked\n')
    sbatch.chmod(0o755)
    assert submit(scripts) == [str(n) for n in range(1, len(scripts) + 1)]
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked[0] == f"--parsable {scripts[0]}"
    assert asked[1] == f"--parsable --dependency=afterany:1 {scripts[1]}"
    sbatch.write_text("#!/bin/bash\necho 'no such partition' >&2\nexit 1\n")
    with pytest.raises(RunError, match=r"sbatch refused .*: no such partition"):
        submit(scripts)
