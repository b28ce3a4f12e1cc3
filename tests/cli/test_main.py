import json
import subprocess
import sys

import pytest

from sidrec.errors import ConfigError, DataError, RunError
from tests.tiny import sidrec

HEAVY = ("torch", "lightning", "transformers", "datasets", "numpy", "polars", "jsonargparse")


@pytest.mark.parametrize("words", [["--help"], [], ["--version"], ["fitt"]])
def test_help_loads_nothing_heavy(words):
    code = (
        "import json, sys\nfrom sidrec.cli.main import main\n"
        f"sys.argv = ['sidrec', *{words!r}]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_help_names_every_command(capsys):
    assert sidrec("--help") == 0
    out = capsys.readouterr().out
    for command in ("prepare", "fit", "ids", "validate", "test", "predict", "retrieve", "doctor"):
        assert f"\n  {command} " in out


def test_an_unknown_command_names_the_nearest(capsys):
    assert sidrec("retreive", "--from", "x") == 2
    assert capsys.readouterr().err == "sidrec: no command 'retreive'; did you mean 'retrieve'?\n"
    assert sidrec("xyz") == 2
    assert "choose from prepare, fit" in capsys.readouterr().err


class MisconfigurationException(Exception):  # noqa: N818 (Lightning's name)
    """Stands for Lightning's."""


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ConfigError("which key\n  and what"), 2, "sidrec: which key and what"),
        (DataError("which row"), 3, "sidrec: which row"),
        (RunError("which run"), 1, "sidrec: which run"),
        (MisconfigurationException("no GPU"), 2, "sidrec: MisconfigurationException: no GPU"),
        (ZeroDivisionError("a bug"), 1, "sidrec: ZeroDivisionError: a bug (--debug shows where)"),
        (ZeroDivisionError(), 1, "sidrec: ZeroDivisionError: no message; run again with --debug"),
        (MemoryError(), 1, "sidrec: MemoryError"),
        (
            OSError(28, "No space left on device", "runs/a"),
            1,
            "sidrec: runs/a cannot be written: No space left on device; free space and run",
        ),
        (OSError(5, "Input/output error"), 1, "sidrec: OSError: [Errno 5] Input/output error"),
        (KeyboardInterrupt(), 130, "Interrupted. Run the same command again to resume."),
    ],
)
def test_errors_are_one_line_with_their_code(monkeypatch, capsys, error, code, line):
    def fail(arguments):
        raise error

    monkeypatch.setattr("sidrec.doctor.checks.main", fail)
    assert sidrec("doctor") == code
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(line)


def test_debug_shows_where(monkeypatch, capsys):
    def fail(arguments):
        raise DataError(f"got {arguments}")

    monkeypatch.setattr("sidrec.doctor.checks.main", fail)
    assert sidrec("doctor", "--debug", "--more") == 3
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "got ['--more']" in err


def test_a_closed_pipe_is_no_error_message():
    code = f"(sleep 0.1; {sys.executable} -m sidrec --help) | true"
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""


@pytest.mark.parametrize("place", ["sidrec.cli.configs", "sidrec.cli.no_such_room"])
def test_a_command_is_imported_without_the_collector_which_is_back_afterwards(place):
    code = (
        "import gc\nfrom contextlib import suppress\nfrom sidrec.cli import main\n"
        "rounds = []\ngc.callbacks.append(lambda phase, info: rounds.append(phase))\n"
        f"main.COMMANDS['new'] = ({place!r}, 'a command')\n"
        "with suppress(ModuleNotFoundError):\n    main.import_command('new')\n"
        "print(gc.isenabled(), len(rounds), gc.get_freeze_count() > 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"True 0 {place == 'sidrec.cli.configs'}\n"
