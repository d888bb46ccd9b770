"""The HTTP side of the run's socket: heads are read strictly, bounded and against a deadline.

Two kinds of programs meet it: our own SDK asks for an upgrade to frames; programs that were written for FLAME speak plain
HTTP, which ``flame.node.contract`` answers. A run that does not speak FLAME's contract gets ``not_served``.
"""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from flame.model.errors import FlameError

MAX_HEAD: Final = 32 << 10
MAX_HEADERS: Final = 100
HEAD_SECONDS: Final = 10.0
BODY_SECONDS: Final = 600.0
BULKY: Final = 8 << 20
_STEP: Final = 1 << 20
_CHUNK_SIZE: Final = re.compile(r"([0-9A-Fa-f]{1,12})[ \t]*(;[^\r\n]*)?")
_MAX_TRAILERS: Final = 8 << 10

_TOKEN: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_TARGET: Final = re.compile(r"(?:https?://[^/?#\s]*)?(/[!-~]*)")
_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_SINGLE: Final = frozenset({"host", "content-length", "transfer-encoding", "upgrade", "content-type", "authorization"})


class HeadError(Exception):
    """A head that is not answered with more than this status. Never leaves the gateway."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass(frozen=True, slots=True)
class Head:
    method: str
    path: str
    """Path and query; what host an absolute URI names does not matter."""
    headers: Mapping[str, str]
    """Names in lower case."""

    @property
    def asks_for_frames(self) -> bool:
        tokens = {token.strip().lower() for token in self.headers.get("connection", "").split(",")}
        return (
            (self.method, self.path) == ("GET", "/flame/v1")
            and "upgrade" in tokens
            and self.headers.get("upgrade", "").lower() == "flame-frames/1"
            and self.headers.get("content-length", "0") == "0"
            and "transfer-encoding" not in self.headers
        )


@dataclass(frozen=True, slots=True)
class Response:
    """What a plain request is answered with."""

    status: int
    body: bytes | bytearray | memoryview = b""
    content_type: str = "application/json"
    pieces: Iterable[bytes] | None = None
    """For a long body: its parts, together ``length`` bytes."""
    length: int = 0

    def head(self, *, close: bool) -> bytes:
        length = self.length if self.pieces is not None else len(self.body)
        lines = [f"HTTP/1.1 {self.status} {_REASONS.get(self.status, 'Answer')}"]
        if self.status != 204:
            lines += [f"Content-Type: {self.content_type}", f"Content-Length: {length}"]
        lines.append(f"Connection: {'close' if close else 'keep-alive'}")
        return "\r\n".join([*lines, "", ""]).encode("latin-1")


_REASONS: Final = {
    200: "OK",
    201: "Created",
    202: "Accepted",
    204: "No Content",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    413: "Content Too Large",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    502: "Bad Gateway",
    507: "Insufficient Storage",
}


class Inbox:
    """The reading end of a run's connection: bytes in order, each wait bounded by a deadline. Only ever ``recv``."""

    def __init__(self, stream: socket.socket) -> None:
        self._stream = stream
        self._ahead = bytearray()

    def wait(self) -> None:
        """Until the first byte of what comes next, however long. Raises EOFError at the end."""
        if not self._ahead:
            self._more(4096, None)

    def exactly(self, size: int, deadline: float) -> bytearray:
        """The next few bytes. Raises EOFError, or TimeoutError past the deadline (monotonic seconds)."""
        while len(self._ahead) < size:
            self._more(max(4096, size - len(self._ahead)), deadline)
        taken = self._ahead[:size]
        del self._ahead[:size]
        return taken

    def body(self, size: int, spare: bytearray | None) -> bytearray:
        """A body of ``size`` bytes, into ``spare`` if that has just this size. Raises EOFError."""
        self._stream.settimeout(None)
        buffer = spare if spare is not None and len(spare) == size else bytearray(min(size, _STEP))
        filled = min(size, len(self._ahead))
        buffer[:filled] = self._ahead[:filled]
        del self._ahead[:filled]
        while filled < size:
            if filled == len(buffer):  # grows as bytes arrive: an announced length alone takes no memory
                buffer.extend(bytes(min(size - filled, filled)))
            with memoryview(buffer) as view:
                while filled < len(view):
                    got = self._stream.recv_into(view[filled:])
                    if not got:
                        raise EOFError
                    filled += got
        return buffer

    def discard(self, size: int) -> None:
        """Read and forget the next ``size`` bytes, in a small buffer."""
        taken = min(size, len(self._ahead))
        del self._ahead[:taken]
        size -= taken
        scratch = memoryview(bytearray(min(size, 256 << 10)))
        self._stream.settimeout(None)
        while size:
            got = self._stream.recv_into(scratch[: min(size, len(scratch))])
            if not got:
                raise EOFError
            size -= got

    def until(self, end: bytes, limit: int, deadline: float) -> bytes:
        """The bytes before ``end``, which is taken too. Raises HeadError past ``limit`` bytes, or the deadline."""
        seen = 0
        while (found := self._ahead.find(end, max(0, seen - len(end) + 1))) < 0 and len(self._ahead) < limit:
            seen = len(self._ahead)
            self._more(4096, deadline)
        if found < 0 or found > limit:
            raise HeadError(431, f"The head of the request is longer than {limit} bytes.")
        taken = bytes(self._ahead[:found])
        del self._ahead[: found + len(end)]
        return taken

    def _more(self, size: int, deadline: float | None) -> None:
        self._stream.settimeout(_left(deadline))
        got = self._stream.recv(size)
        if not got:
            raise EOFError
        self._ahead += got


