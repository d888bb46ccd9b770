"""Bulk transfer: blocking sockets in threads, on connections of their own, so that control never waits behind it."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import SplitResult, unquote, urlsplit

from flame.model.errors import FlameError, NotAuthenticated, NotFound, Refused, Unavailable
from flame.node.link.proxies import proxy_of
from flame.wire.values import Buffer

if TYPE_CHECKING:
    from collections.abc import Iterator

MESSAGES, UPLOADS = "/messenger/messages", "/messenger/uploads"
PREFIX_DIGEST = "Upload-Prefix-SHA256"
_TIMEOUT = 120.0
_MAX_ANSWER = 1 << 20
_BY_STATUS: dict[int, type[FlameError]] = {401: NotAuthenticated, 404: NotFound, 503: Unavailable}


class Readable(Protocol):
    def readinto(self, buffer: Any, /) -> int | None: ...


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

    def put(
        self, path: str, length: int, pieces: Iterable[Buffer], headers: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        """Send exactly ``length`` bytes. Returns once the hub says that they are durable."""
        with self._connection() as (connection, base):
            connection.putrequest("PUT", base + path)
            connection.putheader("Authorization", f"Bearer {self._token()}")
            connection.putheader("Content-Type", "application/octet-stream")
            connection.putheader("Content-Length", str(length))
            for name, value in headers.items():
                connection.putheader(name, value)
            connection.endheaders()
            early = self._send(connection, pieces)
            response = connection.getresponse()
            content = response.read(_MAX_ANSWER)
            if not response.isclosed():
                connection.close()
            if early and response.status < 300:
                raise Unavailable("The line broke while an envelope was sent.") from early
            _check(response.status, content)

    def put_on(self, msg_id: bytes, length: int, pieces: Callable[[], Iterable[Buffer]]) -> None:
        """As `put` of an envelope, from where an earlier attempt has ended: the hub is asked how far it came.

        ``pieces`` gives the same bytes each time. The hub compares the digest of what it has; whatever does not fit is
        sent anew as a whole.
        """
        offset = self._came_to(msg_id)
        if offset is None:
            return
        if 0 < offset <= length:
            rest = iter(pieces())
            digest, more = _skip(rest, offset)
            headers = {"Content-Range": f"bytes {offset}-{length - 1}/{length}", PREFIX_DIGEST: digest}
            with suppress(Refused):
                self.put(f"{UPLOADS}/{msg_id.hex()}", length - offset, chain(more, rest), headers)
                return
        self.put(MESSAGES, length, pieces())

    def _came_to(self, msg_id: bytes) -> int | None:
        """How much of an envelope the hub has; None: all of it, durably."""
        try:
            with self.get(f"{UPLOADS}/{msg_id.hex()}") as response:
                said = json.loads(response.read(_MAX_ANSWER))
            return None if said["complete"] is True else int(said["offset"])
        except NotFound:
            return 0
        except (ValueError, TypeError, KeyError, RecursionError):
            return 0

    @contextmanager
    def get(self, path: str, offset: int = 0) -> Iterator[http.client.HTTPResponse]:
        """A body as a stream, from ``offset`` on; read it to its end, or the connection is thrown away."""
        with self._connection() as (connection, base):
            headers = {"Authorization": f"Bearer {self._token()}"}
            if offset:
                headers["Range"] = f"bytes={offset}-"
            connection.request("GET", base + path, headers=headers)
            response = connection.getresponse()
            if response.status >= 300:  # a redirection too: a hub sends nobody elsewhere with a node's credential
                _check(response.status, response.read(_MAX_ANSWER))
            if offset and response.status != 206:
                raise Unavailable("The hub does not give a part of an envelope.")
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


class Unbroken:
    """A body from the hub as one stream: where the line breaks, it goes on over another one.

    ``pause``: called before each new attempt with the reason; waits, and raises when there is no use in going on.
    """

    def __init__(self, bulk: Bulk, path: str, pause: Callable[[Unavailable], None]) -> None:
        self._bulk, self._path, self._pause = bulk, path, pause
        self._position = 0
        self._lines = ExitStack()
        self._stream: Readable | None = None

    def readinto(self, buffer: Any) -> int:
        """Never 0 for a buffer that has room: whoever reads knows where the body ends."""
        while True:
            try:
                if self._stream is None:
                    self._stream = self._lines.enter_context(self._bulk.get(self._path, self._position))
                n = self._stream.readinto(buffer) or 0
                if not n and len(buffer):
                    raise Unavailable("The line broke while an envelope was fetched.")
            except (Unavailable, OSError, http.client.HTTPException) as error:
                self._hang_up()
                self._pause(error if isinstance(error, Unavailable) else Unavailable(f"The line broke: {error}."))
            else:
                self._position += n
                return n

    def close(self) -> None:
        """After the last byte: the line may be used again. A line that broke is thrown away."""
        self._lines.close()

    def _hang_up(self) -> None:
        lines, self._lines, self._stream = self._lines, ExitStack(), None
        with suppress(Unavailable, OSError), lines:
            raise ConnectionAbortedError


def _skip(pieces: Iterator[Buffer], size: int) -> tuple[str, list[Buffer]]:
    """Leave out the first bytes; returns their SHA-256 in hex, and what of the last piece comes after them."""
    digest = hashlib.sha256()
    while size:
        piece = memoryview(next(pieces)).cast("B")
        digest.update(piece[:size])
        if len(piece) > size:
            return digest.hexdigest(), [piece[size:]]
        size -= len(piece)
    return digest.hexdigest(), []


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
