"""The transparency log: append-only, RFC 6962. A leaf is written in the transaction of what it tells about.

Each leaf's row keeps the hashes of the perfect subtrees that it completes, so that an append, a proof of inclusion and
a proof of consistency each touch O(log n) hashes, however long the log is.
"""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import Connection, bindparam, insert, select, union_all, update

from flame.crypto.keys import IdentityKey
from flame.crypto.signatures import sign_event
from flame.crypto.translog import (
    EMPTY_ROOT,
    Frontier,
    Place,
    TreeHead,
    leaf_hash,
    prove_consistency,
    prove_inclusion,
    sign_tree_head,
)
from flame.hub.analyses.tables import analyses, runs
from flame.hub.audit.tables import frontier, leaves
from flame.hub.projects.tables import projects
from flame.model.errors import Invalid, Malformed, Refused
from flame.protocol.documents import Event, SignedEvent, stamp

MAX_TYPE: Final = 40
MAX_SUBJECT: Final = 128
_KNOWN_PROJECTS: Final = 10_000
_BATCH: Final = 2000
_NEXT_STEP: Final = "The hub's operator: stop the hub, and restore a backup from before the change."
_log = logging.getLogger("flame.hub")

# built once: what is built anew for each leaf costs more than the database does
_BY_HASH = select(leaves.c.idx, leaves.c.root, leaves.c.time).where(leaves.c.hash == bindparam("wanted"))
_NEWEST = select(leaves.c.idx, leaves.c.root, leaves.c.time).order_by(leaves.c.idx.desc()).limit(1)
_EDGE = select(frontier.c.state).where(frontier.c.id == 1).with_for_update()
_STORED = select(leaves.c.idx, leaves.c.leaf, leaves.c.hash, leaves.c.nodes).order_by(leaves.c.idx)
_NEW_LEAF = insert(leaves)
_NEW_EDGE = insert(frontier)
_MOVE_EDGE = update(frontier).where(frontier.c.id == 1).values(state=bindparam("edge"))
_PROJECT_OF = union_all(
    select(analyses.c.project_id).where(analyses.c.id == bindparam("subject")),
    select(analyses.c.project_id)
    .join(runs, runs.c.analysis_id == analyses.c.id)
    .where(runs.c.id == bindparam("subject")),
    select(projects.c.id).where(projects.c.id == bindparam("subject")),
)


@dataclass(frozen=True, slots=True)
class Receipt:
    """That an event stands in the log: its place, and a tree head that includes it."""

    index: int
    leaf_hash: bytes
    head: TreeHead
    key: IdentityKey

    def wire(self) -> dict[str, Any]:
        """In JSON, the head signed by the hub."""
        signed = head_wire(self.head, sign_tree_head(self.key, self.head))
        return {"index": self.index, "leafHash": self.leaf_hash.hex(), "head": signed}


class AuditLog:
    """Writes the log, and signs its heads, with the hub's key."""

    def __init__(self, key: IdentityKey) -> None:
        self._key = key
        self._projects: dict[str, str] = {}
        self.damage: Damage | None = None
        """Set when the log was changed behind the hub's back: nothing is added to it, or signed for it, from then on."""

    def open(self, connection: Connection) -> None:
        """At the start of a hub: what was stored is checked from the entries on, so that no edit of the files is vouched for."""
        self.damage = find_damage(connection)
        if self.damage:
            _log.error("The log was changed while the hub did not run: %s", self.damage.words)

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
        leaf = signed.leaf()
        return self._add(connection, event, leaf, leaf_hash(leaf))

    def append(self, connection: Connection, signed: SignedEvent, event: Event) -> Receipt:
        """Add a leaf for `event`, the content of `signed`, whose signature the caller has checked.

        The same leaf again gives the same receipt.
        """
        leaf = signed.leaf()
        hashed = leaf_hash(leaf)
        known = connection.execute(_BY_HASH, {"wanted": hashed}).first()
        if known is not None:
            return Receipt(known.idx, hashed, TreeHead(known.idx + 1, known.root, known.time), self._key)
        return self._add(connection, event, leaf, hashed)

    def _add(self, connection: Connection, event: Event, leaf: bytes, hashed: bytes) -> Receipt:
        self._demand_whole()
        if not (0 < len(event.type) <= MAX_TYPE and 0 < len(event.subject) <= MAX_SUBJECT):
            raise Malformed(f"An event's type has 1 to {MAX_TYPE} characters, its subject 1 to {MAX_SUBJECT}.")
        project = self._project_of(connection, event.subject)
        state = connection.execute(_EDGE).scalar()  # taken as late as can be: other processes wait for it
        edge = Frontier.from_state(state) if state else Frontier()
        completed = edge.grow(hashed)
        head = TreeHead(edge.size, edge.root(), int(time.time()))
        row = {
            "idx": edge.size - 1, "leaf": leaf, "hash": hashed, "signer": event.signer, "root": head.root,
            "time": head.created, "nodes": b"".join(completed), "type": event.type, "subject": event.subject,
            "project_id": project,
        }  # fmt: skip
        connection.execute(_NEW_LEAF, row)
        if state:
            connection.execute(_MOVE_EDGE, {"edge": edge.state()})
        else:
            connection.execute(_NEW_EDGE, {"id": 1, "state": edge.state()})
        return Receipt(edge.size - 1, hashed, head, self._key)

    def _project_of(self, connection: Connection, subject: str) -> str | None:
        known = self._projects.get(subject)
        if known is None:
            known = connection.execute(_PROJECT_OF, {"subject": subject}).scalar()
            if known is not None:
                if len(self._projects) >= _KNOWN_PROJECTS:
                    self._projects.clear()
                self._projects[subject] = known
        return known

    def head(self, connection: Connection) -> tuple[TreeHead, bytes]:
        """The newest tree head and the hub's signature on it. Raises Refused for a log that was changed."""
        self._demand_whole()
        head = _newest(connection)
        return head, sign_tree_head(self._key, head)

    def exported_head(self, connection: Connection) -> tuple[TreeHead, bytes]:
        """The same for an export; of a log that was changed the hub shows what is there, and signs nothing."""
        return (_newest(connection), bytes(64)) if self.damage else self.head(connection)

    def shown(self, connection: Connection) -> TreeHead:
        """What nodes are greeted with, which they compare with what they have seen: the entries as they are now."""
        return self.damage.head if self.damage else _newest(connection)

    def inclusion(self, connection: Connection, index: int, size: int) -> tuple[bytes, list[bytes]]:
        """The hash of leaf `index`, and its path in the tree of the first `size` leaves. Raises Invalid."""
        nodes = self._nodes(connection)
        path = prove_inclusion(nodes, index, size, _newest(connection).size)
        return nodes([(0, index)])[0, index], path

    def consistency(self, connection: Connection, old: int, new: int) -> list[bytes]:
        """The proof that the first `new` leaves continue the first `old`. Raises Invalid."""
        return prove_consistency(self._nodes(connection), old, new, _newest(connection).size)

    def _nodes(self, connection: Connection) -> _StoredNodes:
        if self.damage:
            raise Invalid(self.damage.said, next_step=_NEXT_STEP, code="log_damaged")
        return _StoredNodes(connection)

    def _demand_whole(self) -> None:
        if self.damage:
            raise Refused(self.damage.said, next_step=_NEXT_STEP, code="log_damaged")


