"""Keys of one run: made when the run is accepted, sealed at rest, deleted when it has ended."""

from __future__ import annotations

import asyncio
import sqlite3
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from flame.crypto.atrest import StorageKey
from flame.crypto.keys import HYBRID_PRIVATE_BYTES, HybridKey
from flame.storage.journal import Journal


@dataclass(frozen=True)
class RunKeys:
    run_key: HybridKey
    mask_key: X25519PrivateKey

    @property
    def mask_public(self) -> bytes:
        return self.mask_key.public_key().public_bytes_raw()


class RunKeyStore:
    """A database of its own, with secure_delete, that back-ups leave out."""

    def __init__(self, journal: Journal, storage_key: StorageKey) -> None:
        self._journal, self._storage_key = journal, storage_key

    async def obtain(self, run: str) -> RunKeys:
        """The keys of a run: those made before a restart, or new ones, durable before they are returned."""
        sealed = await self._journal.read(lambda c: _select(c, run))
        if sealed is None:
            made = HybridKey.generate().private_bytes + X25519PrivateKey.generate().private_bytes_raw()
            blob = self._storage_key.seal(made, _context(run))
            sealed = await self._journal.write(lambda c: _insert(c, run, blob))
        raw = self._storage_key.open(sealed, _context(run))
        return RunKeys(
            HybridKey.from_private_bytes(raw[:HYBRID_PRIVATE_BYTES]),
            X25519PrivateKey.from_private_bytes(raw[HYBRID_PRIVATE_BYTES:]),
        )

    async def delete(self, run: str) -> None:
        await self._journal.execute("DELETE FROM run_keys WHERE run = ?", run)
        await asyncio.to_thread(self._journal.truncate_wal)


def _select(connection: sqlite3.Connection, run: str) -> bytes | None:
    row = connection.execute("SELECT sealed FROM run_keys WHERE run = ?", (run,)).fetchone()
    return row[0] if row else None


def _insert(connection: sqlite3.Connection, run: str, sealed: bytes) -> bytes:
    """What is kept under the run from now on: of two who make keys at once, both get the first one's."""
    connection.execute("INSERT OR IGNORE INTO run_keys VALUES(?, ?)", (run, sealed))
    kept = _select(connection, run)
    assert kept is not None
    return kept


def _context(run: str) -> bytes:
    return b"run-keys\0" + run.encode()
