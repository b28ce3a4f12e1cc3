"""Planned stages -> finished runs, on this machine or through Slurm."""
