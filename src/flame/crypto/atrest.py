"""What a node keeps on its disk is sealed under its storage key."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from flame.crypto._private_file import read_private, write_private
from flame.model.errors import Malformed, Refused

_VERSION = b"\x01"
_NONCE = 12
_TAG = 16
_MARKED = 1 << 30
OVERHEAD = len(_VERSION) + _NONCE + _TAG


class StorageKey:
    """32 random bytes in a file of mode 0600. AES-256-GCM with random nonces: for far fewer than 2**32 blobs."""

    def __init__(self, key: bytes) -> None:
        if len(key) != 32:
            raise Malformed("A storage key is 32 bytes.")
        self._key = key
        self._aead = AESGCM(key)
        self._marker = AESGCM(hashlib.sha256(b"flame-mark-v1\0" + key).digest())

    @classmethod
    def generate(cls) -> StorageKey:
        return cls(os.urandom(32))

    @classmethod
    def load(cls, path: Path) -> StorageKey:
        """Read a key that `save` wrote. Raises NotFound, Refused (others can read the file), Malformed."""
        return cls(read_private(path, max_bytes=32))

    def save(self, path: Path) -> None:
        """Write the key to a new file of mode 0600, durably. Raises Conflict when it exists."""
        write_private(path, self._key)

    def seal(self, data: bytes | memoryview, context: bytes) -> bytes:
        """Seal data for this purpose; `context` (table and row, say) is not stored, and must be the same to open it."""
        nonce = os.urandom(_NONCE)
        return _VERSION + nonce + self._aead.encrypt(nonce, data, _bound(context))

    def open(self, blob: bytes, context: bytes) -> bytes:
        """The data; Refused when key or context are others, or a byte was changed."""
        if len(blob) < OVERHEAD or blob[:1] != _VERSION:
            raise Malformed("This is not something that a storage key has sealed.")
        start = len(_VERSION) + _NONCE
        try:
            return self._aead.decrypt(blob[len(_VERSION) : start], memoryview(blob)[start:], _bound(context))
        except InvalidTag as error:
            raise Refused(
                "What is stored here cannot be opened: it was sealed under another storage key or for another place, "
                "or it was changed.",
                next_step="If the storage key was replaced or restored, put back the one that belongs to this data.",
            ) from error

    def mark(self, data: bytes | bytearray | memoryview, context: bytes) -> bytes:
        """32 bytes by which this key's holder knows data again, at the speed of AES (SHA-256 takes ten times as long).

        GMAC (NIST SP 800-38D) of each GiB under a nonce made of context and place, then SHA-256. Only to be compared with
        an earlier mark of the same key and context, and shown to nobody: without the key nothing can be said of it.
        """
        digest = hashlib.sha256(_bound(context))
        view = memoryview(data).cast("B")
        for place in range(0, max(1, len(view)), _MARKED):
            nonce = hashlib.sha256(_bound(context) + place.to_bytes(8, "big")).digest()[:_NONCE]
            digest.update(self._marker.encrypt(nonce, b"", view[place : place + _MARKED]))
        return digest.digest()

    def __repr__(self) -> str:
        return "StorageKey(...)"


def _bound(context: bytes) -> bytes:
    return b"flame-at-rest-v1\0" + context
