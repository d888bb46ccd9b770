"""What every start of a process needs: pipes that are closed in every case, and a wait for the gate that ends."""

from __future__ import annotations

import json
import os
import select
import subprocess
import time
from contextlib import ExitStack, suppress
from typing import Final

from flame.model.errors import Unavailable
from flame.runtime.verify import children, has_ended, status_of

__all__ = ["Descriptors", "await_gate", "await_init", "child_of", "first_process", "put_down"]

_STARTS_WITHIN: Final = 60.0
_LONGEST_PAUSE: Final = 0.02


class Descriptors:
    """Descriptors of one start, closed in every case."""

    def __init__(self, undo: ExitStack) -> None:
        self._open: set[int] = set()
        undo.callback(self._close_all)

    def own(self, fd: int) -> int:
        self._open.add(fd)
        return fd

    def pipe(self) -> tuple[int, int]:
        reader, writer = os.pipe()
        return self.own(reader), self.own(writer)

    def memory(self, name: str, content: bytes) -> int:
        fd = self.own(os.memfd_create(name))
        os.write(fd, content)
        os.lseek(fd, 0, os.SEEK_SET)
        return fd

    def close(self, fd: int) -> None:
        self._open.discard(fd)
        os.close(fd)

    def _close_all(self) -> None:
        for fd in self._open:
            os.close(fd)


def child_of(status: int, error: int) -> int:
    """The process that bubblewrap made, from what it says about itself."""
    told = b""
    while part := _read_in_time(status, 4096):
        told += part
    try:
        return int(json.loads(told)["child-pid"])
    except (ValueError, KeyError):
        raise _not_set_up(error) from None


def await_gate(ready: int, error: int) -> None:
    if _read_in_time(ready, 1) != b".":
        raise _not_set_up(error)


def await_init(init: int, error: int, *, within: float = _STARTS_WITHIN) -> None:
    """Wait until the sandbox's init is behind its filter, at most `within` seconds. Raises Unavailable when it has ended.

    bubblewrap's init forks the first process, and only then drops its capabilities, closes its descriptors, binds itself
    to the monitor's end and loads the filter, in this order, before it does nothing but reap (do_init in bubblewrap.c).
    On a busy machine the first process is at the gate before that. Nothing is decided here: an init that has no filter
    when the time is over is what `verify` finds and reports.
    """
    until = time.monotonic() + within
    pause = 0.0005
    try:
        while status_of(init)["Seccomp"] != "2" and time.monotonic() < until:
            if has_ended(init):
                raise _not_set_up(error, ended=True)
            time.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)
    except (FileNotFoundError, ProcessLookupError):
        raise _not_set_up(error, ended=True) from None


def first_process(init: int, error: int) -> int:
    """The process at the gate: the init's child, or the init itself where there is no process namespace to look after."""
    try:
        found = children(init)
        if not found and status_of(init)["NSpid"].split()[-1] == "1":
            raise _not_set_up(error, ended=True)  # it was at the gate and has ended: the init must not be taken for it
    except (FileNotFoundError, ProcessLookupError):
        raise _not_set_up(error, ended=True) from None
    return found[0] if found else init


def _read_in_time(fd: int, size: int) -> bytes:
    """What comes within the time that a start may take; nothing at the end of the stream or when the time is over."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return os.read(fd, size) if poll.poll(_STARTS_WITHIN * 1000) else b""


def _not_set_up(error: int, *, ended: bool = False) -> Unavailable:
    os.set_blocking(error, False)
    with suppress(BlockingIOError):
        said = os.read(error, 4096).decode(errors="replace").strip()
        return Unavailable(f"The sandbox could not be set up: {said or 'it ended without a word'}.")
    if ended:
        return Unavailable("The sandbox could not be set up: it ended without a word.")
    return Unavailable(f"The sandbox was not set up within {_STARTS_WITHIN:.0f} seconds.")


def put_down(monitor: subprocess.Popen[bytes], failed: type[BaseException] | None, *_: object) -> None:
    """Called when the start is over: a monitor that nobody will hold must not stay."""
    if failed is not None:
        monitor.kill()
        monitor.wait()
