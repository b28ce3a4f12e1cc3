"""Run directory: the paths of a run's files, and the state of the run."""

import platform
import subprocess
import uuid
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sidrec.errors import RunError
from sidrec.files import read_json, write_json

_PACKAGES = ("sidrec", "torch", "lightning", "transformers", "datasets", "faiss-cpu", "faiss-gpu")
SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """Paths of one run; construction reads and creates nothing.

    Attributes:
        root: Folder given as ``--run_dir`` or ``--from``.
    """

    root: Path

    @property
    def config(self) -> Path:
        """Resolved configuration, as ``--config`` takes it."""
        return self.root / "config.yaml"

    @property
    def manifest(self) -> Path:
        """Versions, seed, corpus fingerprint and state, as JSON."""
        return self.root / "manifest.json"

    @property
    def last_checkpoint(self) -> Path:
        """Newest checkpoint, from which the run resumes."""
        return self.root / "checkpoints" / "last.ckpt"

    @property
    def previous_checkpoint(self) -> Path:
        """Checkpoint before the newest, in case ``last.ckpt`` is damaged."""
        return self.root / "checkpoints" / "last.previous.ckpt"

    @property
    def best_checkpoint(self) -> Path:
        """Checkpoint with the best validation figure, which later stages read."""
        return self.root / "checkpoints" / "best.ckpt"

    @property
    def lock(self) -> Path:
        """Lock file with the owning process; exists only while a process works on the run."""
        return self.root / "lock.json"

    @property
    def semantic_ids(self) -> Path:
        """Semantic-ID bundle (encoder runs)."""
        return self.root / "semantic_ids"

    @property
    def metrics(self) -> Path:
        """Flat JSON of figures, written by ``sidrec test``."""
        return self.root / "metrics.json"

    @property
    def predictions(self) -> Path:
        """Ranked lists of all test requests."""
        return self.root / "predictions.parquet"

    @property
    def logs(self) -> Path:
        """Folder of the loggers' files."""
        return self.root / "logs"

    def state(self) -> str:
        """Return ``new``, ``running``, ``finished``, ``failed``, ``interrupted``, ``preempted``."""
        if not self.manifest.exists():
            return "new"
        return str(read_json(self.manifest).get("state", "new"))

    def stage(self) -> str:
        """Return the stage that made this run: ``encoder`` or ``generator``."""
        return str(read_json(self.manifest).get("stage", "unknown"))

    def log_id(self) -> str:
        """Return the run's id in its loggers, the same after every resume."""
        known = read_json(self.manifest) if self.manifest.exists() else {}
        return str(known.get("log_id") or uuid.uuid4().hex[:12])

    def write_manifest(self, **facts: Any) -> None:  # noqa: ANN401
        """Merge ``facts`` (state, seed, stage, …) into the manifest, with the current versions."""
        known = read_json(self.manifest) if self.manifest.exists() else {}
        environment = {
            "schema_version": SCHEMA_VERSION,
            "versions": _versions(),
            "git_revision": _git_revision(),
        }
        write_json(self.manifest, known | environment | facts)

    def finished_checkpoint(self) -> Path:
        """Return the checkpoint that later stages read: the best if there is one, else the last.

        Raises:
            RunError: If the folder is not a run, or the run is not finished.
        """
        if self.root.is_file():
            raise RunError(f"{self.root} is a file; give --from the folder of the run it is of.")
        if not self.root.is_dir():
            raise RunError(f"{self.root} does not exist; give --from the folder of a run.")
        state = self.state()
        if state != "finished":
            found = "no manifest.json" if state == "new" else f"state '{state}'"
            raise RunError(
                f"{self.root} is not a finished run ({found}); "
                "run the same `sidrec fit` command again, to resume."
            )
        for checkpoint in (self.best_checkpoint, self.last_checkpoint):
            if checkpoint.exists():
                return checkpoint
        raise RunError(f"{self.root}/checkpoints is empty; run `sidrec fit` again.")


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@cache
def _git_revision() -> str | None:
    """Return the git revision of sidrec's checkout, or None for another kind of installation.

    It asks git once: git can be slow on a busy machine, and the running code is that of the start.
    """
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None
