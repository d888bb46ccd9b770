"""The mailbox: sealed envelopes wait here until their recipients have said that they hold them.

A letter is stored once, under (sender, msg_id), and delivered at least once to each recipient, in the order of a
number that only grows. Small bodies live in the database, in the transaction that stores the letter. A large one may
be stored with its header alone while it still comes in (`arrived`); it is an object that was on the disk before the
letter names it (``blob``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, Protocol

from sqlalchemy import (
    BigInteger,
    Connection,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
    bindparam,
    delete,
    func,
    select,
    update,
)
from sqlalchemy import Column as Col

from flame.model.errors import Conflict, Exhausted, Refused
from flame.storage.engine import Database, metadata
from flame.storage.upsert import upsert as insert

RETRY_AFTER = 2
"""Seconds after which a box that was full may have room."""


@dataclass(frozen=True, slots=True)
class Letter:
    """What a sender hands in: `run` 32 and `msg_id` 16 bytes, times in seconds since 1970, `size` in bytes.

    `body`: all of it; of a large one, which is the object `blob`, its header alone.
    """

    sender: str
    msg_id: bytes
    run: bytes
    kind: str
    size: int
    expires: int
    body: bytes | None = None
    blob: str | None = None

    @property
    def is_whole(self) -> bool:
        """False for a large one that is still on its way in: it has no object yet."""
        return self.blob is not None or self.size <= len(self.body or b"")


@dataclass(frozen=True, slots=True)
class Delivery:
    """A letter in one recipient's box."""

    seq: int
    letter: Letter


@dataclass(frozen=True, slots=True)
class Quota:
    """What may wait in one recipient's box, and of that, what one run may have there.

    A full box empties when its recipient acknowledges, and when runs end: a sender waits and repeats. Large letters of a
    run are acknowledged by its end alone: a run that has used up its bytes is refused for good.
    """

    letters: int = 20_000
    bytes: int = 64 << 30
    run_letters: int = 10_000
    run_bytes: int = 32 << 30


class Mailbox(Protocol):
    async def put(self, letter: Letter, recipients: Sequence[str]) -> dict[str, int] | None:
        """Store a letter once, for each recipient; returns recipient -> number in its box.

        None: this (sender, msg_id) is stored already, which is not an error when it is the same letter; another
        letter under the same name is a Conflict. Survives a crash once it has returned.
        Raises Exhausted when a box is full, or the run's part of it, storing nothing: repeating it later may succeed.
        Raises Refused when the run has used up its bytes: repeating it changes nothing.
        """

    async def arrived(self, sender: str, msg_id: bytes, blob: str) -> bool:
        """All of a large letter is the object `blob`. False when nobody waits for it: it has its object, or is gone."""

    async def is_arriving(self, sender: str, msg_id: bytes) -> bool | None:
        """Whether a stored letter still lacks its object; None: there is no such letter."""

    async def arriving(self) -> list[tuple[str, bytes]]:
        """Sender and id of all letters that still lack their objects."""

    async def waiting(self, recipient: str, after: int = 0, limit: int = 100) -> list[Delivery]:
        """What is not acknowledged, by number, from the first one after `after`."""

    async def find(self, recipient: str, sender: str, msg_id: bytes) -> Delivery | None:
        """One waiting letter of a recipient's box; None also when it is somebody else's."""

    async def acknowledge(self, recipient: str, seqs: Sequence[int]) -> list[str]:
        """These need not come again. Returns the blobs that nobody waits for any more. Repeats change nothing."""

    async def purge(self, run: bytes) -> list[str]:
        """Forget all letters of a run; returns their blobs."""

    async def expire(self, now: int) -> list[str]:
        """Forget all letters that have expired; returns their blobs."""


letters = Table(
    "letters",
    metadata,
    Col("id", Integer, primary_key=True),
    Col("sender", String(36), nullable=False),
    Col("msg_id", LargeBinary(16), nullable=False),
    Col("run", LargeBinary(32), nullable=False, index=True),
    Col("kind", String(16), nullable=False),
    Col("size", BigInteger, nullable=False),
    Col("expires", BigInteger, nullable=False, index=True),
    Col("body", LargeBinary),
    Col("blob", String(80)),
    Index("letters_once", "sender", "msg_id", unique=True),
)
deliveries = Table(
    "deliveries",
    metadata,
    Col("recipient", String(36), primary_key=True),
    Col("seq", BigInteger, primary_key=True, autoincrement=False),
    Col("letter_id", Integer, ForeignKey("letters.id"), nullable=False, index=True),
    Col("size", BigInteger, nullable=False),
)
boxes = Table(
    "boxes",
    metadata,
    Col("recipient", String(36), primary_key=True),
    Col("last_seq", BigInteger, nullable=False),
    Col("letters", BigInteger, nullable=False),
    Col("bytes", BigInteger, nullable=False),
)


