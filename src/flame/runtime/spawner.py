"""One thread that starts all sandboxes of this process.

bubblewrap's --die-with-parent follows the *thread* that started it, not the process: started from a worker thread of a
pool, a sandbox would end when the pool shrinks. This thread lives as long as the process.
"""

from __future__ import annotations

import os
import queue
import subprocess
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Final

__all__ = ["Order", "spawn"]


@dataclass(frozen=True)
class Order:
    """What to start: arguments, descriptors for the three standard streams, and those to hand on."""

    arguments: Sequence[str]
    streams: tuple[int, int, int]
    pass_fds: Sequence[int]
    environment: Mapping[str, str]
    new_session: bool = False


class _Spawner:
    def __init__(self) -> None:
        self.owner = os.getpid()
        self._orders: queue.SimpleQueue[tuple[Order, Future[subprocess.Popen[bytes]]]] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="flame-spawner", daemon=True).start()

    def submit(self, order: Order) -> Future[subprocess.Popen[bytes]]:
        done: Future[subprocess.Popen[bytes]] = Future()
        self._orders.put((order, done))
        return done

    def _work(self) -> None:
        while True:
            order, done = self._orders.get()
            try:
                done.set_result(_start(order))
            except (OSError, ValueError) as wrong:
                done.set_exception(wrong)


def _start(order: Order) -> subprocess.Popen[bytes]:
    stdin, stdout, stderr = order.streams
    return subprocess.Popen(
        list(order.arguments),
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        pass_fds=tuple(order.pass_fds),
        env=dict(order.environment),
        cwd="/",
        start_new_session=order.new_session,
    )


_lock: Final = threading.Lock()
_current: list[_Spawner] = []


def spawn(order: Order) -> subprocess.Popen[bytes]:
    """Start a process whose parent thread lives as long as this process. Raises OSError as subprocess does."""
    with _lock:
        if not _current or _current[0].owner != os.getpid():  # a forked child has no such thread
            _current[:] = [_Spawner()]
        spawner = _current[0]
    return spawner.submit(order).result()
