"""Fixtures of comparisons, for the command that runs them, and of training that tests stop."""

import pytest

from tests.comparison.conftest import _quick_disk, config, folder, launcher

__all__ = ["_quick_disk", "config", "folder", "launcher"]


@pytest.fixture
def _stops(monkeypatch):
    """Allow tests' callbacks, and save at every step."""
    monkeypatch.setenv("SIDREC_ALLOW_IMPORTS", "tests")
    monkeypatch.setattr("sidrec.runs.callbacks._SAVE_EVERY_S", 0.0)
    monkeypatch.setattr("sidrec.runs.callbacks._SAVING_SHARE", 1.0)
