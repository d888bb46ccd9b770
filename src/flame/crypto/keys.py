"""The two kinds of keys: Ed25519 identities that sign, hybrid keys (ML-KEM-768 with X25519) that are sealed to."""

from __future__ import annotations

import binascii
import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cryptography.exceptions import InvalidSignature, InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
    Suite,
)
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from flame.crypto._private_file import read_private, write_private
from flame.crypto._words import WORDS
from flame.model.errors import BadSignature, Malformed, Refused

HYBRID_PUBLIC_BYTES = 1184 + 32
HYBRID_PRIVATE_BYTES = 64 + 32
WRAP_BYTES = 1088 + 32 + 32 + 16  # ML-KEM ciphertext, X25519 share, the 32-byte secret, the tag

_MAX_PEM = 4096
_SUITE = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)

# Points of small order (y coordinate, sign bit cleared): under such a "key" one signature holds for many messages.
_SMALL_ORDER = frozenset(
    {
        bytes(32),
        b"\x01" + bytes(31),
        bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"),
        bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"),
        b"\xec" + b"\xff" * 30 + b"\x7f",
        b"\xed" + b"\xff" * 30 + b"\x7f",
        b"\xee" + b"\xff" * 30 + b"\x7f",
    }
)


@dataclass(frozen=True)
class PublicKey:
    """An Ed25519 public key; equal when its 32 raw bytes are equal."""

    raw: bytes

    def __post_init__(self) -> None:
        if len(self.raw) != 32:
            raise Malformed(f"An Ed25519 public key is 32 bytes, not {len(self.raw)}.")
        if self.raw[:31] + bytes([self.raw[31] & 0x7F]) in _SMALL_ORDER:
            raise Malformed("This public key is a point of small order: anybody could sign for it.")

    @classmethod
    def from_bytes(cls, raw: bytes) -> PublicKey:
        """From 32 raw bytes; Malformed for another length or a degenerate point."""
        return cls(bytes(raw))

    @classmethod
    def from_pem(cls, text: str) -> PublicKey:
        """From a PEM "PUBLIC KEY"; Malformed unless it is an Ed25519 key."""
        if len(text) > _MAX_PEM:
            raise Malformed(f"A public key in PEM has at most {_MAX_PEM} characters.")
        try:
            key = load_pem_public_key(text.encode("ascii"))
        except (ValueError, UnsupportedAlgorithm) as error:
            raise Malformed("This is not a public key in PEM form.") from error
        if not isinstance(key, Ed25519PublicKey):
            raise Malformed("This public key is not an Ed25519 key.", next_step="Make one with `flame node init`.")
        return cls(key.public_bytes_raw())

    @classmethod
    def from_hex_pem(cls, text: str) -> PublicKey:
        """From the hexadecimal of the PEM text, the form in which FLAME's hub stores a node's public key."""
        if len(text) > 2 * _MAX_PEM:
            raise Malformed("This is too long for a public key.")
        try:
            pem = binascii.unhexlify(text.encode("ascii")).decode("ascii")
        except ValueError as error:
            raise Malformed("A node's public key is the hexadecimal of its PEM text.") from error
        return cls.from_pem(pem)

    @cached_property
    def pem(self) -> str:
        return self._key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode("ascii")

    @property
    def hex_pem(self) -> str:
        return self.pem.encode("ascii").hex()

    @cached_property
    def fingerprint(self) -> bytes:
        """SHA-256 of the raw key, 32 bytes."""
        return hashlib.sha256(self.raw).digest()

    def verify(self, signature: bytes, data: bytes) -> None:
        """Returns when `signature` (64 bytes) is this key's on `data`; raises BadSignature otherwise."""
        try:
            self._key.verify(signature, data)
        except InvalidSignature as error:
            raise BadSignature(
                "The signature is not this key's, or not on these bytes.", fingerprint=fingerprint_hex(self.fingerprint)
            ) from error

    @cached_property
    def _key(self) -> Ed25519PublicKey:
        return Ed25519PublicKey.from_public_bytes(self.raw)


class IdentityKey:
    """An Ed25519 private key: a node's or a person's identity. Never printed, never sent."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = PublicKey(key.public_key().public_bytes_raw())

    @classmethod
    def generate(cls) -> IdentityKey:
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_private_bytes(cls, private: bytes) -> IdentityKey:
        """From the 32-byte seed; Malformed for another length."""
        if len(private) != 32:
            raise Malformed("An Ed25519 private key is 32 bytes.")
        return cls(Ed25519PrivateKey.from_private_bytes(private))

    @classmethod
    def load(cls, path: Path) -> IdentityKey:
        """Read a key that `save` wrote. Raises NotFound, Refused (others can read the file), Malformed."""
        data = read_private(path, max_bytes=_MAX_PEM)
        try:
            key = load_pem_private_key(data, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise Malformed(f"{path} is not an unencrypted private key in PEM form.") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise Malformed(f"{path} is not an Ed25519 private key.")
        return cls(key)

    def save(self, path: Path) -> None:
        """Write the key (PKCS #8 in PEM) to a new file of mode 0600, durably. Raises Conflict when it exists."""
        write_private(path, self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))

    @property
    def private_bytes(self) -> bytes:
        return self._key.private_bytes_raw()

    def sign(self, data: bytes) -> bytes:
        """The signature, 64 bytes. Deterministic: the same bytes give the same signature."""
        return self._key.sign(data)

    def __repr__(self) -> str:
        return f"IdentityKey({fingerprint_hex(self.public.fingerprint)})"


