"""Runner of comparison stages, several in parallel; a failed stage does not stop the rest."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

from sidrec.comparison.execution.stage_cache import is_done, mark_done
from sidrec.comparison.plan.stages import Cell, Stage
from sidrec.console import say
from sidrec.errors import SidrecError
from sidrec.runs.preemption import PREEMPTED_EXIT_CODE, STOP, STOP_SIGNALS

State = Literal["kept", "done", "failed", "blocked"]
PREEMPTED = PREEMPTED_EXIT_CODE  # of a stage, which can resume
Launch = Callable[[Stage, list[str], Path], int]


class Outcome(NamedTuple):
    """Outcome of one stage.

    Attributes:
        state: ``kept``: finished in an earlier run; ``blocked``: an input failed.
        reason: Why the result is missing, in one line; empty when it exists.
    """

    state: State
    reason: str


class StagePreemptedError(SidrecError):
    """Preemption of a stage; run the same command again to resume."""

    exit_code = PREEMPTED


def run_stages(
    stages: Sequence[Stage], out: Path, *, launch: Launch, jobs: int
) -> dict[str, Outcome]:
    """Run all unfinished stages; a free slot takes the first stage whose inputs have run.

    Preemption or Ctrl-C starts no further stage and waits for the running ones, which get the same
    signal.

    Args:
        stages: Stages in order, each after its inputs.
        out: Folder of the comparison.
        launch: Runs one stage with its arguments, writes to a log and returns the exit code. Called
            in threads.
        jobs: Maximum number of parallel stages, ``>= 1``.

    Returns:
        Outcome of every stage by key, in the order of the stages.

    Raises:
        StagePreemptedError: If a stage is preempted.
    """
    outcomes: dict[str, Outcome] = {}
    waiting, running = list(stages), dict[Future[Outcome], Stage]()

    def settle(stage: Stage, outcome: Outcome) -> None:
        outcomes[stage.key] = outcome
        if outcome.reason:
            say(f"{outcome.state}: {stage.label}: {outcome.reason}")

    with stages_hear_signals(), ThreadPoolExecutor(jobs) as pool:  # its end waits for the stages
        while waiting or running:
            while len(running) < jobs and (stage := _first_ready(waiting, outcomes)):
                waiting.remove(stage)
                if standing := _standing(stage, out, outcomes):
                    settle(stage, standing)
                    continue
                say(f"[{stages.index(stage) + 1}/{len(stages)}] {stage.label} ({stage.key})")
                running[pool.submit(run_stage, stage, out, launch=launch)] = stage
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                settle(running.pop(future), future.result())
    return {stage.key: outcomes[stage.key] for stage in stages}


def _first_ready(waiting: Sequence[Stage], outcomes: dict[str, Outcome]) -> Stage | None:
    """Return the first stage whose inputs have all run, failed or not."""
    return next((one for one in waiting if all(i.stage.key in outcomes for i in one.inputs)), None)


def _standing(stage: Stage, out: Path, outcomes: dict[str, Outcome]) -> Outcome | None:
    """Return the outcome of a stage that is finished or blocked, else None."""
    lacking = [one.stage for one in stage.inputs if outcomes[one.stage.key].reason]
    if lacking:
        return Outcome("blocked", f"{lacking[0].label} is missing")
    return Outcome("kept", "") if is_done(stage, out) else None


def run_stage(stage: Stage, out: Path, *, launch: Launch) -> Outcome:
    """Run one stage, and mark it as done on success.

    Raises:
        StagePreemptedError: If the stage is preempted.
    """
    log = out / "logs" / f"{stage.kind}-{stage.key}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    code = launch(stage, stage.arguments(out), log)
    if code == PREEMPTED:
        raise StagePreemptedError(
            f"{stage.label} was preempted; run the same command again to resume."
        )
    if code != 0:
        return Outcome("failed", f"exit code {code}: {_last_line(log)} ({log})")
    try:
        mark_done(stage, out, seconds=time.monotonic() - started)
    except SidrecError as error:
        return Outcome("failed", str(error))
    return Outcome("done", "")


def threads_of(jobs: int) -> int | None:
    """Return the number of threads of each of ``jobs`` parallel stages; None leaves it to torch."""
    return None if jobs == 1 else max(1, len(os.sched_getaffinity(0)) // jobs)


def launch_here(stage: Stage, arguments: list[str], log: Path, *, num_threads: int | None) -> int:
    """Launch a stage as a local subprocess, with its output in the log.

    The subprocess reads W&B's group, job type and tags from environment variables. An existing
    ``OMP_NUM_THREADS`` takes precedence over ``num_threads``; None sets nothing.
    """
    threads = {} if num_threads is None else {"OMP_NUM_THREADS": str(num_threads)}
    environment = (
        threads
        | os.environ
        | {
            "WANDB_RUN_GROUP": os.environ.get("WANDB_RUN_GROUP", "sidrec-compare"),
            "WANDB_JOB_TYPE": stage.kind,
            "WANDB_TAGS": ",".join(["sidrec", stage.kind, stage.key]),
            "WANDB_NAME": stage.label,
            "WANDB_RUN_ID": f"{stage.kind}-{stage.key}",
        }
    )
    command = [sys.executable, "-m", "sidrec", *arguments]
    if _STAGES.told is not None:
        return PREEMPTED
    with log.open("a") as stream:
        stream.write(f"$ sidrec {' '.join(arguments)}\n")
        stream.flush()
        process = subprocess.Popen(command, stdout=stream, stderr=stream, env=environment)  # noqa: S603
        _STAGES.running.append(process)
        try:
            code = process.wait()
        except KeyboardInterrupt:  # the terminal signals the stage too: let it save
            process.wait()
            raise
        finally:
            _STAGES.running.remove(process)
    ended_unheard = _STAGES.told is not None and code == -_STAGES.told  # before it could listen
    return PREEMPTED if ended_unheard else code


class _Stages:
    """Running stages, and the stop signal that they were told."""

    def __init__(self) -> None:
        self.running: list[subprocess.Popen[bytes]] = []
        self.told: int | None = None

    def tell(self, number: int, frame: object) -> None:
        """Pass a signal on to every running stage; no further one starts."""
        del frame
        self.told = number
        for process in list(self.running):
            process.send_signal(number)


_STAGES = _Stages()


@contextmanager
def stages_hear_signals() -> Iterator[None]:
    """Pass stop signals on to the running stages, which save their state and end themselves."""
    STOP.wait_for_step()  # a keeper that waits for its stages is not stuck
    before = {number: signal.signal(number, _STAGES.tell) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        STOP.waits_for_step, _STAGES.told = False, None


def plan_lines(cells: Sequence[Cell], stages: Sequence[Stage], out: Path) -> list[str]:
    """Return the plan as text: every stage with its state, cells and command."""
    users: dict[str, list[str]] = {}
    for cell in cells:
        name = cell.system if cell.seed is None else f"{cell.system}/{cell.seed}"
        for stage in _behind(cell.last):
            users.setdefault(stage.key, []).append(name)
    lines = []
    for number, stage in enumerate(stages, start=1):
        state = "finished" if is_done(stage, out) else "to do"
        own = list(dict.fromkeys(users[stage.key]))
        lines.append(f"{number:3} {state:8} {stage.kind:10} {stage.key} for {', '.join(own)}")
        lines.append(f"      sidrec {' '.join(stage.arguments(out))}")
    num_left = sum(not is_done(stage, out) for stage in stages)
    return [*lines, f"{len(cells)} cells, {len(stages)} stages, {num_left} to do"]


def _behind(stage: Stage) -> list[Stage]:
    return [stage, *(found for one in stage.inputs for found in _behind(one.stage))]


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    filled = [line.strip() for line in lines if line.strip()]
    return filled[-1][:300] if filled else "no output"
