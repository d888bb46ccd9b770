"""Exactness badges: how far each method was from an independent pooled reference, as the tests measured it.

``badges.json`` is written by ``tests/conformance/test_methods.py`` and by nothing else. It carries a digest of its
rows, so that a change by hand is found; without the file there are no badges.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

FILE: Final = Path(__file__).with_name("badges.json")


@dataclass(frozen=True, slots=True)
class Badge:
    method: str
    """A name of the catalogue."""
    data: str
    quantity: str
    """What was compared."""
    sites: tuple[int, ...]
    """Over how many hospitals the data were split."""
    oracle: str
    deviation: float
    """The largest, rounded up to a power of ten."""
    tolerance: float


def badges_of(method: str) -> tuple[Badge, ...]:
    return tuple(badge for badge in _all() if badge.method == method)


def read_badges(text: str) -> tuple[Badge, ...]:
    """Raises ValueError when the rows are not those that were written."""
    document = json.loads(text)
    rows = document["badges"]
    if document["digest"] != _digest(rows):
        raise ValueError("badges.json was changed by hand; delete it and run tests/conformance/test_methods.py again.")
    return tuple(Badge(**{**row, "sites": tuple(row["sites"])}) for row in rows)


def written_badges(badges: tuple[Badge, ...]) -> str:
    rows: list[dict[str, Any]] = [{**asdict(badge), "sites": list(badge.sites)} for badge in badges]
    return json.dumps({"digest": _digest(rows), "badges": rows}, indent=1, ensure_ascii=False) + "\n"


@cache
def _all() -> tuple[Badge, ...]:
    return read_badges(FILE.read_text(encoding="utf-8")) if FILE.exists() else ()


def _digest(rows: list[dict[str, Any]]) -> str:
    text = json.dumps(rows, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(b"FLAME exactness badges\0" + text.encode()).hexdigest()