class SqlMailbox:
    """The mailbox in the hub's database."""

    def __init__(self, database: Database, quota: Quota = Quota()) -> None:
        self._database = database
        self._quota = quota
        self.tell: Callable[[Connection, Iterable[str]], None] | None = None
        """Tells other processes, within the transaction, for whom a letter is stored."""

    async def put(self, letter: Letter, recipients: Sequence[str]) -> dict[str, int] | None:
        def write(connection: Connection) -> dict[str, int] | None:
            seqs = _put(connection, letter, recipients, self._quota)
            if seqs and self.tell is not None:
                self.tell(connection, seqs)
            return seqs

        return await self._database.write(write, "mailbox")

    async def arrived(self, sender: str, msg_id: bytes, blob: str) -> bool:
        values = {"sender_": sender, "id_": msg_id, "blob_": blob}
        return bool(await self._database.write(lambda c: c.execute(_ARRIVED, values).rowcount, "mailbox"))

    async def is_arriving(self, sender: str, msg_id: bytes) -> bool | None:
        name = (letters.c.sender == sender) & (letters.c.msg_id == msg_id)
        row = await self._database.read(lambda c: c.execute(select(_IS_ARRIVING.label("is_")).where(name)).first())
        return None if row is None else bool(row.is_)

    async def arriving(self) -> list[tuple[str, bytes]]:
        chosen = select(letters.c.sender, letters.c.msg_id).where(_IS_ARRIVING)
        return [(row.sender, row.msg_id) for row in await self._database.read(lambda c: c.execute(chosen).all())]

    async def waiting(self, recipient: str, after: int = 0, limit: int = 100) -> list[Delivery]:
        await self._database.flush()
        return await self._database.read(lambda c: _waiting(c, recipient, after, limit))

    async def find(self, recipient: str, sender: str, msg_id: bytes) -> Delivery | None:
        condition = (letters.c.sender == sender) & (letters.c.msg_id == msg_id) & (deliveries.c.recipient == recipient)
        rows = await self._database.read(lambda c: c.execute(_DELIVERY.where(condition)).all())
        return _delivery(rows[0]) if rows else None

    async def acknowledge(self, recipient: str, seqs: Sequence[int]) -> list[str]:
        return await self._database.write(lambda c: _acknowledge(c, recipient, seqs))

    def acknowledge_lazily(self, recipient: str, seqs: Sequence[int]) -> Future[list[str]]:
        """As `acknowledge`, riding along with the next write: a crash before it means a second delivery, no loss."""
        return self._database.write_lazily(lambda c: _acknowledge(c, recipient, seqs))

    async def purge(self, run: bytes) -> list[str]:
        return await self._database.write(lambda c: _forget(c, letters.c.run == run))

    async def expire(self, now: int) -> list[str]:
        return await self._database.write(lambda c: _forget(c, letters.c.expires < now))


_DELIVERY = select(
    deliveries.c.seq,
    letters.c.sender,
    letters.c.msg_id,
    letters.c.run,
    letters.c.kind,
    letters.c.size,
    letters.c.expires,
    letters.c.body,
    letters.c.blob,
).join(letters, letters.c.id == deliveries.c.letter_id)


def _delivery(row: Any) -> Delivery:
    return Delivery(row[0], Letter(*row[1:]))


