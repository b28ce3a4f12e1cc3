"""Checkpoints of a run: atomic writes, checks for damage, and choice of the newest intact one."""

import os
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from sidrec.console import say
from sidrec.errors import RunError
from sidrec.files import atomic_file
from sidrec.runs.directory import RunDirectory
from sidrec.runs.lock import refuse_if_lost
from sidrec.settings import Settings

_SHARDED_FACTS = "meta.pt"  # Lightning writes it into the folder after all shards


@dataclass(frozen=True, kw_only=True)
class BestSettings(Settings):
    """Metric whose best validation chooses ``checkpoints/best.ckpt``.

    Attributes:
        monitor: Metric as the log names it, such as ``val/recommendation/ndcg@10``; None takes the
            stage's own: ``val/recall_harmonic_mean``, and the last weights of a quantizer.
        mode: Whether ``max`` or ``min`` is best.
    """

    monitor: str | None = None
    mode: Literal["max", "min"] = "max"


def damage_of(file: Path) -> str | None:
    """Return a description of a checkpoint's damage, or None.

    It reads every byte: ``torch.save`` writes a zip whose entries carry checksums. It executes no
    code. In a folder of shards it reads the files that are written last, and the others' sizes.
    """
    try:
        if file.is_dir():
            step_of(file)
            from sidrec.runs.sharded_checkpoint import index_of  # late: heavy, and rare

            index_of(file)
            return None
        if file.stat().st_size == 0:
            return "empty"
        with zipfile.ZipFile(file) as archive:
            entry = archive.testzip()
        if entry is not None:
            return f"wrong checksum in {entry}"
        step_of(file)
    except OSError as error:
        return error.strerror or type(error).__name__
    except zipfile.BadZipFile as error:
        return f"truncated or damaged: {error}"
    except Exception as error:
        return f"damaged: {type(error).__name__}"
    return None


def step_of(file: Path) -> int:
    """Return the optimizer step at which a checkpoint was written; its tensors stay on disk."""
    if file.is_dir():
        file /= _SHARDED_FACTS
    return int(torch.load(file, map_location="cpu", weights_only=True, mmap=True)["global_step"])


def newest_whole_checkpoint(run: RunDirectory) -> Path | None:
    """Return the checkpoint to resume from; None for a run that has none yet.

    It tries the newest, then the one before it, and prints which ones it skips and why.

    Raises:
        RunError: If there are checkpoints and none can be read.
    """
    damaged: dict[str, str] = {}
    for file in (run.last_checkpoint, run.previous_checkpoint):
        if not file.exists():
            continue
        problem = damage_of(file)
        if problem is None:
            for name, why in damaged.items():
                say(f"{name} cannot be read ({why}); using the previous checkpoint")
            return file
        damaged[str(file)] = problem
    if damaged:
        what = "; ".join(f"{name}: {why}" for name, why in damaged.items())
        raise RunError(
            f"No checkpoint can be read ({what}); restore one, or delete {run.root} to begin again."
        )
    return None


def checked(file: Path) -> Path:
    """Return ``file`` after a check for damage.

    Raises:
        RunError: If it is not an intact checkpoint.
    """
    problem = damage_of(file)
    if problem is not None:
        raise RunError(f"{file} cannot be read ({problem}); restore it, or train again.")
    return file


def read_checkpoint(file: Path) -> dict[str, Any]:
    """Return the content of a checkpoint, on the CPU, after a check of its bytes.

    Raises:
        RunError: If it is not an intact checkpoint.
    """
    return load_file(checked(file), map_location="cpu")


def load_file(file: Path, *, map_location: Any) -> dict[str, Any]:  # noqa: ANN401 (torch's)
    """Return the content of a checkpoint; executes no code.

    That of a folder of shards comes whole, on the CPU, without states of the optimizer.
    """
    if file.is_dir():
        from sidrec.runs.sharded_checkpoint import read_shards  # late: heavy, and rare

        facts: dict[str, Any] = torch.load(file / _SHARDED_FACTS, weights_only=True)
        return facts | {"state_dict": read_shards(file)}
    content: dict[str, Any] = torch.load(file, map_location=map_location, weights_only=True)
    return content


def keep_previous(run: RunDirectory) -> None:
    """Keep the newest checkpoint under a second name before a newer one replaces it.

    Both names exist at every moment. File systems without hard links get a copy.
    """
    newest, previous = run.last_checkpoint, run.previous_checkpoint
    if newest.is_dir():  # sharded: no hard links, so one of the two exists at every moment
        if damage_of(newest) is None:
            remove(previous)
            newest.replace(previous)
        return
    if not newest.exists():
        return
    if previous.is_dir():
        remove(previous)
    spare = previous.with_name(f".{previous.name}.part")
    spare.unlink(missing_ok=True)
    try:
        os.link(newest, spare)
    except OSError:
        shutil.copyfile(newest, spare)
    spare.replace(previous)


def replace_folder(part: Path, target: Path) -> None:
    """Put a folder that is written whole in the place of a checkpoint."""
    old = target.with_name(f".{target.name}.old")
    remove(old)
    if target.exists():
        target.replace(old)
    part.replace(target)
    remove(old)


def remove(path: Path) -> None:
    """Remove a file or folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def set_aside_damaged(run: RunDirectory, chosen: Path) -> None:
    """Rename a damaged newest checkpoint, so that it never replaces the intact one before it."""
    if chosen == run.previous_checkpoint and run.last_checkpoint.exists():
        run.last_checkpoint.replace(run.last_checkpoint.with_suffix(".damaged"))


def write_checkpoint(checkpoint: dict[str, Any], target: Path) -> None:
    """Write a checkpoint atomically: ``target`` holds the old or the new one, never a part.

    Raises:
        RunError: If it cannot be written, or another process has taken the run over; ``target``
            keeps its content.
    """
    try:
        with atomic_file(target) as temporary:
            torch.save(checkpoint, temporary)
            refuse_if_lost()  # after the write, which may take minutes
    except (OSError, RuntimeError) as error:
        free_gb = _free_gb(target)
        raise RunError(
            f"{target} cannot be written ({_first_line(error)}; {free_gb:.1f} GB free); "
            "the previous one is intact. Free space or fix the permissions, then run the same "
            "command again."
        ) from error


def _free_gb(target: Path) -> float:
    there = target
    while not there.exists():
        there = there.parent
    return shutil.disk_usage(there).free / 1e9


def _first_line(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return text.splitlines()[0][:200] if text else type(error).__name__
