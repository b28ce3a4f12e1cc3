"""``sidrec doctor``: what works on this machine; how a run stands; what a corpus holds.

With ``--run_dir RUN`` it examines a run, and with ``--corpus DIR`` it prints the facts of a corpus
that ``sidrec prepare`` printed, after a check of its files. Without either it examines the machine:
versions, devices, ranks, faiss, disk, caches, Slurm, W&B, hub. Exit codes: 0 nothing that stops
sidrec, 1 a problem, 2 wrong usage.
"""

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from sidrec import __version__
from sidrec.doctor import cluster
from sidrec.doctor.finding import Finding, Question
from sidrec.errors import ConfigError
from sidrec.runs.directory import RunDirectory

TESTED = {  # tested together, on CPU
    "torch": "2.13.0",
    "lightning": "2.6.6",
    "transformers": "5.23.0",
    "datasets": "5.2.0",
    "torchmetrics": "1.9.0",
    "jsonargparse": "4.53.0",
}
_LITTLE_DISK_GB = 5.0
_GB = 1e9


def main(args: list[str]) -> None:
    """Print a table and end with exit code 1 if something required is missing.

    Raises:
        ConfigError: If an argument is unknown.
        RunError: If ``--run_dir`` names no folder.
        DataError: If ``--corpus`` names no corpus, or a damaged one.
    """
    if any(word in ("-h", "--help") for word in args):
        sys.stdout.write(
            f"usage: sidrec doctor [--help] [--run_dir RUN | --corpus DIR]\n\n{__doc__}\n"
        )
        return
    # late imports: machine problems must not hide those of runs
    match [word for argument in args for word in argument.split("=", 1)]:
        case []:
            findings = list(examine())
        case ["--run_dir", folder]:
            from sidrec.doctor.run_state import examine_run

            findings = list(examine_run(RunDirectory(Path(folder))))
        case ["--corpus", folder]:
            findings = _facts_of_corpus(folder)
        case _:
            raise ConfigError(
                "`sidrec doctor` takes --run_dir RUN or --corpus DIR or nothing, got "
                f"{' '.join(args)}."
            )
    _show(findings)
    if any(finding.verdict == "problem" for finding in findings):
        sys.exit(1)


def _facts_of_corpus(folder: str) -> list[Finding]:
    from sidrec.corpus.build.facts import fact_lines
    from sidrec.corpus.store import Corpus

    description = Corpus.load(folder).description
    return [Finding("ok", name, value) for name, value in fact_lines(description)]


def examine() -> Iterator[Finding]:
    """Run all checks; nothing is changed, and no secret is read."""
    hub, wandb = _Hub(), cluster.WandB()  # these answer while the other checks run
    yield Finding("ok", "sidrec", __version__)
    yield Finding("ok", "python", f"{platform.python_version()} on {platform.platform()}")
    yield from _packages()
    yield from _devices()
    yield from _faiss()
    yield from _disk()
    yield cluster.ranks()
    yield from cluster.shared_memory()
    yield cluster.slurm()
    yield wandb.finding()
    yield hub.finding()


def _packages() -> Iterator[Finding]:
    from packaging.requirements import Requirement

    if not _installed("sidrec"):
        yield Finding("note", "packages", "sidrec runs from a checkout", "pip install -e .")
        return
    for text in requires("sidrec") or ():
        wanted = Requirement(text)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        name, tested = wanted.name, TESTED.get(wanted.name)
        try:
            found = version(name)
        except PackageNotFoundError:
            yield Finding("problem", name, "missing", f"pip install '{text}'")
            continue
        if not wanted.specifier.contains(found, prereleases=True):
            yield Finding("problem", name, found, f"pip install '{text}'")
        elif tested is None or _minor(found) == _minor(tested):
            yield Finding("ok", name, found)
        else:
            yield Finding("note", name, found, f"tested with {tested}; others should work")


def _minor(text: str) -> tuple[str, ...]:
    return tuple(text.split("+")[0].split(".")[:2])


