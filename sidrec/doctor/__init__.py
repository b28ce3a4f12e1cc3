"""Findings about this machine, a run or a corpus."""
