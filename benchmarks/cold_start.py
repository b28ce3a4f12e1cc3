"""Processor seconds of a start: the retriever beside torch with T5, training beside Lightning.

Usage: python benchmarks/cold_start.py [--run runs/quickstart/gen] [--rounds 3]

Every import runs in a process of its own, the two of a ratio in turns; medians. With ``--run``,
also the first answer of ``sidrec retrieve`` with that generator, imports included.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from sidrec.files import write_json

IMPORTS = {
    "torch_and_t5": "import torch\nfrom transformers.models.t5.modeling_t5 import "
    "T5ForConditionalGeneration",
    "retriever": "import sidrec.generator.retrieval.retriever\nfrom transformers.models.t5."
    "modeling_t5 import T5ForConditionalGeneration",
    "lightning": "import lightning",
    "fit": "from sidrec.cli.main import import_command\nimport_command('fit')\n"
    "import sidrec.generator.training.module",
}
RATIOS = {"retriever": "torch_and_t5", "fit": "lightning"}
NEEDLESS = ("lightning", "torchmetrics", "datasets", "pandas", "polars", "pyarrow", "sklearn")


def main() -> None:
    """Measure all, and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cold_start.json"))
    given = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in IMPORTS}
    for _ in range(given.rounds):
        for name, code in IMPORTS.items():
            seconds[name].append(cpu_seconds([sys.executable, "-c", code]))
    if given.run is not None:
        seconds["first_answer"] = [first_answer(given.run) for _ in range(given.rounds)]
    medians = {name: statistics.median(found) for name, found in seconds.items() if found}
    ratios = {f"{name} / {to}": medians[name] / medians[to] for name, to in RATIOS.items()}
    if given.run is not None:
        ratios["first_answer / torch_and_t5"] = medians["first_answer"] / medians["torch_and_t5"]
    result: dict[str, Any] = {
        "command": " ".join(["python", *sys.argv]),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "cpu_s": seconds,
        "median_cpu_s": medians,
        "ratios": ratios,
        "needless_modules_of_the_retriever": needless_modules(),
    }
    write_json(given.out, result)
    print(json.dumps({"medians": medians, "ratios": ratios}, indent=2))


def cpu_seconds(command: list[str]) -> float:
    """Return the processor seconds of a command, its own and the system's for it."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return usage.ru_utime + usage.ru_stime


def first_answer(run: Path) -> float:
    """Return the processor seconds of ``sidrec retrieve`` for one query."""
    with tempfile.TemporaryDirectory() as folder:
        asked = Path(folder) / "requests.jsonl"
        asked.write_text('{"id": "a", "task": "search", "query": "a heist film in Paris"}\n')
        places = ["--input", str(asked), "--output", f"{folder}/results.jsonl"]
        return cpu_seconds(
            [sys.executable, "-m", "sidrec", "retrieve", "--from", str(run), *places]
        )


def needless_modules() -> list[str]:
    """Return which packages that no answer needs the import of the retriever loads."""
    code = (
        f"{IMPORTS['retriever']}\nimport sys\nprint(*[n for n in {NEEDLESS} if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


if __name__ == "__main__":
    main()