def _devices() -> Iterator[Finding]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GB
    cores = len(os.sched_getaffinity(0))
    yield Finding("ok", "cpu", f"{cores} cores to use, {memory:.0f} GB of memory in the machine")
    try:
        import torch
    except ImportError as error:
        yield Finding("problem", "device", f"torch does not load: {error}", "install torch again")
        return
    if not torch.cuda.is_available():
        built_for = torch.version.cuda or torch.version.hip
        advice = (
            "the wheel has GPU support; check the driver if there is a GPU" if built_for else ""
        )
        yield Finding("note" if advice else "ok", "gpu", "none: CPU only", advice)
        return
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16: use precision 32"
        yield Finding(
            "ok", f"gpu {index}", f"{facts.name}, {facts.total_memory / _GB:.0f} GB, {bf16}"
        )


def _faiss() -> Iterator[Finding]:
    builds = [name for name in ("faiss-cpu", "faiss-gpu") if _installed(name)]
    if not builds:
        yield Finding("note", "faiss", "not installed", "optional: pip install 'sidrec[cpu]'")
        return
    if len(builds) > 1:
        advice = "they share a folder: uninstall both, then install one"
        yield Finding("problem", "faiss", " and ".join(builds), advice)
        return
    try:
        import faiss
    except ImportError as error:
        yield Finding("problem", builds[0], f"does not load: {error}", "install it again")
        return
    num_gpus = faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0
    found = f"{version(builds[0])}, sees {num_gpus} GPUs"
    blind = builds[0] == "faiss-gpu" and not num_gpus
    advice = "it computes on the CPU without a word" if blind else ""
    yield Finding("note" if blind else "ok", builds[0], found, advice)


def _installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def _disk() -> Iterator[Finding]:
    from huggingface_hub.constants import HF_HUB_CACHE

    from sidrec.corpus.reading.download import default_cache_folder

    places = {
        "working folder": Path.cwd(),
        "cache of sidrec": default_cache_folder(),
        "cache of the hub": Path(HF_HUB_CACHE),
    }
    for what, folder in places.items():
        there = folder
        while not there.exists():
            there = there.parent
        free = shutil.disk_usage(there).free / _GB
        found = f"{folder}, {free:.0f} GB free"
        if not os.access(there, os.W_OK):
            yield Finding("note", what, f"{folder}, read-only", "work where you may write")
        elif free < _LITTLE_DISK_GB:
            yield Finding("note", what, found, f"less than {_LITTLE_DISK_GB:.0f} GB: free space")
        else:
            yield Finding("ok", what, found)


class _Hub:
    """Reachability of the Hugging Face hub, checked in the background."""

    def __init__(self) -> None:
        self.endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
        self.offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
        self.question = None if self.offline else Question(self.endpoint)

    def finding(self) -> Finding:
        """Return whether the hub answered; waits three seconds at most."""
        if self.question is None:
            return Finding("ok", "hub", "HF_HUB_OFFLINE is set: only cached models")
        if self.question.answered():
            return Finding("ok", "hub", f"{self.endpoint} answers")
        advice = "name models by folder or package:, and set HF_HUB_OFFLINE=1"
        return Finding("note", "hub", f"{self.endpoint} does not answer", advice)


def _show(findings: list[Finding]) -> None:
    if not sys.stdout.isatty():
        width = max(len(finding.what) for finding in findings)
        for verdict, what, found, advice in findings:
            tail = f" -> {advice}" if advice else ""
            sys.stdout.write(f"{verdict:<7}  {what.ljust(width)}  {found}{tail}\n")
        return
    from rich.console import Console
    from rich.table import Table

    colors = {"ok": "green", "note": "yellow", "problem": "red"}
    table = Table("", "what", "found", "what to do")
    for verdict, *cells in findings:
        table.add_row(f"[{colors[verdict]}]{verdict}[/]", *cells)
    Console().print(table)
