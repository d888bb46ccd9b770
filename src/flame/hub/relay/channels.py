"""The nodes that are connected, and how they hear at once of what has come for them.

Everything here is a wake-up: what counts stands in the mailbox. Within one process a letter that has just been
committed is handed on from memory; with several processes a wake-up comes from elsewhere (LISTEN/NOTIFY) and the letter
is read from the mailbox. Both ways end in the same pump.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from flame.protocol.control import Changed, Deliver, encode
from flame.storage.mailbox import Delivery

if TYPE_CHECKING:
    from flame.storage.mailbox import SqlMailbox

MAX_HINTS: Final = 64
BATCH: Final = 64
MAX_NEWS: Final = 4096
"""Changes that are kept for nodes between two polls."""


class Wakeups(Protocol):
    """How a process tells the others what they could not know; of letters they hear with the commit."""

    def changed(self, nodes: frozenset[str], what: str, key: str) -> None: ...

    def stirred(self, key: str) -> None: ...

    def run_ended(self, run: bytes) -> None: ...


class _Nobody:
    """A hub of one process."""

    def changed(self, nodes: frozenset[str], what: str, key: str) -> None: ...

    def stirred(self, key: str) -> None: ...

    def run_ended(self, run: bytes) -> None: ...


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


@dataclass(frozen=True, slots=True)
class News:
    """What has changed for a node since a cursor; `missed`: more than is known here."""

    cursor: str
    missed: bool
    changed: tuple[tuple[str, str], ...]

    @property
    def worth_telling(self) -> bool:
        return self.missed or bool(self.changed)


class Channels:
    """The nodes of this process, connected or polling. A node has one channel; a newer one replaces the older."""

    def __init__(self) -> None:
        self.elsewhere: Wakeups = _Nobody()
        self._open: dict[str, Channel] = {}
        self._polls: dict[str, set[Watched]] = {}
        self._watched: dict[str, set[Watched]] = {}
        self._news: deque[tuple[int, frozenset[str], str, str]] = deque(maxlen=MAX_NEWS)
        self._told = 0
        self._epoch = secrets.token_hex(8)
        self._last_poll: dict[str, float] = {}
        self._closed = asyncio.Event()

    # --- nodes that are connected -----------------------------------------------------------------------------------

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

    def is_here(self, node: str) -> bool:
        """Whether a node is connected, or has polled of late."""
        return node in self._open or node in self._last_poll

    def here(self) -> list[str]:
        return [*self._open, *(node for node in self._last_poll if node not in self._open)]

    # --- what has come for them -------------------------------------------------------------------------------------

    def stored(self, recipient: str, delivery: Delivery) -> None:
        """A letter was committed for a recipient by this process; others hear of it with the commit."""
        if channel := self._open.get(recipient):
            channel.hint(delivery)
        for waiting in self._polls.get(recipient, ()):
            waiting.set()

    def look(self, recipients: Iterable[str]) -> None:
        """Letters were committed elsewhere."""
        for recipient in recipients:
            if channel := self._open.get(recipient):
                channel.look()
            for waiting in self._polls.get(recipient, ()):
                waiting.set()

    def look_at_everything(self) -> None:
        """What other processes had to tell may have been lost: letters, news, and what is watched."""
        self._epoch = secrets.token_hex(8)  # a cursor of before has missed something
        self.look([*self._open, *self._polls])
        for channel in self._open.values():
            channel.news("everything", "")
        for watched in [w for some in self._watched.values() for w in some]:
            watched.set()

    # --- what has changed -------------------------------------------------------------------------------------------

    def changed(self, nodes: Iterable[str], what: str, key: str) -> None:
        """Tell nodes to look again at something, wherever they are connected."""
        nodes = frozenset(nodes)
        self.changed_here(nodes, what, key)
        self.elsewhere.changed(nodes, what, key)

    def changed_here(self, nodes: frozenset[str], what: str, key: str) -> None:
        self._told += 1
        self._news.append((self._told, nodes, what, key))
        for node in nodes:
            if channel := self._open.get(node):
                channel.news(what, key)
            for waiting in self._polls.get(node, ()):
                waiting.set()
        self.stir_here(key)

    def cursor(self) -> str:
        """From here on."""
        return f"{self._epoch}-{self._told}"

    def news_since(self, node: str, cursor: str) -> News:
        """What a polling node has to hear; each thing once, however often it changed."""
        epoch, _, number = cursor.partition("-")
        since = int(number) if number.isascii() and number.isdigit() and len(number) < 16 else -1
        oldest = self._news[0][0] if self._news else self._told + 1
        if epoch != self._epoch or since < oldest - 1:
            return News(self.cursor(), True, ())
        changed = dict.fromkeys((what, key) for n, nodes, what, key in self._news if n > since and node in nodes)
        return News(self.cursor(), False, tuple(changed))

    def stir(self, key: str) -> None:
        """Something about an analysis has changed: whoever watches it looks again."""
        self.stir_here(key)
        self.elsewhere.stirred(key)

    def stir_here(self, key: str) -> None:
        for watched in self._watched.get(key, ()):
            watched.set()

    @contextmanager
    def watching(self, key: str) -> Iterator[Watched]:
        """A person's programme watches something; what happens from now on is not missed."""
        with _registered(self._watched, key) as watched:
            yield watched

    # --- nodes that poll --------------------------------------------------------------------------------------------

    @contextmanager
    def listening(self, node: str) -> Iterator[Watched]:
        """A poll; what comes for the node from now on is not missed."""
        with _registered(self._polls, node) as waiting:
            if self._closed.is_set():
                waiting.set()
            yield waiting

    def polled(self, node: str) -> bool:
        """A node asks; whether that is news."""
        fresh = node not in self._last_poll
        self._last_poll[node] = time.monotonic()
        return fresh

    async def stops_polling(self, node: str, seconds: float) -> None:
        """Until a node has not asked for so long, a poll that waits not counted."""
        while not self._closed.is_set():
            left = self._last_poll[node] + seconds - time.monotonic()
            if node in self._polls:
                left = seconds
            if left <= 0:
                break
            with suppress(TimeoutError):
                await asyncio.wait_for(self._closed.wait(), left)
        self._last_poll.pop(node, None)

    def close(self) -> None:
        self._closed.set()
        for channel in list(self._open.values()):
            channel.close()
        for waiting in [w for some in (*self._polls.values(), *self._watched.values()) for w in some]:
            waiting.set()


@contextmanager
def _registered(places: dict[str, set[Watched]], key: str) -> Iterator[Watched]:
    watched = Watched()
    places.setdefault(key, set()).add(watched)
    try:
        yield watched
    finally:
        places[key].discard(watched)
        if not places[key]:
            del places[key]
