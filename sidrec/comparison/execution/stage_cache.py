"""Cache of finished stages, with checks that their outputs are unchanged."""

import time
from pathlib import Path
from typing import Any

from sidrec.comparison.plan.stages import Stage
from sidrec.errors import DataError, RunError
from sidrec.files import read_json, sha256_of_file, write_json
from sidrec.runs.directory import RunDirectory
from sidrec.semantic_ids.per_task.task_bundles import TASK_IDS
from sidrec.types import TASKS

_HASHED_BYTES = 1 << 26  # larger files are compared by size only
_BUNDLE = ("semantic_ids.json", "semantic_ids.parquet", "embeddings.safetensors")


def mark_done(stage: Stage, out: Path, *, seconds: float) -> None:
    """Mark a stage as finished, and record its output files.

    Raises:
        RunError: If an expected output file is missing.
    """
    folder = stage.folder(out)
    outputs = {}
    for file in _outputs(stage, folder):
        if not file.exists():
            raise RunError(f"{stage.label} ended without writing {file}; see its log.")
        outputs[str(file.relative_to(folder))] = _facts(file)
    write_json(
        _marker(stage, out),
        {
            "kind": stage.kind,
            "label": stage.label,
            "arguments": stage.arguments(out),
            "outputs": outputs,
            "seconds": round(seconds, 1),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        },
    )


def is_done(stage: Stage, out: Path) -> bool:
    """Return whether the stage finished and its output files are unchanged."""
    marker = _marker(stage, out)
    try:
        outputs = read_json(marker)["outputs"] if marker.exists() else None
    except (DataError, KeyError, TypeError):  # an incomplete marker means not done
        return False
    if not outputs:
        return False
    folder = stage.folder(out)
    return all(
        (folder / name).exists() and _facts(folder / name) == facts
        for name, facts in outputs.items()
    )


def seconds_of(stage: Stage, out: Path) -> float | None:
    """Return the duration of a stage's last run, in seconds, or None."""
    marker = _marker(stage, out)
    return float(read_json(marker)["seconds"]) if marker.exists() else None


def _outputs(stage: Stage, folder: Path) -> list[Path]:
    run = RunDirectory(folder)
    if stage.kind == "embeddings":
        return [run.finished_checkpoint(), *(run.semantic_ids / name for name in _BUNDLE)]
    if stage.kind == "ids" and (folder / TASK_IDS).exists():
        return [folder / TASK_IDS, *(folder / task / name for task in TASKS for name in _BUNDLE)]
    if stage.kind == "ids":
        return [folder / name for name in _BUNDLE]
    if stage.command == "fit":
        return [run.finished_checkpoint()]
    return [run.metrics, run.predictions]


def _facts(file: Path) -> dict[str, Any]:
    size = file.stat().st_size
    return {"bytes": size} | ({"sha256": sha256_of_file(file)} if size <= _HASHED_BYTES else {})


def _marker(stage: Stage, out: Path) -> Path:
    return out / "done" / f"{stage.key}.json"
