"""What a program and its node's gateway say to each other over the run's socket.

A connection opens with an HTTP/1.1 upgrade (so that one socket serves this and plain HTTP), then carries frames:

    frame = u32 head_len | u64 body_len | head (msgpack, one of the structs below) | body

Each connection is strict: one request, one reply. What waits (a message, a total, the next state) is a request whose
reply comes when there is something to say: nothing polls. A program that wants to wait for two things opens a second
connection.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Sequence
from typing import Any

import msgspec

from flame.model import errors
from flame.model.errors import FlameError, Invalid, Malformed, Refused, ReleaseRefused
from flame.wire.values import Buffer

VERSION = 1
SOCKET_VARIABLE = "FLAME_GATEWAY"
"""Environment variable that names the socket inside the sandbox."""

UPGRADE = b"GET /flame/v1 HTTP/1.1\r\nHost: gateway\r\nConnection: Upgrade\r\nUpgrade: flame-frames/1\r\n\r\n"
UPGRADED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: flame-frames/1\r\n\r\n"

MAX_HEAD = 32 << 10
MAX_BODY = 4 << 30
_PREFIX = struct.Struct(">IQ")
_STEP = 16 << 20


class _Frame(msgspec.Struct, tag_field="op", forbid_unknown_fields=True):
    pass


# --- requests -------------------------------------------------------------------------------------------------------


class Hello(_Frame, tag="hello"):
    """First on every connection. Reply: Welcome."""

    version: int = VERSION
    sdk: str = ""


class GetData(_Frame, tag="data"):
    """A source granted to the run. Reply: Table (its value in the body: column name -> array or list of text)."""

    source: str = "data"


class Contribute(_Frame, tag="contribute"):
    """A data node's part of a sum; body: a value, flat dictionary of arrays and numbers. Reply: Done."""

    name: str
    round: int


class GetTotal(_Frame, tag="total"):
    """The aggregator waits for the sum over all data nodes. Reply: Total (body: the sum, same names and shapes)."""

    name: str
    round: int


class Send(_Frame, tag="send"):
    """A message to other participants; body: a value. Reply: Sent."""

    to: list[str]
    category: str


class Receive(_Frame, tag="receive"):
    """The next message of a category not yet received by this program. Reply: Message, or TimedOut.

    ``senders``: only from these; empty: from anyone. ``timeout``: seconds, None waits until the run ends.
    """

    category: str
    senders: list[str] = []
    timeout: float | None = None


class Log(_Frame, tag="log"):
    """A log line: a literal template of the program and the values that stay at the node. Reply: Done."""

    level: str
    template: str
    values: dict[str, str] = {}


class Progress(_Frame, tag="progress"):
    """How far the program is, 0..100. Reply: Done."""

    percent: int


class Submit(_Frame, tag="submit"):
    """The final result (aggregator only); body: raw bytes of the file ``name``. Reply: Done."""

    name: str
    media_type: str = "application/octet-stream"
    noise: tuple[float, float] | None = None
    """Epsilon and sensitivity: the body is one number as text, and the node adds Laplace noise before it leaves."""


class Keep(_Frame, tag="keep"):
    """An object that stays at the node, for this project; body: a value. ``label``: a tag to find it by. Reply: Sent."""

    label: str = ""


class GetKept(_Frame, tag="get_kept"):
    """An object that was kept. Reply: Kept with its id (body: the value)."""

    id: str


class ListKept(_Frame, tag="list_kept"):
    """What was kept under a tag, in the order in which it was; without one: everything that has a tag. Reply: Kept."""

    label: str = ""


class Finish(_Frame, tag="finish"):
    """The program has done its part. Reply: Done."""


class Fail(_Frame, tag="fail"):
    """The program ends with an error: its type, where it stood, and for data that do not fit the column that they are in;
    the text stays at the node. Reply: Done.
    """

    error: str
    frames: list[tuple[str, int]] = []
    text: str = ""
    code: str = ""
    column: str = ""


Request = (
    Hello
    | GetData
    | Contribute
    | GetTotal
    | Send
    | Receive
    | Log
    | Progress
    | Submit
    | Keep
    | GetKept
    | ListKept
    | Finish
    | Fail
)


# --- replies --------------------------------------------------------------------------------------------------------


