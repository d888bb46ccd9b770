"""Masks that cancel: what each pair of contributors agrees on, and the keystream that it makes of it.

    sid  = SHA256("FLAME/FSA/2/sid\\0" || run || SHA256(announce_1) || … in order of id)
    z_ij = HKDF-SHA256(X25519(S_i, S_j) || u_ij, salt = sid, info = "FLAME/FSA/2/pair\\0" || lo || hi)
    ctx  = SHA256("FLAME/FSA/2/ctx\\0" || sid || SHA256(release) || u32 round || u32 attempt || layout || encoding
                  || SHA256(sorted participants) || recovery)
    k_ij = HKDF-Expand(z_ij, "FLAME/FSA/2/mask\\0" || ctx)

The lower id of a pair adds its keystream, the higher one subtracts it. Everything that decides about a sum stands in
its ctx: who has another view of it adds noise and learns nothing. Pure; who uses a ctx once only is the node's to keep.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from flame.model.errors import Invalid, Refused
from flame.privacy import ring

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TILE: Final = 128 << 10
"""Bytes of keystream made at once: they stay in the processor's cache while they are added."""
NODE_ID: Final = 16
LEAST_CONTRIBUTORS: Final = 3
_DIGEST: Final = 32
_TAG: Final = 16
_ZEROS: Final = bytes(TILE)

Recovery = Literal["end", "tolerate"]


def session_id(run: bytes, announcements: Mapping[bytes, bytes]) -> bytes:
    """``announcements``: by node id (16 bytes), as they travelled. Whoever saw others has another session."""
    parts = [hashlib.sha256(announcements[node]).digest() for node in sorted(announcements)]
    return hashlib.sha256(b"FLAME/FSA/2/sid\0" + run + b"".join(parts)).digest()


def pair_secret(own: X25519PrivateKey, other: bytes, salt_of_pair: bytes, sid: bytes, a: bytes, b: bytes) -> bytes:
    """z of the pair of nodes ``a`` and ``b``, equal at both. ``salt_of_pair``: u, 32 bytes of the lower id.

    Raises Refused for a key that agrees on nothing (a degenerate point), Invalid for sizes.
    """
    low, high = sorted((a, b))
    if len(low) != NODE_ID or len(high) != NODE_ID or low == high or len(salt_of_pair) != 32:
        raise Invalid("A pair has two ids of 16 bytes and a salt of 32.")
    try:
        shared = own.exchange(X25519PublicKey.from_public_bytes(other))
    except ValueError:
        raise Refused("The mask key of a participant is not a key.", code="bad_mask_key") from None
    info = b"FLAME/FSA/2/pair\0" + low + high
    return HKDF(SHA256(), 32, salt=sid, info=info).derive(shared + salt_of_pair)


@dataclass(frozen=True, slots=True)
class Context:
    """All that one masked sum depends on. ``layout``, ``encoding``: digests, 32 bytes; ``members``: who contributes."""

    sid: bytes
    release: str
    round: int
    attempt: int
    layout: bytes
    encoding: bytes
    members: tuple[bytes, ...]
    recovery: Recovery

    def __post_init__(self) -> None:
        if not all(len(part) == _DIGEST for part in (self.sid, self.layout, self.encoding)):
            raise Invalid("Session, layout and encoding of a sum are digests of 32 bytes.")
        if len(set(self.members)) != len(self.members) or any(len(member) != NODE_ID for member in self.members):
            raise Invalid("The contributors of a sum are different ids of 16 bytes.")
        if len(self.members) < LEAST_CONTRIBUTORS:
            raise Refused(
                f"A secure sum of {len(self.members)} hospitals would show each of them to another one.",
                next_step=f"Ask at least {LEAST_CONTRIBUTORS} data hospitals.",
                code="too_few_contributors",
            )
        if not (0 <= self.round < 2**32 and 0 <= self.attempt < 2**32):
            raise Invalid("Round and attempt are numbers of 32 bits.")

    @property
    def digest(self) -> bytes:
        members = hashlib.sha256(b"".join(sorted(self.members))).digest()
        return hashlib.sha256(
            b"FLAME/FSA/2/ctx\0"
            + self.sid
            + hashlib.sha256(self.release.encode()).digest()
            + self.round.to_bytes(4, "big")
            + self.attempt.to_bytes(4, "big")
            + self.layout
            + self.encoding
            + members
            + (b"\1" if self.recovery == "tolerate" else b"\0")
        ).digest()


def mask_key(pair: bytes, context: Context) -> bytes:
    """k: the key of one pair for one context. Whoever learns it learns one mask of one round, and no other."""
    return HKDFExpand(SHA256(), 32, info=b"FLAME/FSA/2/mask\0" + context.digest).derive(pair)


class Keystream:
    """The AES-256-GCM keystream over zeros, tile by tile; the nonce is the tile's number. One key makes one stream."""

    def __init__(self, key: bytes) -> None:
        self._aead = AESGCM(key)
        self._buffer = bytearray(TILE + _TAG)

    def tile(self, number: int) -> memoryview:
        """Tile ``number``; valid until the next call."""
        self._aead.encrypt_into(number.to_bytes(12, "big"), _ZEROS, None, self._buffer)
        return memoryview(self._buffer)[:TILE]


def mask(values: NDArray[Any], own: bytes, keys: Mapping[bytes, bytes]) -> None:
    """Mask a contribution in place: limbs of the ring of 2^128, shape (size, 2), or numbers of the ring of 2^32.

    keys: ``mask_key`` with every other member, by id.
    """
    for other in sorted(keys):
        _apply(values, keys[other], adding=own < other)


def unmask(values: NDArray[Any], key: bytes, *, added: bool) -> None:
    """Take one stream away again: of a member that has left, or of a member's own."""
    _apply(values, key, adding=not added)


def _apply(values: NDArray[Any], key: bytes, *, adding: bool) -> None:
    import numpy as np

    stream = Keystream(key)
    wide = values.ndim == 2
    rows = TILE // (16 if wide else 4)
    for number, start in enumerate(range(0, len(values), rows)):
        part = values[start : start + rows]
        noise: Any = np.frombuffer(stream.tile(number), dtype="<u8" if wide else "<u4")
        if wide:
            (ring.add if adding else ring.subtract)(part, noise.reshape(-1, 2)[: len(part)])
        elif adding:
            part += noise[: len(part)]
        else:
            part -= noise[: len(part)]


def total(parts: Sequence[NDArray[np.uint64]]) -> NDArray[np.uint64]:
    """The sum of everybody's masked limbs: where all of the context's members are there, the masks are gone."""
    first, *others = parts
    found = first.copy()
    for part in others:
        ring.add(found, part)
    return found
