"""Run announcements: with which keys a node takes part in one run.

A node makes a key pair for each run and announces it, signed by its identity. Nothing is sealed to a node before its
announcement has verified. It is renewed with the same keys; other keys for the same run are an alarm.

On the wire: the deterministic CBOR form || 64 bytes of signature.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from flame.crypto import _cbor
from flame.crypto._fields import Fields
from flame.crypto.keys import HYBRID_PUBLIC_BYTES, HybridPublicKey, IdentityKey, PublicKey
from flame.model.errors import BadSignature, Expired, Malformed, Refused

VERSION = 1
MAX_BYTES = 4096
MAX_LIFETIME = 24 * 3600
TOLERANCE = 300

_PURPOSE = b"FLAME/FE2E/2/announce\0"
_SIGNATURE = 64
_KEYS = frozenset({"v", "run", "manifest", "node", "role", "run_key", "mask_key", "log", "created", "expires"})


@dataclass(frozen=True, slots=True)
class Announcement:
    """What a node says of itself in one run. Times in seconds since 1970, by the node's own clock."""

    run: bytes  # 32: SHA-256 of the start order
    manifest: bytes  # 32: digest
    node: bytes  # 16
    role: str
    run_key: bytes  # 1216: hybrid public key, for this run alone
    mask_key: bytes  # 32: X25519 public key for pairwise masks, for this run alone
    log_size: int
    log_root: bytes  # 32: the newest tree head that the node has seen
    created: int
    expires: int  # at most 24 hours after created

    @classmethod
    def parse(cls, data: bytes) -> Announcement:
        """Read the deterministic form, unsigned; Malformed for anything else."""
        if len(data) > MAX_BYTES:
            raise Malformed(f"An announcement has at most {MAX_BYTES} bytes.", limit=MAX_BYTES)
        fields = Fields.exactly("announcement", _cbor.decode(data), _KEYS)
        fields.number("v", least=VERSION, most=VERSION)
        log = Fields.exactly("announcement.log", fields.values["log"], {"size", "root"})
        created = fields.number("created")
        return cls(
            run=fields.octets("run", 32),
            manifest=fields.octets("manifest", 32),
            node=fields.octets("node", 16),
            role=fields.token("role", most=32),
            run_key=fields.octets("run_key", HYBRID_PUBLIC_BYTES),
            mask_key=fields.octets("mask_key", 32),
            log_size=log.number("size"),
            log_root=log.octets("root", 32),
            created=created,
            expires=fields.number("expires", least=created, most=created + MAX_LIFETIME),
        )

    def encode(self) -> bytes:
        """The deterministic CBOR form; Malformed when a field is out of its range."""
        values: dict[str, object] = {name: getattr(self, name) for name in _KEYS - {"v", "log"}}
        values["v"] = VERSION
        values["log"] = {"size": self.log_size, "root": self.log_root}
        encoded = _cbor.encode(values)
        Announcement.parse(encoded)
        return encoded


def sign_announcement(identity: IdentityKey, announcement: Announcement) -> bytes:
    """The announcement as it is sent: its encoding and the node's signature."""
    encoded = announcement.encode()
    return encoded + identity.sign(_message(encoded))


def verify_announcement(
    data: bytes, identity: PublicKey, *, run: bytes, node: bytes, now: int, tolerance: int = TOLERANCE
) -> Announcement:
    """Read an announcement that has arrived from `node`, whose pinned identity key is given.

    `now` is the receiver's own clock. Raises BadSignature, Malformed, Expired (also when not yet valid), Refused
    (another run or node, or keys to which nothing can be sealed). Role and manifest are for the caller to compare.
    """
    encoded, signature = data[:-_SIGNATURE], data[-_SIGNATURE:]
    if not encoded or len(encoded) > MAX_BYTES:
        raise Malformed(f"An announcement has 1 to {MAX_BYTES} bytes and a signature.")
    try:
        identity.verify(signature, _message(encoded))
    except BadSignature as error:
        raise BadSignature(
            "The announcement is not signed by the identity key that is pinned for this node.", node=node.hex()
        ) from error
    announcement = Announcement.parse(encoded)
    if announcement.run != run or announcement.node != node:
        raise Refused("The announcement belongs to another run or another node.", node=announcement.node.hex())
    _check_time(announcement, now, tolerance)
    _try_keys(announcement)
    return announcement


def check_same_keys(known: Announcement, again: Announcement) -> None:
    """The alarm: raises Refused when a second announcement of a node for one run brings other keys, or another role
    or manifest. Both must have verified."""
    if (known.run, known.node) != (again.run, again.node):
        raise Refused("These announcements are not of the same node and run.")
    changed = [name for name in ("run_key", "mask_key", "role", "manifest") if _differs(known, again, name)]
    if changed:
        raise Refused(
            f"ALARM: node {known.node.hex()} announced itself twice for this run, with other {' and '.join(changed)}.",
            next_step="The node was cloned or restored from a copy, or its identity key is in other hands: stop the "
            "run and ask the node by a way that is not the hub.",
            substituted=tuple(changed),
        )


def _differs(known: Announcement, again: Announcement, name: str) -> bool:
    return bool(getattr(known, name) != getattr(again, name))


def _message(encoded: bytes) -> bytes:
    return _PURPOSE + hashlib.sha256(encoded).digest()


def _check_time(announcement: Announcement, now: int, tolerance: int) -> None:
    if announcement.created > now + tolerance:
        raise Expired(
            f"The announcement is dated {announcement.created - now} s in the future.",
            next_step="Check the clocks of both nodes.",
        )
    if announcement.expires + tolerance < now:
        raise Expired(
            f"The announcement expired {now - announcement.expires} s ago.",
            next_step="The node renews it by itself while it takes part; ask whether it is running.",
        )


def _try_keys(announcement: Announcement) -> None:
    HybridPublicKey(announcement.run_key).try_once()
    try:
        X25519PrivateKey.generate().exchange(X25519PublicKey.from_public_bytes(announcement.mask_key))
    except ValueError as error:
        raise Refused("The announced mask key is degenerate.") from error
