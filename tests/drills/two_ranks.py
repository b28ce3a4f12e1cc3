"""Train on two ranks, stopped and resumed, again and again: does a rank ever wait for ever?

python -m tests.drills.two_ranks --folder DIR --runs 20 [--out FILE]

A run is the two-rank half of tests/resume/test_matrix.py: 42 trainings that are stopped, with 56
resumes, which have to end as undisturbed ones to the bit. A run that takes an hour hangs, which
kills the drill with all ranks. FILE is written after every run; the same command goes on.
"""

import argparse
import json
import os
import shutil
import signal
from itertools import product
from pathlib import Path
from typing import Any

import torch

from tests.ranks import run_on_ranks
from tests.resume.test_matrix import STAGES, assert_ranks_same, on_ranks
from tests.tiny import Tiny, make_tiny

LIMIT_S = 3600


class HangError(Exception):
    """A run has not ended in time."""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/two_rank_matrix.json"))
    given = parser.parse_args(arguments)
    found = json.loads(given.out.read_text()) if given.out.exists() else {"passed": 0}
    found |= {"command": f"python -m tests.drills.two_ranks --folder DIR --runs {given.runs}"}
    tiny = make_tiny(given.folder)
    for _ in range(given.runs - sum(found.get(end, 0) for end in ("passed", "hung", "failed"))):
        end, why = run(tiny, given.folder / "run")
        found[end] = found.get(end, 0) + 1
        if why:
            found.setdefault("faults", []).append(why)
        given.out.write_text(json.dumps(found, indent=2) + "\n")
        if end == "hung":
            os.killpg(0, signal.SIGKILL)


def run(tiny: Tiny, folder: Path, stages: tuple[str, ...] = STAGES) -> tuple[str, Any]:
    """Return how one run ended (passed, hung or failed), and the fault."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    wanted = list(product(stages, [True, False]))
    torch.save((wanted, tiny, {}), folder / "input.pt")
    signal.signal(signal.SIGALRM, _hangs)
    signal.alarm(LIMIT_S)
    try:
        run_on_ranks(on_ranks, folder)
        for stage, warmup in wanted:
            assert_ranks_same(folder / f"{stage} {warmup}")
    except HangError:
        return "hung", "no end after an hour"
    except Exception as error:
        return "failed", str(error)
    finally:
        signal.alarm(0)
    return "passed", None


def _hangs(*unused: object) -> None:
    raise HangError


if __name__ == "__main__":
    main()
