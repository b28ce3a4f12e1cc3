"""Rehearsal of ``make gpu-check`` on the CPU."""

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def main(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from gpu_check import main

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["gpu_check.py", *words])
        with pytest.raises(SystemExit) as left:
            main()
        return left.value.code

    return run


@pytest.mark.slow
def test_every_part_runs_and_both_files_are_written(main, tmp_path):
    assert main("--dry_run", "--out", str(tmp_path / "found")) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["is_rehearsal"]
    assert found["equality"]["k_means_repeats"]
    assert found["equality"]["codes_as_on_cpu_fraction"] == 1
    assert found["equality"]["lists_as_on_cpu_fraction"] == 1
    for part in ("k_means", "decoding", "training"):
        rates = [v for k, v in found[part].items() if k.endswith(("_s", "_mfu"))]
        assert len(rates) >= 3
        assert min(rates) > 0
    page = (tmp_path / "found.md").read_text()
    assert "## training" in page
    assert "sidrec_prior_mfu" in page


def test_without_a_gpu_nothing_is_measured(main, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "no GPU is visible" in main("--out", str(tmp_path / "found"))
    assert not list(tmp_path.iterdir())
