"""Run directories: files, lock, checkpoints, preemption."""
