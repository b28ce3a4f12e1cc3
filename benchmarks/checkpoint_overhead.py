"""What writing checkpoints costs, and how long a run takes to end when the machine wants it gone.

    python benchmarks/checkpoint_overhead.py --folder runs/checkpoints

Prepares the most rated films and an untrained encoder run (SIDREC_DATA names the raw files), then
trains the bi-encoder and the generator of configs/movies/*-core.yaml through the command line.
The callback that keeps the newest checkpoint saves at every second step; what it takes is measured
in it, with a save and without one. (As the difference between steps with it and without it, it is
lost in the differences between batches.) A step's time goes from its start to the next one's, the
loader included and the callback left out; figures are medians. ``CHECKPOINT_EVERY_S`` seconds lie
between two saves of a run: the overhead is that of the callback at every step, and of one save in
that time.

Then a process that trains is sent SIGUSR1 at a random moment, again and again, and its end awaited;
processor seconds beside, since the machine may be busy. It is a fork of one that has imported
everything, so Python's own end (some milliseconds) is missing.
"""

import argparse
import os
import platform
import random
import signal
import statistics
import sys
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L

import sidrec.cli.train
from sidrec.cli.main import main as run_sidrec
from sidrec.files import read_json, write_json
from sidrec.generator.model.batch import GeneratorBatch
from sidrec.runs.callbacks import LastCheckpoint
from sidrec.runs.checkpoints import step_of
from sidrec.runs.directory import RunDirectory
from sidrec.runs.preemption import PREEMPTED_EXIT_CODE
from sidrec.types import PairBatch

CHECKPOINT_EVERY_S = 60.0  # the least, unless --checkpoint_every_s says otherwise
DATA = Path(os.environ.get("SIDREC_DATA", "../shared/data")) / "movies"
CLOCKS = ("wall_s", "cpu_s")
WARM_UP_STEPS = 6


class Timed(LastCheckpoint):
    """The callback that keeps the newest checkpoint, with a clock; every second step saves."""

    file = Path()
    started: tuple[float, float] | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin."""
        super().on_train_start(trainer, pl_module)
        self.steps: list[dict[str, Any]] = []
        self.first_step = trainer.global_step + WARM_UP_STEPS

    def on_train_batch_start(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        batch: PairBatch | GeneratorBatch,
        batch_idx: int,
    ) -> None:
        """End the step before, begin this one."""
        del pl_module, batch, batch_idx
        now = clocks()
        if self.started is not None and trainer.global_step > self.first_step:
            step = passed(self.started, now)
            own = {f"callback_{clock}": self.own[clock] for clock in CLOCKS}
            step = {clock: step[clock] - self.own[clock] for clock in CLOCKS}
            self.steps.append({"saved": self.every_s == 0} | step | own)
        self.started = now
        self.every_s = 0.0 if trainer.global_step % 2 else 1e9

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *unused: object
    ) -> None:
        """Do what a run does, and look at the clock."""
        before = clocks()
        super().on_train_batch_end(trainer, pl_module, *unused)
        self.own = passed(before, clocks())

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave the times where the parent finds them."""
        super().on_train_end(trainer, pl_module)
        write_json(self.file, {"steps": self.steps})


def clocks() -> tuple[float, float]:
    """Return the wall's and the processor's seconds."""
    return time.perf_counter(), time.process_time()


def passed(before: tuple[float, float], after: tuple[float, float]) -> dict[str, float]:
    """Return the seconds between two looks at the clocks."""
    return {clock: b - a for clock, a, b in zip(CLOCKS, before, after, strict=True)}


def sidrec_fit(*arguments: str) -> int:
    """Run the command in this process; return its exit code."""
    sys.argv = ["sidrec", *arguments]
    try:
        run_sidrec()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def prepared(folder: Path) -> dict[str, list[str]]:
    """Make corpus and encoder run if they are not there; return what fits each stage."""
    corpus, encoder = folder / "corpus", folder / "enc"
    with_queries = ["--queries", str(DATA / "queries_llm.jsonl"), "--min_item_interactions", "20"]
    source = ["--source", str(DATA / "ml-latest-small")]
    texts = ["--descriptions", str(DATA / "descriptions.jsonl")]
    prepare = ["prepare", "movielens", *source, *texts, *with_queries, "--out", str(corpus)]
    fit_encoder = ["--config", "configs/movies/encoder-core.yaml", "--data.corpus", str(corpus)]
    first = ["fit", *fit_encoder, "--trainer.max_steps", "0", "--run_dir", str(encoder)]
    for command in (prepare, first):
        if in_a_fork(command) != 0:
            sys.exit(f"sidrec {' '.join(command)} failed")
    quick = ["--trainer.limit_val_batches", "0", "--trainer.logger", "false"]
    generator = ["--config", "configs/movies/generator-core.yaml", "--from", str(encoder)]
    return {
        "generator": ["fit", *generator, *quick],
        "bi-encoder": ["fit", *fit_encoder, *quick, "--trainer.callbacks", "null"],
    }


