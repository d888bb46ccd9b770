"""The signed documents beside the manifest: start orders, approvals, project proposals, enrolment, log events.

Each has one canonical form (RFC 8785); what is signed is its SHA-256 under a prefix of its own (``flame.crypto.signatures``).
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

import msgspec

from flame.crypto.canonical import canonical, digest, parse_canonical
from flame.model.errors import Malformed

RUN_ID_BYTES = 32


class _Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    def encoded(self) -> bytes:
        """Its canonical bytes: what is stored, sent and hashed."""
        return canonical(msgspec.to_builtins(self))

    @property
    def digest(self) -> bytes:
        return digest(self.encoded())

    @classmethod
    def decode(cls, data: bytes) -> Any:
        """Read canonical bytes strictly: nothing added, nothing left out. Raises Malformed."""
        try:
            document = msgspec.convert(parse_canonical(data), cls, strict=True)
        except msgspec.ValidationError as error:
            raise Malformed(f"A {cls.__name__} cannot be read: {error}") from None
        if document.encoded() != data:
            raise Malformed(f"A {cls.__name__} cannot be read: a field is missing or not in its one form.")
        return document


class StartOrder(_Document, frozen=True):
    """The researcher's order to run an approved manifest once. ``SHA-256`` of it is the run's id."""

    manifest: str
    """Digest, hex."""
    number: int
    parameters: dict[str, Any]
    participants: list[str]
    """Node ids, sorted."""
    created: str
    expires: str
    version: Literal[1] = 1


class By(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    kind: Literal["steward", "policy"]
    name: str


class Approval(_Document, frozen=True):
    """A hospital's decision about one manifest or one project proposal."""

    subject: Literal["analysis", "project"]
    manifest: str
    """Digest (hex) of the manifest or of the proposal."""
    node: str
    decision: Literal["approved", "rejected"]
    conditions: dict[str, Any]
    comment_sha256: str
    time: str
    expires: str
    by: list[By]
    version: Literal[1] = 1


class Proposal(_Document, frozen=True):
    """What a project asks of the hospitals."""

    project: str
    name: str
    description: str
    creator: str
    purpose: str = ""
    data_requested: str = ""
    risk: str = ""
    legal_basis: str = ""
    runtime: str = ""
    """How long the project is meant to last, in words."""
    contact: str = ""
    expires: str = ""
    """A time after which nothing of it runs; empty: it has no end of its own."""
    version: Literal[1] = 1


class Ending(_Document, frozen=True):
    """The end of a project, said by whoever asked for it: what belongs to it is deleted."""

    project: str
    researcher: str
    """Fingerprint (hex) of the member's first key."""
    reason: str
    time: str
    version: Literal[1] = 1


MemberKind = Literal["node", "researcher", "result"]


class Rotation(_Document, frozen=True):
    """A member's next key, signed by the one before; a result key, which cannot sign, by its owner's signing key."""

    member: str
    """Fingerprint (hex) of the member's first key: the name that stays."""
    kind: MemberKind
    number: int
    """1 for the second key, and so on."""
    previous: str
    signer: str
    """Fingerprint (hex) of the key that signs this."""
    next_key: str
    """As the hub stores keys: hex of the PEM text, or base64 of a hybrid key."""
    time: str
    version: Literal[1] = 1


class Revocation(_Document, frozen=True):
    """A member is no member any more: said by itself, or by two others."""

    member: str
    kind: MemberKind
    signer: str
    reason: Literal["stolen", "lost", "left", "other"]
    time: str
    version: Literal[1] = 1


class Event(_Document, frozen=True):
    """One fact for the transparency log. Hashes and identifiers only; nothing about a patient."""

    type: str
    """enrolment, confirmation, submission, approval, refusal, build, start, run-started, round, release, run-ended, ..."""
    signer: str
    """Fingerprint (hex) of the key that signs it."""
    subject: str
    """What it is about: an id of an analysis, a run, a node."""
    time: str
    facts: dict[str, Any]
    nonce: str
    """32 hex digits; makes a repeat of the same event recognisable as the same."""
    version: Literal[1] = 1


class SignedEvent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    event: str
    """The event's canonical text."""
    signature: str
    """Hex."""

    def leaf(self) -> bytes:
        """The log's leaf: canonical bytes of both."""
        return canonical({"event": self.event, "signature": self.signature})


def stamp(moment: datetime) -> str:
    from flame.protocol.freeze import format_time

    return format_time(moment)
