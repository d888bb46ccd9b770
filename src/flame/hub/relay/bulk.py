"""The bulk plane: large envelopes on a port of their own, with blocking sockets in threads.

The same two requests as in `relay.routes` (PUT /messenger/messages, GET /messenger/messages/{sender}/{msg_id}), judged by the
same code in the hub's loop; only the bytes go another way: into a file as they come, out of it by sendfile. So a round of
many megabytes neither passes through the event loop nor delays the control channel. Nodes are told of it in Welcome.

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
from uuid import uuid4

import structlog

from flame.crypto.envelope import MAX_HEADER
from flame.hub.columns import check_id
from flame.hub.identity.sessions import actor_of_bearer
from flame.hub.problems import body_of, status_of
from flame.hub.relay.bodies import store_large
from flame.hub.relay.intake import Addressed, take_envelope
from flame.model.errors import FlameError, Invalid, Malformed, NotAllowed, NotFound, Unavailable
from flame.protocol.control import INLINE_BYTES
from flame.storage.mailbox import Delivery
from flame.storage.objects import CHUNK

if TYPE_CHECKING:
    from flame.hub.state import HubState

T = TypeVar("T")

MAX_CONNECTIONS: Final = 128
MAX_OF_A_NODE: Final = 32
"""Requests of one node at a time."""
MAX_REQUEST_HEAD: Final = 16 << 10
MAX_ENVELOPE: Final = 4 << 30
IDLE_SECONDS: Final = 120.0
HEAD_SECONDS: Final = 10.0
"""For a whole head, from its first byte; for the first head, from the connection on."""
STOP_SECONDS: Final = 5.0
LINGER_SECONDS: Final = 2.0
"""For reading on after a refusal, so that the caller reads the answer and not a reset."""
_PATH: Final = "/messenger/messages"
_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_REASONS: Final = {200: "OK", 202: "Accepted"}


@dataclass(frozen=True, slots=True)
class _Head:
    method: str
    path: str
    authorization: str
    length: int
    last: bool
    """The caller says that it closes after this one."""


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
            if head.method == "PUT" and head.path == _PATH:
                connection.reply(202, self._take(connection, head))
            elif head.method == "GET" and head.path.startswith(f"{_PATH}/"):
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
                letter = replace(addressed.letter, body=body)
            else:
                blob = self._spooled(connection, start)
                letter = replace(addressed.letter, body=start[:header], blob=blob)
            fresh = self._in_loop(store_large(self._hub, Addressed(letter, addressed.recipients)))
        return {"messageId": letter.msg_id.hex(), "stored": True, "repeated": not fresh}

    def _spooled(self, connection: _Connection, start: bytes) -> str:
        """The whole body under a name of its own, on the disk."""
        spool = self._hub.objects.spool(hashed=False, at_most=len(start) + connection.left)
        try:
            spool.write_blocking(start)
            for piece in connection.pieces():
                spool.write_blocking(piece)
            blob = f"mail/{uuid4().hex}"
            self._hub.objects.keep_blocking(spool.finish_blocking(), blob)
        finally:
            self._in_loop(spool.discard())
        return blob

    def _give(self, connection: _Connection, head: _Head) -> None:
        with self._place_of(head) as node:
            sender, _, text = head.path.removeprefix(f"{_PATH}/").partition("/")
            try:
                msg_id = bytes.fromhex(text)
            except ValueError:
                raise NotFound("The message was not found.") from None
            found = self._in_loop(self._hub.mailbox.find(node, check_id(sender, "message"), msg_id))
            if found is None:
                raise NotFound(
                    "The message was not found.", next_step="It was acknowledged, has expired, or is not for this node."
                )
            self._send(connection, found)

    def _send(self, connection: _Connection, found: Delivery) -> None:
        letter = found.letter
        if letter.blob is None:
            connection.send_head(200, len(letter.body or b""))
            connection.stream.sendall(letter.body or b"")
            return
        with self._hub.objects.open(letter.blob) as file:
            connection.send_head(200, letter.size)
            if connection.stream.sendfile(file, 0, letter.size) != letter.size:
                raise EOFError

    async def _node(self, authorization: str) -> str:
        actor = await actor_of_bearer(self._hub, authorization)
        if actor.node is None:
            raise NotAllowed("Only nodes use the relay.")
        return actor.node

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

    def reply(self, status: int, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_head(status, len(content), "application/json", more=content)

    def refuse(self, error: FlameError) -> None:
        """The last answer of this connection. What still comes is read for a moment: closing before would reset it."""
        self.reply(status_of(error), body_of(error))
        self.stream.shutdown(socket.SHUT_WR)
        until = time.monotonic() + LINGER_SECONDS
        while (left := until - time.monotonic()) > 0:
            self.stream.settimeout(left)
            if not self.stream.recv_into(self._buffer):
                return

    def send_head(self, status: int, length: int, kind: str = "application/octet-stream", more: bytes = b"") -> None:
        line = f"HTTP/1.1 {status} {_REASONS.get(status, 'Refused')}\r\n"
        fields = f"Content-Type: {kind}\r\nContent-Length: {length}\r\nX-Content-Type-Options: nosniff\r\n"
        end = "\r\n" if status in _REASONS else "Connection: close\r\n\r\n"
        self.stream.sendall((line + fields + end).encode() + more)


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
    return _Head(method, path, fields.get("authorization", ""), int(length), last)


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
