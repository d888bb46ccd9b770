"""Sending and receiving in one run.

Sending: one transaction holds number, envelope and its digest; only then is it sent, and a repeat is the same bytes.
A program that is started anew after a crash sends everything again: what is in the outbox with the same digest has
left already and is not sent twice; another digest under the same key means that the program is not deterministic,
and the run ends, saying so.

Receiving: opened, numbered and durable in one transaction, then acknowledged. A large envelope stays at the hub until
the run ends, so that the aggregator holds no more than it adds; its head is verified and counted on arrival.

What no participant of the run has signed is dropped and not acknowledged: whoever can put it before this node (the hub,
a stranger) could otherwise end the run at will. What a participant did sign and may not send ends the run.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, field
from io import BytesIO
from typing import TYPE_CHECKING, Any

from flame.crypto import envelope
from flame.crypto.counters import Arrival, Counter, accept, judge, keep_waiting
from flame.crypto.envelope import Head, HeadFields, Opener, RecipientKey, Sealer
from flame.model.errors import FlameError, Refused, RunFailed, Unavailable
from flame.node.hooks import UNSEALED, hook
from flame.node.link import Unbroken
from flame.protocol.control import INLINE_BYTES, Deliver
from flame.protocol.payload import Label, prefix, split
from flame.storage.failpoints import declare, reached

if TYPE_CHECKING:
    from flame.crypto.atrest import StorageKey
    from flame.crypto.keys import IdentityKey
    from flame.node.link import Bulk, Link
    from flame.node.release.keys import RunKeys
    from flame.node.release.party import Parties, Party
    from flame.storage.journal import Journal
    from flame.wire.values import Buffer

CONTENT_TYPE = "application/vnd.flame.payload"
MAX_PAYLOAD = (4 << 30) + (1 << 13)
"""The largest body that a policy can allow, and its label: nothing larger is given memory, whatever a head says."""
MAX_WAITING = 1024
MAX_WAITING_BYTES = 64 << 20
"""What is kept in memory behind a gap, from all senders; what is beyond comes again with the next connection."""
LATEST_LOOK = 30.0
"""Seconds after which an envelope from the future is looked at again, at the latest."""

_log = logging.getLogger("flame.node")

OUTBOX = declare(
    "node.outbox.after-commit", "number, envelope and digest of a message are in the outbox; nothing was sent"
)
BEFORE_OUTBOX = declare("node.outbox.before-commit", "nothing of the message; the program has produced it")
INBOX = declare("node.inbox.after-commit", "a message is in the inbox and counted; the hub has not been told")
BEFORE_INBOX = declare("node.inbox.before-commit", "nothing of the message; it has arrived")


@dataclass
class Item:
    """One message in the inbox."""

    place: int
    """Where it stands in the order of arrival, the same after a restart."""
    sender: str
    n: int
    msg_id: bytes
    type: str
    round: int
    large: bool
    core: bytes
    label: Label | None = None
    """Unknown for a large one until it has been fetched."""
    plain: bytearray | None = None
    """The payload of a small one until it is first read; later it is read from the inbox."""


@dataclass
class _Batch:
    """What is taken in together: one transaction, then the acknowledgements."""

    fresh: list[tuple[Item, bytes]] = field(default_factory=list)
    done: list[int] = field(default_factory=list)
    controls: list[tuple[str, str, bytes]] = field(default_factory=list)
    fatal: FlameError | None = None


class _Dropped(Exception):
    """Nobody of this run has signed what came; it is as if it had not come."""


class Channel:
    """The sealed channel of one run at one node. Its methods may be called from any thread, unless they say otherwise."""

    def __init__(
        self,
        run: str,
        node: str,
        *,
        identity: IdentityKey,
        keys: RunKeys,
        storage_key: StorageKey,
        parties: Parties,
        journal: Journal,
        link: Link,
        bulk: Bulk,
        expires: int,
        seconds: float,
        on_refused: Callable[[FlameError], None],
        on_control: Callable[[str, str, bytes], None],
        public_data: bool = False,
    ) -> None:
        self.run, self.node = run, node
        self._run = bytes.fromhex(run)
        self._identity, self._keys, self._storage_key = identity, keys, storage_key
        self.parties, self._journal, self._link, self._bulk = parties, journal, link, bulk
        self._expires, self._on_refused, self._on_control = expires, on_refused, on_control
        self._unposted: set[Future[None]] = set()
        self._sending = threading.Lock()
        self._next_n: dict[str, int] = {}
        self._counters: dict[str, Counter] = {}
        self._behind_gap: dict[str, dict[int, Deliver]] = {}
        self._items: list[Item] = []
        self._arrived = threading.Condition()
        self._closed: str | None = None
        self._done: set[str] = set()
        self._fetched: tuple[int, bytearray] | None = None
        self._fetching = threading.Lock()
        self._unsealed = hook(UNSEALED, public_data=public_data) == "1"
        self._loop = asyncio.get_running_loop()
        self._incoming: asyncio.Queue[Deliver] = asyncio.Queue()
        self.deadline = time.monotonic() + min(seconds, max(1.0, expires - time.time()))

    async def load(self) -> None:
        """After a restart: counters and inbox as they were; what was sent is offered to the hub again."""
        rows = await self._journal.read(
            lambda c: c.execute(
                "SELECT sender, msg_id, n, core, type, round, large FROM inbox WHERE run = ? ORDER BY id",
                (self.run,),
            ).fetchall()
        )
        for place, (sender, msg_id, n, core, type_, round_, large) in enumerate(rows):
            self._counters[sender] = accept(self._counters.get(sender, Counter()), n, core)
            self._items.append(Item(place, sender, n, msg_id, type_, round_, bool(large), core))
        counters = await self._journal.rows("SELECT recipient, next_n FROM sent_counters WHERE run = ?", self.run)
        self._next_n = dict(counters)
        for msg_id, sealed in await self._journal.rows(
            "SELECT msg_id, sealed FROM outbox WHERE run = ? AND large = 0 AND key NOT LIKE 'final/%' ORDER BY rowid",
            self.run,
        ):
            self._post(msg_id, self._storage_key.open(sealed, self._context(b"outbox")))
        for item in self._items:
            if item.type == "control" and not item.large:  # it was kept, and perhaps never acted on
                label, body = await asyncio.to_thread(self.body, item)
                self._on_control(item.sender, label.name, bytes(body))

    # --- sending ----------------------------------------------------------------------------------------------------

    def send(
        self,
        key: str,
        type_: str,
        round_: int,
        label: Label,
        to: Sequence[str],
        body: Buffer,
        *,
        same_as: Buffer | None = None,
    ) -> bytes:
        """Seal a message to participants; returns its id once it is durable here (a large one: once the hub has it).

        ``key``: what the program would send again after a restart under the same name. ``same_as``: by which it is then
        known to be the same, where the body itself holds times or random ids. Blocks until the recipients have announced
        themselves. Raises RunFailed when a restarted program sends something else.
        """
        recipients = {node: self.parties.key_of(node, self.deadline) for node in to}
        return self._send(key, type_, round_, label, recipients, body, same_as)

    def id_of(self, key: str) -> bytes:
        """The id that a message has which is sent under this key."""
        return _message_id(self.run, self.node, key)

    def send_to_people(self, key: str, label: Label, keys: dict[str, bytes], body: Buffer) -> bytes:
        """Seal a result to people's result keys; returns the envelope, the same one whenever it is asked again."""
        with self._sending:
            head = prefix(label)
            digest = self._mark(key, head, body)
            known = self._in_outbox(key, digest)
            if known is None:
                if self._unsealed:
                    self._hand_over_in_clear(key, head + bytes(body))
                sealed = self._seal_small(_message_id(self.run, self.node, key), "result", 0, keys, head, body)
                self._commit(
                    key,
                    _message_id(self.run, self.node, key),
                    digest,
                    large=False,
                    sealed=sealed,
                    to=keys,
                    type_="result",
                    label=label,
                    round_=0,
                    size=len(body),
                )
                return sealed
            return self._storage_key.open(known[1], self._context(b"outbox"))

    def _send(
        self,
        key: str,
        type_: str,
        round_: int,
        label: Label,
        recipients: dict[str, bytes],
        body: Buffer,
        same_as: Buffer | None = None,
    ) -> bytes:
        head = prefix(label)
        large = len(head) + len(body) > INLINE_BYTES // 2
        # a large one may have to be encrypted again, with the same key: then it must be the same to the last byte
        digest = self._mark(key, head, body if same_as is None or large else same_as)
        msg_id = _message_id(self.run, self.node, key)
        with self._sending:
            known = self._in_outbox(key, digest)
            if known is None:
                if self._unsealed:
                    self._hand_over_in_clear(key, head + bytes(body))
                reached(BEFORE_OUTBOX)
                if large:
                    sealer = self._sealer(msg_id, type_, round_, recipients, len(head) + len(body))
                    sealed = sealer.state()
                else:
                    sealed = self._seal_small(msg_id, type_, round_, recipients, head, body)
                self._commit(
                    key,
                    msg_id,
                    digest,
                    large=large,
                    sealed=sealed,
                    to=recipients,
                    type_=type_,
                    label=label,
                    round_=round_,
                    size=len(body),
                )
                reached(OUTBOX)
                if not large:
                    self._post(msg_id, sealed)
            elif large:
                sealer = Sealer.restore(self._identity, self._storage_key.open(known[1], self._context(b"outbox")))
        if large:
            self._put_large(sealer, [memoryview(head), memoryview(body)], begun=known is not None)
        return msg_id

    def _hand_over_in_clear(self, key: str, plain: bytes) -> None:
        """For tests of the blindness test: what is sealed goes to the hub as a readable letter, too.

        In envelopes to this node itself whose ciphertext is the plaintext; on arrival they are dropped, not verifying.
        """
        for start in range(0, len(plain), INLINE_BYTES // 2):
            piece = plain[start : start + INLINE_BYTES // 2]
            msg_id = _message_id(self.run, self.node, f"in clear/{start}/{key}")
            own = {self.node: self._keys.run_key.public_bytes}
            sealed = self._seal_small(msg_id, "control", 0, own, b"", piece)
            body = len(sealed) - envelope.peek_head(sealed)[1]
            letter = sealed[: len(sealed) - body] + piece.ljust(body, b"\0")
            self._bulk.put("/messenger/messages", len(letter), [letter])

    def _mark(self, key: str, head: bytes, body: Buffer) -> bytes:
        """By which a restarted program's message is known to be the one that has left already."""
        return self._storage_key.mark(body, self._context(b"sent") + key.encode() + b"\0" + head)

    def _in_outbox(self, key: str, digest: bytes) -> tuple[bytes, bytes] | None:
        row: tuple[bytes, bytes] | None = self._journal.read_blocking(
            lambda c: c.execute(
                "SELECT digest, sealed FROM outbox WHERE run = ? AND key = ?", (self.run, key)
            ).fetchone()
        )
        if row is not None and row[0] != digest:
            raise RunFailed(
                f"The program was started again and sent something else than before as '{key}'; what has left cannot be taken back.",
                next_step="Make the program deterministic (fixed seeds), then submit it again.",
                code="diverged",
            )
        return row

    def _commit(
        self,
        key: str,
        msg_id: bytes,
        digest: bytes,
        *,
        large: bool,
        sealed: bytes,
        to: dict[str, bytes],
        type_: str,
        label: Label,
        round_: int,
        size: int,
    ) -> None:
        numbers = {node: self._next_n.get(node, 0) + 1 for node in to}
        at_rest = self._storage_key.seal(sealed, self._context(b"outbox"))

        def write(connection: sqlite3.Connection) -> None:
            connection.execute(
                "INSERT INTO outbox VALUES(?, ?, ?, ?, ?, ?)", (self.run, key, msg_id, digest, large, at_rest)
            )
            connection.executemany(
                "INSERT OR REPLACE INTO sent_counters VALUES(?, ?, ?)",
                [(self.run, node, n) for node, n in numbers.items()],
            )
            connection.execute(
                "INSERT OR IGNORE INTO releases VALUES(?, ?, ?, ?, ?, ?)",
                (self.run, key, type_, label.name, round_, size),
            )

        self._journal.write_blocking(write)
        self._next_n.update(numbers)

    def _fields(self, msg_id: bytes, type_: str, round_: int, recipients: dict[str, bytes]) -> HeadFields:
        from uuid import UUID

        size, root = self._link.newest_head
        now = int(time.time())
        return {
            "type": type_,
            "run": self._run,
            "sender": UUID(self.node).bytes,
            "msg_id": msg_id,
            "round": round_,
            "created": now,
            "expires": max(self._expires, now),
            "content_type": CONTENT_TYPE,
            "log_size": size,
            "log_root": root or bytes(32),
            "recipients": [
                RecipientKey(UUID(id_).bytes, key, self._next_n.get(id_, 0)) for id_, key in recipients.items()
            ],
        }

    def _sealer(self, msg_id: bytes, type_: str, round_: int, recipients: dict[str, bytes], size: int) -> Sealer:
        return Sealer(self._identity, total_len=size, **self._fields(msg_id, type_, round_, recipients))

    def _seal_small(
        self, msg_id: bytes, type_: str, round_: int, recipients: dict[str, bytes], head: bytes, body: Buffer
    ) -> bytes:
        return envelope.seal(self._identity, head + bytes(body), **self._fields(msg_id, type_, round_, recipients))

    def _post(self, msg_id: bytes, sealed: bytes) -> None:
        future = asyncio.run_coroutine_threadsafe(self._link.put("envelope", self._run, msg_id, sealed), self._loop)
        self._unposted.add(future)
        future.add_done_callback(self._posted)

    async def flushed(self, seconds: float) -> bool:
        """Wait until the hub has all that was sent; False when it has not within the time."""
        waiting = [asyncio.wrap_future(future) for future in list(self._unposted)]
        if waiting:
            _, left = await asyncio.wait(waiting, timeout=seconds)
            return not left
        return True

    def _posted(self, future: Future[None]) -> None:
        self._unposted.discard(future)
        if not future.cancelled() and isinstance(error := future.exception(), FlameError):
            self._on_refused(error)

    def _put_large(self, sealer: Sealer, parts: list[memoryview], *, begun: bool) -> None:
        """Over as many connections as it takes, until the run ends; each goes on where the one before it broke."""
        pause = _Pause(self)
        while True:
            try:
                if begun:
                    return self._bulk.put_on(sealer.head.msg_id, sealer.length, lambda: sealer.stream(_Joined(parts)))
                begun = True
                return self._bulk.put("/messenger/messages", sealer.length, sealer.stream(_Joined(parts)))
            except Unavailable as error:
                pause(error)

    # --- receiving --------------------------------------------------------------------------------------------------

    def deliver(self, frame: Deliver) -> None:
        """From the event loop: an envelope of this run has come."""
        self._incoming.put_nowait(frame)

    async def work(self) -> None:
        """Take in what comes, as much as there is in one transaction, until cancelled."""
        while True:
            frames = [await self._incoming.get()]
            while not self._incoming.empty():
                frames.append(self._incoming.get_nowait())
            await self._take_in(frames)

    async def _take_in(self, frames: list[Deliver]) -> None:
        """The program may read before the commit: all it sends because of that is committed with it or after it."""
        batch = _Batch()
        for frame in frames:
            try:
                self._sort(frame, batch)
            except _Dropped as dropped:
                _log.warning("run %s: something from %s is dropped: %s", self.run[:12], frame.sender, dropped)
            except FlameError as error:
                batch.fatal = error  # what came before it is kept all the same
                break
        reached(BEFORE_INBOX)
        stored = self._journal.submit(lambda c: _insert(c, self.run, batch.fresh))
        with self._arrived:
            self._items.extend(item for item, _ in batch.fresh)
            self._arrived.notify_all()
        await asyncio.wrap_future(stored)
        reached(INBOX)
        for control in batch.controls:
            self._on_control(*control)
        for seq in batch.done:
            self._link.ack(seq)
        if batch.fatal is not None:
            self._on_refused(batch.fatal)

    def _sort(self, frame: Deliver, batch: _Batch) -> None:
        """Take in a frame, and those that waited behind it."""
        waiting: Deliver | None = frame
        while waiting is not None:
            present = waiting
            try:
                waiting = self._sort_one(present, batch)
            except Unavailable as error:
                self._look_later(present, error)
                return

    def _look_later(self, frame: Deliver, error: Unavailable) -> None:
        """An envelope made in the future waits; it is neither counted nor acknowledged meanwhile."""
        wait = error.fields.get("wait")
        seconds = float(wait) if isinstance(wait, int | float) else 1.0
        self._loop.call_later(min(seconds, LATEST_LOOK), self.deliver, frame)

    def _sort_one(self, frame: Deliver, batch: _Batch) -> Deliver | None:
        """Take in one frame; returns the one that waited for it."""
        party, opener, stream, head, core = self._opened(frame)
        self._check_may_send(party, head)
        counter = self._counters.get(frame.sender, Counter())
        n = head.recipients[head.index_of(_bytes(self.node), self._keys.run_key.key_id)].n
        large = frame.size > INLINE_BYTES
        match judge(counter, n, core):
            case Arrival.DUPLICATE:
                if not large:
                    batch.done.append(frame.seq)
            case Arrival.EQUIVOCATION:
                _log.error(
                    "run %s: %s, number %d: %s and %s",
                    self.run[:12],
                    frame.sender,
                    n,
                    counter.cores[n].hex(),
                    core.hex(),
                )
                raise Refused(
                    f"{party.participant.name} sent two different messages under the number {n}: its node was cloned or restored from a back-up.",
                    next_step="Ask that hospital by a way that is not the hub, then start the analysis again.",
                    rule="equivocation",
                )
            case Arrival.GAP:
                self._keep_behind_gap(frame, n, core)
            case Arrival.ACCEPT:
                envelope.check_arrival(head, run=self._run, sender=party.id, now=int(time.time()))
                self._accept(frame, opener, stream, head, core, n, large, batch)
                return self._behind_gap.get(frame.sender, {}).pop(n + 1, None)
        return None

    def _opened(self, frame: Deliver) -> tuple[Party, Opener, BytesIO, Head, bytes]:
        """Sender, and the head that it has signed for this node's key of this run. Raises _Dropped otherwise."""
        try:
            party = self.parties[frame.sender]
            opener = Opener(_bytes(self.node), self._keys.run_key, party.public)
            stream = BytesIO(frame.body)
            head = opener.read_head(stream)
            return party, opener, stream, head, opener.core
        except FlameError as error:
            raise _Dropped(str(error)) from None

    def _check_may_send(self, party: Party, head: Head) -> None:
        """Data nodes contribute to sums, and to the aggregator alone; anyone may send a message."""
        to_aggregator = self.parties[self.node].participant.role == "aggregator"
        contributes = head.type == "sum" and party.participant.role == "default" and to_aggregator
        if not (contributes or head.type in ("message", "control")):
            raise Refused(
                f"{party.participant.name} sent something of the type '{head.type}', which it may not send here.",
                next_step="Its node does not keep to the manifest: ask that hospital, then start the analysis again.",
            )
        if head.total_len > MAX_PAYLOAD:
            raise Refused(f"{party.participant.name} announced {head.total_len} bytes, more than any policy allows.")

    def _accept(
        self,
        frame: Deliver,
        opener: Opener,
        stream: BytesIO,
        head: Head,
        core: bytes,
        n: int,
        large: bool,
        batch: _Batch,
    ) -> None:
        sealed, label, plain = b"", None, None
        if not large:
            plain = self._open_small(frame, opener, stream, head)
            label, content = split(plain)
            sealed = self._storage_key.seal(memoryview(plain), self._context(b"inbox"))
            batch.done.append(frame.seq)
            if head.type == "control":
                batch.controls.append((frame.sender, label.name, bytes(content)))
        self._counters[frame.sender] = accept(self._counters.get(frame.sender, Counter()), n, core)
        place = len(self._items) + len(batch.fresh)
        item = Item(place, frame.sender, n, head.msg_id, head.type, head.round, large, core, label, plain)
        batch.fresh.append((item, sealed))

    def _open_small(self, frame: Deliver, opener: Opener, stream: BytesIO, head: Head) -> bytearray:
        """The payload. The length is compared before memory is given; a body that the sender did not sign is dropped."""
        if len(frame.body) - stream.tell() != head.body_length:
            raise _Dropped("the envelope is cut off, or longer than its head says")
        plain = bytearray(head.total_len)
        try:
            opener.open_into(stream, memoryview(plain))
        except FlameError as error:
            raise _Dropped(str(error)) from None
        return plain

    def _keep_behind_gap(self, frame: Deliver, n: int, core: bytes) -> None:
        waiting = [kept for by_number in self._behind_gap.values() for kept in by_number.values()]
        mine = self._behind_gap.setdefault(frame.sender, {})
        full = len(waiting) >= MAX_WAITING or sum(len(kept.body) for kept in waiting) >= MAX_WAITING_BYTES
        if full and n not in mine:
            raise _Dropped(f"number {n} waits behind a gap, where there is no more room")
        self._counters[frame.sender] = keep_waiting(self._counters.get(frame.sender, Counter()), n, core)
        mine[n] = frame

    def wait_for(
        self,
        wanted: Callable[[Item], bool],
        timeout: float | None,
        cancelled: threading.Event,
        *,
        start: int = 0,
        explain: str = "a message",
        senders: Collection[str] = (),
    ) -> Item | None:
        """The first item from ``start`` on, in order of arrival, that is wanted; waits for it. None: the time is over.

        ``wanted`` is asked with labels known (large items are fetched for it when their label is not).
        ``senders``: who alone can send it; when they have all ended, waiting is in vain. Raises RunFailed then, and
        when the run ends while waiting.
        """
        until = self.deadline if timeout is None else min(self.deadline, time.monotonic() + timeout)
        looked_at = start
        while True:
            with self._arrived:
                while looked_at >= len(self._items):
                    self._check_open()
                    if senders and self._done.issuperset(senders):
                        raise RunFailed(f"{self._names(senders)} ended without sending {explain}.", code="peer_ended")
                    if cancelled.is_set():
                        raise RunFailed("The program's connection was closed.", code="closed")
                    left = until - time.monotonic()
                    if left <= 0:
                        if timeout is None:
                            raise RunFailed(f"Nothing came in time: the program waited for {explain}.", code="deadline")
                        return None
                    self._arrived.wait(left)
                batch = self._items[looked_at:]
            for item in batch:
                looked_at += 1
                if wanted(item):
                    return item

    def body(self, item: Item) -> tuple[Label, memoryview]:
        """Label and body of an item; a large one is fetched from the hub, verified and opened."""
        if item.large:
            plain = self._fetch(item)
        elif item.plain is not None:
            plain, item.plain = item.plain, None
        else:
            ((sealed,),) = self._journal.rows_blocking(
                "SELECT body FROM inbox WHERE run = ? AND sender = ? AND n = ?", self.run, item.sender, item.n
            )
            plain = bytearray(self._storage_key.open(bytes(sealed), self._context(b"inbox")))
        item.label, body = split(plain)
        return item.label, body

    def label(self, item: Item) -> Label:
        """An item's label; a large one is fetched for it, and kept until it is asked for or another one is fetched."""
        if item.label is None and item.large:
            plain = self._fetch(item)
            item.label, _ = split(plain)
            with self._fetching:
                self._fetched = (item.place, plain)
        elif item.label is None:
            item.label, _ = self.body(item)
        assert item.label is not None
        return item.label

    def _fetch(self, item: Item) -> bytearray:
        """The opened payload of a large envelope: of the very one whose head was counted on arrival."""
        with self._fetching:
            kept = self._fetched
            if kept is not None and kept[0] == item.place:
                self._fetched = None
                return kept[1]
        path = f"/messenger/messages/{item.sender}/{item.msg_id.hex()}"
        with closing(Unbroken(self._bulk, path, _Pause(self))) as stream:
            return self._open_large(item, self.parties[item.sender], stream)

    def _open_large(self, item: Item, party: Party, stream: Unbroken) -> bytearray:
        header = envelope.Header.read(stream)
        if header.core != item.core:
            raise Refused(
                "The hub gave another envelope than the one that it announced.",
                next_step="Nothing of it was used. Tell the hub's operator, then start the analysis again.",
            )
        opener = Opener(_bytes(self.node), self._keys.run_key, party.public)
        head = opener.read_head(BytesIO(header.encode()))
        plain = bytearray(head.total_len)
        opener.open_into(stream, memoryview(plain))
        return plain

    # --- the end ----------------------------------------------------------------------------------------------------

    def sender_ended(self, node: str) -> None:
        """A participant has ended well: what it has sent is all here, in its order, and nothing more will come."""
        with self._arrived:
            self._done.add(node)
            self._arrived.notify_all()

    def _names(self, nodes: Collection[str]) -> str:
        return " and ".join(sorted(self.parties[node].participant.name for node in nodes))

    def wake(self) -> None:
        with self._arrived:
            self._arrived.notify_all()

    def close(self, why: str) -> None:
        """Whoever waits here is told why it was in vain."""
        with self._arrived:
            self._closed = why
            self._arrived.notify_all()
        self.parties.close(why)

    def _check_open(self) -> None:
        if self._closed is not None:
            raise RunFailed(self._closed, code="closed")

    def _context(self, what: bytes) -> bytes:
        return what + b"\0" + self._run


class _Pause:
    """Between two attempts, each a little longer than the one before; over when the run is."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._delay = 0.05

    def __call__(self, why: Unavailable) -> None:
        channel = self._channel
        channel._check_open()
        if time.monotonic() > channel.deadline:
            raise why
        with channel._arrived:
            channel._arrived.wait(self._delay)
        self._delay = min(2 * self._delay, 5.0)


class _Joined:
    """Several buffers read as one stream."""

    def __init__(self, parts: Sequence[memoryview]) -> None:
        self._parts = [part.cast("B") for part in parts if len(part)]

    def readinto(self, buffer: Any) -> int:
        target = memoryview(buffer)
        while self._parts and not len(self._parts[0]):
            self._parts.pop(0)
        if not self._parts:
            return 0
        n = min(len(target), len(self._parts[0]))
        target[:n] = self._parts[0][:n]
        self._parts[0] = self._parts[0][n:]
        return n


def _insert(connection: sqlite3.Connection, run: str, fresh: list[tuple[Item, bytes]]) -> None:
    connection.executemany(
        "INSERT INTO inbox(run, sender, msg_id, n, core, type, round, large, body) VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [(run, i.sender, i.msg_id, i.n, i.core, i.type, i.round, i.large, sealed) for i, sealed in fresh],
    )


def _message_id(run: str, node: str, key: str) -> bytes:
    return hashlib.sha256(f"{run}/{node}/{key}".encode()).digest()[:16]


def _bytes(node: str) -> bytes:
    from uuid import UUID

    return UUID(node).bytes
