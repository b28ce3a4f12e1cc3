"""Apply small faults to the mathematics of each room and count those that its tests notice.

Use: python scripts/mutants.py --sample 10 --rooms encoder kmeans
     python scripts/mutants.py --again   (after new tests: what survived without a reason)
The file ``scripts/mutants.yaml`` names the rooms, their modules and the tests of each module,
and the faults that change no result, with the reason: they count as equivalent.
A fault swaps an operator, a comparison or a reduction, drops a sign or a keyword argument,
changes a number by one, or negates a condition. This process imports torch and the test tools
once; each fault runs in a forked child that reads the changed module from memory, so no file
changes. Tests that start further processes are left out: those would read the file. A child that
takes five times the processor time of the faultless run counts as noticed.
"""

import argparse
import ast
import copy
import importlib
import importlib.machinery
import os
import random
import resource
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

_ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(_ROOT))
_WARM = (
    "accelerate",
    "datasets",
    "hypothesis",
    "jsonargparse",
    "lightning",
    "pandas",
    "polars",
    "scipy.stats",
    "sklearn.cluster",
    "torchmetrics",
    "transformers.models.t5.modeling_t5",
)
_SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.BitAnd: ast.BitOr,
    ast.And: ast.Or,
    ast.Or: ast.And,
}
_PAIRS = (("min", "max"), ("argmin", "argmax"), ("sum", "mean"), ("amin", "amax"), ("any", "all"))
_NAMES = dict(_PAIRS) | {right: left for left, right in _PAIRS}
_WALL_S = 3600  # for a child that waits for ever
_STARTERS = {"run_on_ranks", "subprocess"}


class Fault(NamedTuple):
    """Changed source of a module.

    Attributes:
        module: Path from the root of the repository.
        line: Line of the change.
        code: Text of that line.
        told: Expression before and after.
        source: Whole module with the change.
    """

    module: str
    line: int
    code: str
    told: str
    source: str

    @property
    def key(self) -> str:
        """Name that stays the same while lines move."""
        return f"{self.module}: {self.code}: {self.told}"


def faults(node: ast.AST) -> Iterator[tuple[str, object]]:
    """Yield what may change at a node: the field and its new value."""
    for field in ("op", "ops"):
        old = getattr(node, field, None)
        first = old[0] if isinstance(old, list) else old
        if type(first) in _SWAPS:
            new = _SWAPS[type(first)]()
            yield field, [new, *old[1:]] if isinstance(old, list) else new
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield "op", ast.UAdd()
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        yield "value", node.value + 1
    if isinstance(node, ast.Attribute) and node.attr in _NAMES:
        yield "attr", _NAMES[node.attr]
    if isinstance(node, (ast.If, ast.IfExp)):
        yield "test", ast.UnaryOp(ast.Not(), node.test)
    if isinstance(node, ast.Call) and node.keywords:
        yield "keywords", node.keywords[:-1]


def mutants(module: str) -> list[Fault]:
    """Return every fault of a module outside annotations, decorators and error messages."""
    text, found = (_ROOT / module).read_text(), []
    tree, lines = ast.parse(text), text.splitlines()
    left_out = {id(inner) for part in _no_mathematics(tree) for inner in ast.walk(part)}
    for node in list(ast.walk(tree)):
        if id(node) in left_out:
            continue
        for field, value in faults(node):
            old, before = copy.deepcopy(node), getattr(node, field)
            setattr(node, field, value)
            source = ast.unparse(ast.fix_missing_locations(tree))
            told = f"{ast.unparse(old)} -> {ast.unparse(node)}".replace("\n", " ")
            setattr(node, field, before)
            line = getattr(node, "lineno", 1)
            found.append(Fault(module, line, lines[line - 1].strip(), told[:160], source))
    return found


def _no_mathematics(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.walk(tree):
        yield from filter(None, (getattr(node, "annotation", None), getattr(node, "returns", None)))
        yield from getattr(node, "decorator_list", [])
        if isinstance(node, ast.Raise):
            yield node


def run_tests(tests: str, fault: Fault | None, cpu_s: int) -> tuple[int, float]:
    """Run tests in a forked child; return its exit status and its processor time in seconds."""
    child = os.fork()
    if not child:
        if fault:
            silent = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silent, 1)
            os.dup2(silent, 2)
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s))
        signal.alarm(_WALL_S)
        sys.dont_write_bytecode = False  # unchanged modules are compiled once
        if fault:
            _load_from_memory(_ROOT / fault.module, fault.source.encode())
        import pytest

        options = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow and not gpu"]
        options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
        os._exit(int(pytest.main([*options, *tests.split()], plugins=[_InThisProcess()])))
    _, status, used = os.wait4(child, 0)
    return status, used.ru_utime + used.ru_stime


