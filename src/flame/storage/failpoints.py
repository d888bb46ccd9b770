"""Places where a process may be made to die, so that tests can prove that what was acknowledged is still there.

A fail point is a name and a promise: what is on the disk when the program gets there. It does nothing unless the
process was started with ``FLAME_TEST_HOOKS=1`` and ``FLAME_FAILPOINT=<name>``; then the process kills itself
(SIGKILL: no clean-up, no flush) the first time it comes by, or the n-th time with ``FLAME_FAILPOINT_HIT=n``.
``FLAME_FAILPOINT_ONCE`` names a marker file that keeps it from dying a second time after its restart.
"""

from __future__ import annotations

import itertools
import os
import signal
from contextlib import suppress
from pathlib import Path

from flame.model.errors import Conflict

FAILPOINTS: dict[str, str] = {}
"""Name -> what is persisted when the program gets there. Tests enumerate it; `declare` fills it."""

_HOOKS = "FLAME_TEST_HOOKS"
_NAME = "FLAME_FAILPOINT"
_ONCE = "FLAME_FAILPOINT_ONCE"
_HIT = "FLAME_FAILPOINT_HIT"
_hits = itertools.count(1)


def declare(name: str, what: str) -> str:
    """Add a fail point at import time and return its name. The same name with another meaning is a Conflict."""
    if FAILPOINTS.setdefault(name, what) != what:
        raise Conflict(f"The fail point {name} is declared twice, with different meanings.")
    return name


def reached(name: str) -> None:
    """Die here, if the environment says so; otherwise nothing. An undeclared name is a Conflict, so that none hides."""
    if name not in FAILPOINTS:
        raise Conflict(f"The fail point {name} is not declared.", next_step="Call declare() where it is defined.")
    if os.environ.get(_NAME) == name and os.environ.get(_HOOKS) == "1" and _its_turn() and _first_time():
        os.kill(os.getpid(), signal.SIGKILL)


def _its_turn() -> bool:
    return next(_hits) >= int(os.environ.get(_HIT, "1"))


def _first_time() -> bool:
    marker = os.environ.get(_ONCE)
    if marker is None:
        return True
    with suppress(FileExistsError):
        Path(marker).touch(exist_ok=False)
        return True
    return False
