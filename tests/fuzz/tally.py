"""Run a command on a spoiled input in this process, and judge how it took it."""

import contextlib
import io
import shutil
import signal
import traceback
import warnings
from collections import Counter

from hypothesis import HealthCheck, Phase, given, settings

from tests.tiny import sidrec

MAX_CHARACTERS = 300
_AT_WORK_S = 120


class AtWorkError(BaseException):
    """A command took the input and went to work on it for longer than we watch."""


class Tally:
    """What became of the inputs of one family.

    Attributes:
        counts: Cases by exit code, and ``wrong``.
        wrong: Reason and input of each case that was not answered as it should be.
    """

    def __init__(self, name):
        self.name, self.counts, self.wrong = name, Counter(), []
        self.lengths = []

    def judge(self, folder, what, *command, wrong=lambda code: ""):
        """Run ``sidrec COMMAND``; files may change in ``folder`` only if it succeeds.

        ``wrong`` returns what is wrong with the result, given the exit code.
        """
        before = files_in(folder)
        code, out, err, reason = run(*command)
        lines = [line for line in err.splitlines() if line.startswith("sidrec")]
        self.lengths += [len(line) for line in lines]
        if code == 0:
            reason = reason or ("an error is said, exit code 0" if lines else "")
        elif not reason:
            reason = complaint(code, out, err, lines)
            if files_in(folder) != before:
                reason = reason or f"left behind: {sorted(files_in(folder) - before)}"
        reason = reason or wrong(code)
        if "canary" in files_in(folder):
            reason = "the configuration ran a command"
        self.add(code, reason, what, err)
        return code

    def add(self, code, reason, what, err=""):
        """Count one case."""
        self.counts["wrong" if reason else str(code)] += 1
        if reason:
            self.wrong.append({"reason": reason, "input": repr(what)[:2_000], "said": err[-1_500:]})

    def result(self):
        """Return the figures as JSON."""
        tried = sum(self.counts.values())
        return {
            "tried": tried,
            "answered": tried - self.counts["wrong"],
            "by_exit_code": dict(sorted(self.counts.items())),
            "longest_line": max(self.lengths, default=0),
        }


def run(command, *arguments):
    """Return exit code, standard output and error, and what escaped the command."""
    out, err, reason = io.StringIO(), io.StringIO(), ""

    def stop(*_):
        raise AtWorkError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(_AT_WORK_S)
    try:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            code = sidrec(command, *arguments)
    except AtWorkError:
        code, reason = -1, f"still at work after {_AT_WORK_S} s"
    except BaseException as error:  # a panic of Rust is no Exception
        code = -1
        reason = f"{type(error).__name__} escaped: {traceback.format_exc()[-1_500:]}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return code, out.getvalue(), err.getvalue(), reason


def complaint(code, out, err, lines):
    """Return what is wrong with the way in which a command refused; empty if nothing is."""
    if code not in (1, 2, 3):
        return f"exit code {code}"
    if "Traceback" in out + err:
        return "a traceback"
    if len(lines) != 1:
        return f"{len(lines)} lines"
    if err.splitlines()[-1] != lines[0]:
        return "the error is not the last line"
    if len(lines[0]) > MAX_CHARACTERS:
        return f"{len(lines[0])} characters"
    if "(--debug shows where)" in lines[0]:
        return "an exception that nobody foresaw"
    return ""


def fresh(folder):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def write(files, folder):
    """Write what is there; a name without content is a file that is missing."""
    for name, data in files.items():
        if data is not None:
            (folder / name).write_bytes(data)


def files_in(folder):
    """Return the names of all files and folders in a folder."""
    return {str(file.relative_to(folder)) for file in folder.rglob("*")}


def each(strategy, num_cases, one):
    """Call ``one`` with ``num_cases`` inputs, the same ones every time."""

    @settings(
        max_examples=num_cases,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def cases(value):
        one(value)

    cases()
