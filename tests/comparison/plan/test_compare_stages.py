"""``sidrec compare`` with real stages, in this process and as processes of its own."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sidrec.cli import compare as compare_command
from sidrec.files import read_json
from tests.comparison.made import compare, launch_in_process

IDS = Path(__file__).parents[3] / "configs" / "ids"

pytestmark = pytest.mark.usefixtures("_quick_disk")


@pytest.mark.slow
def test_real_stages(folder, tmp_path, monkeypatch):
    """Every kind of stage of configs/compare/movies.yaml, trained for a few steps."""
    settings = yaml.safe_load((folder / "tiny.yaml").read_text()) | {"out": str(tmp_path / "out")}
    joint = settings["generators"]["joint"]
    for name, change in {
        "no_prior": {"model.prior": None},
        "search_only": {"data.tasks.recommendation_share": 0.0},
        "rec_only": {"data.tasks.search_share": 0.0},
    }.items():
        settings["generators"][name] = joint | {"set": change}
        settings["strategies"][name] = settings["strategies"]["multitask"] | {"generator": name}
    sizes, learned = {"codebook_sizes": [8, 8]}, {"num_steps": 3, "batch_size": 16}
    for name, changes in {
        "balanced": sizes,
        "dictionary": sizes,
        "rq_vae": {"method.init_args.codebook_sizes": [8, 8], **learned},
        "residual_lfq": {"method.init_args.codebook_sizes": [8, 8], **learned},
        "random": sizes,
        "atomic": {},
    }.items():
        settings["ids"][name] = {
            "configs": [str(IDS / f"{name}.yaml")],
            "set": {f"quantizer.init_args.{key}": value for key, value in changes.items()},
        }
        settings["strategies"][name] = settings["strategies"]["multitask"] | {"ids": name}
    settings["strategies"]["atomic_no_prior"] = settings["strategies"]["atomic"] | {
        "generator": "no_prior"
    }
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(settings | {"seeds": [1]}, sort_keys=False))
    monkeypatch.setattr(compare_command, "launch_here", launch_in_process)
    report = compare(config)
    assert report["failures"] == []
    rows = {row["name"]: row for row in report["systems"]}
    assert all(row["figures"] for row in rows.values())
    kept = rows["multitask-kept"]
    assert kept["figures"]["search/inflation"] >= 0
    assert kept["ids"]["ids/collision_rate"] > 0
    for name, left_out in (("search_only", "recommendation"), ("rec_only", "search")):
        assert f"{left_out}/recall@30" not in rows[name]["figures"]
    assert [len(level) for level in rows["atomic"]["usage"]] == [60]  # one code per item


@pytest.mark.slow
def test_stages_as_processes(folder, tmp_path):
    """The command itself: stages side by side, each a process; a second call runs none again."""
    settings = yaml.safe_load((folder / "tiny.yaml").read_text())
    settings |= {"out": str(tmp_path / "out"), "seeds": [1]}
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(settings, sort_keys=False))
    command = [sys.executable, "-m", "sidrec", "compare", "--config", str(config), "--jobs", "2"]
    command += ["--strategies", "multitask,BM25"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "[5/5]" in done.stderr
    report = read_json(tmp_path / "out" / "report.json")
    assert report["failures"] == []
    assert [row["seeds"] for row in report["systems"]] == [[1], [None]]  # no seed affects BM25
    logs = sorted(file.name.split("-")[0] for file in (tmp_path / "out" / "logs").iterdir())
    assert logs == ["baseline", "embeddings", "generator", "ids", "test"]
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "[" not in again.stderr.split("written:")[0]
    assert read_json(tmp_path / "out" / "report.json")["systems"] == report["systems"]
