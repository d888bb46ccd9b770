"""Requests to the gateway: a small pool of connections with one request outstanding on each."""

from __future__ import annotations

import os
import selectors
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from flame.model.errors import FlameError, Malformed, Unavailable
from flame.wire.gateway import (
    SOCKET_VARIABLE,
    Connection,
    Failed,
    Hello,
    Receive,
    Reply,
    Request,
    TimedOut,
    Welcome,
    ask_upgrade,
    raised,
)
from flame.wire.values import Buffer

DEFAULT_SOCKET = "/run/flame/gateway.sock"
AT_ONCE = 12
"""Requests at the same time; a gateway bears 16, and the rest is kept for standing receives and the farewell."""

_R = TypeVar("_R", bound=Reply)
_Key = tuple[str, tuple[str, ...]]
_OVER = "The run was ended by the node, or the node itself was stopped; its log says why."


class Calls:
    """Thread-safe. ``call`` blocks until the reply is there; nothing is ever sent twice."""

    def __init__(self, path: str | None = None, *, patience: float = 30.0) -> None:
        self._path = path or os.environ.get(SOCKET_VARIABLE) or DEFAULT_SOCKET
        self._lock = threading.Lock()
        self._idle: list[Connection] = []
        self._standing: dict[_Key, Connection] = {}
        self._open: set[Connection] = set()
        self._slots = threading.BoundedSemaphore(AT_ONCE)
        self._closed = False
        connection, self.welcome = self._connect(patience)
        self._idle.append(connection)

    def call(self, expected: type[_R], request: Request, body: Sequence[Buffer] = ()) -> tuple[_R, bytearray]:
        """Raises what the gateway answered when it refused, Unavailable when the connection is gone."""
        reply, data = self.ask(request, body)
        return _expect(expected, reply, request), data

    def ask(self, request: Request, body: Sequence[Buffer] = ()) -> tuple[Reply, bytearray]:
        """The same for a request with more than one good answer."""
        with self._slots:
            return self._exchange(request, body)

    def call_now(self, expected: type[_R], request: Request) -> _R:
        """The same without waiting for a free slot: for the last words of a program."""
        return _expect(expected, self._exchange(request, ())[0], request)

    def ask_until(self, request: Receive, until: Receive) -> tuple[Reply, bytearray]:
        """The reply to ``request``; only when there is none left, the reply to ``until``.

        ``until`` stays outstanding on a connection of its own and is taken up again by the next call that names it.
        """
        other = self._standing_for(until)
        ended = False
        try:
            connection = self._take()
            self._send(connection, request, ())
            if connection in _readable([connection, other]):
                return self._finish(connection)
            # The end was heard first. What was sent before it may be on its way: take the request back, then look.
            if (taken := self._withdraw(connection)) is not None:
                return taken
            left = self.ask(Receive(request.category, request.senders, 0.0))
            ended = isinstance(left[0], TimedOut)
            if not ended:
                return left
        finally:
            if not ended:
                with self._lock:
                    self._standing[_key(until)] = other
        return self._finish(other)

    def _withdraw(self, connection: Connection) -> tuple[Reply, bytearray] | None:
        """Hang up half; what the gateway had already taken out for this request still comes."""
        try:
            connection.end_sending()
            return connection.receive_reply()
        except (EOFError, OSError):
            return None
        finally:
            self._drop(connection)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            connections, self._open = self._open, set()
            self._idle.clear()
            self._standing.clear()
        for connection in connections:
            connection.close()

    def _standing_for(self, request: Receive) -> Connection:
        with self._lock:
            connection = self._standing.pop(_key(request), None)
        if connection is None:
            connection = self._take()
            self._send(connection, request, ())
        return connection

    def _exchange(self, request: Request, body: Sequence[Buffer]) -> tuple[Reply, bytearray]:
        connection = self._take()
        self._send(connection, request, body)
        return self._finish(connection)

    def _send(self, connection: Connection, request: Request, body: Sequence[Buffer]) -> None:
        try:
            connection.send(request, body)
        except FlameError:  # the request itself is wrong: nothing was written
            self._give_back(connection)
            raise
        except (EOFError, OSError) as error:
            self._refusal_or_loss(connection, error)

    def _refusal_or_loss(self, connection: Connection, error: Exception) -> None:
        """A gateway that refuses a body while it arrives says so and hangs up: its reply may still be there."""
        try:
            reply, _ = connection.receive_reply()
        except (EOFError, OSError, FlameError):
            reply = None
        self._drop(connection)
        if isinstance(reply, Failed):
            raise raised(reply)
        raise Unavailable("The connection to the node was lost.", next_step=_OVER) from error

    def _finish(self, connection: Connection) -> tuple[Reply, bytearray]:
        try:
            reply, data = connection.receive_reply()
        except (EOFError, OSError) as error:
            self._drop(connection)
            raise Unavailable("The connection to the node was lost.", next_step=_OVER) from error
        except BaseException:
            self._drop(connection)
            raise
        self._give_back(connection)
        if isinstance(reply, Failed):
            raise raised(reply)
        return reply, data

    def _take(self) -> Connection:
        with self._lock:
            if self._closed:
                raise Unavailable("This program has closed its connection.", next_step="Call connect() again.")
            if self._idle:
                return self._idle.pop()
        return self._connect(0.0)[0]

    def _give_back(self, connection: Connection) -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(connection)

    def _drop(self, connection: Connection) -> None:
        with self._lock:
            self._open.discard(connection)
        connection.close()

    def _connect(self, patience: float) -> tuple[Connection, Welcome]:
        connection = Connection(_open_socket(self._path, patience))
        try:
            connection.send(Hello(sdk="flame"))
            reply, _ = connection.receive_reply()
        except (EOFError, OSError) as error:
            connection.close()
            raise Unavailable("The node closed the connection at the start.", next_step=_OVER) from error
        if isinstance(reply, Failed):
            connection.close()
            raise raised(reply)
        if not isinstance(reply, Welcome):
            connection.close()
            raise Malformed(f"The gateway answered Hello with {type(reply).__name__}.")
        with self._lock:
            self._open.add(connection)
        return connection, reply