class HybridPublicKey:
    """What one seals to: ML-KEM-768 (1184 bytes) || X25519 (32 bytes), combined as X-Wing."""

    def __init__(self, raw: bytes) -> None:
        if len(raw) != HYBRID_PUBLIC_BYTES:
            raise Malformed(f"A hybrid public key is {HYBRID_PUBLIC_BYTES} bytes, not {len(raw)}.")
        self.raw = bytes(raw)
        self.key_id = hashlib.sha256(self.raw).digest()
        try:
            self._key = MLKEM768X25519PublicKey(
                MLKEM768PublicKey.from_public_bytes(self.raw[:1184]), X25519PublicKey.from_public_bytes(self.raw[1184:])
            )
        except ValueError as error:
            raise Malformed("These bytes are not a hybrid public key.") from error

    def wrap(self, secret: bytes, info: bytes) -> bytes:
        """Seal a 32-byte secret to the key (HPKE base mode); `info` binds it to its context. 1168 bytes."""
        try:
            return _SUITE.encrypt(secret, self._key, info=info)
        except (ValueError, TypeError) as error:
            raise Refused("Nothing can be sealed to this public key: it is degenerate.") from error

    def try_once(self) -> None:
        """One trial seal, for keys that have just arrived. Raises Refused when nothing can be sealed to the key."""
        self.wrap(bytes(32), b"flame-trial-v1")


class HybridKey:
    """A private key that envelopes are sealed to; a node has one per run, a person one for results."""

    def __init__(self, private: bytes) -> None:
        if len(private) != HYBRID_PRIVATE_BYTES:
            raise Malformed(f"A hybrid private key is {HYBRID_PRIVATE_BYTES} bytes.")
        self._mlkem = MLKEM768PrivateKey.from_seed_bytes(private[:64])
        self._x25519 = X25519PrivateKey.from_private_bytes(private[64:])
        self._key = MLKEM768X25519PrivateKey(self._mlkem, self._x25519)
        public = self._mlkem.public_key().public_bytes_raw() + self._x25519.public_key().public_bytes_raw()
        self.public = HybridPublicKey(public)

    @classmethod
    def generate(cls) -> HybridKey:
        mlkem, x25519 = MLKEM768PrivateKey.generate(), X25519PrivateKey.generate()
        return cls(mlkem.private_bytes_raw() + x25519.private_bytes_raw())

    @classmethod
    def from_private_bytes(cls, private: bytes) -> HybridKey:
        """From 64 bytes of ML-KEM seed || 32 bytes of X25519; Malformed for another length."""
        return cls(bytes(private))

    @property
    def private_bytes(self) -> bytes:
        return self._mlkem.private_bytes_raw() + self._x25519.private_bytes_raw()

    @property
    def public_bytes(self) -> bytes:
        return self.public.raw

    @property
    def key_id(self) -> bytes:
        """SHA-256 of the public key, 32 bytes: how an envelope names it."""
        return self.public.key_id

    def unwrap(self, wrapped: bytes, info: bytes) -> bytes:
        """The secret that was wrapped to this key under the same `info`; Refused otherwise."""
        try:
            return _SUITE.decrypt(wrapped, self._key, info=info)
        except (InvalidTag, ValueError, TypeError) as error:
            raise Refused("This was not sealed to the key held here, or was damaged on the way.") from error

    def __repr__(self) -> str:
        return f"HybridKey({self.key_id.hex()[:16]})"


def fingerprint_words(fingerprint: bytes) -> str:
    """Eight words for the first eight bytes, to be read aloud when two people compare a key.

    64 bits: enough against a key swapped during the call, not against years of search; the hexadecimal form is whole.
    """
    return " ".join(WORDS[byte] for byte in _checked(fingerprint)[:8])


def fingerprint_hex(fingerprint: bytes) -> str:
    """All 32 bytes as 64 hexadecimal digits, in groups of four."""
    digits = _checked(fingerprint).hex()
    return " ".join(digits[i : i + 4] for i in range(0, 64, 4))


def parse_fingerprint(text: str) -> bytes:
    """The 32 bytes of a hexadecimal fingerprint; white space and colons between digits are ignored."""
    digits = "".join(text[:512].split()).replace(":", "")
    try:
        return _checked(binascii.unhexlify(digits.encode("ascii")))
    except ValueError as error:
        raise Malformed(
            "A fingerprint is 64 hexadecimal digits.", next_step="Copy the hexadecimal form, not the words."
        ) from error


def _checked(fingerprint: bytes) -> bytes:
    if len(fingerprint) != 32:
        raise Malformed(f"A fingerprint is 32 bytes (64 hexadecimal digits), not {len(fingerprint)}.")
    return fingerprint
