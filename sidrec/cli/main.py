"""Entry point ``sidrec COMMAND``: import only what the command needs, print errors as one line."""

import errno
import gc
import os
import sys
import traceback
from importlib import import_module
from types import ModuleType
from typing import NoReturn

from sidrec import __version__
from sidrec.errors import MAX_CHARACTERS, ConfigError, SidrecError, one_line
from sidrec.runs.preemption import PREEMPTED_EXIT_CODE, STOP, Preempted

COMMANDS = {
    "prepare": (
        "sidrec.cli.preparing.prepare",
        "raw files -> corpus: prepare movielens|table|amazon|…",
    ),
    "fit": (
        "sidrec.cli.train",
        "train the bi-encoder (then make Semantic IDs) or the joint generator",
    ),
    "ids": ("sidrec.cli.ids", "make Semantic IDs again from stored embeddings"),
    "fuse": ("sidrec.cli.fuse", "Semantic IDs from the vectors of two runs"),
    "validate": ("sidrec.cli.train", "validation figures of a run"),
    "test": ("sidrec.cli.train", "decode the test split: metrics.json and predictions.parquet"),
    "predict": ("sidrec.cli.train", "ranked items of the test split, without figures"),
    "retrieve": ("sidrec.cli.retrieve", "batch inference on your own requests"),
    "serve": (
        "sidrec.cli.publish.serve",
        "a page and an endpoint on localhost, for trying and showing",
    ),
    "baselines": ("sidrec.cli.baselines", "a generator run beside simple baselines"),
    "compare": ("sidrec.cli.compare", "strategies x seeds -> table, tests, report"),
    "export": (
        "sidrec.cli.publish.export",
        "a run for sentence-transformers, transformers and the hub",
    ),
    "configs": ("sidrec.cli.configs", "the packaged configurations: list, or copy one"),
    "doctor": ("sidrec.doctor.checks", "what works on this machine and what does not"),
}
EXTRAS = {  # optional packages by their import names
    "faiss": "cpu",
    "peft": "peft",
    "sklearn": "dictionary",
    "starlette": "serve",
    "uvicorn": "serve",
    "vector_quantize_pytorch": "learned",
    "wandb": "wandb",
}
_INTERRUPTED = 130  # exit code of shells for Ctrl-C
_WRONG_USAGE = 2
_FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def main() -> None:
    """Run the command that ``sys.argv`` names; exit with the code that CONTRACT states."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    sys.argv[1:] = arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        with STOP.listening():
            _run(arguments)
        sys.stdout.flush()
    except SidrecError as error:
        _fail(error, debug=debug, code=error.exit_code)
    except Preempted:
        sys.stderr.write("Preempted. Run the same command again to resume.\n")
        sys.exit(PREEMPTED_EXIT_CODE)
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted. Run the same command again to resume.\n")
        sys.exit(_INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except ModuleNotFoundError as error:
        _fail(_missing_extra(error), debug=debug, code=_WRONG_USAGE)
    except OSError as error:
        _fail(_full_disk(error), debug=debug, code=1)
    except Exception as error:
        _fail(error, debug=debug, code=_WRONG_USAGE if _is_wrong_usage(error) else 1)


def _run(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(_help())
    elif arguments[0] == "--version":
        sys.stdout.write(f"sidrec {__version__}\n")
    else:
        name = arguments[0]
        if name not in COMMANDS:
            _refuse_command(name)
        from sidrec.cli.front import TRAINING_COMMANDS, prepared

        rest = prepared(name, arguments[1:])
        module = import_command(name)
        module.main([name, *rest] if name in TRAINING_COMMANDS else rest)


def import_command(name: str) -> ModuleType:
    """Import the module of a command, undisturbed by the garbage collector.

    Its passes over what imports leave behind, in their midst and at the end of the process, take
    a fifth of the start of a training and find next to nothing.
    """
    place = COMMANDS[name][0]
    if place not in sys.modules:
        gc.disable()
        try:
            import_module(place)
            gc.freeze()
        finally:
            gc.enable()
    return sys.modules[place]


def _refuse_command(name: str) -> NoReturn:
    from difflib import get_close_matches

    near = get_close_matches(name, COMMANDS, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"choose from {', '.join(COMMANDS)}."
    sys.stderr.write(f"sidrec: no command '{name}'; {hint}\n")
    sys.exit(_WRONG_USAGE)


def _missing_extra(error: ModuleNotFoundError) -> Exception:
    """Return an error that names the extra for a missing optional package."""
    package = (error.name or "").partition(".")[0]
    if package not in EXTRAS:
        return error
    return ConfigError(f"{package} is not installed; pip install 'sidrec[{EXTRAS[package]}]'.")


def _full_disk(error: OSError) -> Exception:
    if error.errno not in _FULL_DISK:
        return error
    file = error.filename or "The output"
    return SidrecError(
        f"{file} cannot be written: {error.strerror}; free space and run the same command again."
    )


def _is_wrong_usage(error: Exception) -> bool:
    """Return whether Lightning rejects Trainer settings, without importing Lightning."""
    return type(error).__name__ == "MisconfigurationException"


def _fail(error: Exception, *, debug: bool, code: int) -> None:
    if debug:
        traceback.print_exception(error)
    else:
        text = str(error).strip() or "no message; run again with --debug"
        kind = "" if isinstance(error, SidrecError) else f"{type(error).__name__}: "
        hint = "" if isinstance(error, SidrecError) else " (--debug shows where)"
        room = getattr(error, "max_characters", MAX_CHARACTERS) - len(f"sidrec: {kind}{hint}")
        sys.stderr.write(f"sidrec: {kind}{one_line(text, max_characters=room)}{hint}\n")
    sys.exit(code)


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name.ljust(width)}  {what}" for name, (_, what) in COMMANDS.items()]
    return (
        "sidrec: Semantic IDs for joint generative search and recommendation\n\n"
        "usage: sidrec COMMAND [--help] [--debug] ...\n\n" + "\n".join(lines) + "\n\n"
        "exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 bad data, "
        "85 preempted and resumable\n"
    )
