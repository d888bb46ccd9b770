"""Checking an exported transparency log offline: nothing but the file, the hub's key, and the heads one has kept.

An export is one JSON document, and at the same time one entry a line, so that it is written and read in little memory:

    {"version":1,"hubKey":"…","head":{…},"leaves":[
    "…the entry's canonical text…",
    {"hash":"…"}
    ]}

An entry that the exporter may not read comes as its hash: the tree is whole for everybody.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgspec

from flame.crypto.canonical import parse_canonical
from flame.crypto.keys import PublicKey
from flame.crypto.signatures import verify_event
from flame.crypto.translog import Frontier, TreeHead, leaf_hash, verify_tree_head
from flame.model.errors import BadSignature, FlameError, Malformed
from flame.protocol.documents import Event, SignedEvent
from flame.protocol.freeze import parse_time

VERSION: Final = 1
MAX_LINE: Final = 1 << 20
_KEYS_IN: Final = ("enrolment", "rotation", "key")
"""Types of entries, signed by the hub, that say with which key somebody signs from there on."""
CLOCK_STEP: Final = 300
"""Seconds that the hub's clock may go back from one entry to the next without being mentioned."""


class _Head(msgspec.Struct):
    size: int
    root: str
    time: int
    signature: str


class _Hidden(msgspec.Struct):
    hash: str


class _Opening(msgspec.Struct):
    version: int
    hubKey: str  # noqa: N815 - its name on the wire
    head: _Head


class _Export(_Opening):
    leaves: list[str | _Hidden]


