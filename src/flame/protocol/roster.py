"""Who a member is now: the chain of keys from the first one, and whether it was revoked. Pure; the hub is not believed.

A member is named by the fingerprint of its first key. Whoever knows that fingerprint can check everything else: the
first key by its hash, each further key by the signature of the one before.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from flame.crypto.canonical import parse_canonical
from flame.crypto.keys import HYBRID_PUBLIC_BYTES, IdentityKey, PublicKey
from flame.crypto.signatures import sign_document, verify_document
from flame.model.errors import DoesNotMatchApproval, FlameError, Malformed, Refused
from flame.protocol.documents import MemberKind, Revocation, Rotation

VOICES: Final = 2
"""So many members confirmed here speak for what nobody here has confirmed, or against a member."""
MAX_STATEMENTS: Final = 256
_PURPOSE: Final = {Rotation: "rotation-v1", Revocation: "revocation-v1"}


class Statement(msgspec.Struct, frozen=True):
    """A signed rotation or revocation as it travels."""

    document: str
    """Canonical text."""
    signature: str
    """Hex."""

    def read(self) -> Rotation | Revocation:
        """Raises Malformed."""
        kind = Rotation if '"next_key"' in self.document else Revocation
        found: Rotation | Revocation = kind.decode(self.document.encode())
        return found

    def verify(self, key: PublicKey) -> None:
        """Raises BadSignature, Malformed."""
        said = self.read()
        if said.signer != key.fingerprint.hex():
            raise Malformed("The statement names another signer than the key that it is checked with.")
        try:
            signature = bytes.fromhex(self.signature)
        except ValueError:
            raise Malformed("A signature is hexadecimal.") from None
        verify_document(key, signature, _PURPOSE[type(said)], parse_canonical(self.document.encode()))


def sign_statement(key: IdentityKey, said: Rotation | Revocation) -> Statement:
    document = said.encoded()
    return Statement(document.decode(), sign_document(key, _PURPOSE[type(said)], parse_canonical(document)).hex())


@dataclass(frozen=True, slots=True)
class Voice:
    """A key that may speak about others, and the member that it belongs to."""

    member: str
    key: PublicKey


@dataclass(frozen=True, slots=True)
class Standing:
    """What a member is at this moment."""

    member: str
    kind: MemberKind
    keys: tuple[str, ...]
    """Public keys as the hub stores them, the first one first; the last is in use."""
    revoked: str = ""
    """Why it is no member any more; empty: it is one."""

    @property
    def key(self) -> str:
        return self.keys[-1]


def fingerprint_of(public: str) -> str:
    """Of a key as the hub stores it: hex of a PEM text, or base64 of a hybrid key. Raises Malformed."""
    try:
        return PublicKey.from_hex_pem(public).fingerprint.hex()
    except FlameError:
        pass
    try:
        raw = base64.b64decode(public, validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != HYBRID_PUBLIC_BYTES:
        raise Malformed("The hub gives a key that cannot be read.")
    return hashlib.sha256(raw).hexdigest()


def follow(
    member: str,
    kind: MemberKind,
    first: str,
    statements: Sequence[Statement],
    owner: Mapping[str, PublicKey] | None = None,
    voices: Mapping[str, Voice] | None = None,
) -> Standing:
    """Follow the chain from the first key. What is not properly signed is passed over: it says nothing.

    owner: for a result key, the signing keys (fingerprint -> key) of the person it belongs to. voices: keys of members
    confirmed here; two members of them revoke anybody.

    Raises DoesNotMatchApproval for a first key that is another one, Refused when one key has named two successors.
    """
    if fingerprint_of(first) != member:
        raise DoesNotMatchApproval(
            f"The hub gives another key than the one confirmed here as {member[:16]}…: a participant's key was swapped.",
            next_step="Ask the member by telephone; tell the hub's operator.",
        )
    read = [(s, r) for s in statements[:MAX_STATEMENTS] if (r := _read(s)) and (r.member, r.kind) == (member, kind)]
    keys = [first]
    while (following := _next(keys, kind, read, owner or {})) is not None:
        keys.append(following)
    own = dict(owner or {}) if kind == "result" else {fingerprint_of(k): PublicKey.from_hex_pem(k) for k in keys}
    return Standing(member, kind, tuple(keys), _revoked(read, own, voices or {}, member))


def _read(statement: Statement) -> Rotation | Revocation | None:
    try:
        return statement.read()
    except FlameError:
        return None


def _next(
    keys: list[str],
    kind: MemberKind,
    read: Sequence[tuple[Statement, Rotation | Revocation]],
    owner: Mapping[str, PublicKey],
) -> str | None:
    now = fingerprint_of(keys[-1])
    found: set[str] = set()
    for statement, said in read:
        if not isinstance(said, Rotation) or said.number != len(keys) or said.previous != now:
            continue
        signer = owner.get(said.signer) if kind == "result" else PublicKey.from_hex_pem(keys[-1])
        if signer is not None and _holds(statement, signer) and _fits(kind, said.next_key):
            found.add(said.next_key)
    if len(found) > 1:
        raise Refused(
            f"The key {now[:16]}… has named two different successors: somebody else holds it too.",
            next_step="Ask the member by telephone; it revokes the key with `flame keys revoke` or `flame node revoke`.",
            code="key_forked",
        )
    return found.pop() if found else None


def _fits(kind: MemberKind, public: str) -> bool:
    try:
        fingerprint_of(public)
        if kind != "result":
            PublicKey.from_hex_pem(public)
    except FlameError:
        return False
    return True


def _holds(statement: Statement, key: PublicKey) -> bool:
    try:
        statement.verify(key)
    except FlameError:
        return False
    return True


def _revoked(
    read: Sequence[tuple[Statement, Rotation | Revocation]],
    own: Mapping[str, PublicKey],
    voices: Mapping[str, Voice],
    member: str,
) -> str:
    others: dict[str, str] = {}
    for statement, said in read:
        if not isinstance(said, Revocation):
            continue
        if (key := own.get(said.signer)) is not None and _holds(statement, key):
            return f"by itself: {said.reason}"
        voice = voices.get(said.signer)
        if voice is not None and voice.member != member and _holds(statement, voice.key):
            others[voice.member] = said.reason
    return f"by two members: {', '.join(sorted(set(others.values())))}" if len(others) >= VOICES else ""
