"""Processes of a federation on one machine: started, found again, ended by their own process id."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from flame.model.errors import Unavailable

STARTED_WITHIN = 60.0


class _Process(subprocess.Popen[str]):
    """One that may go on without us, which its own class takes for a mistake."""

    def __del__(self) -> None:  # type: ignore[override,unused-ignore]
        return


class Child:
    """One process of ours, in a session of its own so that Ctrl-C reaches only the one who started it."""

    def __init__(self, arguments: list[str], log: Path, variables: dict[str, str] | None = None) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as errors:
            self.process = _Process(
                [sys.executable, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
                text=True,
                env={**_environment(), **(variables or {})},
            )
        self._log = log

    @property
    def pid(self) -> int:
        return self.process.pid

    def say(self, **order: str) -> None:
        try:
            _pipe(self.process.stdin).write(json.dumps(order) + "\n")
            _pipe(self.process.stdin).flush()
        except BrokenPipeError:
            raise self._did_not_start() from None

    def answer(self) -> Any:
        """The next line of its output, as JSON."""
        line = _pipe(self.process.stdout).readline()
        if not line:
            raise Unavailable(
                f"A part of the federation did not start: {self.last_words()}", next_step=f"See {self._log}."
            )
        return json.loads(line)

    def _did_not_start(self) -> Unavailable:
        return Unavailable(
            f"A part of the federation did not start: {self.last_words()}", next_step=f"See {self._log}."
        )

    def last_words(self) -> str:
        with suppress(OSError):
            return self._log.read_text(errors="replace")[-2000:].strip()
        return ""

    def let_go(self) -> None:
        """It goes on without us."""
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()


def wait_for_file(path: Path, child: Child) -> dict[str, Any]:
    """The JSON file by which a service says that it listens."""
    until = time.monotonic() + STARTED_WITHIN
    while True:
        with suppress(OSError, ValueError):
            content: dict[str, Any] = json.loads(path.read_text())
            if content.get("pid") == child.pid:
                return content
        if child.process.poll() is not None or time.monotonic() > until:
            raise Unavailable(f"A part of the federation did not start: {child.last_words()}")
        time.sleep(0.01)


def end(pid: int, seconds: float = 10.0) -> None:
    """Ask a process to end, then make it; by its own id and nothing else."""
    for number, patience in ((signal.SIGTERM, seconds), (signal.SIGKILL, 5.0)):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return
        until = time.monotonic() + patience
        while time.monotonic() < until:
            if not alive(pid):
                return
            time.sleep(0.01)


def alive(pid: int) -> bool:
    with suppress(ChildProcessError):
        done, _ = os.waitpid(pid, os.WNOHANG)
        if done == pid:
            return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return not _is_zombie(pid)


def belongs(pid: int, directory: Path) -> bool:
    """Whether a process id still is the process that was started for this directory, and not a stranger's."""
    with suppress(OSError):
        return str(directory).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def _is_zombie(pid: int) -> bool:
    with suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    return False


def _environment() -> dict[str, str]:
    """What a service of ours needs of the caller's environment; nothing that could change what it is."""
    kept = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "XDG_CACHE_HOME", "SSL_CERT_FILE", "PYTHONDONTWRITEBYTECODE")
    test = {k: v for k, v in os.environ.items() if k.startswith("FLAME_") and os.environ.get("FLAME_TEST_HOOKS") == "1"}
    return {**{k: os.environ[k] for k in kept if k in os.environ}, **test, "OPENBLAS_NUM_THREADS": "1"}


def _pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream
