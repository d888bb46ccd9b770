"""The transparency log: append-only, RFC 6962. A leaf is written in the transaction of what it tells about."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, insert, select, update

from flame.crypto.keys import IdentityKey
from flame.crypto.signatures import sign_event
from flame.crypto.translog import EMPTY_ROOT, Frontier, TreeHead, leaf_hash, sign_tree_head
from flame.hub.audit.tables import frontier, leaves
from flame.protocol.documents import Event, SignedEvent, stamp


@dataclass(frozen=True, slots=True)
class Receipt:
    """That an event stands in the log: its place, and a signed tree head that includes it."""

    index: int
    leaf_hash: bytes
    head: TreeHead
    signature: bytes

    def wire(self) -> dict[str, Any]:
        return {"index": self.index, "leafHash": self.leaf_hash.hex(), "head": head_wire(self.head, self.signature)}


class AuditLog:
    """Writes the log, and signs its heads, with the hub's key."""

    def __init__(self, key: IdentityKey) -> None:
        self._key = key

    def tell(self, connection: Connection, what: str, subject: str, facts: Mapping[str, Any]) -> Receipt:
        """Record something that the hub itself has done, signed by the hub."""
        event = Event(
            type=what,
            signer=self._key.public.fingerprint.hex(),
            subject=subject,
            time=stamp(datetime.now(UTC)),
            facts=dict(facts),
            nonce=secrets.token_hex(16),
        )
        signed = SignedEvent(event.encoded().decode(), sign_event(self._key, event.digest).hex())
        return self.append(connection, signed, event.signer)

    def append(self, connection: Connection, signed: SignedEvent, signer: str) -> Receipt:
        """Add a leaf (its signature was checked by the caller). The same leaf again gives the same receipt."""
        leaf = signed.leaf()
        hashed = leaf_hash(leaf)
        known = connection.execute(select(leaves).where(leaves.c.hash == hashed)).first()
        if known is not None:
            return self._receipt(known.idx, hashed, TreeHead(known.idx + 1, known.root, known.time))
        state = connection.execute(select(frontier.c.state)).scalar()
        edge = Frontier.from_state(state) if state else Frontier()
        index = edge.append(hashed)
        head = TreeHead(edge.size, edge.root(), int(time.time()))
        connection.execute(
            insert(leaves).values(idx=index, leaf=leaf, hash=hashed, signer=signer, root=head.root, time=head.created)
        )
        change = update(frontier) if state else insert(frontier)
        connection.execute(change.values(id=1, state=edge.state()))
        return self._receipt(index, hashed, head)

    def head(self, connection: Connection) -> tuple[TreeHead, bytes]:
        """The newest tree head and the hub's signature on it."""
        newest = select(leaves.c.idx, leaves.c.root, leaves.c.time).order_by(leaves.c.idx.desc()).limit(1)
        row = connection.execute(newest).first()
        head = TreeHead(row.idx + 1, row.root, row.time) if row else TreeHead(0, EMPTY_ROOT, 0)
        return head, sign_tree_head(self._key, head)

    def _receipt(self, index: int, hashed: bytes, head: TreeHead) -> Receipt:
        return Receipt(index, hashed, head, sign_tree_head(self._key, head))


def head_wire(head: TreeHead, signature: bytes) -> dict[str, Any]:
    """A tree head in JSON: `time` in seconds since 1970."""
    return {"size": head.size, "root": head.root.hex(), "time": head.created, "signature": signature.hex()}
