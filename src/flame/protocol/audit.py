"""Checking an exported transparency log offline: nothing but the file, the hub's key, and the heads one has kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from flame.crypto.canonical import parse_canonical
from flame.crypto.keys import PublicKey
from flame.crypto.signatures import verify_event
from flame.crypto.translog import (
    TreeHead,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    root_of,
    verify_consistency,
    verify_inclusion,
    verify_tree_head,
)
from flame.model.errors import BadSignature, FlameError, Malformed, Refused
from flame.protocol.documents import Event, SignedEvent

VERSION: Final = 1


class _Head(msgspec.Struct):
    size: int
    root: str
    time: int
    signature: str


class _Export(msgspec.Struct):
    version: int
    hubKey: str  # noqa: N815 - its name on the wire
    head: _Head
    leaves: list[str]


@dataclass(frozen=True, slots=True)
class KnownHead:
    """A tree head that somebody kept: from a receipt, a Welcome, an announcement or an earlier export."""

    size: int
    root: bytes


@dataclass(slots=True)
class Report:
    """What was found. `problems` is empty when everything that could be checked holds."""

    size: int
    root: bytes
    events: list[Event] = field(default_factory=list)
    verified: int = 0
    """Events whose signature was checked."""
    unknown: list[int] = field(default_factory=list)
    """Places of events whose signer's key is not known here: not checked, not wrong."""
    heads: int = 0
    """Kept heads that the log continues."""
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems


def verify_export(
    document: bytes | Mapping[str, Any],
    hub_key: PublicKey,
    known_heads: Sequence[KnownHead] = (),
    keys: Mapping[str, PublicKey] | None = None,
) -> Report:
    """Check an export of ``GET /core/audit/export``.

    The head is signed by `hub_key` (the key that one has from elsewhere, never the one in the file) and is the root
    over exactly these leaves; each leaf is included; each of `known_heads` is a beginning of this log; each event is
    signed by the key that it names, as far as it is the hub's or in `keys` (fingerprint in hex -> key).

    Raises Malformed for what is no export. Everything else that is wrong stands in the report.
    """
    export = _read(document)
    hashes = [leaf_hash(leaf.encode()) for leaf in export.leaves]
    head = TreeHead(export.head.size, _hex(export.head.root), export.head.time)
    report = Report(len(hashes), root_of(hashes))
    _check_head(report, export, head, hub_key)
    if report.ok:
        _check_inclusion(report, hashes, head)
    for known in known_heads:
        _check_continues(report, hashes, known)
    signers = {hub_key.fingerprint.hex(): hub_key, **(keys or {})}
    for index, leaf in enumerate(export.leaves):
        _check_event(report, index, leaf, signers)
    return report


def _read(document: bytes | Mapping[str, Any]) -> _Export:
    try:
        if isinstance(document, bytes):
            export = msgspec.json.decode(document, type=_Export)
        else:
            export = msgspec.convert(dict(document), _Export)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Malformed(f"This is not an exported log: {error}") from None
    if export.version != VERSION:
        raise Malformed(f"The export has version {export.version}; this release reads {VERSION}.")
    return export


def _hex(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise Malformed("The export holds something that is not hexadecimal.") from None


def _check_head(report: Report, export: _Export, head: TreeHead, hub_key: PublicKey) -> None:
    try:
        verify_tree_head(hub_key, _hex(export.head.signature), head)
    except FlameError as error:
        report.problems.append(str(error))
    if head.size != report.size:
        report.problems.append(f"The head speaks of {head.size} entries; the export holds {report.size}.")
    elif head.root != report.root:
        report.problems.append("The entries are not those that the hub has signed: their root is another one.")


def _check_inclusion(report: Report, hashes: Sequence[bytes], head: TreeHead) -> None:
    """The proofs that a hub would serve, for first, last and middle; the root above has bound all of them."""
    if not hashes:
        return
    for index in sorted({0, len(hashes) // 2, len(hashes) - 1}):
        verify_inclusion(hashes[index], index, head.size, inclusion_proof(hashes, index, head.size), head.root)


def _check_continues(report: Report, hashes: Sequence[bytes], known: KnownHead) -> None:
    try:
        if known.size > report.size:
            raise Refused(f"The log was cut: a head over {known.size} entries was seen, and there are {report.size}.")
        proof = consistency_proof(hashes, known.size, report.size)
        verify_consistency(known.size, known.root, report.size, report.root, proof)
        report.heads += 1
    except FlameError as error:
        report.problems.append(str(error))


def _check_event(report: Report, index: int, leaf: str, signers: Mapping[str, PublicKey]) -> None:
    try:
        signed = msgspec.convert(parse_canonical(leaf.encode()), SignedEvent)
        event: Event = Event.decode(signed.event.encode())
        report.events.append(event)
        key = signers.get(event.signer)
        if key is None:
            report.unknown.append(index)
            return
        if key.fingerprint.hex() != event.signer:
            raise BadSignature("the key given for this signer is another one.")
        verify_event(key, _hex(signed.signature), event.digest)
        report.verified += 1
    except (FlameError, msgspec.ValidationError) as error:
        report.problems.append(f"Entry {index}: {error}")
