"""A hub's relay in memory, and nodes with real keys, real journals and real threads around it.

The relay stores and forwards bytes as the hub does; a test may make it withhold, repeat, reorder or alter them.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, cast
from uuid import UUID

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

import node_world
from flame.crypto import envelope
from flame.crypto.announce import Announcement, sign_announcement
from flame.crypto.atrest import StorageKey
from flame.crypto.keys import HybridKey, IdentityKey
from flame.model.errors import FlameError, Unavailable
from flame.node.release.channel import Channel, Item
from flame.node.release.keys import RunKeys
from flame.node.release.party import Parties, Party
from flame.node.schema import NODE
from flame.protocol.control import INLINE_BYTES, Deliver
from flame.protocol.payload import Label, prefix
from flame.storage.journal import Journal

RUN = "ab" * 32
MANIFEST = bytes(32)
ALPHA, BETA, GAMMA = node_world.DATA_NODES
AGGREGATOR = node_world.AGGREGATOR
PATIENCE = 10.0


class Relay:
    """The hub's side: a mailbox per node, envelopes by (sender, id)."""

    def __init__(self) -> None:
        self.stored: dict[tuple[str, bytes], bytes] = {}
        self.puts: list[tuple[str, bytes]] = []
        self.mailbox: dict[str, list[Deliver]] = {}
        self.acked: dict[str, list[int]] = {}
        self.gets: list[str] = []
        self.stations: dict[str, Station] = {}
        self.deliver_at_once = True
        self.break_gets = 0
        self._lock = threading.Lock()

    def put(self, sender: str, body: bytes) -> None:
        head, length = envelope.peek_head(body)
        key = (sender, head.msg_id)
        with self._lock:
            self.puts.append(key)
            known = self.stored.setdefault(key, body)
            assert known == body, "other bytes under the same message id"
            if self.puts.count(key) > 1:
                return
            for index, recipient in enumerate(head.recipients):
                whole = envelope.strip_wraps(body[:length], index) + body[length:]
                self._post(str(UUID(bytes=recipient.id)), sender, head, whole)

    def _post(self, node: str, sender: str, head: envelope.Head, whole: bytes) -> None:
        mailbox = self.mailbox.setdefault(node, [])
        large = len(whole) > INLINE_BYTES
        shown = whole[: envelope.peek_head(whole)[1]] if large else whole
        frame = Deliver(len(mailbox), "envelope", head.run, sender, head.msg_id, len(whole), shown)
        mailbox.append(frame)
        if self.deliver_at_once and node in self.stations:
            self.stations[node].hand(frame)

    def deliver(self, node: str, *frames: Deliver) -> None:
        for frame in frames:
            self.stations[node].hand(frame)

    def redeliver(self, node: str) -> None:
        """What a hub does when a node comes back: all that is not acknowledged, in order."""
        acked = self.acked.get(node, [])
        self.deliver(node, *(f for f in self.mailbox.get(node, []) if f.seq not in acked))


class LinkDouble:
    newest_head = (0, b"")

    def __init__(self, relay: Relay, node: str) -> None:
        self._relay, self._node = relay, node
        self.online = True

    async def put(self, kind: str, run: bytes, msg_id: bytes, body: bytes) -> None:
        while not self.online:
            await asyncio.sleep(0.01)
        self._relay.put(self._node, body)

    def ack(self, seq: int) -> None:
        self._relay.acked.setdefault(self._node, []).append(seq)


