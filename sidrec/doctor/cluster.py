"""Checks for multi-process runs: communication, scheduler, shared memory, Weights & Biases."""

import netrc
import os
import shutil
import subprocess
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlparse

from sidrec.doctor.finding import TIMEOUT_S, Finding, Question

_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 (looked at, never written)
_LITTLE_SHARED_GB = 1.0
_WANDB = "https://api.wandb.ai"


def ranks() -> Finding:
    """Return the communication back ends that several processes could use."""
    import torch
    import torch.distributed as dist  # noqa: TID251 (only asks what the build holds)

    if not dist.is_available():
        return Finding("note", "ranks", "torch without distributed", "one process only")
    gloo = "gloo" if dist.is_gloo_available() else "no gloo"
    if not torch.cuda.is_available():
        return Finding("ok", "ranks", f"{gloo} (CPU)")
    if not dist.is_nccl_available():
        advice = "several GPUs need it: install torch's CUDA wheel for Linux"
        return Finding("note", "ranks", f"{gloo}, no NCCL", advice)
    number = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
    return Finding("ok", "ranks", f"NCCL {number}, {gloo}")


def shared_memory() -> Iterator[Finding]:
    """Check the shared memory through which loader processes pass batches."""
    if not _SHARED_MEMORY.exists():
        return
    free = shutil.disk_usage(_SHARED_MEMORY).free / 1e9
    little = free < _LITTLE_SHARED_GB
    advice = "data.num_workers: 0, or docker run --shm-size 2g" if little else ""
    found = f"{_SHARED_MEMORY}, {free:.1f} GB free"
    yield Finding("note" if little else "ok", "shared memory", found, advice)


def slurm() -> Finding:
    """Check the scheduler, and the current job if there is one."""
    environment = os.environ
    if "SLURM_JOB_ID" in environment:
        tasks, nodes = environment.get("SLURM_NTASKS", "1"), environment.get("SLURM_JOB_NUM_NODES")
        found = f"in a job: {nodes or 1} nodes, {tasks} tasks; start with srun"
        if "SLURM_PROCID" not in environment and tasks != "1":
            return Finding("note", "Slurm", found, "this process was not started by srun")
        return Finding("ok", "Slurm", found)
    if shutil.which("srun") is None:
        return Finding("ok", "Slurm", "none")
    try:
        answer = subprocess.run(
            ["sinfo", "--noheader", "--format=%P %D"],  # noqa: S607
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        advice = "sbatch will not work from here; runs without Slurm do"
        return Finding("note", "Slurm", "srun is here, its controller does not answer", advice)
    parts = "; ".join(f"{line} nodes" for line in answer.stdout.splitlines() if line.strip())
    return Finding("ok", "Slurm", f"this is no job; partitions: {parts}")


class WandB:
    """Target of W&B's curves; checked in the background, without showing a key."""

    def __init__(self) -> None:
        self.address = os.environ.get("WANDB_BASE_URL", _WANDB)
        self.mode = os.environ.get("WANDB_MODE", "online")
        self.installed = find_spec("wandb") is not None
        asks = self.installed and self.mode == "online"
        self.question = Question(self.address) if asks else None

    def finding(self) -> Finding:
        """Return the outlook of an online run; waits three seconds at most."""
        if not self.installed:
            return Finding("ok", "W&B", "not installed; logs are CSV")
        number = version("wandb")
        if self.question is None:
            return Finding("ok", "W&B", f"{number}, {self.mode}")
        if not self.question.answered():
            advice = "set WANDB_MODE=offline: an online run waits 100 s, then fails"
            return Finding("note", "W&B", f"{number}, {self.address} does not answer", advice)
        if not self._has_key():
            return Finding("note", "W&B", f"{number}, answers, no key", "wandb login, or offline")
        return Finding("ok", "W&B", f"{number}, {self.address} answers")

    def _has_key(self) -> bool:
        if os.environ.get("WANDB_API_KEY"):
            return True
        try:
            return urlparse(self.address).hostname in netrc.netrc().hosts
        except (OSError, netrc.NetrcParseError):
            return False
