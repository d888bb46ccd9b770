"""Slow libraries in a process of their own: JSON in, JSON out, and the one who asked goes on meanwhile."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any, Final

from flame.model.errors import RunFailed

_POLITE: Final = 15  # how far such work steps back behind the federation beside it


class Elsewhere:
    """``python -m module`` at work on a request. A context manager: leaving it ends the process."""

    def __init__(self, module: str, request: object) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is answered by whoever started it
        )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request))
        self._process.stdin.close()
        self._process.stdin = None

    def __enter__(self) -> Elsewhere:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()

    def result(self, what: str, next_step: str) -> Any:
        """What it answered; waits for it. Raises RunFailed: ``what`` could not be done, and the library's last line."""
        out, err = self._process.communicate()
        if self._process.returncode != 0:
            lines = err.strip().splitlines() or ["it gave no reason"]
            raise RunFailed(f"{what}: {lines[-1]}", next_step=next_step)
        return json.loads(out)


def answer(act: Callable[[Any], Any]) -> None:
    """The other end: politely answer the one request on stdin."""
    os.nice(_POLITE)
    json.dump(act(json.load(sys.stdin)), sys.stdout)