class Participant(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    role: str
    """``default`` (a data node) or ``aggregator``, as on FLAME's wire."""


class Welcome(_Frame, tag="welcome"):
    version: int
    analysis: str
    project: str
    run: str
    node: str
    role: str
    participants: list[Participant]
    """All of them, this node included, in the order of the manifest."""
    parameters: dict[str, Any]
    sources: list[str]


class Table(_Frame, tag="table"):
    source: str
    rows: int
    columns: list[str]


class Total(_Frame, tag="total"):
    contributors: int


class Message(_Frame, tag="message"):
    id: str
    sender: str
    category: str


class Sent(_Frame, tag="sent"):
    id: str


class Kept(_Frame, tag="kept"):
    objects: list[tuple[str, str]]
    """Id and tag of each."""


class TimedOut(_Frame, tag="timed_out"):
    pass


class Done(_Frame, tag="done"):
    pass


class Failed(_Frame, tag="failed"):
    """The request was refused or failed. The program may go on; nothing has left the node."""

    code: str
    message: str
    next_step: str = ""


Reply = Welcome | Table | Total | Message | Sent | Kept | TimedOut | Done | Failed

_decode_request = msgspec.msgpack.Decoder(Request).decode
_decode_reply = msgspec.msgpack.Decoder(Reply).decode
_encode = msgspec.msgpack.Encoder().encode


def ask_upgrade(stream: socket.socket) -> None:
    """The program's half of the opening; raises Malformed when the other side is not a gateway of this version."""
    stream.sendall(UPGRADE)
    answer = bytearray()
    while len(answer) < len(UPGRADED):
        got = stream.recv(len(UPGRADED) - len(answer))
        if not got:
            raise EOFError
        answer += got
        if not UPGRADED.startswith(answer):
            raise Malformed("What listens at the gateway's socket does not speak flame-frames/1.")


class Connection:
    """Frames over a connected stream socket, blocking, with as few copies as the kernel allows."""

    def __init__(self, stream: socket.socket) -> None:
        self._socket = stream

    def fileno(self) -> int:
        """For ``selectors``: readable when a reply has begun to arrive."""
        return self._socket.fileno()

    def close(self) -> None:
        """Also ends a ``receive_…`` that another thread is waiting in (EOFError there)."""
        with contextlib.suppress(OSError):  # the other side may have gone first
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def end_sending(self) -> None:
        """Hang up half: the other side sees the end and gives up waiting, what it had to say can still be read."""
        self._socket.shutdown(socket.SHUT_WR)

    def send(self, head: Request | Reply, body: Sequence[Buffer] = ()) -> None:
        try:
            encoded = _encode(head)
        except (UnicodeEncodeError, TypeError, OverflowError) as error:
            raise Invalid(f"The request cannot be written: {error}") from None
        if len(encoded) > MAX_HEAD:
            raise Invalid(f"A request's head takes {len(encoded)} bytes; at most {MAX_HEAD} are allowed.")
        views = [memoryview(part).cast("B") for part in body if len(part)]
        total = sum(len(view) for view in views)
        _send_all(self._socket, [memoryview(_PREFIX.pack(len(encoded), total) + encoded), *views])

    def receive_request(self, max_body: int = MAX_BODY) -> tuple[Request, bytearray]:
        head, body = self._receive(max_body)
        try:
            return _decode_request(head), body
        except (msgspec.DecodeError, RecursionError) as error:
            raise Malformed(f"The request cannot be read: {error}") from None

    def receive_reply(self) -> tuple[Reply, bytearray]:
        head, body = self._receive(MAX_BODY)
        try:
            return _decode_reply(head), body
        except (msgspec.DecodeError, RecursionError) as error:
            raise Malformed(f"The gateway's reply cannot be read: {error}") from None

    def _receive(self, max_body: int) -> tuple[bytearray, bytearray]:
        prefix = self._exactly(_PREFIX.size)
        head_len, body_len = _PREFIX.unpack(prefix)
        if head_len > MAX_HEAD:
            raise Malformed(f"A frame's head of {head_len} bytes is longer than {MAX_HEAD}.")
        if body_len > max_body:  # the frame is not read: whoever catches this closes the connection
            raise ReleaseRefused(
                f"A frame of {body_len} bytes is longer than the {max_body} that are allowed here.",
                next_step="Send less at once, or ask for a higher max_bytes in flame.toml.",
            )
        return self._exactly(head_len), self._exactly(body_len)

    def _exactly(self, size: int) -> bytearray:
        """Memory is taken as bytes arrive: an announced length alone costs the other side nothing."""
        buffer = bytearray(min(size, _STEP))
        filled = 0
        while filled < size:
            if filled == len(buffer):
                buffer.extend(bytes(min(size, 2 * filled) - filled))
            with memoryview(buffer) as view:
                got = self._socket.recv_into(view[filled:])
            if not got:
                raise EOFError
            filled += got
        return buffer


def _send_all(stream: socket.socket, views: list[memoryview]) -> None:
    while views:
        sent = stream.sendmsg(views[:64])
        while views and sent >= len(views[0]):
            sent -= len(views.pop(0))
        if sent:
            views[0] = views[0][sent:]


_BY_CODE: dict[str, type[FlameError]] = {
    kind.code: kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, FlameError)
}


def failed(error: FlameError) -> Failed:
    """An error as a reply."""
    return Failed(error.code, error.message[:4000], error.next_step[:2000])


def raised(reply: Failed) -> FlameError:
    """A reply as the error that it tells of."""
    return _BY_CODE.get(reply.code, Refused)(reply.message, next_step=reply.next_step, code=reply.code)
