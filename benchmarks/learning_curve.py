"""How far from converged a training was: validation Recall@30 over its steps, of any runs.

Use: sidrec fit --config configs/movies/encoder-core.yaml --data.corpus data/movies-core \
         --trainer.max_steps 400 --trainer.val_check_interval 50 --run_dir runs/curve/encoder
     python benchmarks/learning_curve.py "encoder, 400 steps=runs/curve/encoder" …
Figures come from each run's CSV logs. With ``--over processor`` the picture shows them over the
processor minutes of each run's process. Rates decay over the whole of a run, so the figure at step
200 of a long run is not that of a run of 200 steps: give both.
"""

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from sidrec.comparison.report.plots import as_svg, curves_figure, learning_curve
from sidrec.errors import ConfigError, RunError
from sidrec.files import atomic_file, read_json, write_json
from sidrec.runs.directory import RunDirectory
from sidrec.runs.from_run import read_config


def curve_of(name: str, folder: Path) -> dict[str, Any]:
    """Return a run's curve with what it was trained with.

    Returns:
        ``steps``, ``recalls`` per task, ``max_steps``, ``seed``, ``state`` and, per task,
        ``last_gain``: by how much the last interval between validations raised the figure.

    Raises:
        RunError: If the run validated nothing, or another logger than the CSV logger ran.
    """
    curve = learning_curve(folder)
    if curve is None:
        raise RunError(f"{folder} holds no validation figures in logs/*/metrics.csv.")
    run = RunDirectory(folder)
    config = read_config(run.config)
    return {
        "name": name,
        "run": str(folder),
        "state": run.state(),
        "max_steps": config["trainer"]["max_steps"],
        "seed": config["seed_everything"],
        "corpus_fingerprint": read_json(run.manifest).get("corpus_fingerprint"),
        **curve._asdict(),
        "last_gain": {
            task: own[-1] - own[-2] for task, own in curve.recalls.items() if len(own) > 1
        },
    }


def split_name(word: str) -> tuple[str, Path]:
    """Return name and folder of ``NAME=DIR``.

    Raises:
        ConfigError: If a part is missing.
    """
    name, _, folder = word.rpartition("=")
    if not name or not folder:
        raise ConfigError(f"a run is NAME=DIR, got '{word}'.")
    return name, Path(folder)


def main() -> None:
    """Write the curves as JSON and as one picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "runs", nargs="+", metavar="NAME=DIR", help="run directories, finished or not"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("benchmarks/results/learning_curve.json")
    )
    parser.add_argument("--over", choices=("steps", "processor"), default="steps")
    chosen = parser.parse_args()
    curves = [curve_of(*split_name(word)) for word in chosen.runs]
    over_time = chosen.over == "processor"
    if over_time and (without := [one["name"] for one in curves if not one["processor_s"]]):
        raise RunError(f"logs without processor time: {', '.join(without)}; train again.")
    write_json(
        chosen.output,
        {
            "command": f"python {shlex.join(sys.argv)}",
            "figure": "Recall@30 on validation requests (generators: data.valid_requests per task)",
            "curves": curves,
        },
    )
    picture = chosen.output.with_suffix(".svg")
    with atomic_file(picture) as temporary:
        drawn = curves_figure([one["name"] for one in curves], curves, over_time=over_time)
        temporary.write_text(as_svg(drawn, "curves"))
    for one in curves:
        ends = {task: round(own[-1], 3) for task, own in one["recalls"].items()}
        print(f"{one['name']}: step {one['steps'][-1]} of {one['max_steps']}: {ends}")
    print(f"written: {chosen.output} and {picture}")


if __name__ == "__main__":
    main()
