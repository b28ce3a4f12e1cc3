"""``sidrec baselines --from RUN``: a generator run beside simple baselines."""

import argparse
from pathlib import Path


def main(arguments: list[str]) -> None:
    """Print the table of :func:`sidrec.comparison.table.compare_with_baselines`."""
    parser = argparse.ArgumentParser(prog="sidrec baselines", description=__doc__)
    parser.add_argument("--from", dest="run", type=Path, required=True, help="generator run")
    parser.add_argument("--corpus", type=Path, help="corpus directory, if it has moved")
    given = parser.parse_args(arguments)
    from sidrec.comparison.table import compare_with_baselines

    compare_with_baselines(given.run, given.corpus)
