"""Run directories: checks of configurations, files, lock, checkpoints, preemption."""