_IS_ARRIVING = letters.c.blob.is_(None) & (func.length(letters.c.body) < letters.c.size)
_ARRIVED = (
    update(letters)
    .where(letters.c.sender == bindparam("sender_"), letters.c.msg_id == bindparam("id_"), _IS_ARRIVING)
    .values(blob=bindparam("blob_"))
)
# The statements of the hot path are made once: making one costs more than running it.
_STORE = insert(letters).on_conflict_do_nothing().returning(letters.c.id)
_KNOWN = select(letters.c.run, letters.c.kind, letters.c.size).where(
    letters.c.sender == bindparam("sender"), letters.c.msg_id == bindparam("msg_id")
)
_COUNT = (
    insert(boxes)
    .values(recipient=bindparam("recipient"), last_seq=1, letters=1, bytes=bindparam("size"))
    .on_conflict_do_update(
        index_elements=[boxes.c.recipient],
        set_={
            "last_seq": boxes.c.last_seq + 1,
            "letters": boxes.c.letters + 1,
            "bytes": boxes.c.bytes + bindparam("size"),
        },
    )
    .returning(boxes.c.last_seq, boxes.c.letters, boxes.c.bytes)
)
_OF_RUN = (
    select(func.count().label("letters"), func.coalesce(func.sum(deliveries.c.size), 0).label("size"))
    .join(letters, letters.c.id == deliveries.c.letter_id)
    .where(deliveries.c.recipient == bindparam("recipient"), letters.c.run == bindparam("run"))
)
_ADDRESS = deliveries.insert()
_WAITING = (
    _DELIVERY.where(deliveries.c.recipient == bindparam("recipient"), deliveries.c.seq > bindparam("after"))
    .order_by(deliveries.c.seq)
    .limit(bindparam("most"))
)
_TAKE = (
    delete(deliveries)
    .where(deliveries.c.recipient == bindparam("recipient"), deliveries.c.seq.in_(bindparam("seqs", expanding=True)))
    .returning(deliveries.c.letter_id, deliveries.c.size)
)
_UNCOUNT = (
    update(boxes)
    .where(boxes.c.recipient == bindparam("whose"))
    .values(letters=boxes.c.letters - bindparam("count"), bytes=boxes.c.bytes - bindparam("size"))
)
_DONE = letters.c.id.in_(bindparam("ids", expanding=True)) & ~(
    select(deliveries.c.letter_id).where(deliveries.c.letter_id == letters.c.id).exists()
)
_BLOBS = select(letters.c.blob).where(_DONE, letters.c.blob.is_not(None))
_EMPTY = update(letters).where(_DONE).values(body=None, blob=None)  # the name stays: no second delivery


def _put(connection: Connection, letter: Letter, recipients: Sequence[str], quota: Quota) -> dict[str, int] | None:
    values = {
        "sender": letter.sender,
        "msg_id": letter.msg_id,
        "run": letter.run,
        "kind": letter.kind,
        "size": letter.size,
        "expires": letter.expires,
        "body": letter.body,
        "blob": letter.blob,
    }
    letter_id = connection.execute(_STORE, values).scalar()
    if letter_id is None:
        _check_same(connection, letter)
        return None
    seqs = {recipient: _next_seq(connection, recipient, letter, quota) for recipient in recipients}
    if seqs:
        connection.execute(
            _ADDRESS,
            [{"recipient": r, "seq": seq, "letter_id": letter_id, "size": letter.size} for r, seq in seqs.items()],
        )
    return seqs


def _check_same(connection: Connection, letter: Letter) -> None:
    known = connection.execute(_KNOWN, {"sender": letter.sender, "msg_id": letter.msg_id}).one()
    if tuple(known) != (letter.run, letter.kind, letter.size):
        raise Conflict(
            "Another message of this sender has the same id.", next_step="Give each message an id of its own."
        )


def _next_seq(connection: Connection, recipient: str, letter: Letter, quota: Quota) -> int:
    counted = connection.execute(_COUNT, {"recipient": recipient, "size": letter.size}).one()
    _check_box(recipient, counted.letters, counted.bytes, quota)
    if counted.letters > quota.run_letters or counted.bytes > quota.run_bytes:  # only then can one run have so much
        of_run = connection.execute(_OF_RUN, {"recipient": recipient, "run": letter.run}).one()
        _check_run(recipient, of_run.letters + 1, int(of_run.size) + letter.size, quota)
    return int(counted.last_seq)


def _check_box(recipient: str, count: int, size: int, quota: Quota) -> None:
    if count > quota.letters or size > quota.bytes:
        raise Exhausted(
            f"The mailbox of node {recipient} is full: {count - 1} messages wait there, and {quota.letters} messages or {quota.bytes} bytes may.",
            next_step="It empties when that node is online again and fetches its messages.",
            retryAfter=RETRY_AFTER,
        )


def _check_run(recipient: str, count: int, size: int, quota: Quota) -> None:
    if size > quota.run_bytes:
        raise Refused(
            f"This run may have {quota.run_bytes} bytes waiting for node {recipient}; with this message it would have {size}.",
            next_step="Release less in each round, or ask the hub's operator for a higher limit.",
            code="run_quota",
        )
    if count > quota.run_letters:
        raise Exhausted(
            f"This run has {count - 1} messages waiting for node {recipient}, which is as many as it may have.",
            next_step="They become fewer when that node fetches them.",
            retryAfter=RETRY_AFTER,
        )


def _waiting(connection: Connection, recipient: str, after: int, limit: int) -> list[Delivery]:
    found = connection.execute(_WAITING, {"recipient": recipient, "after": after, "most": limit})
    return [_delivery(row) for row in found]


def _acknowledge(connection: Connection, recipient: str, seqs: Sequence[int]) -> list[str]:
    gone = connection.execute(_TAKE, {"recipient": recipient, "seqs": list(seqs)}).all()
    if not gone:
        return []
    _uncount(connection, recipient, len(gone), sum(row.size for row in gone))
    ids = {"ids": [row.letter_id for row in gone]}
    blobs = connection.execute(_BLOBS, ids).scalars().all()
    connection.execute(_EMPTY, ids)
    return [str(blob) for blob in blobs]