class BulkDouble:
    def __init__(self, relay: Relay, node: str) -> None:
        self._relay, self._node = relay, node

    def put(self, path: str, length: int, pieces: Iterable[Any]) -> None:
        body = b"".join(bytes(piece) for piece in pieces)
        assert len(body) == length
        self._relay.put(self._node, body)

    def put_on(self, msg_id: bytes, length: int, pieces: Callable[[], Iterable[Any]]) -> None:
        self.put("", length, pieces())

    @contextmanager
    def get(self, path: str, offset: int = 0) -> Iterator[BytesIO]:
        self._relay.gets.append(path)
        sender, msg_id = path.rsplit("/", 2)[1:]
        body = self._relay.stored[sender, bytes.fromhex(msg_id)]
        if self._relay.break_gets > 0:
            self._relay.break_gets -= 1
            body = body[: len(body) // 2]
        yield BytesIO(body[offset:])


class Station:
    """One node in the run; ``restart`` is what kill -9 and a new start leave: the journal and the keys."""

    def __init__(self, relay: Relay, node: str, path: Path, identities: dict[str, IdentityKey]) -> None:
        self.relay, self.node, self.identities = relay, node, identities
        self.identity = identities[node]
        self.keys = RunKeys(HybridKey.generate(), X25519PrivateKey.generate())
        self.storage_key = StorageKey.generate()
        self.journal = Journal(path / f"{node}.db", NODE)
        self.refused: list[FlameError] = []
        self.controls: list[tuple[str, str, bytes]] = []
        self.channel: Channel
        self._work: asyncio.Task[None] | None = None

    def announcement(self) -> bytes:
        now = int(time.time())
        return sign_announcement(
            self.identity,
            Announcement(
                run=bytes.fromhex(RUN), manifest=MANIFEST, node=UUID(self.node).bytes, role=role_of(self.node),
                run_key=self.keys.run_key.public_bytes, mask_key=self.keys.mask_public, log_size=0, log_root=bytes(32),
                created=now, expires=now + 3600,
            ),
        )  # fmt: skip

    async def start(self, seconds: int = 60) -> None:
        parties = Parties(
            bytes.fromhex(RUN),
            MANIFEST,
            [Party(p, self.identities[p.node].public) for p in node_world.manifest().participants],
        )
        for station in self.relay.stations.values():
            parties.take(station.node, station.announcement(), int(time.time()))
        self.link = LinkDouble(self.relay, self.node)
        self.channel = Channel(
            RUN, self.node, identity=self.identity, keys=self.keys, storage_key=self.storage_key, parties=parties,
            journal=self.journal, link=cast("Any", self.link), bulk=cast("Any", BulkDouble(self.relay, self.node)),
            expires=int(time.time()) + seconds, seconds=seconds, on_refused=self.refused.append,
            on_control=lambda *said: self.controls.append(said),
        )  # fmt: skip
        await self.channel.load()
        self._work = asyncio.create_task(self.channel.work())

    async def die(self) -> None:
        """The channel is gone, as it stands; nothing is closed or said."""
        if self._work is not None:
            self._work.cancel()
            await asyncio.gather(self._work, return_exceptions=True)

    async def restart(self) -> None:
        await self.die()
        await self.start()
        self.relay.redeliver(self.node)

    def hand(self, frame: Deliver) -> None:
        self.channel._loop.call_soon_threadsafe(self.channel.deliver, frame)

    async def send(self, key: str, to: list[str], body: bytes, type_: str = "message", name: str = "x") -> bytes:
        return await asyncio.to_thread(self.channel.send, key, type_, 0, Label(name), to, body)

    async def next(
        self, start: int = 0, wanted: Callable[[Item], bool] = lambda _: True, timeout: float = PATIENCE
    ) -> Item | None:
        return await asyncio.to_thread(self.channel.wait_for, wanted, timeout, threading.Event(), start=start)

    async def bodies(self, count: int) -> list[bytes]:
        """The first ``count`` messages, in the order in which the program gets them."""
        found = []
        for place in range(count):
            item = await self.next(place)
            assert item is not None, f"only {place} of {count} messages came"
            _, body = await asyncio.to_thread(self.channel.body, item)
            found.append(bytes(body))
        return found

    def sealed(self, to: Station, n: int, body: bytes = b"", **other: Any) -> bytes:
        """An envelope that this node has signed, whatever the rules of its channel would say to it."""
        now = int(time.time())
        fields: dict[str, Any] = {
            "type": "message", "run": bytes.fromhex(RUN), "sender": UUID(self.node).bytes,
            "msg_id": n.to_bytes(16, "big"), "round": 0, "created": now, "expires": now + 60,
            "content_type": "application/octet-stream", "log_size": 0, "log_root": bytes(32),
            "recipients": [envelope.RecipientKey(UUID(to.node).bytes, to.keys.run_key.public_bytes, n)],
        }  # fmt: skip
        return envelope.seal(self.identity, prefix(Label("x")) + body, **{**fields, **other})

    def frame(self, body: bytes, seq: int = 0, *, sender: str | None = None, size: int | None = None) -> Deliver:
        """An envelope as a hub would hand it over: by default, truthfully."""
        msg_id = envelope.peek_head(body)[0].msg_id
        return Deliver(seq, "envelope", bytes.fromhex(RUN), sender or self.node, msg_id, size or len(body), body)


def role_of(node: str) -> str:
    participant = node_world.manifest().participant(node)
    assert participant is not None
    return participant.role


@asynccontextmanager
async def federation(path: Path, *nodes: str) -> AsyncIterator[tuple[Relay, dict[str, Station]]]:
    """Stations that have announced themselves to each other."""
    relay = Relay()
    identities = {p.node: IdentityKey.generate() for p in node_world.manifest().participants}
    for node in nodes or (ALPHA, BETA, GAMMA, AGGREGATOR):
        relay.stations[node] = Station(relay, node, path, identities)
    try:
        for station in relay.stations.values():
            await station.start()
        yield relay, relay.stations
    finally:
        for station in relay.stations.values():
            await station.die()
            station.journal.close()


async def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"in vain: {what}"
        await asyncio.sleep(0.005)


async def settled(station: Station) -> None:
    """Until the channel has looked at everything that it was handed."""
    done = asyncio.Event()
    await asyncio.sleep(0)
    await until(lambda: station.channel._incoming.empty(), "the incoming queue")
    asyncio.get_running_loop().call_later(0.05, done.set)
    await done.wait()


__all__ = ["Unavailable", "federation", "settled", "until"]