def in_a_fork(command: list[str]) -> int:
    """Run a command in a child, so that this process starts no threads; return its exit code."""
    return os.waitstatus_to_exitcode(os.waitpid(forked(command, None), 0)[1])


def forked(command: list[str], log: Path | None) -> int:
    """Start a command in a child; return its process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        if log is not None:
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        code = sidrec_fit(*command)
    finally:
        os._exit(code)


def overhead(command: list[str], run: RunDirectory, steps: int) -> dict[str, Any]:
    """Train in a child, and return times by way and what they amount to."""
    last = step_of(run.last_checkpoint) if run.last_checkpoint.exists() else 0
    length = ["--trainer.max_steps", str(last + WARM_UP_STEPS + steps)]
    sidrec.cli.train.LastCheckpoint = Timed  # type: ignore[misc]
    Timed.file = run.root.with_suffix(".json")
    code = in_a_fork([*command, *length, "--run_dir", str(run.root)])
    sidrec.cli.train.LastCheckpoint = LastCheckpoint  # type: ignore[misc]
    if code != 0:
        sys.exit("the fit failed")
    records = read_json(Timed.file)["steps"]
    every_s = CHECKPOINT_EVERY_S
    found: dict[str, Any] = {}
    for clock in CLOCKS:
        step = statistics.median(record[clock] for record in records)
        idle, save = (
            statistics.median(r[f"callback_{clock}"] for r in records if r["saved"] is saved)
            for saved in (False, True)
        )
        found[clock] = {
            "step": step,
            "callback_at_a_step": idle,
            "save": save,
            "overhead_percent": 100 * (idle / step + save / every_s),
        }
    found["checkpoint_mb"] = run.last_checkpoint.stat().st_size / 1e6
    found["steps"] = len(records)
    return found


def ends(command: list[str], run: RunDirectory, log: Path, times: int) -> dict[str, Any]:
    """Send SIGUSR1 to a training process, again and again; return how long its end took."""
    draw, wall, cpu = random.Random(0), [], []  # noqa: S311
    for _ in range(times):
        child = forked([*command, "--run_dir", str(run.root)], log)
        while "training: step" not in (log.read_text() if log.exists() else ""):
            time.sleep(0.05)
        time.sleep(draw.uniform(1.0, 4.0))
        used, started = cpu_of(child), time.perf_counter()
        os.kill(child, signal.SIGUSR1)
        _, status, whole = os.wait4(child, 0)
        wall.append(time.perf_counter() - started)
        cpu.append(whole.ru_utime + whole.ru_stime - used)
        log.unlink()
        if os.waitstatus_to_exitcode(status) != PREEMPTED_EXIT_CODE:
            sys.exit("the run did not end as a preempted one")
    return {
        name: {"median": statistics.median(found), "max": max(found), "times": times}
        for name, found in (("wall_s", wall), ("cpu_s", cpu))
    }


def cpu_of(process: int) -> float:
    """Return the processor seconds that a process has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Measure and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--ends", type=int, default=10)
    parser.add_argument("--out", default="benchmarks/results/checkpoint_overhead.json")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    commands = prepared(asked.folder)
    facts: dict[str, Any] = {
        "command": "python benchmarks/checkpoint_overhead.py --folder runs/checkpoints",
        "checkpoint_every_s": CHECKPOINT_EVERY_S,
        "machine": {"cores": os.cpu_count(), "processor": platform.machine()},
        "versions": {name: version(name) for name in ("torch", "lightning")},
        "from_sigusr1_to_exit": {},
        "checkpointing": {},
    }
    for what, measure in (
        ("checkpointing", partial(overhead, steps=asked.steps)),
        ("from_sigusr1_to_exit", partial(ends, log=asked.folder / "log", times=asked.ends)),
    ):
        for stage, command in commands.items():
            run = RunDirectory(asked.folder / f"{stage}-{os.getpid()}")
            facts[what][stage] = measure(command, run)
            facts["machine"]["load_of_the_last_15_minutes"] = os.getloadavg()[2]
            write_json(Path(asked.out), facts)  # a busy machine may not come to the end
    print(f"written: {asked.out}")


if __name__ == "__main__":
    main()
