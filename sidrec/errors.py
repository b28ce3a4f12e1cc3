"""Errors a user can act on. Each message says: what was expected, what was found, what to do."""


class SidrecError(Exception):
    """Base class: caught at the command line, nothing wider. Ends the process with code 1."""

    exit_code = 1


class ConfigError(SidrecError):
    """Two settings contradict each other, or one is out of range. Exit code 2."""

    exit_code = 2


class DataError(SidrecError):
    """A file or table breaks its contract. Exit code 3."""

    exit_code = 3


class RunError(SidrecError):
    """A run directory cannot be used: unfinished, of another stage, or of another corpus."""
