"""Lock of a run directory: one process owns the run; the lock of a dead owner is taken over."""

import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from sidrec.console import say
from sidrec.errors import RunError
from sidrec.runs.directory import RunDirectory

HEARTBEAT_S = 30.0
SILENT_S = 300.0  # an owner on another machine without a sign of life for this long counts as gone
_held: list[tuple[Path, "Owner"]] = []  # locks that this process holds


@dataclass(frozen=True, slots=True)
class Owner:
    """Process that holds the lock of a run.

    Attributes:
        host: Host name, for people; it may change while a process runs.
        machine: Boot id and process namespace, within which ``pid`` is meaningful.
        pid: Process id.
        process_started: Clock ticks since boot, to detect a reused ``pid``.
        since: Time at which it took the run, for people.
        job: Slurm job, or empty. A requeued job keeps its number.
        token: Unique token of the lock.
    """

    host: str
    machine: str
    pid: int
    process_started: str
    since: str
    job: str
    token: str

    @classmethod
    def this_process(cls) -> "Owner":
        """Describe the current process."""
        return cls(
            host=platform.node(),
            machine=_machine(),
            pid=os.getpid(),
            process_started=_process_started(os.getpid()),
            since=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
            job=os.environ.get("SLURM_JOB_ID", ""),
            token=uuid.uuid4().hex,
        )

    def __str__(self) -> str:
        job = f", Slurm job {self.job}" if self.job else ""
        return f"process {self.pid} on {self.host} (since {self.since}{job})"


@contextmanager
def locked(run: RunDirectory) -> Iterator[None]:
    """Hold the lock of a run while the block runs; a thread refreshes it every half minute.

    A process that is silent for too long, for example while suspended, loses the run. When it
    resumes, the thread ends it; ``refuse_if_lost`` keeps it from writing before that.

    Raises:
        RunError: If another process holds the run (names it), or the folder is not writable.
    """
    own = Owner.this_process()
    try:
        run.root.mkdir(parents=True, exist_ok=True)
        while not _create(run.lock, own):
            _take_over_or_refuse(run.lock, own)
    except OSError as error:
        raise RunError(
            f"{run.root} cannot be written ({error.strerror or error}); give a writable --run_dir, "
            "or free space."
        ) from error
    over = threading.Event()
    threading.Thread(target=_give_signs, args=(run.lock, own, over), daemon=True).start()
    _held.append((run.lock, own))
    try:
        yield
    finally:
        over.set()
        _held.remove((run.lock, own))
        found = read_owner(run.lock)
        if found is not None and found.token == own.token:
            run.lock.unlink(missing_ok=True)


def refuse_if_lost() -> None:
    """Raise if this process lost its run; call this before writing into the run directory.

    Raises:
        RunError: If another process has taken the run over.
    """
    for lock, own in _held:
        other = _taken_by(lock, own)
        if other is not None:
            raise RunError(_lost(lock, other))


def has_lost_run() -> bool:
    """Return whether another process has taken this process's run over, or its folder is gone."""
    try:
        refuse_if_lost()
    except (RunError, OSError):
        return True
    return False


def read_owner(lock: Path) -> Owner | None:
    """Return the owner of the lock; None without a lock, or when it cannot be read."""
    try:
        return Owner(**json.loads(lock.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def why_gone(lock: Path, owner: Owner | None, own: Owner) -> str | None:
    """Return why the owner of a lock no longer works on the run; None while it may.

    Args:
        lock: Lock file, whose modification time is the last sign of life.
        owner: Owner that the file names.
        own: Process that asks.
    """
    silent_s = _silent_s(lock)
    if owner is not None and owner.machine == own.machine:
        alive = owner.process_started == _process_started(owner.pid) != ""
        return None if alive else "it has ended"
    if owner is not None and owner.job and owner.job == own.job:
        return "the job was requeued"
    return f"no heartbeat for {silent_s:.0f} s" if silent_s > SILENT_S else None


def _create(lock: Path, own: Owner) -> bool:
    """Create the lock if there is none; return whether it was created."""
    spare = lock.with_name(f".{lock.name}.{own.token}.part")
    try:
        spare.write_text(json.dumps(asdict(own), indent=2) + "\n")
        return _give_name(spare, lock)
    finally:
        spare.unlink(missing_ok=True)


def _give_name(spare: Path, lock: Path) -> bool:
    """Rename the file to ``lock`` unless that exists; of two processes one succeeds."""
    try:
        os.link(spare, lock)
    except FileExistsError:
        return False
    except OSError:  # no hard links here: use the next best way
        try:
            with lock.open("x") as stream:
                stream.write(spare.read_text())
        except FileExistsError:
            return False
    return True


def _take_over_or_refuse(lock: Path, own: Owner) -> None:
    owner = read_owner(lock)
    if owner is None and not lock.exists():
        return  # released at this moment
    reason = why_gone(lock, owner, own)
    if reason is None:
        who, silent_s = owner or "an unknown process", _silent_s(lock)
        raise RunError(
            f"{lock.parent} is in use by {who}, last heartbeat {silent_s:.0f} s ago; "
            "wait for it, stop it, or give another --run_dir."
        )
    aside = lock.with_name(f".{lock.name}.{own.token}.old")
    try:
        lock.replace(aside)
    except FileNotFoundError:
        return  # another process took it over: ask again
    if read_owner(aside) != owner:  # a third process was faster, and this is its lock
        os.link(aside, lock)
    else:
        say(f"{lock.parent}: taking over from {owner or 'an unknown process'}: {reason}")
    aside.unlink()


def _give_signs(lock: Path, own: Owner, over: threading.Event) -> None:
    while not over.wait(HEARTBEAT_S):
        try:
            other = _taken_by(lock, own)
            if other is not None and not over.is_set():
                os.write(2, f"sidrec: {_lost(lock, other)}\n".encode())
                os._exit(RunError.exit_code)
            os.utime(lock)
        except OSError:
            continue  # a file server may be away for a while, which must not end a training


def _taken_by(lock: Path, own: Owner) -> Owner | None:
    """Return the process that took the run over, None while it is ours; restore a missing lock."""
    owner = read_owner(lock)
    if owner is None and not lock.exists() and not _create(lock, own):
        owner = read_owner(lock)
    return None if owner is None or owner.token == own.token else owner


def _lost(lock: Path, other: Owner) -> str:
    return (
        f"{lock.parent} was taken over by {other}, because this process had no heartbeat; it stops "
        "without writing."
    )


def _silent_s(lock: Path) -> float:
    """Return seconds since the last sign of life, by the clock of the lock's file system."""
    probe = lock.with_name(f".{lock.name}.{uuid.uuid4().hex}.part")
    try:
        probe.touch()
        os.utime(probe)
        now = probe.stat().st_mtime
        probe.unlink()
        return max(0.0, now - lock.stat().st_mtime)
    except OSError:
        return max(0.0, time.time() - lock.stat().st_mtime) if lock.exists() else 0.0


def _machine() -> str:
    """Return the scope in which a process id is unique, independent of the host name."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return platform.node()


def _process_started(pid: int) -> str:
    """Return the 22nd field of ``/proc/PID/stat``; empty when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    state, *fields = text.rpartition(")")[2].split()
    return "" if state in ("Z", "X") else fields[18]
