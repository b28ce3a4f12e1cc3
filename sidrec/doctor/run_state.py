"""State of a run directory, with advice: ``sidrec doctor --run_dir FOLDER``."""

import time
from collections.abc import Iterator
from pathlib import Path

from sidrec.corpus.store import Corpus
from sidrec.doctor.finding import Finding
from sidrec.errors import RunError, SidrecError
from sidrec.files import read_json
from sidrec.runs.checkpoints import damage_of, step_of
from sidrec.runs.directory import RunDirectory
from sidrec.runs.from_run import read_config
from sidrec.runs.lock import Owner, read_owner, why_gone
from sidrec.semantic_ids.bundle.semantic_id_bundle import SemanticIdBundle

_AGAIN = "run the same `sidrec fit` command again: it goes on where it was"
_OLD_S = 3600.0  # an older temporary file belongs to no running process


def examine_run(run: RunDirectory) -> Iterator[Finding]:
    """Check state, lock, checkpoints, corpus, Semantic IDs and leftovers; nothing is changed.

    Raises:
        RunError: If there is no such folder.
    """
    if not run.root.is_dir():
        raise RunError(f"{run.root} does not exist; give --run_dir the folder of a run.")
    yield _state(run)
    yield from _lock(run)
    yield from _checkpoints(run)
    yield from _corpus(run)
    yield from _semantic_ids(run)
    yield from _leftovers(run)


def _held(run: RunDirectory) -> bool:
    if not run.lock.exists():
        return False
    return why_gone(run.lock, read_owner(run.lock), Owner.this_process()) is None


def _state(run: RunDirectory) -> Finding:
    try:
        state = run.state()
        at = read_json(run.manifest).get("at_step") if run.manifest.exists() else None
    except SidrecError as error:
        return Finding("problem", "state", str(error), "restore manifest.json, or begin a new run")
    step = f" at step {at}" if at is not None and state != "finished" else ""
    if state == "finished":
        return Finding("ok", "state", state)
    if state == "new":
        return Finding("note", "state", "no manifest.json: nothing was trained here", "")
    if state == "running" and not _held(run):
        return Finding("note", "state", "running, but no process holds it: it was killed", _AGAIN)
    if state == "running":
        return Finding("ok", "state", state)
    return Finding("note", "state", f"{state}{step}", _AGAIN)


def _lock(run: RunDirectory) -> Iterator[Finding]:
    if not run.lock.exists():
        return
    owner = read_owner(run.lock)
    reason = why_gone(run.lock, owner, Owner.this_process())
    who = str(owner) if owner else "unknown"
    if reason is None:
        yield Finding("ok", "lock", f"held by {who}")
    else:
        advice = "nothing to do: the next run takes it over"
        yield Finding("note", "lock", f"left by {who}: {reason}", advice)


def _checkpoints(run: RunDirectory) -> Iterator[Finding]:
    files = (run.last_checkpoint, run.previous_checkpoint, run.best_checkpoint)
    damage = {file: damage_of(file) for file in files if file.exists()}
    resumable = [file for file in files[:2] if file in damage and damage[file] is None]
    for file, problem in damage.items():
        if problem is None:
            yield Finding("ok", file.name, f"whole, step {step_of(file)}")
        elif file == run.best_checkpoint:
            yield Finding("problem", file.name, problem, "restore it, or train again")
        elif resumable:
            yield Finding("note", file.name, problem, f"{resumable[0].name} is used in its place")
        else:
            yield Finding("problem", file.name, problem, "restore it, or begin a new run")


def _corpus(run: RunDirectory) -> Iterator[Finding]:
    if not (run.config.exists() and run.manifest.exists()):
        return
    try:
        folder = read_config(run.config)["data"]["init_args"]["corpus"]
        fingerprint = Corpus.load(folder).fingerprint
        wanted = read_json(run.manifest).get("corpus_fingerprint")
    except (SidrecError, KeyError, TypeError) as error:
        yield Finding("problem", "corpus", str(error), "give it back its place")
        return
    if fingerprint != wanted:
        advice = "this run was trained on another one; restore it"
        yield Finding("problem", "corpus", f"{folder} has changed", advice)
    else:
        yield Finding("ok", "corpus", str(folder))


def _semantic_ids(run: RunDirectory) -> Iterator[Finding]:
    if not run.semantic_ids.exists():
        return
    try:
        bundle = SemanticIdBundle.load(run.semantic_ids)
    except SidrecError as error:
        yield Finding("problem", "Semantic IDs", str(error), "sidrec ids makes them again")
        return
    yield Finding("ok", "Semantic IDs", f"{len(bundle.item_ids):,} items, {bundle.hash[:12]}")


def _leftovers(run: RunDirectory) -> Iterator[Finding]:
    """Look for temporary files that a killed process left."""
    old = [path for path in run.root.rglob(".*") if _is_leftover(path)]
    if old:
        size = sum(file.stat().st_size for path in old for file in _files(path)) / 1e6
        names = ", ".join(str(path.relative_to(run.root)) for path in old[:3])
        more = f" and {len(old) - 3} more" if len(old) > 3 else ""
        found = f"{names}{more}: {size:.1f} MB of temporary files"
        yield Finding("note", "leftovers", found, "delete them: no process works on them")


def _is_leftover(path: Path) -> bool:
    if path.suffix not in (".part", ".old", ".damaged"):
        return False
    return time.time() - path.stat().st_mtime > _OLD_S


def _files(path: Path) -> list[Path]:
    return [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
