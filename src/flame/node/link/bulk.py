"""Bulk transfer: blocking sockets in threads, on connections of their own, so that control never waits behind it."""

from __future__ import annotations

import base64
import http.client
import json
import threading
from collections.abc import Callable, Iterable
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, unquote, urlsplit

from flame.model.errors import FlameError, NotAuthenticated, NotFound, Refused, Unavailable
from flame.node.link.proxies import proxy_of
from flame.wire.values import Buffer

if TYPE_CHECKING:
    from collections.abc import Iterator

_TIMEOUT = 120.0
_MAX_ANSWER = 1 << 20
_BY_STATUS: dict[int, type[FlameError]] = {401: NotAuthenticated, 404: NotFound, 503: Unavailable}


class Bulk:
    """PUT and GET of envelopes. ``where`` gives the address of the moment, ``token`` a valid bearer; it may block."""

    def __init__(
        self, where: Callable[[], str], token: Callable[[], str], unreachable: Callable[[], None] = lambda: None
    ) -> None:
        self._current, self._unreachable = where, unreachable
        self._where = urlsplit("")
        self._token = token
        self._idle: list[http.client.HTTPConnection] = []
        self._lock = threading.Lock()

    def put(self, path: str, length: int, pieces: Iterable[Buffer]) -> None:
        """Send exactly ``length`` bytes. Returns once the hub says that they are durable."""
        with self._connection() as (connection, base):
            connection.putrequest("PUT", base + path)
            connection.putheader("Authorization", f"Bearer {self._token()}")
            connection.putheader("Content-Type", "application/octet-stream")
            connection.putheader("Content-Length", str(length))
            connection.endheaders()
            early = self._send(connection, pieces)
            response = connection.getresponse()
            content = response.read(_MAX_ANSWER)
            if not response.isclosed():
                connection.close()
            if early and response.status < 300:
                raise Unavailable("The line broke while an envelope was sent.") from early
            _check(response.status, content)

    @contextmanager
    def get(self, path: str) -> Iterator[http.client.HTTPResponse]:
        """A body as a stream; read it to its end, or the connection is thrown away."""
        with self._connection() as (connection, base):
            connection.request("GET", base + path, headers={"Authorization": f"Bearer {self._token()}"})
            response = connection.getresponse()
            if response.status >= 300:  # a redirection too: a hub sends nobody elsewhere with a node's credential
                _check(response.status, response.read(_MAX_ANSWER))
            yield response
            if not response.isclosed():
                connection.close()

    def close(self) -> None:
        with self._lock:
            self._hang_up()

    @staticmethod
    def _send(connection: http.client.HTTPConnection, pieces: Iterable[Buffer]) -> OSError | None:
        """A hub that refuses may answer and close before it has read everything: its answer is what counts."""
        try:
            for piece in pieces:
                connection.send(piece)
        except OSError as error:
            return error
        return None

    @contextmanager
    def _connection(self) -> Iterator[tuple[http.client.HTTPConnection, str]]:
        """A connection, and what comes before each path there."""
        with self._lock:
            if (where := urlsplit(self._current())) != self._where:  # the hub came back with another port for bulk
                self._hang_up()
                self._where = where
            fresh = not self._idle
            connection = _dial(where) if fresh else self._idle.pop()
        try:
            yield connection, _target(where)
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            self.close()  # those that idle have most likely ended with it
            if fresh:
                self._unreachable()
            raise Unavailable(f"The hub cannot be reached: {error}.") from error
        except BaseException:
            connection.close()
            raise
        with self._lock:
            if connection.sock is not None and where == self._where:
                self._idle.append(connection)
            else:
                connection.close()

    def _hang_up(self) -> None:
        while self._idle:
            self._idle.pop().close()


def _dial(where: SplitResult) -> http.client.HTTPConnection:
    """To the hub, or to the proxy that the environment names: over https through a tunnel, else by absolute URLs."""
    host, port = where.hostname or "", where.port
    proxy = urlsplit(proxy_of(where.geturl()) or "")
    if where.scheme == "https":
        tls = http.client.HTTPSConnection(
            proxy.hostname or host, proxy.port or port, timeout=_TIMEOUT, blocksize=1 << 20
        )
        if proxy.hostname:
            tls.set_tunnel(host, port, _proxy_login(proxy))
        return tls
    return http.client.HTTPConnection(proxy.hostname or host, proxy.port or port, timeout=_TIMEOUT, blocksize=1 << 20)


def _target(where: SplitResult) -> str:
    """What comes before each path."""
    return where.geturl().rstrip("/") if where.scheme == "http" and proxy_of(where.geturl()) else where.path


def _proxy_login(proxy: SplitResult) -> dict[str, str]:
    if not proxy.username:
        return {}
    login = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"}


def _check(status: int, content: bytes) -> None:
    if status < 300:
        return
    problem: dict[str, str] = {}
    with suppress(ValueError, RecursionError):
        parsed = json.loads(content)
        problem = parsed if isinstance(parsed, dict) else {}
    kind = _BY_STATUS.get(status, Unavailable if status >= 500 else Refused)
    raise kind(str(problem.get("message", f"HTTP {status}")), next_step=str(problem.get("nextStep", "")))