def head_wire(head: TreeHead, signature: bytes) -> dict[str, Any]:
    """A tree head in JSON: `time` in seconds since 1970."""
    return {"size": head.size, "root": head.root.hex(), "time": head.created, "signature": signature.hex()}


def _newest(connection: Connection) -> TreeHead:
    row = connection.execute(_NEWEST).first()
    return TreeHead(row.idx + 1, row.root, row.time) if row else TreeHead(0, EMPTY_ROOT, 0)


class _StoredNodes:
    """Perfect subtrees by (level, index): level 0 is a leaf's hash, the others stand in the row of their last leaf."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __call__(self, places: Sequence[Place]) -> dict[Place, bytes]:
        rows = {((index + 1) << level) - 1 for level, index in places}
        wanted = select(leaves.c.idx, leaves.c.hash, leaves.c.nodes).where(leaves.c.idx.in_(rows))
        found = {row.idx: row.hash + (row.nodes or b"") for row in self._connection.execute(wanted)}
        return {(level, index): self._node(found, level, index) for level, index in places}

    def _node(self, found: Mapping[int, bytes], level: int, index: int) -> bytes:
        node = found.get(((index + 1) << level) - 1, b"")[32 * level : 32 * (level + 1)]
        if len(node) != 32:
            raise Invalid("The hub's log lacks entries that it once had: there is no proof.", next_step=_NEXT_STEP)
        return node


# ------------------------------------------------------------------------------------------- what the hub checks itself


def read_leaves(connection: Connection) -> Iterator[Any]:
    """The rows of all leaves, in order, a batch at a time."""
    start = 0
    while rows := connection.execute(_STORED.where(leaves.c.idx >= start).limit(_BATCH)).all():
        yield from rows
        start = rows[-1].idx + 1


@dataclass(frozen=True, slots=True)
class Damage:
    """What is wrong with a stored log, in words that name the first entry; and the head over what is there now."""

    words: str
    head: TreeHead

    @property
    def said(self) -> str:
        return f"The hub's log was changed behind its back: {self.words}"


def find_damage(connection: Connection) -> Damage | None:
    """Read the whole log and see whether it is what was written; None when it is."""
    edge, words = Frontier(), ""
    newest = _newest(connection)
    for row in read_leaves(connection):
        hashed = leaf_hash(row.leaf)
        words = words or _wrong_with(row, edge.size, hashed)
        completed = b"".join(edge.grow(hashed))
        if not words and (row.nodes or b"") != completed:
            words = f"Entry {row.idx} does not stand where it was written."
    root = edge.root()
    state = connection.execute(select(frontier.c.state)).scalar() or Frontier().state()
    if not words and (state != edge.state() or newest.root != root):
        words = f"It ends after {edge.size} entries, and once was longer or another one."
    return Damage(words, TreeHead(edge.size, root, newest.created)) if words else None


def _wrong_with(row: Any, place: int, hashed: bytes) -> str:
    if row.idx != place:
        return f"Entry {place} is missing."
    return "" if row.hash == hashed else f"Entry {place} is not what was written."


def is_incomplete(connection: Connection) -> bool:
    newest = connection.execute(select(leaves.c.nodes, leaves.c.type).order_by(leaves.c.idx.desc()).limit(1)).first()
    return newest is not None and (newest.nodes is None or not newest.type)


def complete(connection: Connection) -> None:
    """A log that an earlier release wrote gets the columns that it lacks. Nothing of a leaf is changed."""
    if not is_incomplete(connection):
        return
    edge = Frontier()
    change = update(leaves).where(leaves.c.idx == bindparam("at"))
    for row in list(read_leaves(connection)):
        event = json.loads(json.loads(row.leaf)["event"])
        values = {"nodes": b"".join(edge.grow(row.hash)), "type": event["type"][:MAX_TYPE]}
        values["subject"] = event["subject"][:MAX_SUBJECT]
        project = connection.execute(_PROJECT_OF, {"subject": event["subject"]}).scalar()
        connection.execute(change.values(**values, project_id=project), {"at": row.idx})
