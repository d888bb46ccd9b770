"""Rate limits on what needs no login."""

from __future__ import annotations

import time
from collections import deque
from typing import Final

from flame.model.errors import Unavailable

WINDOW: Final = 60.0
MAX_NAMES: Final = 10_000


class Attempts:
    """At most `limit` failures per minute and name (an address, an account)."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._failures: dict[str, deque[float]] = {}

    def check(self, name: str) -> None:
        """Raises Unavailable (429) when this name has failed too often."""
        recent = self._recent(name)
        if len(recent) >= self._limit:
            wait = max(1, int(WINDOW - (time.monotonic() - recent[0])) + 1)
            raise Unavailable("Too many failed attempts.", next_step=f"Wait {wait} seconds.", retryAfter=wait)

    def failed(self, name: str) -> None:
        if len(self._failures) >= MAX_NAMES:
            self._failures = {n: d for n, d in self._failures.items() if self._recent(n)}
        self._failures.setdefault(name, deque(maxlen=self._limit)).append(time.monotonic())

    def _recent(self, name: str) -> deque[float]:
        known = self._failures.get(name, deque())
        while known and known[0] < time.monotonic() - WINDOW:
            known.popleft()
        return known
