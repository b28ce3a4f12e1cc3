"""Fixtures of comparisons, for the command that runs them."""

from tests.comparison.conftest import _quick_disk, config, folder, launcher

__all__ = ["_quick_disk", "config", "folder", "launcher"]
