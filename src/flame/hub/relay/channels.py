"""The nodes that are connected, and how they hear at once of what has come for them.

Everything here is a wake-up: what counts stands in the mailbox. Within one process a letter that has just been
committed is handed on from memory; with several processes a wake-up comes from elsewhere (LISTEN/NOTIFY) and the letter
is read from the mailbox. Both ways end in the same pump.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final, Protocol

from flame.protocol.control import Changed, Deliver, encode
from flame.storage.mailbox import Delivery

if TYPE_CHECKING:
    from flame.storage.mailbox import SqlMailbox

MAX_HINTS: Final = 64
BATCH: Final = 64


class Wakeups(Protocol):
    """How a process tells others that something waits. The in-process form tells nobody."""

    def tell(self, recipients: Iterable[str]) -> None: ...


class Outlet(Protocol):
    """Where frames go: a node's WebSocket."""

    async def send_bytes(self, data: bytes) -> None: ...


class Channel:
    """One connected node. `pump` sends what waits, in order, until the channel is closed."""

    def __init__(self, node: str, outlet: Outlet, mailbox: SqlMailbox) -> None:
        self.node = node
        self._outlet = outlet
        self._mailbox = mailbox
        self._sent = 0
        self._hints: OrderedDict[int, Delivery] = OrderedDict()
        self._news: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._wake = asyncio.Event()
        self._wake.set()
        self._look = True
        self.closed = asyncio.Event()

    def hint(self, delivery: Delivery) -> None:
        """A letter that has just been stored for this node."""
        if len(self._hints) >= MAX_HINTS:
            self._hints.clear()
            self._look = True
        else:
            self._hints[delivery.seq] = delivery
        self._wake.set()

    def look(self) -> None:
        """Something waits in the mailbox."""
        self._look = True
        self._wake.set()

    def news(self, what: str, key: str) -> None:
        """Something has changed; told once, however often it changes before it is sent."""
        self._news[(what, key)] = None
        self._wake.set()

    def close(self) -> None:
        self.closed.set()
        self._wake.set()

    async def pump(self) -> None:
        while not self.closed.is_set():
            await self._wake.wait()
            self._wake.clear()
            while self._news:
                (what, key), _ = self._news.popitem(last=False)
                await self._outlet.send_bytes(encode(Changed(what, key)))
            await self._deliver()

    async def _deliver(self) -> None:
        while not self.closed.is_set():
            if self._look:
                self._look = False
                await self._drain()
            elif self._hints:
                seq, delivery = self._hints.popitem(last=False)
                if seq == self._sent + 1:
                    await self._send(delivery)
                elif seq > self._sent:
                    self._look = True  # something before it: the mailbox knows the order
            else:
                return

    async def _drain(self) -> None:
        while not self.closed.is_set():
            waiting = await self._mailbox.waiting(self.node, self._sent, BATCH)
            for delivery in waiting:
                await self._send(delivery)
            if len(waiting) < BATCH:
                return

    async def _send(self, delivery: Delivery) -> None:
        await self._outlet.send_bytes(frame_of(delivery))
        self._sent = delivery.seq


def frame_of(delivery: Delivery) -> bytes:
    """The frame of a letter: all of it, or of a large one the envelope's header."""
    letter = delivery.letter
    body = letter.body or b""
    return encode(Deliver(delivery.seq, letter.kind, letter.run, letter.sender, letter.msg_id, letter.size, body))


class Watched(asyncio.Event):
    """Set when what is watched has changed."""

    async def within(self, seconds: float) -> bool:
        """Wait for a change; False when the time is over."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self.wait(), seconds)
        return self.is_set()


class Channels:
    """The connected nodes of this process: one channel each; a newer one replaces the older."""

    def __init__(self) -> None:
        self._open: dict[str, Channel] = {}
        self._polls: dict[str, set[asyncio.Event]] = {}
        self._watched: dict[str, set[Watched]] = {}

    def add(self, channel: Channel) -> None:
        if older := self._open.get(channel.node):
            older.close()
        self._open[channel.node] = channel

    def remove(self, channel: Channel) -> bool:
        """Whether it was still the node's channel."""
        if self._open.get(channel.node) is channel:
            del self._open[channel.node]
            return True
        return False

    def stored(self, recipient: str, delivery: Delivery) -> None:
        """A letter was committed for a recipient."""
        if channel := self._open.get(recipient):
            channel.hint(delivery)
        for event in self._polls.get(recipient, ()):
            event.set()

    def changed(self, nodes: Iterable[str], what: str, key: str) -> None:
        """Tell nodes to look again at something."""
        for node in nodes:
            if channel := self._open.get(node):
                channel.news(what, key)
        self.stir(key)

    def stir(self, key: str) -> None:
        """Something about an analysis has changed: whoever watches it looks again."""
        for watched in self._watched.get(key, ()):
            watched.set()

    @contextmanager
    def watching(self, key: str) -> Iterator[Watched]:
        """A person's programme watches something; what happens from now on is not missed."""
        watched = Watched()
        self._watched.setdefault(key, set()).add(watched)
        try:
            yield watched
        finally:
            self._watched[key].discard(watched)
            if not self._watched[key]:
                del self._watched[key]

    async def wait(self, recipient: str, seconds: float) -> None:
        """Until something is stored for a recipient, or the time is over (long polls)."""
        event = asyncio.Event()
        waiting = self._polls.setdefault(recipient, set())
        waiting.add(event)
        try:
            with suppress(TimeoutError):
                await asyncio.wait_for(event.wait(), seconds)
        finally:
            waiting.discard(event)
            if not waiting:
                self._polls.pop(recipient, None)

    def close(self) -> None:
        for channel in list(self._open.values()):
            channel.close()
