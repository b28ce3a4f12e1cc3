"""How sidrec takes bad input: requests, tables, MovieLens files and configurations, spoiled.

Use: python benchmarks/fuzz.py --cases "retrieve=4000" "prepare table=2000" …
Each case runs the command itself in this process. A case counts as answered when the command
succeeds, or fails with exit code 1 to 3, one line of at most 300 characters, no traceback, no
exception that nobody foresaw, and no file left behind. In the families of
``tests/fuzz/known.py`` the right reading is known as well, and compared.
"""

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from sidrec.files import write_json
from tests.fuzz.families import FAMILIES
from tests.fuzz.tally import Tally
from tests.tiny import make_tiny

DEFAULT = {
    "retrieve": 5_000,
    "prepare table": 1_500,
    "prepare movielens": 1_000,
    "compare": 1_800,
    "ids": 400,
    "fit": 300,
    "times": 700,
    "quoting": 700,
    "names": 500,
    "types": 500,
    "texts": 500,
    "markup": 1_000,
    "arguments": 2_000,
}
_MEMORY_BYTES = 12 << 30


def main() -> None:
    """Run every family; write the result file after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="*", default=[], metavar="FAMILY=N")
    parser.add_argument("--scratch", default=None, help="Folder for the inputs, best in memory.")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/fuzz.json"))
    options = parser.parse_args()
    chosen = {name: int(n) for name, n in (case.split("=") for case in options.cases)} or DEFAULT
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    output = options.output.absolute()
    results = json.loads(output.read_text())["families"] if output.exists() else {}
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=options.scratch) as scratch:
        os.chdir(scratch)
        trained = {"compare", "fit"} & chosen.keys()
        tiny = make_tiny(Path(scratch) / "tiny") if trained else None
        for name, num_cases in chosen.items():
            tally, started = Tally(name), time.process_time()
            FAMILIES[name](tiny, Path(scratch) / "case" / "folder", tally, num_cases)
            results[name] = tally.result() | {"cpu_s": round(time.process_time() - started, 1)}
            print(name, results[name], flush=True)
            reasons = Counter(one["reason"][:160] for one in tally.wrong)
            for reason, count in reasons.most_common(40):
                print(f"  {count} x {reason}", flush=True)
            if tally.wrong:
                found = output.with_suffix(f".wrong-{name.replace(' ', '-')}.json")
                found.write_text(json.dumps(tally.wrong, indent=1, ensure_ascii=False))
            total = {
                key: sum(one[key] for one in results.values()) for key in ("tried", "answered")
            }
            write_json(
                output, {"command": "python benchmarks/fuzz.py", **total, "families": results}
            )
    print(total)


if __name__ == "__main__":
    main()
