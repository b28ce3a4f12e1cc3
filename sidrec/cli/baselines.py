"""``sidrec baselines``: a generator run beside simple baselines, or one baseline as a run."""

import argparse
import sys
from pathlib import Path

from sidrec.errors import ConfigError


def main(arguments: list[str]) -> None:
    """Print the table of a run, or write the run directory of one baseline."""
    parser = argparse.ArgumentParser(prog="sidrec baselines", description=__doc__)
    parser.add_argument("--from", dest="run", type=Path, help="generator run; encoder run of dense")
    parser.add_argument("--corpus", type=Path, help="corpus directory, if it has moved")
    parser.add_argument("--system", help="popularity, bm25, neighbors, dense or enmf")
    parser.add_argument("--run_dir", type=Path, help="folder that --system writes")
    given = parser.parse_args(arguments)
    if given.system is not None:
        from sidrec.comparison.baselines.run_baseline import run_baseline

        if given.corpus is None or given.run_dir is None:
            raise ConfigError("--system needs --corpus DIR and --run_dir DIR.")
        run_baseline(given.system, given.corpus, run=given.run, out=given.run_dir)
        sys.stdout.write(f"written: {given.run_dir}\n")
        return
    if given.run is None:
        raise ConfigError("`sidrec baselines` needs --from RUN, or --system NAME.")
    from sidrec.comparison.baselines.table import compare_with_baselines

    compare_with_baselines(given.run, given.corpus)