class _InThisProcess:
    """Plugin of pytest that leaves out tests which start processes."""

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Keep the tests whose own code starts no process."""
        items[:] = [item for item in items if not _STARTERS & names_of(item)]


def names_of(item: Any) -> set[str]:  # noqa: ANN401
    """Return the global names that the function of a test uses."""
    code = getattr(getattr(item, "function", None), "__code__", None)
    return set(code.co_names) if code else set()


def _load_from_memory(path: Path, source: bytes) -> None:
    loader = importlib.machinery.SourceFileLoader
    of_file = loader.get_data
    sys.dont_write_bytecode = True

    def get_data(self: importlib.machinery.SourceFileLoader, name: str) -> bytes:
        if name == str(path):
            return source
        if name.endswith(".pyc") and Path(name).name.split(".")[0] == path.stem:
            raise OSError("compiled again")
        return of_file(self, name)

    loader.get_data = get_data  # type: ignore[method-assign]


def survivors_of(chosen: list[Fault], tests: dict[str, str]) -> list[Fault]:
    """Return the faults that the tests of their modules do not notice."""
    survivors, limits = [], {}
    for fault in chosen:
        files = tests[fault.module]
        if files not in limits:
            status, used = run_tests(files, None, 10_000)
            if status:
                sys.exit(f"{files}: fails without any fault; mend that first")
            limits[files] = int(5 * used) + 10
        status, used = run_tests(files, fault, limits[files])
        sys.stdout.write(f"{(status and 'killed') or 'SURVIVED'} {used:.1f} s {fault[:4]}\n")
        sys.stdout.flush()
        if not status:
            survivors.append(fault)
    return survivors


def main() -> None:
    """Run the tests once for each chosen fault and store what each room noticed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rooms", nargs="*", default=[], help="all rooms by default")
    parser.add_argument("--sample", type=int, default=10, help="faults per room")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--again", action="store_true", help="only what survived in --out without a reason"
    )
    parser.add_argument("--plan", type=Path, default=_ROOT / "scripts/mutants.yaml")
    parser.add_argument("--out", type=Path, default=_ROOT / "benchmarks/results/mutants.json")
    given = parser.parse_args()
    plan = yaml.safe_load(given.plan.read_text())
    os.chdir(_ROOT)
    for name in _WARM:
        importlib.import_module(name)
    from sidrec.files import read_json, write_json

    for name in [name for name in sys.modules if name.partition(".")[0] == "sidrec"]:
        del sys.modules[name]  # the children import sidrec with types checked
    results = read_json(given.out) if given.out.exists() else {"rooms": {}}
    for room in given.rooms or plan["rooms"]:
        tests = plan["rooms"][room]
        every = [fault for module in tests for fault in mutants(module)]
        killed_before, survivors = 0, []
        if given.again:
            before = results["rooms"][room]
            killed_before, keys = before["killed"], {one["fault"] for one in before["survivors"]}
            chosen = [fault for fault in every if fault.key in keys]
            survivors = [fault for fault in chosen if fault.key in plan["reasons"]]
        else:
            chosen = random.Random(given.seed).sample(every, min(given.sample, len(every)))  # noqa: S311
        survivors += survivors_of([fault for fault in chosen if fault not in survivors], tests)
        reasons = [plan["reasons"].get(fault.key, "") for fault in survivors]
        results["rooms"][room] = {
            "possible": len(every),
            "tried": killed_before + len(chosen),
            "killed": killed_before + len(chosen) - len(survivors),
            "equivalent": sum(map(bool, reasons)),
            "survivors": [
                {"fault": fault.key, "line": fault.line, "reason": reason}
                for fault, reason in zip(survivors, reasons, strict=True)
            ],
        }
        for count in ("tried", "killed", "equivalent"):
            results[count] = sum(one[count] for one in results["rooms"].values())
        write_json(given.out, results)
        sys.stdout.write(f"{room}: {results['rooms'][room]}\n")


if __name__ == "__main__":
    main()
