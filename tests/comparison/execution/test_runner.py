"""Stages are run once, go on after an interruption, and fail alone."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from sidrec.comparison.execution.runner import (
    PREEMPTED,
    StagePreemptedError,
    launch_here,
    plan_lines,
    run_stages,
    stages_hear_signals,
    threads_of,
)
from sidrec.comparison.execution.slurm import ArrayJob, array_jobs, submit, write_scripts
from sidrec.comparison.execution.stage_cache import is_done
from sidrec.comparison.plan.cells import cells_of
from sidrec.comparison.plan.comparison_settings import read_comparison
from sidrec.comparison.plan.stages import in_order
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
    outcomes = run_stages(stages, tmp_path, launch=launch, jobs=1)
    assert {one.state for one in outcomes.values()} == {"done"}
    assert len(launch.ran) == len(stages)
    again = FakeLauncher(corpus)
    outcomes = run_stages(stages, tmp_path, launch=again, jobs=1)
    assert again.ran == []
    assert {one.state for one in outcomes.values()} == {"kept"}


def test_a_failure_blocks_its_readers_only(made, tmp_path):
    corpus, cells, stages = made
    launch = FakeLauncher(corpus, failing=["embeddings enmf"])
    outcomes = run_stages(stages, tmp_path, launch=launch, jobs=1)
    state = {cell.system: outcomes[cell.last.key].state for cell in cells}
    for system in ("rec", "ENMF"):
        assert state.pop(system) == "blocked"
    assert set(state.values()) == {"done"}
    reason = next(one.reason for one in outcomes.values() if one.state == "failed")
    assert reason.startswith("exit code 1: sidrec: something broke (")
    mended = FakeLauncher(corpus)
    run_stages(stages, tmp_path, launch=mended, jobs=1)
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
        run_stages(stages, tmp_path, launch=interrupted, jobs=1)
    rest = FakeLauncher(corpus)
    run_stages(stages, tmp_path, launch=rest, jobs=1)
    assert len(whole.ran) + len(rest.ran) == len(stages)


def test_preemption_ends_everything_with_its_code(made, tmp_path):
    _, _, stages = made
    with pytest.raises(StagePreemptedError, match="run the same command again") as stop:
        run_stages(stages, tmp_path, launch=lambda *_: PREEMPTED, jobs=1)
    assert stop.value.exit_code == 85


class Gate:
    """A launcher that knows who runs beside whom; a stage ends when ``when`` says so."""

    def __init__(self, corpus, when=lambda gate: True):
        self.fake, self.when = FakeLauncher(corpus), when
        self.now, self.most, self.started, self.lock = set(), 0, [], threading.Condition()

    def __call__(self, stage, arguments, log):
        with self.lock:
            self.started.append(stage)
            self.now.add(stage.key)
            self.most = max(self.most, len(self.now))
            self.lock.notify_all()
            assert self.lock.wait_for(lambda: self.when(self), timeout=60)
        code = self.fake(stage, arguments, log)
        with self.lock:
            self.now.remove(stage.key)
        return code


@pytest.mark.parametrize("jobs", [1, 2, 3])
def test_so_many_at_once_and_each_after_its_inputs(made, tmp_path, jobs):
    corpus, _, stages = made
    # the first ones wait for each other, so that fewer than `jobs` at once cannot pass
    gate = Gate(corpus, when=lambda gate: len(gate.started) >= jobs)
    outcomes = run_stages(stages, tmp_path, launch=gate, jobs=jobs)
    assert gate.most == jobs
    assert list(outcomes) == [stage.key for stage in stages]
    assert {one.state for one in outcomes.values()} == {"done"}
    place = {stage.key: n for n, stage in enumerate(gate.started)}
    for stage in stages:
        assert all(place[one.stage.key] < place[stage.key] for one in stage.inputs)
        assert is_done(stage, tmp_path)


def test_a_free_place_goes_to_the_first_that_can_run(made, tmp_path):
    corpus, _, stages = made
    gate = Gate(corpus, when=lambda gate: len(gate.started) >= 2)
    run_stages(stages, tmp_path, launch=gate, jobs=2)
    without = [stage for stage in stages if not stage.inputs]
    assert {stage.key for stage in gate.started[:2]} == {stage.key for stage in without[:2]}
    alone = Gate(corpus)
    run_stages(stages, tmp_path / "alone", launch=alone, jobs=1)
    assert alone.started == stages


def test_a_failure_beside_others_blocks_its_readers_only(made, tmp_path):
    corpus, cells, stages = made
    gate = Gate(corpus)
    gate.fake.failing = ["embeddings enmf"]
    outcomes = run_stages(stages, tmp_path, launch=gate, jobs=3)
    blocked = {cell.system for cell in cells if outcomes[cell.last.key].state == "blocked"}
    assert blocked == {"rec", "ENMF"}
    failed = {stage.key for stage in stages if stage.label == "embeddings enmf"}
    assert not [s for s in gate.started if any(one.stage.key in failed for one in s.inputs)]


@pytest.mark.parametrize("stop", [PREEMPTED, KeyboardInterrupt])
def test_who_runs_beside_a_stopped_stage_is_waited_for(made, tmp_path, stop):
    corpus, _, stages = made
    gate = Gate(corpus, when=lambda gate: len(gate.started) >= 2)

    def launch(stage, arguments, log):
        if stage.key != stages[0].key:
            gate(stage, arguments, log)
            time.sleep(0.2)  # the other one ends the run first
            return 0
        with gate.lock:
            gate.started.append(stage)
            assert gate.lock.wait_for(lambda: len(gate.started) >= 2, timeout=60)
            gate.lock.notify_all()
        if stop == PREEMPTED:
            return PREEMPTED
        raise stop

    with pytest.raises(StagePreemptedError if stop == PREEMPTED else stop):
        run_stages(stages, tmp_path, launch=launch, jobs=2)
    assert len(gate.started) == 2
    assert [is_done(stage, tmp_path) for stage in gate.started].count(True) == 1


def test_cores_are_shared_out_unless_the_user_has_chosen(made, tmp_path, monkeypatch):
    _, _, stages = made
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert [threads_of(jobs) for jobs in (1, 2, 3, 100)] == [None, 4, 2, 1]
    given = []

    def remember(command, *, env, **_):
        given.append(env.get("OMP_NUM_THREADS"))
        return SimpleNamespace(wait=lambda: 0)

    monkeypatch.setattr(subprocess, "Popen", remember)
    for value in (None, "6"):
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        if value:
            monkeypatch.setenv("OMP_NUM_THREADS", value)
        launch_here(stages[0], [], tmp_path / "log", num_threads=3)
        launch_here(stages[0], [], tmp_path / "log", num_threads=None)
    assert given == ["3", None, "6", "6"]


@pytest.mark.parametrize("damage", ["changed", "gone", "half a marker"])
def test_what_is_no_longer_valid_runs_again(made, tmp_path, damage):
    corpus, _, stages = made
    run_stages(stages, tmp_path, launch=FakeLauncher(corpus), jobs=1)
    victim = next(stage for stage in stages if stage.kind == "test")
    if damage == "half a marker":
        (tmp_path / "done" / f"{victim.key}.json").write_text('{"kind": "te')
    elif damage == "gone":
        (victim.folder(tmp_path) / "predictions.parquet").unlink()
    else:
        (victim.folder(tmp_path) / "metrics.json").write_text("{}")
    assert not is_done(victim, tmp_path)
    launch = FakeLauncher(corpus)
    run_stages(stages, tmp_path, launch=launch, jobs=1)
    assert launch.ran == [victim.label]


def test_success_without_files_is_a_failure(made, tmp_path):
    _, _, stages = made
    outcomes = run_stages(stages[:1], tmp_path, launch=lambda *_: 0, jobs=1)
    assert "does not exist; give --from" in outcomes[stages[0].key].reason


def test_the_plan_names_state_cells_and_command(made, tmp_path):
    corpus, cells, stages = made
    run_stages(stages[:1], tmp_path, launch=FakeLauncher(corpus), jobs=1)
    lines = plan_lines(cells, stages, tmp_path)
    assert "finished embeddings" in lines[0]
    assert lines[1].strip().startswith("sidrec fit --config")
    assert lines[-1] == f"{len(cells)} cells, {len(stages)} stages, {len(stages) - 1} to do"


def test_a_stage_is_a_process_with_a_log(made, tmp_path, monkeypatch):
    _, _, stages = made
    monkeypatch.setenv("WANDB_RUN_GROUP", "mine")
    log = tmp_path / "log"
    assert launch_here(stages[0], ["--version"], log, num_threads=None) == 0
    assert log.read_text().startswith("$ sidrec --version\nsidrec ")
    assert launch_here(stages[0], ["fiit"], log, num_threads=None) == 2
    assert "did you mean 'fit'?" in log.read_text()


def test_a_warning_reaches_the_stage_and_not_its_keeper():
    with stages_hear_signals():
        os.kill(os.getpid(), signal.SIGUSR1)
        stage = "import signal; print(signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL)"
        shown = subprocess.run([sys.executable, "-c", stage], capture_output=True, check=True)
    assert shown.stdout == b"True\n"
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


_SAVES = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print("saved", flush=True), sys.exit(85)))
print("listens", flush=True)
time.sleep(60)
"""


