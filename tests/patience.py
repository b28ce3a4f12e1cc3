"""Time limits for a busy machine: they grow as much as a little work takes longer there."""

import time

_WORK_S = 0.1


def patient(seconds):
    """Return a limit for what takes at most ``seconds`` when nobody else is at work."""
    return seconds * slowness()


def slowness():
    """Return how many seconds a processor second takes at this moment, at least 1."""
    wall, processor = time.perf_counter(), time.process_time()
    while time.process_time() - processor < _WORK_S:
        pass
    return max(1.0, (time.perf_counter() - wall) / _WORK_S)
