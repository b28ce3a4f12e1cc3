"""``sidrec baselines``: a generator run beside simple baselines, or one baseline as a run."""

import sys
from pathlib import Path

from sidrec.cli.parser import CommandParser
from sidrec.comparison.plan.stages import NEEDS_A_RUN, SYSTEM_NAMES
from sidrec.errors import ConfigError


def main(arguments: list[str]) -> None:
    """Print the table of a run, or write the run directory of one baseline."""
    parser = CommandParser(
        prog="sidrec baselines",
        description="Print a generator run beside simple baselines, or write one baseline's run.",
        source=f"Run of a generator; for --system {', '.join(NEEDS_A_RUN)}, of an encoder.",
    )
    parser.add_argument("--corpus", type=str | None, help="Corpus directory, if it has moved.")
    parser.add_argument(
        "--system", type=str | None, help=f"{', '.join(SYSTEM_NAMES)}, or a plug-in's."
    )
    parser.add_argument("--run_dir", type=str | None, help="Folder that --system writes.")
    given = parser.parse_args(arguments)
    run, corpus, out = (
        Path(value) if value else None for value in (given["from"], given.corpus, given.run_dir)
    )
    if given.system is not None:
        from sidrec.comparison.baselines.run_baseline import run_baseline
        from sidrec.figures import cold_start_line

        if corpus is None or out is None:
            raise ConfigError("--system needs --corpus DIR and --run_dir DIR.")
        figures = run_baseline(given.system, corpus, run=run, out=out)
        lines = [line for line in (cold_start_line(figures), f"written: {out}") if line]
        sys.stdout.write("\n".join([*lines, ""]))
        return
    if out is not None:
        raise ConfigError("--run_dir is what --system NAME writes; give both, or neither.")
    if run is None:
        raise ConfigError("`sidrec baselines` needs --from RUN, or --system NAME.")
    from sidrec.comparison.baselines.table import compare_with_baselines

    compare_with_baselines(run, corpus)
