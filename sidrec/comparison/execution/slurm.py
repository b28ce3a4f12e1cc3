"""Slurm array jobs of a comparison: one array per depth of the graph, one task per stage."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from shlex import join
from typing import NamedTuple

from sidrec.comparison.plan.stages import Stage
from sidrec.errors import RunError
from sidrec.files import atomic_file


class ArrayJob(NamedTuple):
    """One Slurm array job.

    Attributes:
        name: Name of the job and of its script.
        stages: Stages of the job, one task each.
    """

    name: str
    stages: list[Stage]


def array_jobs(stages: Sequence[Stage]) -> list[ArrayJob]:
    """Group stages by depth in the graph: a group needs only the groups before it."""
    depth: dict[str, int] = {}
    for stage in stages:  # each after its inputs; finished ones are not included
        below = [depth.get(one.stage.key, -1) for one in stage.inputs]
        depth[stage.key] = 1 + max(below, default=-1)
    groups: dict[int, list[Stage]] = {}
    for stage in stages:
        groups.setdefault(depth[stage.key], []).append(stage)
    return [ArrayJob(f"compare-{level}", groups[level]) for level in sorted(groups)]


def write_scripts(jobs: Sequence[ArrayJob], compare: list[str], folder: Path) -> list[Path]:
    """Write one script per array job, and one that makes the report.

    Scripts contain no text from the comparison's YAML, since a label with a line break would be a
    command. ``sidrec compare --dry_run`` explains each key.

    Args:
        jobs: Array jobs in the order in which they run.
        compare: Command of this comparison, as a list of words.
        folder: Folder of the scripts; ``submit`` puts Slurm's logs beside them.
    """
    scripts = []
    for job in jobs:
        keys = "\n".join(f"  {stage.key}" for stage in job.stages)
        body = f"stages=(\n{keys}\n)\n" + _command(
            [*compare, "--only"], ' "${stages[$SLURM_ARRAY_TASK_ID]}"'
        )
        header = [f"--array=0-{len(job.stages) - 1}"]
        scripts.append(_write(folder, job.name, header, body))
    report = _command([*compare, "--report_only"], "")
    scripts.append(_write(folder, "compare-report", [], report))
    return scripts


def submit(scripts: Sequence[Path]) -> list[str]:
    """Submit the scripts; each waits for all tasks of the one before to end, failed or not.

    Returns:
        Job ids; empty where there is no ``sbatch``.

    Raises:
        RunError: If Slurm refuses a script.
    """
    if shutil.which("sbatch") is None:
        return []
    jobs: list[str] = []
    for script in scripts:
        after = [f"--dependency=afterany:{jobs[-1]}"] if jobs else []
        output = f"--output={script.with_suffix('')}-%j.log"
        command = ["sbatch", "--parsable", output, *after, str(script)]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        if answer.returncode:
            raise RunError(f"sbatch refused {script}: {' '.join(answer.stderr.split())}")
        jobs.append(answer.stdout.strip().split(";")[0])
    return jobs


def _write(folder: Path, name: str, header: list[str], body: str) -> Path:
    options = [
        f"--job-name=sidrec-{name}",
        *header,
        "--nodes=1",
        "--ntasks=1",
        "--signal=SIGUSR1@300",  # the stage saves and is requeued
        "--requeue",
        "--open-mode=append",
    ]
    lines = ["#!/bin/bash", *(f"#SBATCH {option}" for option in options)]
    lines += [
        "# Resources come from SBATCH_… variables or from lines added here.",
        "set -euo pipefail",
    ]
    script = folder / f"{name}.sbatch"
    with atomic_file(script) as temporary:
        temporary.write_text("\n".join([*lines, 'cd "$SLURM_SUBMIT_DIR"', body]) + "\n")
    return script


def _command(words: list[str], more: str) -> str:
    return f"exec srun --kill-on-bad-exit=1 {join(words)}{more}"
