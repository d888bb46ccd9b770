"""The control channel in plain requests, for where a proxy lets no WebSocket through: slower, and never less sure.

What waits for the node comes by a poll that the hub ends as soon as there is something. What the node hands in goes in
its order, all that waits in one request.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec

from flame.model.errors import Malformed
from flame.protocol.control import POLL_LETTERS, Ack, Changed, Deliver, Hello, Put, Rejected, Stored, ToHub, Welcome

WAIT_SECONDS = 25
"""Less than what proxies allow a request to take."""
SEND_BYTES = 4 << 20
ACKS_AT_ONCE = 1000
"""Numbers in one frame or request; the hub refuses more."""
PAUSE_SECONDS = 1.0
"""After an answer that had nothing and did not wait for anything: something on the way answers for the hub."""

T = TypeVar("T")
Ask = Callable[..., Awaitable[Any]]
Took = Callable[[Any], Awaitable[None]]


class _Greeting(msgspec.Struct, rename="camel"):
    version: int
    release: str
    log_size: int
    log_root: str
    bulk: str = ""
    news: str = ""


class _Letter(msgspec.Struct, rename="camel"):
    seq: int
    kind: str
    run: str
    sender: str
    msg_id: str
    size: int
    body: str


class _Change(msgspec.Struct):
    what: str
    id: str


class _News(msgspec.Struct):
    cursor: str
    missed: bool
    changed: list[_Change]


class _Polled(msgspec.Struct):
    data: list[_Letter]
    news: _News


class _Answer(msgspec.Struct, rename="camel"):
    msg_id: str
    stored: bool
    code: str = ""
    message: str = ""
    next_step: str = ""
    retry_after: float = 0


class _Sent(msgspec.Struct):
    data: list[_Answer]


class Polling:
    """One conversation, from `greet` until something fails. ``ask``: a request to the hub; ``take``: a frame has come."""

    def __init__(self, ask: Ask, take: Took) -> None:
        self._ask, self._take = ask, take
        self._letters: deque[Put] = deque()
        self._acks: list[int] = []
        self._some = asyncio.Event()
        self._cursor = ""

    async def greet(self, hello: Hello) -> Welcome:
        """Raises Incompatible, Unavailable, Malformed."""
        body = {"version": hello.version, "oldest": hello.oldest, "release": hello.release}
        said = _read(await self._ask("POST", "/messenger/hello", body), _Greeting)
        self._cursor = said.news
        return Welcome(said.version, said.release, said.log_size, _hex(said.log_root), said.bulk)

    def hand(self, frame: ToHub) -> None:
        """To be sent with what waits."""
        if isinstance(frame, Put):
            self._letters.append(frame)
        elif isinstance(frame, Ack):
            self._acks += frame.seqs
        self._some.set()

    async def converse(self) -> None:
        """Send and receive until cancelled. Raises what ended it."""
        tasks = [asyncio.create_task(self._send()), asyncio.create_task(self._receive())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _send(self) -> None:
        while True:
            await self._some.wait()
            self._some.clear()
            while self._letters or self._acks:
                if self._acks:
                    seqs, self._acks = self._acks[:ACKS_AT_ONCE], self._acks[ACKS_AT_ONCE:]
                    await self._ask("POST", "/messenger/messages/ack", {"seqs": seqs})
                if self._letters:
                    await self._send_letters()

    async def _send_letters(self) -> None:
        letters: list[Put] = []
        size = 0
        while self._letters and len(letters) < POLL_LETTERS and size < SEND_BYTES:
            letters.append(self._letters.popleft())
            size += len(letters[-1].body)
        shown = [
            {
                "kind": put.kind, "msgId": put.msg_id.hex(), "run": put.run.hex(),
                "body": base64.b64encode(put.body).decode(),
            }
            for put in letters
        ]  # fmt: skip
        for said in _read(await self._ask("POST", "/messenger/messages", {"messages": shown}), _Sent).data:
            msg_id = _hex(said.msg_id)
            if said.stored:
                await self._take(Stored(msg_id))
            else:
                await self._take(Rejected(msg_id, said.code, said.message, said.next_step, said.retry_after))

    async def _receive(self) -> None:
        after = 0
        while True:
            asked = time.monotonic()
            path = f"/messenger/messages?wait={WAIT_SECONDS}&after={after}&news={self._cursor}"
            polled = _read(await self._ask("GET", path), _Polled)
            for letter in polled.data:
                await self._take(_deliver(letter))
                after = max(after, letter.seq)
            if polled.news.missed:
                await self._take(Changed("everything", ""))
            for change in polled.news.changed:
                await self._take(Changed(change.what, change.id))
            self._cursor = polled.news.cursor
            if not (polled.data or polled.news.changed) and time.monotonic() - asked < PAUSE_SECONDS:
                await asyncio.sleep(PAUSE_SECONDS)


def _deliver(letter: _Letter) -> Deliver:
    try:
        body = base64.b64decode(letter.body, validate=True)
    except (ValueError, binascii.Error):
        raise Malformed("The hub's answer to a poll cannot be read.") from None
    return Deliver(letter.seq, letter.kind, _hex(letter.run), letter.sender, _hex(letter.msg_id), letter.size, body)


def _read(content: Any, kind: type[T]) -> T:
    try:
        return msgspec.convert(content, kind)
    except msgspec.ValidationError as error:
        raise Malformed(f"The hub's answer cannot be read: {error}") from None


def _hex(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise Malformed("The hub's answer holds an id that is not hexadecimal.") from None