def _uncount(connection: Connection, recipient: str, count: int, size: int) -> None:
    connection.execute(_UNCOUNT, {"whose": recipient, "count": count, "size": size})


def _forget(connection: Connection, condition: object) -> list[str]:
    chosen = select(letters.c.id).where(condition)  # type: ignore[arg-type]
    totals = connection.execute(
        select(deliveries.c.recipient, func.count(), func.sum(deliveries.c.size))
        .where(deliveries.c.letter_id.in_(chosen))
        .group_by(deliveries.c.recipient)
    ).all()
    for recipient, count, size in totals:
        _uncount(connection, recipient, count, size)
    connection.execute(delete(deliveries).where(deliveries.c.letter_id.in_(chosen)))
    gone = connection.execute(delete(letters).where(condition).returning(letters.c.blob)).scalars().all()  # type: ignore[arg-type]
    return [str(blob) for blob in gone if blob]


class MemoryMailbox:
    """The mailbox of tests and of simulations in one process: the same promises, except that it forgets with it."""

    def __init__(self, quota: Quota = Quota()) -> None:
        self._quota = quota
        self._letters: dict[tuple[str, bytes], Letter] = {}
        self._boxes: dict[str, dict[int, tuple[str, bytes]]] = {}
        self._last: dict[str, int] = {}

    async def put(self, letter: Letter, recipients: Sequence[str]) -> dict[str, int] | None:
        name = (letter.sender, letter.msg_id)
        if known := self._letters.get(name):
            if (known.run, known.kind, known.size) != (letter.run, letter.kind, letter.size):
                raise Conflict("Another message of this sender has the same id.")
            return None
        for recipient in recipients:
            box = self._boxes.get(recipient, {})
            size = sum(self._letters[n].size for n in box.values()) + letter.size
            _check_box(recipient, len(box) + 1, size, self._quota)
            of_run = [self._letters[n].size for n in box.values() if self._letters[n].run == letter.run]
            _check_run(recipient, len(of_run) + 1, sum(of_run) + letter.size, self._quota)
        self._letters[name] = letter
        for recipient in recipients:
            self._last[recipient] = self._last.get(recipient, 0) + 1
            self._boxes.setdefault(recipient, {})[self._last[recipient]] = name
        return {recipient: self._last[recipient] for recipient in recipients}

    async def arrived(self, sender: str, msg_id: bytes, blob: str) -> bool:
        if not await self.is_arriving(sender, msg_id):
            return False
        self._letters[(sender, msg_id)] = replace(self._letters[(sender, msg_id)], blob=blob)
        return True

    async def is_arriving(self, sender: str, msg_id: bytes) -> bool | None:
        letter = self._letters.get((sender, msg_id))
        return None if letter is None else letter.body is not None and not letter.is_whole

    async def arriving(self) -> list[tuple[str, bytes]]:
        return [name for name in self._letters if await self.is_arriving(*name)]

    async def waiting(self, recipient: str, after: int = 0, limit: int = 100) -> list[Delivery]:
        box = self._boxes.get(recipient, {})
        return [Delivery(seq, self._letters[box[seq]]) for seq in sorted(box) if seq > after][:limit]

    async def find(self, recipient: str, sender: str, msg_id: bytes) -> Delivery | None:
        waiting = await self.waiting(recipient, limit=self._quota.letters)
        return next((d for d in waiting if (d.letter.sender, d.letter.msg_id) == (sender, msg_id)), None)

    async def acknowledge(self, recipient: str, seqs: Sequence[int]) -> list[str]:
        box = self._boxes.get(recipient, {})
        names = {box.pop(seq) for seq in set(seqs) if seq in box}
        done = [name for name in names if not any(name in other.values() for other in self._boxes.values())]
        blobs = [blob for name in done if (blob := self._letters[name].blob)]
        for name in done:
            self._letters[name] = replace(self._letters[name], body=None, blob=None)
        return blobs

    async def purge(self, run: bytes) -> list[str]:
        return self._forget({name for name, letter in self._letters.items() if letter.run == run})

    async def expire(self, now: int) -> list[str]:
        return self._forget({name for name, letter in self._letters.items() if letter.expires < now})

    def _forget(self, names: set[tuple[str, bytes]]) -> list[str]:
        for recipient, box in self._boxes.items():
            self._boxes[recipient] = {seq: name for seq, name in box.items() if name not in names}
        return [blob for name in names if (blob := self._letters.pop(name).blob)]
