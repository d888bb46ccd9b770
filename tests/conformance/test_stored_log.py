"""The stored log on SQLite and on PostgreSQL: proofs from what is kept, damage that is found, a log of an earlier release."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, delete, text, update

import flame.hub.app  # noqa: F401 - every table of the hub
from flame.crypto.keys import IdentityKey
from flame.crypto.signatures import sign_event
from flame.crypto.translog import leaf_hash, root_of, verify_consistency, verify_inclusion
from flame.hub.audit.log import AuditLog, complete, find_damage, is_incomplete
from flame.hub.audit.tables import frontier, leaves
from flame.model.errors import Invalid, Malformed, Refused
from flame.protocol.documents import Event, SignedEvent
from flame.storage.engine import Database

SIZE = 37


@pytest.fixture(params=["sqlite", "postgresql"])
def database(
    request: pytest.FixtureRequest, tmp_path: Path, record_property: Callable[[str, object], None]
) -> Iterator[Database]:
    if request.param == "sqlite":
        where: Any = tmp_path / "hub.db"
    else:
        server = request.getfixturevalue("postgres")
        where = server.url(server.fresh())
    database = Database(where)
    database.open()
    record_property("form", f"log on {request.param}")
    yield database
    database.close()


@pytest.fixture
def log(database: Database) -> AuditLog:
    log = AuditLog(IdentityKey.generate())

    def fill(connection: Connection) -> None:
        for number in range(SIZE):
            log.tell(connection, "environment", f"image {number}", {"digest": secrets.token_hex(8)})

    database.write_blocking(fill)
    return log


def hashes(database: Database) -> list[bytes]:
    rows = database.read_blocking(lambda c: c.execute(leaves.select().order_by(leaves.c.idx)).all())
    return [leaf_hash(row.leaf) for row in rows]


def test_what_is_kept_proves_every_entry_and_every_step(database: Database, log: AuditLog) -> None:
    known = hashes(database)
    for size in (1, 2, 31, 32, 33, SIZE):
        for index in {0, size // 2, size - 1}:
            found, path = database.read_blocking(lambda c, i=index, s=size: log.inclusion(c, i, s))
            assert found == known[index]
            verify_inclusion(found, index, size, path, root_of(known, size))
        path = database.read_blocking(lambda c, s=size: log.consistency(c, s, SIZE))
        verify_consistency(size, root_of(known, size), SIZE, root_of(known), path)
    head = database.read_blocking(log.shown)
    assert (head.size, head.root) == (SIZE, root_of(known))
    for wrong in ((SIZE, SIZE), (0, SIZE + 1), (-1, 3)):
        with pytest.raises(Invalid):
            database.read_blocking(lambda c, w=wrong: log.inclusion(c, *w))


def test_the_same_event_again_is_the_same_entry(database: Database, log: AuditLog) -> None:
    key = IdentityKey.generate()
    event = Event("release", key.public.fingerprint.hex(), "a run", "2026-01-01T00:00:00Z", {}, "00" * 16)
    signed = SignedEvent(event.encoded().decode(), sign_event(key, event.digest).hex())
    first = database.write_blocking(lambda c: log.append(c, signed, event)).wire()
    database.write_blocking(lambda c: log.tell(c, "environment", "another", {}))
    assert database.write_blocking(lambda c: log.append(c, signed, event)).wire() == first
    assert len(hashes(database)) == SIZE + 2


def test_an_entry_that_is_undone_leaves_no_hole(database: Database, log: AuditLog) -> None:
    def fails(connection: Connection) -> None:
        log.tell(connection, "environment", "never", {})
        raise Refused("Something else of the same transaction did not work.")

    with pytest.raises(Refused):
        database.write_blocking(fails)
    with pytest.raises(Malformed):
        database.write_blocking(lambda c: log.tell(c, "x" * 41, "subject", {}))
    database.write_blocking(lambda c: log.tell(c, "environment", "after", {}))
    assert len(hashes(database)) == SIZE + 1
    assert database.read_blocking(find_damage) is None


CHANGES: dict[str, tuple[Any, str]] = {
    "edited": (update(leaves).where(leaves.c.idx == 5).values(leaf=b"{}"), "Entry 5 is not what was written."),
    "deleted": (delete(leaves).where(leaves.c.idx == 6), "Entry 6 is missing."),
    "cut": (delete(leaves).where(leaves.c.idx >= SIZE - 2), f"It ends after {SIZE - 2} entries"),
    "another hash": (update(leaves).where(leaves.c.idx == 7).values(hash=bytes(32)), "Entry 7 is not what was written."),
    "another subtree": (
        update(leaves).where(leaves.c.idx == 7).values(nodes=bytes(96)), "Entry 7 does not stand where it was written."
    ),
    "another root": (update(leaves).where(leaves.c.idx == SIZE - 1).values(root=bytes(32)), "It ends after"),
    "emptied": (delete(leaves), "It ends after 0 entries"),
    "no frontier": (delete(frontier), f"It ends after {SIZE} entries"),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_damage_is_found_and_vouched_for_by_nobody(database: Database, log: AuditLog, change: str) -> None:
    statement, words = CHANGES[change]
    database.write_blocking(lambda c: c.execute(statement))
    damage = database.read_blocking(find_damage)
    assert damage is not None and damage.words.startswith(words), damage
    database.read_blocking(log.open)
    with pytest.raises(Refused, match="changed behind its back") as caught:
        database.write_blocking(lambda c: log.tell(c, "environment", "after", {}))
    assert caught.value.code == "log_damaged"
    for attempt in (log.head, lambda c: log.consistency(c, 1, 2), lambda c: log.inclusion(c, 0, 1)):
        with pytest.raises((Refused, Invalid)):
            database.read_blocking(attempt)
    assert database.read_blocking(log.exported_head)[1] == bytes(64), "nothing is signed"


def test_a_log_of_an_earlier_release_gets_what_it_lacks(database: Database, log: AuditLog) -> None:
    before = hashes(database)
    nothing = "UPDATE log_leaves SET nodes = NULL, type = '', subject = ''"
    database.write_blocking(lambda c: c.execute(text(nothing)))
    assert database.read_blocking(is_incomplete)
    database.write_blocking(complete)
    assert not database.read_blocking(is_incomplete)
    assert hashes(database) == before
    database.read_blocking(log.open)
    assert log.damage is None
    subjects = database.read_blocking(lambda c: c.execute(leaves.select().order_by(leaves.c.idx)).all())
    assert [row.subject for row in subjects] == [f"image {number}" for number in range(SIZE)]
