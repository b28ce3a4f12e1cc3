"""Console output: progress bars on a terminal, plain lines in a log."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")

_LINE_EVERY_S = 10.0


def say(text: str) -> None:
    """Print one line for the user on standard error; standard output is for results."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def track(items: Iterable[Item], what: str, *, total: int) -> Iterator[Item]:
    """Yield ``items`` and show progress out of ``total``, with the remaining time.

    On a terminal this is a bar; elsewhere at most one line every ten seconds.
    """
    if sys.stderr.isatty():
        yield from _bar(items, what, total)
        return
    started = last = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last >= _LINE_EVERY_S and done < total:
            last = now
            left_s = (now - started) / done * (total - done)
            say(f"{what}: {done:,} of {total:,}, about {left_s:.0f} s left")


def _bar(items: Iterable[Item], what: str, total: int) -> Iterator[Item]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield from progress.track(items, total=total, description=what)