def test_a_stop_signal_to_the_comparison_stops_its_stages(made, tmp_path, monkeypatch):
    _, _, stages = made
    popen = subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda command, **more: popen([command[0], "-c", _SAVES], **more)
    )
    codes, log = [], tmp_path / "log"

    def launch():
        codes.append(launch_here(stages[0], ["fit"], log, num_threads=None))

    with stages_hear_signals():
        stage = threading.Thread(target=launch)
        stage.start()
        while not log.exists() or "listens" not in log.read_text():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)
        stage.join(timeout=30)
        launch()  # after the signal nothing starts
    assert codes == [85, 85]
    assert log.read_text().count("saved") == log.read_text().count("listens") == 1


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


def test_nothing_of_a_comparison_is_text_in_a_script(made, tmp_path):
    _, _, stages = made
    evil = "x\ntouch owned\n#SBATCH --wrap=y"
    jobs = [ArrayJob("compare-0", [replace(stages[0], label=evil)])]
    for script in write_scripts(jobs, ["compare"], tmp_path / evil):
        text = script.read_text()
        assert "owned" not in text
        assert "wrap" not in text


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
    logs = [f"--output={script.with_suffix('')}-%j.log" for script in scripts]
    assert asked[0] == f"--parsable {logs[0]} {scripts[0]}"
    assert asked[1] == f"--parsable {logs[1]} --dependency=afterany:1 {scripts[1]}"
    sbatch.write_text("#!/bin/bash\necho 'no such partition' >&2\nexit 1\n")
    with pytest.raises(RunError, match=r"sbatch refused .*: no such partition"):
        submit(scripts)
