"""What a node keeps on its disk is sealed under its storage key."""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from flame.crypto._private_file import read_private, write_private
from flame.model.errors import Malformed, Refused

_VERSION = b"\x01"
_NONCE = 12
_TAG = 16
OVERHEAD = len(_VERSION) + _NONCE + _TAG


class StorageKey:
    """32 random bytes in a file of mode 0600. AES-256-GCM with random nonces: for far fewer than 2**32 blobs."""

    def __init__(self, key: bytes) -> None:
        if len(key) != 32:
            raise Malformed("A storage key is 32 bytes.")
        self._key = key
        self._aead = AESGCM(key)

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

    def __repr__(self) -> str:
        return "StorageKey(...)"


def _bound(context: bytes) -> bytes:
    return b"flame-at-rest-v1\0" + context
