"""Apply small faults to a module one at a time and count those that its tests notice.

Use: python scripts/mutants.py sidrec/metrics.py --tests "tests/test_metrics.py" --sample 40
     --out benchmarks/results/mutants.json
A fault swaps a comparison or an operator, changes a number by one, negates a condition or drops a
keyword argument. The module is restored at the end, also after Ctrl-C or SIGTERM. Results of
several modules gather in one file.
"""

import argparse
import ast
import copy
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from sidrec.files import read_json, write_json

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


def faults(node: ast.AST) -> Iterator[tuple[ast.AST, str, object]]:
    """Yield what may change at a node: the node, its field, the new value."""
    for field in ("op", "ops"):
        old = getattr(node, field, None)
        first = old[0] if isinstance(old, list) else old
        if type(first) in _SWAPS:
            new = _SWAPS[type(first)]()
            yield node, field, [new, *old[1:]] if isinstance(old, list) else new
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        yield node, "value", node.value + 1
    if isinstance(node, (ast.If, ast.IfExp)):
        yield node, "test", ast.UnaryOp(ast.Not(), node.test)
    if isinstance(node, ast.Call) and node.keywords:
        yield node, "keywords", node.keywords[:-1]


def mutants(source: str) -> list[tuple[int, str, str]]:
    """Return line, description and source of every fault; annotations and docstrings stay."""
    tree, found = ast.parse(source), []
    hints = {
        id(inner)
        for node in ast.walk(tree)
        for hint in (getattr(node, "annotation", None), getattr(node, "returns", None))
        if hint is not None
        for inner in ast.walk(hint)
    }
    places = [node for node in ast.walk(tree) if id(node) not in hints]
    for number, node in enumerate(places):
        for _, field, value in faults(node):
            old = copy.deepcopy(node)
            before = getattr(node, field)
            setattr(node, field, value)
            text = ast.unparse(ast.fix_missing_locations(tree))
            told = f"{ast.unparse(old)} -> {ast.unparse(node)}".replace("\n", " ")
            setattr(node, field, before)
            found.append((getattr(node, "lineno", number), told[:160], text))
    return found


def main() -> None:
    """Run the tests once for each sampled fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("module", type=Path)
    parser.add_argument("--tests", required=True, help="arguments of pytest, separated by blanks")
    parser.add_argument("--sample", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout_s", type=float, default=120.0)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    source = given.module.read_text()
    every = mutants(source)
    chosen = random.Random(given.seed).sample(every, min(given.sample, len(every)))  # noqa: S311
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    command += given.tests.split()
    if subprocess.run(command, capture_output=True, check=False).returncode:  # noqa: S603
        sys.exit("the tests fail without any fault; mend that first")
    survivors = []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the module is restored
    try:
        for line, told, text in sorted(chosen):
            given.module.write_text(text)
            try:
                ended = subprocess.run(  # noqa: S603
                    command, capture_output=True, check=False, timeout=given.timeout_s
                )
            except subprocess.TimeoutExpired:
                continue
            if not ended.returncode:
                survivors.append({"line": line, "fault": told})
    finally:
        given.module.write_text(source)
    results = read_json(given.out) if given.out.exists() else {}
    results[str(given.module)] = {
        "possible": len(every),
        "tried": len(chosen),
        "killed": len(chosen) - len(survivors),
        "survivors": survivors,
    }
    write_json(given.out, results)
    sys.stdout.write(f"{given.module}: {len(chosen) - len(survivors)}/{len(chosen)} killed\n")


if __name__ == "__main__":
    main()