def _expect(expected: type[_R], reply: Reply, request: Request) -> _R:
    if not isinstance(reply, expected):
        raise Malformed(f"The gateway answered {type(request).__name__} with {type(reply).__name__}.")
    return reply


def _key(request: Receive) -> _Key:
    return request.category, tuple(request.senders)


def _readable(connections: Sequence[Connection]) -> list[Connection]:
    """Waits until at least one of them has something to read."""
    with selectors.DefaultSelector() as selector:
        for connection in connections:
            selector.register(connection, selectors.EVENT_READ, connection)
        return [key.data for key, _ in selector.select()]


def _connect(stream: socket.socket, path: str) -> None:
    """A socket's address has room for 107 bytes; a node's directory may be deeper than that."""
    if len(os.fsencode(path)) < 108:
        stream.connect(path)
        return
    folder = os.open(Path(path).parent, os.O_PATH | os.O_DIRECTORY)
    try:
        stream.connect(f"/proc/self/fd/{folder}/{Path(path).name}")
    finally:
        os.close(folder)


def _open_socket(path: str, patience: float) -> socket.socket:
    """The socket may appear a moment after the program starts: wait for it, up to ``patience`` seconds."""
    deadline = time.monotonic() + patience
    pause = 0.002
    while True:
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            _connect(stream, path)
            ask_upgrade(stream)
            return stream
        except FlameError:
            stream.close()
            raise
        except (OSError, EOFError) as error:
            stream.close()
            if time.monotonic() + pause > deadline:
                raise Unavailable(
                    f"No node answers at {path}: {str(error) or 'it hung up'}.",
                    next_step="This program must be run by a node: submit it, or try it with 'flame dev submit'.",
                ) from error
        time.sleep(pause)
        pause = min(pause * 2, 0.25)
