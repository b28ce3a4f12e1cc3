"""Finding of a check, and reachability of network addresses."""

import threading
from typing import Literal, NamedTuple

Verdict = Literal["ok", "note", "problem"]
TIMEOUT_S = 3.0


class Finding(NamedTuple):
    """Finding of one check.

    Attributes:
        verdict: ``problem`` means that sidrec cannot work; ``note`` that something optional is
            missing or untested.
        what: Name of the checked item.
        found: Current state.
        advice: What to do about it; empty where no action is needed.
    """

    verdict: Verdict
    what: str
    found: str
    advice: str = ""


class Question:
    """Background check of whether an address answers, so that a slow network delays nothing."""

    def __init__(self, address: str) -> None:
        self.address, self._answered = address, False
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def answered(self) -> bool:
        """Return whether anything answered; waits three seconds at most."""
        self._thread.join(TIMEOUT_S)
        return self._answered

    def _ask(self) -> None:
        import requests

        try:
            requests.head(self.address, timeout=TIMEOUT_S)
        except requests.RequestException:
            return
        self._answered = True