@dataclass(frozen=True, slots=True)
class KnownHead:
    """A tree head that somebody kept: from a receipt, a Welcome, an announcement or an earlier export."""

    size: int
    root: bytes


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of an export: its text, or, for who may not read it, its hash alone."""

    hash: bytes
    text: str | None = None

    @classmethod
    def shown(cls, leaf: bytes) -> Entry:
        return cls(leaf_hash(leaf), leaf.decode())

    @classmethod
    def hidden(cls, hashed: bytes) -> Entry:
        return cls(hashed)

    def wire(self) -> str | dict[str, str]:
        return self.text if self.text is not None else {"hash": self.hash.hex()}


@dataclass(frozen=True, slots=True)
class Export:
    """An exported log: what stands at its top, and its entries, to be read once."""

    hub_key: PublicKey
    head: TreeHead
    signature: bytes
    entries: Iterable[Entry]


# -------------------------------------------------------------------------------------------------- writing and reading


def export_start(hub_key: PublicKey, head: TreeHead, signature: bytes) -> bytes:
    shown = _Head(head.size, head.root.hex(), head.created, signature.hex())
    return msgspec.json.encode(_Opening(VERSION, hub_key.hex_pem, shown))[:-1] + b',"leaves":[\n'


def export_entry(entry: Entry, *, first: bool) -> bytes:
    return (b"" if first else b",\n") + msgspec.json.encode(entry.wire())


def export_end() -> bytes:
    return b"\n]}\n"


@contextmanager
def open_export(path: Path) -> Iterator[Export]:
    """Read an export from a file, an entry at a time. Raises Malformed, also while its entries are read."""
    with path.open("rb") as file:
        top = file.readline(MAX_LINE).rstrip()
        if top.endswith(b'"leaves":['):
            yield _export(_decoded(top + b"]}", _Opening), _lines(file))
        else:  # one that another program has written anew
            file.seek(0)
            yield read_export(file.read())


def read_export(document: bytes | Mapping[str, Any]) -> Export:
    """An export that is in memory already. Raises Malformed."""
    found = _decoded(document, _Export)
    return _export(found, (_entry(leaf) for leaf in found.leaves))


def _decoded(document: bytes | Mapping[str, Any], kind: type[Any]) -> Any:
    try:
        if isinstance(document, bytes):
            return msgspec.json.decode(document, type=kind)
        return msgspec.convert(dict(document), kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Malformed(f"This is not an exported log: {error}") from None


def _export(opening: _Opening, entries: Iterable[Entry]) -> Export:
    if opening.version != VERSION:
        raise Malformed(f"The export has version {opening.version}; this release reads {VERSION}.")
    head = TreeHead(opening.head.size, _hex(opening.head.root), opening.head.time)
    return Export(PublicKey.from_hex_pem(opening.hubKey), head, _hex(opening.head.signature), entries)


def _lines(file: BinaryIO) -> Iterator[Entry]:
    line = file.readline(MAX_LINE).strip()
    while line != b"]}":
        if not line:
            raise Malformed("The exported log is cut off.", next_step="Export it again.")
        yield _entry(_decoded(line.removesuffix(b","), str | _Hidden))  # type: ignore[arg-type]
        line = file.readline(MAX_LINE).strip()


def _entry(leaf: str | _Hidden) -> Entry:
    if isinstance(leaf, str):
        return Entry.shown(leaf.encode())
    hashed = _hex(leaf.hash)
    if len(hashed) != 32:
        raise Malformed("An entry's hash has 32 bytes.")
    return Entry.hidden(hashed)


def event_of(leaf: str) -> tuple[Event, SignedEvent]:
    """The event that an entry holds; its signature is not checked. Raises Malformed."""
    try:
        signed = msgspec.convert(parse_canonical(leaf.encode()), SignedEvent)
        return Event.decode(signed.event.encode()), signed
    except msgspec.ValidationError as error:
        raise Malformed(f"This is no signed event: {error}") from None


def _hex(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise Malformed("The export holds something that is not hexadecimal.") from None


# ------------------------------------------------------------------------------------------------------------- checking


@dataclass(slots=True)
class Report:
    """What was found. `problems` is empty when everything that could be checked holds."""

    size: int = 0
    root: bytes = b""
    events: list[Event] = field(default_factory=list)
    """Every event that could be read; empty when somebody else was given them one by one."""
    verified: int = 0
    """Events whose signature was checked."""
    unknown: list[int] = field(default_factory=list)
    """Places of events whose signer's key is not known here: not checked, not wrong."""
    hidden: int = 0
    """Entries of which the export holds the hash alone."""
    heads: int = 0
    """Kept heads that the log continues."""
    first_bad: int | None = None
    """The first entry that is not what it was; None when there is none, or when only a range is known."""
    problems: list[str] = field(default_factory=list)
    oddities: list[str] = field(default_factory=list)
    """What is no proof of anything wrong, and worth a look."""

    @property
    def ok(self) -> bool:
        return not self.problems


def verify_export(
    document: bytes | Mapping[str, Any] | Export,
    hub_key: PublicKey,
    known_heads: Sequence[KnownHead] = (),
    keys: Mapping[str, PublicKey] | None = None,
    *,
    earlier: Iterable[Entry] = (),
    each: Callable[[int, Event], None] | None = None,
) -> Report:
    """Check an export of ``GET /core/audit/export``, in one pass.

    The head is signed by `hub_key` (the key that one has from elsewhere, never the one in the file) and is the root
    over exactly these entries; each of `known_heads` is a beginning of this log; `earlier`, the entries of an earlier
    export, are the first of this one; each event is signed by the key that it names, as far as it is the hub's, in
    `keys` (fingerprint in hex -> key), or one that the hub has put on record in an entry before.

    each: is given every event that can be read, instead of `Report.events`. Raises Malformed for what is no export.
    Everything else that is wrong stands in the report.
    """
    export = document if isinstance(document, Export) else read_export(document)
    check = _Check(hub_key, known_heads, keys or {}, earlier, each)
    for entry in export.entries:
        check.take(entry)
    return check.finish(export)


