"""What the gateway asks of the run that it serves."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from flame.node.gateway.http import Head, Response
from flame.wire.gateway import Fail, Message, Table, Welcome
from flame.wire.values import Buffer


class Cancelled(threading.Event):
    """Set when nobody waits for the answer any more: the program hung up, or the gateway closes.

    Whoever waits on a condition of its own gets woken through ``when_set`` and need not poll.
    """

    def __init__(self) -> None:
        super().__init__()
        self._callbacks: list[Callable[[], None]] = []
        self._guard = threading.Lock()

    def when_set(self, callback: Callable[[], None]) -> None:
        """Call back once when set; at once when it is set already. The callback must not block."""
        with self._guard:
            if not self.is_set():
                self._callbacks.append(callback)
                return
        callback()

    def set(self) -> None:
        with self._guard:
            super().set()
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()


class RunSide(Protocol):
    """What the gateway asks of the run that it serves. Every method blocks the calling thread and raises FlameError.

    Calls come from several threads at once. The gateway has checked the role and the form of each request: names are
    names, recipients and senders are other participants, only the aggregator asks for totals and submits.
    A body is the run's as long as it keeps a reference to it (or a view on it); else the gateway fills it again.
    """

    def welcome(self) -> Welcome: ...

    def table(self, source: str) -> tuple[Table, Sequence[Buffer]]: ...

    def contribute(self, name: str, round: int, body: bytearray) -> None: ...

    def total(self, name: str, round: int, cancelled: Cancelled) -> tuple[int, Sequence[Buffer]]:
        """The number of contributors and the sum as a wire value. Ends soon after ``cancelled`` is set."""
        ...

    def send(self, to: Sequence[str], category: str, body: bytearray) -> str:
        """The id of the message."""
        ...

    def receive(
        self, category: str, senders: Sequence[str], timeout: float | None, cancelled: Cancelled
    ) -> tuple[Message, Sequence[Buffer]] | None:
        """The next message; None after ``timeout`` seconds. Ends soon after ``cancelled`` is set, taking no message."""
        ...

    def log(self, level: str, template: str, values: Mapping[str, str]) -> None: ...

    def progress(self, percent: int) -> None: ...

    def submit(self, name: str, media_type: str, body: bytearray, noise: tuple[float, float] | None = None) -> None: ...

    def keep(self, label: str, body: bytearray) -> str:
        """The object's id."""
        ...

    def kept(self, id: str) -> Sequence[Buffer]: ...

    def list_kept(self, label: str) -> list[tuple[str, str]]: ...

    def finish(self) -> None: ...

    def fail(self, failure: Fail) -> None: ...

    def max_body(self) -> int:
        """The largest body that any release of this manifest may have, in bytes."""
        ...


class PlainSide(Protocol):
    """What answers a program that speaks plain HTTP. Raises FlameError, which becomes a problem document."""

    def max_body(self, head: Head) -> int:
        """The largest body that this request may have, in bytes."""
        ...

    def answer(self, head: Head, body: bytearray, cancelled: Cancelled) -> Response: ...
