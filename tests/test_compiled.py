"""``torch_compile``: off unless asked for, and the same training up to rounding."""

import json
import shutil
import subprocess
import sys

import pytest
import torch

from tests.patience import patient
from tests.tiny import encoder_settings, generator_settings, sidrec, write_yaml


@pytest.mark.parametrize("stage", ["encoder", "generator"])
@pytest.mark.parametrize("asked", [False, True])
def test_a_run_compiles_only_if_asked_to(stage, asked, tiny, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(torch, "compile", lambda f, **options: calls.append(options) or f)
    settings, source, group = encoder_settings(tiny.corpus, tiny.encoder), (), "tower"
    del settings["trainer"]["callbacks"]
    if stage == "generator":
        settings, source, group = generator_settings(), ("--from", tiny.encoder_run), "t5"
    fit = ("fit", "--config", write_yaml(tmp_path / "c.yaml", settings), *source)
    steps = ("--trainer.max_steps", 1, "--run_dir", tmp_path / "run")
    assert sidrec(*fit, *steps, f"--model.{group}.torch_compile", asked) == 0
    expected = {"encoder": 1, "generator": 2}[stage] if asked else 0  # T5's two halves
    assert calls == [{"dynamic": True}] * expected


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("c++") is None and shutil.which("g++") is None,
    reason="torch.compile NOT TESTED: its kernels for a CPU need a C++ compiler (apt: g++)",
)
def test_compiled_training_is_the_same_up_to_rounding():
    done = subprocess.run(
        [sys.executable, "-m", "tests.compiled"],
        capture_output=True,
        text=True,
        timeout=patient(900),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for name, found in json.loads(done.stdout.splitlines()[-1]).items():
        assert found["graphs"] > 0, name
        assert found["losses"] < 1e-4, name
        assert found["weights"] < 1e-4, name
