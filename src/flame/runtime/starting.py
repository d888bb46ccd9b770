"""What every start of a process needs: pipes that are closed in every case, and a wait for the gate that ends."""

from __future__ import annotations

import json
import os
import select
import subprocess
from contextlib import ExitStack, suppress
from typing import Final

from flame.model.errors import Unavailable

__all__ = ["Descriptors", "await_gate", "child_of", "put_down"]

_STARTS_WITHIN: Final = 60.0


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


def _read_in_time(fd: int, size: int) -> bytes:
    """What comes within the time that a start may take; nothing at the end of the stream or when the time is over."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return os.read(fd, size) if poll.poll(_STARTS_WITHIN * 1000) else b""


def _not_set_up(error: int) -> Unavailable:
    os.set_blocking(error, False)
    with suppress(BlockingIOError):
        said = os.read(error, 4096).decode(errors="replace").strip()
        return Unavailable(f"The sandbox could not be set up: {said or 'it ended without a word'}.")
    return Unavailable(f"The sandbox was not set up within {_STARTS_WITHIN:.0f} seconds.")


def put_down(monitor: subprocess.Popen[bytes], failed: type[BaseException] | None, *_: object) -> None:
    """Called when the start is over: a monitor that nobody will hold must not stay."""
    if failed is not None:
        monitor.kill()
        monitor.wait()
