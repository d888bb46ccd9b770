"""The bulk plane: large envelopes on a port of their own, with blocking sockets in threads.

The same two requests as in `relay.routes` (PUT /messenger/messages, GET /messenger/messages/{sender}/{msg_id}), judged by the
same code in the hub's loop; only the bytes go another way: into a file as they come, out of it by sendfile. So a round of
many megabytes neither passes through the event loop nor delays the control channel. Nodes are told of it in Welcome.

It speaks as much HTTP/1.1 as its only callers, nodes, do: a head of known size, Content-Length, no pipelining.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Coroutine, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, TypeVar
from uuid import uuid4

import structlog

from flame.crypto.envelope import MAX_HEADER
from flame.hub.columns import check_id
from flame.hub.identity.sessions import actor_of_bearer
from flame.hub.problems import body_of, status_of
from flame.hub.relay.intake import Addressed, take_envelope
from flame.model.errors import FlameError, Malformed, NotAllowed, NotFound
from flame.protocol.control import INLINE_BYTES
from flame.storage.mailbox import Delivery
from flame.storage.objects import CHUNK

if TYPE_CHECKING:
    from flame.hub.state import HubState

T = TypeVar("T")

MAX_CONNECTIONS: Final = 128
MAX_REQUEST_HEAD: Final = 16 << 10
MAX_ENVELOPE: Final = 4 << 30
IDLE_SECONDS: Final = 120.0
_PATH: Final = "/messenger/messages"
_REASONS: Final = {200: "OK", 202: "Accepted"}


@dataclass(frozen=True, slots=True)
class _Head:
    method: str
    path: str
    authorization: str
    length: int


class BulkPlane:
    """Listens from `start` to `stop`; `url` says where."""

    def __init__(self, hub: HubState, host: str, port: int) -> None:
        self._hub = hub
        self._loop = asyncio.get_running_loop()
        self._listener = socket.create_server((host, port), backlog=64)
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        name, number = self._listener.getsockname()[:2]
        self.url = f"http://[{name}]:{number}" if ":" in name else f"http://{name}:{number}"

    def start(self) -> None:
        threading.Thread(target=self._accept, name="bulk-accept", daemon=True).start()

    def stop(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for stream in self._open:
                with suppress(OSError):
                    stream.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                stream, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                full = len(self._open) >= MAX_CONNECTIONS
                if not full:
                    self._open.add(stream)
            if full:
                stream.close()
                continue
            threading.Thread(target=self._serve, args=(stream,), name="bulk", daemon=True).start()

    def _serve(self, stream: socket.socket) -> None:
        try:
            stream.settimeout(IDLE_SECONDS)
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = _Connection(stream)
            while (head := connection.head()) is not None:
                if not self._answer(connection, head):
                    return
        except (OSError, EOFError):
            return  # the line broke; what was not whole was not kept
        except FlameError as error:
            with suppress(OSError):
                connection.reply(status_of(error), body_of(error))
        except Exception:  # noqa: BLE001 - one connection ends, the others go on; the log says why
            structlog.get_logger("flame.hub").error("bulk_failed", exc_info=True)
        finally:
            with self._lock:
                self._open.discard(stream)
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
            connection.reply(status_of(error), body_of(error))
            return head.length == 0 or connection.left == 0
        return True

    def _take(self, connection: _Connection, head: _Head) -> dict[str, Any]:
        connection.left = head.length
        if not 0 < head.length <= MAX_ENVELOPE:
            raise Malformed(f"Content-Length is needed, from 1 to {MAX_ENVELOPE}.")
        node = self._in_loop(self._node(head.authorization))
        start = connection.read(min(head.length, MAX_HEADER))
        addressed, header = self._in_loop(take_envelope(self._hub, node, start, head.length))
        if head.length <= INLINE_BYTES:
            body = start + connection.read(head.length - len(start))
            letter = replace(addressed.letter, body=body)
        else:
            blob = self._spooled(connection, start)
            letter = replace(addressed.letter, body=start[:header], blob=blob)
        fresh = False
        try:
            fresh = self._in_loop(self._store(Addressed(letter, addressed.recipients)))
        finally:
            if not fresh and letter.blob is not None:
                self._in_loop(self._hub.objects.remove(letter.blob))
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
        node = self._in_loop(self._node(head.authorization))
        sender, _, msg_id = head.path.removeprefix(f"{_PATH}/").partition("/")
        try:
            found = self._in_loop(self._hub.mailbox.find(node, check_id(sender, "message"), bytes.fromhex(msg_id)))
        except ValueError:
            found = None
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
            connection.stream.sendfile(file, 0, letter.size)

    async def _node(self, authorization: str) -> str:
        actor = await actor_of_bearer(self._hub, authorization)
        if actor.node is None:
            raise NotAllowed("Only nodes use the relay.")
        return actor.node

    async def _store(self, addressed: Addressed) -> bool:
        from flame.hub.relay.routes import store

        return await store(self._hub, addressed)

    def _in_loop(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(IDLE_SECONDS)


class _Connection:
    """One node's connection: heads, and bodies of known length."""

    def __init__(self, stream: socket.socket) -> None:
        self.stream = stream
        self.left = 0
        """Bytes of the current body that have not been read."""
        self._buffer = memoryview(bytearray(CHUNK))
        self._ahead = b""

    def head(self) -> _Head | None:
        """The next request's head; None at the end. Raises Malformed."""
        data = self._ahead
        while b"\r\n\r\n" not in data:
            if len(data) > MAX_REQUEST_HEAD:
                raise Malformed("The request's head is too long.")
            piece = self.stream.recv(MAX_REQUEST_HEAD)
            if not piece:
                if data:
                    raise EOFError
                return None
            data += piece
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

    def send_head(self, status: int, length: int, kind: str = "application/octet-stream", more: bytes = b"") -> None:
        line = f"HTTP/1.1 {status} {_REASONS.get(status, 'Refused')}\r\n"
        fields = f"Content-Type: {kind}\r\nContent-Length: {length}\r\nX-Content-Type-Options: nosniff\r\n\r\n"
        self.stream.sendall((line + fields).encode() + more)


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
        if not colon or not name or name != name.strip() or name.lower() in fields:
            raise Malformed("The request has a header that is not allowed, or one twice.")
        fields[name.lower()] = value.strip()
    if "transfer-encoding" in fields or fields.get("content-encoding", "identity") != "identity":
        raise Malformed("An envelope comes as it is, with its length.")
    length = fields.get("content-length", "0")
    if not (length.isascii() and length.isdigit() and len(length) < 16):
        raise Malformed("Content-Length is not a number.")
    return _Head(method, path, fields.get("authorization", ""), int(length))
