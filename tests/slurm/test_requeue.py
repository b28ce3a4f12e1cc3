"""A real Slurm, two nodes on this machine: a job of two ranks is stopped, requeued, finishes."""

import math
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import torch

from sidrec.runs.directory import RunDirectory
from tests.patience import patient
from tests.tiny import encoder_settings, write_yaml

ROOT = Path(__file__).parents[2]
FOLDER = Path(__file__).parent
NEEDED = ("slurmctld", "slurmd", "munged", "srun")
LACKING = [name for name in NEEDED if shutil.which(name, path=f"{os.defpath}:/usr/sbin") is None]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(LACKING) or os.geteuid() != 0,
        reason=f"SLURM NOT TESTED: needs root and `apt-get install slurm-wlm munge` (no {LACKING})",
    ),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Start a cluster; return the environment of its commands."""
    folder = tmp_path_factory.mktemp("slurm")
    environment = os.environ | {
        "SLURM_CONF": str(folder / "slurm.conf"),
        "PATH": f"{os.environ['PATH']}:/usr/sbin",
        "SIDREC_ALLOW_IMPORTS": "tests",
        "PYTHONPATH": str(ROOT),
        "MASTER_ADDR": "127.0.0.1",  # the nodes' names are known to Slurm only
        "OMP_WAIT_POLICY": "passive",
    }
    subprocess.run(["bash", FOLDER / "start.sh", folder], env=environment, check=True)
    yield environment
    subprocess.run(["bash", FOLDER / "stop.sh", folder], env=environment, check=True)


class Job:
    """One submission of slurm/fit.sbatch; a processor per task in place of GPUs."""

    def __init__(self, tiny, folder, environment, *options, step_s=0.25):
        folder.mkdir()
        settings = encoder_settings(tiny.corpus, tiny.encoder)
        settings["trainer"] |= {
            "max_steps": 40,
            "val_check_interval": 20,
            "callbacks": [{"class_path": "tests.stops.Slow", "init_args": {"seconds": step_s}}],
        }
        del settings["trainer"]["enable_progress_bar"]
        self.environment = environment | {
            "VENV": str(fake_environment(folder)),
            "MACHINE": str(write_yaml(folder / "machine.yaml", {"trainer": {"strategy": "ddp"}})),
        }
        self.run = RunDirectory(folder / "run")
        self.log = folder / "log"
        sbatch = [
            *("sbatch", "--parsable", "--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1"),
            *("--gpus-per-node=0", f"--output={self.log}", *options, "slurm/fit.sbatch"),
            *("--config", write_yaml(folder / "config.yaml", settings)),
            *("--run_dir", self.run.root),
        ]
        self.id = self.ask(*sbatch)

    def ask(self, *command):
        done = subprocess.run(
            list(map(str, command)),
            env=self.environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    def state(self):
        return self.ask("squeue", "--noheader", "--states=all", f"--jobs={self.id}", "--format=%T")

    def wait_for(self, what, condition, timeout_s=240):
        end = time.monotonic() + patient(timeout_s)
        while not condition():
            assert self.state() != "FAILED", f"waiting for {what}:\n{self.output()}"
            assert time.monotonic() < end, f"waited for {what} in vain:\n{self.output()}"
            time.sleep(0.5)

    def output(self):
        return self.log.read_text() if self.log.exists() else ""

    def wait_until_it_trains(self, times=1):
        self.wait_for("training", lambda: self.output().count("training: step") >= times)

    def wait_for_requeues(self, times):
        line = "requeued after exit code 85"
        self.wait_for("a requeue", lambda: self.output().count(line) >= times)

    def go_on_now(self):
        """Wait for the requeue, and lift the two minutes for which Slurm holds such a job.

        Not in the same second: its credentials are revoked with the second in which it ended.
        """
        self.wait_for("the requeue", lambda: self.state() == "PENDING")
        time.sleep(3)
        self.ask("scontrol", "update", f"JobId={self.id}", "StartTime=now")

    def weights(self):
        self.wait_for("the end", lambda: self.state() in ("COMPLETED", "FAILED", "TIMEOUT"))
        assert self.state() == "COMPLETED", self.output()
        assert self.run.state() == "finished"
        stored = torch.load(self.run.last_checkpoint, weights_only=True)
        assert stored["global_step"] == 40
        return stored["state_dict"]


def fake_environment(folder):
    """Return a folder with bin/sidrec, as VENV names one."""
    script = folder / "venv" / "bin" / "sidrec"
    script.parent.mkdir(parents=True)
    script.write_text(f'#!/bin/sh\nexec "{shutil.which("python")}" -m sidrec "$@"\n')
    script.chmod(0o755)
    return folder / "venv"


@pytest.fixture(scope="module")
def undisturbed(cluster, tiny, tmp_path_factory):
    return Job(tiny, tmp_path_factory.mktemp("jobs") / "undisturbed", cluster).weights()


def same(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def test_a_signalled_job_is_requeued_and_ends_with_the_same_weights(
    cluster, tiny, tmp_path, undisturbed
):
    job = Job(tiny, tmp_path / "job", cluster)
    for times in (1, 2):
        job.wait_until_it_trains(times)
        time.sleep(1.5)
        job.ask("scancel", "--signal=USR1", job.id)
        job.wait_for_requeues(times)
        assert job.run.state() == "preempted"
        assert not job.run.lock.exists()
        job.go_on_now()
    assert same(job.weights(), undisturbed)
    assert job.output().count("resuming from") == 4  # two ranks, twice


def test_the_time_limit_requeues_too(cluster, tiny, tmp_path, undisturbed):
    first_part_s = patient(50)  # from the start to the signal; imports and some steps
    minutes = math.ceil((first_part_s + 70) / 60)
    signal = f"--signal=SIGUSR1@{60 * minutes - int(first_part_s)}"
    job = Job(tiny, tmp_path / "job", cluster, f"--time={minutes}", signal, step_s=2.5)
    for _ in range(12):  # a slow machine may be stopped before it trains, and comes back as well
        job.wait_for("the start", lambda: job.state() != "PENDING")
        ends = lambda: job.state() in ("PENDING", "COMPLETED")  # noqa: E731
        job.wait_for("the limit", ends, timeout_s=60 * minutes + 120)
        if job.state() == "COMPLETED":
            break
        job.go_on_now()
    assert "requeued after exit code 85" in job.output()
    assert "SIGUSR1: stopping after this step" in job.output()
    assert same(job.weights(), undisturbed)


def test_a_cancelled_job_stays_cancelled(cluster, tiny, tmp_path):
    job = Job(tiny, tmp_path / "job", cluster)
    job.wait_until_it_trains()
    job.ask("scancel", job.id)
    job.wait_for("the end", lambda: job.state() in ("CANCELLED", "COMPLETED", "PENDING"))
    time.sleep(3)
    assert job.state() == "CANCELLED", job.output()
    assert job.run.state() == "preempted"