class _Check:
    def __init__(
        self,
        hub_key: PublicKey,
        known_heads: Sequence[KnownHead],
        keys: Mapping[str, PublicKey],
        earlier: Iterable[Entry],
        each: Callable[[int, Event], None] | None,
    ) -> None:
        self.report = Report()
        self._hub_key, self._each = hub_key, each
        self._signers = {hub_key.fingerprint.hex(): hub_key, **keys}
        self._heads = sorted(known_heads, key=lambda head: head.size)
        self._earlier = iter(earlier)
        self._tree = Frontier()
        self._good, self._bad = 0, -1
        self._time: datetime | None = None

    def take(self, entry: Entry) -> None:
        index = self._tree.size
        before = next(self._earlier, None)
        if before is not None and before.hash != entry.hash and self.report.first_bad is None:
            self._wrong(index, "is another one than in the earlier export.")
        self._tree.append(entry.hash)
        self._compare_heads()
        if entry.text is None:
            self.report.hidden += 1
        else:
            self._event(index, entry.text)

    def finish(self, export: Export) -> Report:
        report, head = self.report, export.head
        report.size, report.root = self._tree.size, self._tree.root()
        if next(self._earlier, None) is not None:
            self._wrong(report.size, "and what follows it stand in the earlier export, and not in this one.")
        try:
            verify_tree_head(self._hub_key, export.signature, head)
        except FlameError as error:
            report.problems.append(str(error))
        if head.size != report.size:
            report.problems.append(f"The head speaks of {head.size} entries; the export holds {report.size}.")
        elif head.root != report.root:
            report.problems.append("The entries are not those that the hub has signed: their root is another one.")
        for known in self._heads:
            report.problems.append(
                f"The log was cut: a head over {known.size} entries was seen, and there are {report.size}."
            )
        return report

    def _compare_heads(self) -> None:
        while self._heads and self._heads[0].size <= self._tree.size:
            known = self._heads.pop(0)
            root = self._tree.root() if known.size else Frontier().root()
            if known.root == root:
                self.report.heads += 1
                self._good = known.size
            elif self._bad < 0:
                self._bad = known.size
                self.report.problems.append(
                    f"The log was changed or forked: its first {known.size} entries have the root {root.hex()}, and the "
                    f"head that was kept says {known.root.hex()}. The first that is not what it was is one of the entries "
                    f"{self._good} to {known.size - 1}."
                )

    def _event(self, index: int, leaf: str) -> None:
        try:
            event, signed = event_of(leaf)
        except Malformed as error:
            self._wrong(index, f"cannot be read: {error.message}")
            return
        if self._each is None:
            self.report.events.append(event)
        else:
            self._each(index, event)
        self._signature(index, event, signed)

    def _signature(self, index: int, event: Event, signed: SignedEvent) -> None:
        key = self._signers.get(event.signer)
        if key is None:
            self.report.unknown.append(index)
            return
        try:
            if key.fingerprint.hex() != event.signer:
                raise BadSignature("the key given for this signer is another one.")
            verify_event(key, _hex(signed.signature), event.digest)
        except FlameError as error:
            self._wrong(index, f"is not what its signer wrote: {error}")
            return
        self.report.verified += 1
        if event.signer == self._hub_key.fingerprint.hex():
            self._learn(event)
            self._clock(index, event)

    def _learn(self, event: Event) -> None:
        """The hub says with which key somebody signs: good enough to see that all of their entries are by one hand."""
        public = event.facts.get("publicKey")
        if event.type in _KEYS_IN and isinstance(public, str):
            try:
                key = PublicKey.from_hex_pem(public)
            except FlameError:
                return  # a result key signs nothing
            self._signers.setdefault(key.fingerprint.hex(), key)

    def _clock(self, index: int, event: Event) -> None:
        moment = parse_time(event.time)
        if self._time is not None and (self._time - moment).total_seconds() > CLOCK_STEP:
            self.report.oddities.append(f"Entry {index} is dated {event.time}, before the one that precedes it.")
        self._time = moment

    def _wrong(self, index: int, how: str) -> None:
        if self.report.first_bad is None or index < self.report.first_bad:
            self.report.first_bad = index
        self.report.problems.append(f"Entry {index} {how}")
