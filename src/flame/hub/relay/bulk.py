"""The bulk plane: large envelopes on a port of their own, with blocking sockets in threads.

The same requests as in `relay.bodies` (PUT /messenger/messages, GET /messenger/messages/{sender}/{msg_id}, and
/messenger/uploads/{msg_id} to go on after a broken line), judged by the same code in the hub's loop; only the bytes go
another way: into a file as they come, out of it by sendfile, while it still grows if need be. So a round of many
megabytes neither passes through the event loop nor delays the control channel. Nodes are told of it in Welcome.

It speaks as much HTTP/1.1 as its only callers, nodes, do: a head of known size, Content-Length, no pipelining. A refusal
ends its connection. Connections are bounded: one that shows no token gives way to a newer one, and one node has a share.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Coroutine, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

import structlog

from flame.crypto.envelope import MAX_HEADER
from flame.hub.identity.sessions import actor_of_bearer
from flame.hub.problems import body_of, status_of
from flame.hub.relay import large
from flame.hub.relay.intake import Addressed, node_of, store, take_envelope
from flame.hub.relay.large import MAX_ENVELOPE, MESSAGES, UPLOADS
from flame.model.errors import FlameError, Invalid, Malformed, NotFound, Unavailable
from flame.protocol.control import INLINE_BYTES
from flame.storage.objects import CHUNK

if TYPE_CHECKING:
    from io import FileIO

    from flame.hub.relay.arriving import Arrival, Attempt
    from flame.hub.state import HubState
    from flame.storage.mailbox import Letter

T = TypeVar("T")

MAX_CONNECTIONS: Final = 128
MAX_OF_A_NODE: Final = 32
"""Requests of one node at a time."""
MAX_REQUEST_HEAD: Final = 16 << 10
IDLE_SECONDS: Final = 120.0
HEAD_SECONDS: Final = 10.0
"""For a whole head, from its first byte; for the first head, from the connection on."""
STOP_SECONDS: Final = 5.0
LINGER_SECONDS: Final = 2.0
"""For reading on after a refusal, so that the caller reads the answer and not a reset."""
_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_REASONS: Final = {200: "OK", 202: "Accepted"}
_NOSNIFF: Final = "X-Content-Type-Options: nosniff\r\n"


@dataclass(frozen=True, slots=True)
class _Head:
    method: str
    path: str
    authorization: str
    length: int
    last: bool
    """The caller says that it closes after this one."""
    range: str = ""
    content_range: str = ""
    prefix_digest: str = ""


class BulkPlane:
    """Listens from `start` to `stop`; `url` says where. Raises Invalid when it cannot listen there."""

    def __init__(self, hub: HubState, host: str, port: int) -> None:
        self._hub = hub
        self._loop = asyncio.get_running_loop()
        self._listener = _listen(host, port)
        self._open: dict[socket.socket, threading.Thread] = {}
        self._silent: dict[socket.socket, None] = {}
        """Those that have shown no head since they came or were answered, the longest first."""
        self._busy: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._stopped = False
        self._acceptor = threading.Thread(target=self._accept, name="bulk-accept", daemon=True)
        name, number = self._listener.getsockname()[:2]
        self.url = f"http://[{name}]:{number}" if ":" in name else f"http://{name}:{number}"

    def start(self) -> None:
        self._acceptor.start()

    def stop(self) -> None:
        """From the loop: end all connections; what they still do in the loop is waited for when the hub settles."""
        with self._lock:
            self._stopped = True
            for stream in self._open:
                _hang_up(stream)
            threads = [self._acceptor, *self._open.values()]
        _hang_up(self._listener)
        self._listener.close()
        self._hub.in_background(asyncio.to_thread(_join, threads))

    def _accept(self) -> None:
        while not self._stopped:
            try:
                stream, _ = self._listener.accept()
            except OSError:  # a caller that was gone again, or no descriptor left: the next one may find one
                if not self._stopped:
                    time.sleep(0.05)
                continue
            self._admit(stream)

    def _admit(self, stream: socket.socket) -> None:
        thread = threading.Thread(target=self._serve, args=(stream,), name="bulk", daemon=True)
        with self._lock:
            if len(self._open) >= MAX_CONNECTIONS and self._silent:  # whoever says nothing gives way
                silent = next(iter(self._silent))
                del self._silent[silent], self._open[silent]
                _hang_up(silent)
            refused = self._stopped or len(self._open) >= MAX_CONNECTIONS
            if not refused:
                self._open[stream] = thread
                self._silent[stream] = None
        if refused:
            stream.close()
            return
        try:
            thread.start()
        except RuntimeError:  # the machine has no thread left
            self._forget(stream)

    def _serve(self, stream: socket.socket) -> None:
        try:
            connection = _Connection(stream)
            while (head := self._next_head(connection)) is not None:
                if not self._answer(connection, head):
                    return
        except (OSError, EOFError):
            return  # the line broke; what was not whole was not kept
        except Exception:  # noqa: BLE001 - one connection ends, the others go on; the log says why
            structlog.get_logger("flame.hub").error("bulk_failed", exc_info=True)
        finally:
            self._forget(stream)

    def _next_head(self, connection: _Connection) -> _Head | None:
        self._may_give_way(connection)
        try:
            head = connection.head()
        except FlameError as error:
            connection.refuse(error)
            return None
        with self._lock:
            self._silent.pop(connection.stream, None)
        return head

    def _may_give_way(self, connection: _Connection) -> None:
        with self._lock:
            if connection.stream in self._open:
                self._silent[connection.stream] = None

    def _forget(self, stream: socket.socket) -> None:
        with self._lock:
            self._open.pop(stream, None)
            self._silent.pop(stream, None)
            stream.close()

    def _answer(self, connection: _Connection, head: _Head) -> bool:
        """Answer one request; False when the connection cannot be used again."""
        try:
            if head.method == "PUT" and head.path == MESSAGES:
                connection.reply(202, self._take(connection, head))
            elif head.method == "PUT" and head.path.startswith(f"{UPLOADS}/"):
                connection.reply(202, self._take_on(connection, head))
            elif head.method == "GET" and head.path.startswith(f"{UPLOADS}/"):
                connection.reply(200, self._how_far(head))
            elif head.method == "GET" and head.path.startswith(f"{MESSAGES}/"):
                self._give(connection, head)
            else:
                raise NotFound("There is no such way here: this port carries envelopes only.")
        except FlameError as error:
            self._may_give_way(connection)
            connection.refuse(error)
            return False
        return connection.left == 0 and not head.last

    @contextmanager
    def _place_of(self, head: _Head) -> Iterator[str]:
        """The node that asks, while there is room for it. Raises NotAuthenticated, NotAllowed, Unavailable."""
        node = self._in_loop(self._node(head.authorization))
        with self._lock:
            if self._busy[node] >= MAX_OF_A_NODE:
                raise Unavailable(
                    f"This node has {MAX_OF_A_NODE} requests under way here.", next_step="Wait until one has ended."
                )
            self._busy[node] += 1
        try:
            yield node
        finally:
            with self._lock:
                self._busy[node] -= 1
                if not self._busy[node]:
                    del self._busy[node]

    def _take(self, connection: _Connection, head: _Head) -> dict[str, Any]:
        with self._place_of(head) as node:
            if not 0 < head.length <= MAX_ENVELOPE:
                raise Malformed(f"Content-Length is needed, from 1 to {MAX_ENVELOPE}.")
            start = connection.read(min(head.length, MAX_HEADER))
            addressed, header = self._in_loop(take_envelope(self._hub, node, start, head.length))
            if head.length <= INLINE_BYTES:
                body = start + connection.read(head.length - len(start))
                addressed = Addressed(replace(addressed.letter, body=body), addressed.recipients)
                fresh = self._in_loop(store(self._hub, addressed))
            else:
                letter = replace(addressed.letter, body=start[:header])
                fresh = self._take_large(connection, Addressed(letter, addressed.recipients), start)
        return {"messageId": addressed.letter.msg_id.hex(), "stored": True, "repeated": not fresh}

    def _take_large(self, connection: _Connection, addressed: Addressed, start: bytes) -> bool:
        """Announced first, so that it may be fetched while it comes. Whether it is new."""
        letter = addressed.letter
        attempt = self._hub.arrivals.begin(letter.sender, letter.msg_id, letter.size, letter.run)
        announced = False
        try:
            fresh, wanted = self._in_loop(large.announce(self._hub, addressed))
            announced = wanted
            if wanted:
                attempt.write(start)
                self._fill(connection, attempt, letter)
            else:
                connection.skip()
        finally:
            large.leave(self._hub, attempt, letter, announced=announced)
        return fresh

    def _fill(self, connection: _Connection, attempt: Attempt, letter: Letter) -> None:
        for piece in connection.pieces():
            attempt.write(piece)
        self._in_loop(large.complete(self._hub, letter, attempt.finish()))

    def _take_on(self, connection: _Connection, head: _Head) -> dict[str, Any]:
        """An upload goes on where a broken line left it."""
        with self._place_of(head) as node:
            msg_id = large.read_msg_id(head.path.removeprefix(f"{UPLOADS}/"))
            where = large.read_continued(head.content_range, head.prefix_digest, head.length)
            letter = self._in_loop(large.continued(self._hub, node, msg_id, where))
            if letter is None:
                connection.skip()
                return {"messageId": msg_id.hex(), "stored": True, "repeated": True}
            attempt = self._hub.arrivals.resume(node, msg_id, where.size, letter.run, where.offset, where.digest)
            try:
                self._fill(connection, attempt, letter)
            finally:
                attempt.leave()
        return {"messageId": msg_id.hex(), "stored": True, "repeated": False}

    def _how_far(self, head: _Head) -> dict[str, Any]:
        with self._place_of(head) as node:
            msg_id = large.read_msg_id(head.path.removeprefix(f"{UPLOADS}/"))
            return self._in_loop(large.upload_state(self._hub, node, msg_id))

    def _give(self, connection: _Connection, head: _Head) -> None:
        with self._place_of(head) as node:
            offset = large.read_range(head.range)
            sender, msg_id = large.read_names(head.path.removeprefix(f"{MESSAGES}/"))
            letter = self._in_loop(large.find(self._hub, node, sender, msg_id)).letter
            if offset >= letter.size:
                raise Malformed(f"The message has {letter.size} bytes.")
            while not letter.is_whole:
                arrival = self._hub.arrivals.find(sender, msg_id)
                if (
                    arrival is not None
                    and arrival.beyond(offset) > offset
                    and self._follow(connection, arrival, offset)
                ):
                    return
                time.sleep(0.01 if arrival is not None and arrival.have > offset else 0)
                letter = self._in_loop(large.wait_for_more(self._hub, node, letter, offset)).letter
            self._send(connection, letter, offset)

    def _follow(self, connection: _Connection, arrival: Arrival, offset: int) -> bool:
        """Send what has come, and what comes, as it comes. False: it has just become whole, and is elsewhere."""
        try:
            file = arrival.path.open("rb", buffering=0)
        except FileNotFoundError:
            return False
        with file:
            connection.send_head_of(arrival.size, offset)
            while offset < arrival.size:
                have = arrival.beyond(offset)
                if have <= offset:
                    raise EOFError  # it stalls: the reader comes again for the rest
                connection.send_file(file, offset, have)
                offset = have
        return True

    def _send(self, connection: _Connection, letter: Letter, offset: int) -> None:
        if letter.blob is None:
            connection.send_head_of(letter.size, offset)
            connection.stream.sendall((letter.body or b"")[offset:])
            return
        with self._hub.objects.open(letter.blob) as file:
            connection.send_head_of(letter.size, offset)
            connection.send_file(file, offset, letter.size)

    async def _node(self, authorization: str) -> str:
        return node_of(await actor_of_bearer(self._hub, authorization))

    def _in_loop(self, work: Coroutine[Any, Any, T]) -> T:
        """Raises OSError when the loop has ended or does not answer: then this connection ends, too."""
        try:
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError:
            work.close()
            raise ConnectionAbortedError from None
        try:
            return future.result(IDLE_SECONDS)
        except CancelledError:
            raise ConnectionAbortedError from None


class _Connection:
    """One node's connection: heads, and bodies of known length."""

    def __init__(self, stream: socket.socket) -> None:
        stream.settimeout(HEAD_SECONDS)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.stream = stream
        self.left = 0
        """Bytes of the current body that have not been read."""
        self._buffer = memoryview(bytearray(CHUNK))
        self._ahead = b""

    def head(self) -> _Head | None:
        """The next request's head; None at the end. Raises Malformed."""
        data, until = self._ahead, time.monotonic() + HEAD_SECONDS
        while b"\r\n\r\n" not in data:
            if len(data) > MAX_REQUEST_HEAD:
                raise Malformed("The request's head is too long.")
            if data:
                self.stream.settimeout(max(0.01, until - time.monotonic()))
            piece = self.stream.recv(MAX_REQUEST_HEAD)
            if not piece:
                if data:
                    raise EOFError
                return None
            if not data:
                until = time.monotonic() + HEAD_SECONDS
            data += piece
        self.stream.settimeout(IDLE_SECONDS)
        text, _, self._ahead = data.partition(b"\r\n\r\n")
        found = _parse_head(text)
        self.left = found.length
        return found

    def read(self, size: int) -> bytes:
        """Exactly this much of the body."""
        start, self._ahead = self._ahead[:size], self._ahead[size:]
        parts, missing = [start], size - len(start)
        while missing:
            piece = self.stream.recv(min(missing, CHUNK))
            if not piece:
                raise EOFError
            parts.append(piece)
            missing -= len(piece)
        self.left -= size
        return b"".join(parts)

    def pieces(self) -> Iterator[memoryview]:
        """The rest of the body; a piece is valid until the next one."""
        if self._ahead:
            yield memoryview(self.read(min(len(self._ahead), self.left)))
        while self.left:
            got = self.stream.recv_into(self._buffer[: min(CHUNK, self.left)])
            if not got:
                raise EOFError
            self.left -= got
            yield self._buffer[:got]

    def skip(self) -> None:
        """The rest of the body is of no use."""
        for _ in self.pieces():
            pass

    def reply(self, status: int, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        line = f"HTTP/1.1 {status} {_REASONS.get(status, 'Refused')}\r\n"
        fields = f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n{_NOSNIFF}"
        end = "\r\n" if status in _REASONS else "Connection: close\r\n\r\n"
        self.stream.sendall((line + fields + end).encode() + content)

    def refuse(self, error: FlameError) -> None:
        """The last answer of this connection. What still comes is read for a moment: closing before would reset it."""
        self.reply(status_of(error), body_of(error))
        self.stream.shutdown(socket.SHUT_WR)
        until = time.monotonic() + LINGER_SECONDS
        while (left := until - time.monotonic()) > 0:
            self.stream.settimeout(left)
            if not self.stream.recv_into(self._buffer):
                return

    def send_head_of(self, size: int, offset: int) -> None:
        """Of a body of `size` bytes, from `offset` on."""
        line = "HTTP/1.1 200 OK\r\n"
        if offset:
            line = f"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {offset}-{size - 1}/{size}\r\n"
        fields = f"Content-Type: application/octet-stream\r\nContent-Length: {size - offset}\r\n{_NOSNIFF}"
        self.stream.sendall(f"{line}{fields}\r\n".encode())

    def send_file(self, file: FileIO, start: int, end: int) -> None:
        """Raises EOFError when there is less."""
        if self.stream.sendfile(file, start, end - start) != end - start:
            raise EOFError


def _parse_head(text: bytes) -> _Head:
    try:
        request, *lines = text.decode("ascii").split("\r\n")
        method, path, version = request.split(" ")
    except (UnicodeDecodeError, ValueError):
        raise Malformed("The request's head cannot be read.") from None
    if version != "HTTP/1.1" or len(lines) > 64:
        raise Malformed("The request's head cannot be read.")
    fields: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not _NAME.fullmatch(name) or _CONTROL.search(value) or name.lower() in fields:
            raise Malformed("The request has a header that is not allowed, or one twice.")
        fields[name.lower()] = value.strip()
    if "transfer-encoding" in fields or fields.get("content-encoding", "identity") != "identity":
        raise Malformed("An envelope comes as it is, with its length.")
    length = fields.get("content-length", "0")
    if not (length.isascii() and length.isdigit() and len(length) < 16):
        raise Malformed("Content-Length is not a number.")
    last = fields.get("connection", "").lower() == "close"
    return _Head(
        method,
        path,
        fields.get("authorization", ""),
        int(length),
        last,
        range=fields.get("range", ""),
        content_range=fields.get("content-range", ""),
        prefix_digest=fields.get(large.PREFIX_DIGEST, ""),
    )


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=64)
    except (OSError, OverflowError) as error:
        raise Invalid(
            f"The port for large envelopes, {port} at {host}, cannot be opened: {error}.",
            next_step="Choose another FLAME_HUB_BULK_PORT; 0 takes a free one.",
        ) from None


def _hang_up(stream: socket.socket) -> None:
    """Whoever reads or writes there stops; closing is for its thread."""
    with suppress(OSError):
        stream.shutdown(socket.SHUT_RDWR)


def _join(threads: list[threading.Thread]) -> None:
    until = time.monotonic() + STOP_SECONDS
    for thread in threads:
        if thread.ident is not None:  # one that was admitted in this moment may not have begun
            thread.join(max(0.0, until - time.monotonic()))