def read_head(inbox: Inbox) -> Head:
    """Raises HeadError for anything that is not a plain HTTP/1.1 head, EOFError when the peer went away."""
    try:
        block = inbox.until(b"\r\n\r\n", MAX_HEAD, time.monotonic() + HEAD_SECONDS)
    except TimeoutError:
        raise HeadError(408, f"The head of the request took longer than {HEAD_SECONDS:.0f} seconds.") from None
    return parse_head(block)


def parse_head(block: bytes) -> Head:
    """A head without its closing blank line. Raises HeadError."""
    first, *lines = block.decode("latin-1").split("\r\n")
    parts = first.split(" ")
    if len(parts) != 3 or not _TOKEN.fullmatch(parts[0]) or parts[2] != "HTTP/1.1":
        raise HeadError(400, "The first line is not that of an HTTP/1.1 request.")
    target = _TARGET.fullmatch(parts[1])
    if target is None:
        raise HeadError(400, "The request's target is no path.")
    if len(lines) > MAX_HEADERS:
        raise HeadError(431, f"The request has more than {MAX_HEADERS} headers.")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        name = name.lower()
        if not colon or not _TOKEN.fullmatch(name) or not _VALUE.fullmatch(value):
            raise HeadError(400, "A header of the request is not written as 'Name: value'.")
        if name in headers and name in _SINGLE:
            raise HeadError(400, f"The request has the header '{name}' twice.")
        value = value.strip(" \t")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    if "host" not in headers:
        raise HeadError(400, "The request has no Host header.")
    return Head(parts[0], target.group(1), headers)


def read_body(inbox: Inbox, head: Head, limit: int) -> bytearray:
    """The body of a plain request, whole. Raises HeadError for one of more than ``limit`` bytes or without a clear length."""
    coding = head.headers.get("transfer-encoding", "").lower()
    length = head.headers.get("content-length")
    if coding:
        if coding != "chunked" or length is not None:
            raise HeadError(400, "The body's length is not clear.")
        return _read_chunks(inbox, limit)
    if length is None:
        return bytearray()
    if not re.fullmatch(r"[0-9]{1,18}", length):
        raise HeadError(400, "The header 'content-length' is no number.")
    if int(length) > limit:
        raise HeadError(413, f"A body of {length} bytes is longer than the {limit} that may be sent here.")
    return inbox.body(int(length), None)


def is_bulky(head: Head) -> bool:
    """Whether the body is large, or of a length that nobody has said."""
    length = head.headers.get("content-length", "0")
    return "transfer-encoding" in head.headers or not length.isdecimal() or int(length[:18]) > BULKY


def _read_chunks(inbox: Inbox, limit: int) -> bytearray:
    whole = bytearray()
    try:
        while True:
            line = inbox.until(b"\r\n", 256, time.monotonic() + BODY_SECONDS).decode("latin-1")
            size = _CHUNK_SIZE.fullmatch(line)
            if size is None:
                raise HeadError(400, "A chunk of the body has no size.")
            length = int(size.group(1), 16)
            if len(whole) + length > limit:
                raise HeadError(413, f"The body is longer than the {limit} bytes that may be sent here.")
            if not length:
                break
            whole += inbox.body(length, None)
            if inbox.exactly(2, time.monotonic() + BODY_SECONDS) != b"\r\n":
                raise HeadError(400, "A chunk of the body is longer than it said.")
        while inbox.until(b"\r\n", _MAX_TRAILERS, time.monotonic() + BODY_SECONDS):
            pass  # trailers say nothing here
    except TimeoutError:
        raise HeadError(408, "The body stopped in the middle.") from None
    return whole


def problem(status: int, code: str, message: str, next_step: str = "") -> bytes:
    """A whole response that closes the connection: a JSON problem in the form that FLAME's clients read."""
    body = json.dumps({"statusCode": status, "code": code, "message": message, "nextStep": next_step}).encode()
    head = (
        f"HTTP/1.1 {status} {_REASONS.get(status, 'Service Unavailable')}\r\nContent-Type: application/problem+json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


def refused(error: FlameError) -> Response:
    """An error of ours as a response that leaves the connection open."""
    body = {"statusCode": error.status, "code": error.code, "message": error.message, "nextStep": error.next_step}
    return Response(error.status, json.dumps(body).encode(), "application/problem+json")


def not_served(head: Head) -> bytes:
    return problem(
        404,
        "entity_not_found",
        "This run's environment holds FLAME's new SDK, so its node does not speak plain HTTP with it.",
        "Use flame.connect() in the program, or an environment with the original SDK.",
    )


def _left(deadline: float | None) -> float | None:
    if deadline is None:
        return None
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
