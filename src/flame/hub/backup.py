"""Backup and restore: one moment of the database, every object that it names, each with its digest.

A backup is a directory::

    backup.json     what is in it: release, schema, rows of each table, each object's size and SHA-256, the log's head
    hub.db          the database, as SQLite, whatever it was copied from: so a hub can move from SQLite to PostgreSQL
    objects/…       the objects
    keys/hub.pem    the hub's identity, only when asked for

It may be taken while the hub runs: the database is read as of one moment (SQLite's backup, or one repeatable-read
transaction), and nothing that it names is collected until it is copied (a claim, `hub/objects/upkeep.py`). Mail that was
delivered meanwhile is left out of it, as it would be of a backup taken a moment later.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
from sqlalchemy import Connection, Engine, Integer, delete, func, insert, select, text, update

from flame.crypto.keys import IdentityKey
from flame.hub.app import database_place, open_database, open_objects
from flame.hub.audit.log import find_damage
from flame.hub.audit.tables import leaves
from flame.hub.objects.tables import bucket_files, object_claims
from flame.hub.objects.upkeep import HELD, claim, key_of, settle
from flame.model.errors import Conflict, Invalid, Malformed, NotFound
from flame.storage import sqlite
from flame.storage.engine import metadata
from flame.storage.mailbox import deliveries, letters
from flame.storage.objects import CHUNK, Objects, check_key
from flame.storage.schema import HEAD, current, prepare

if TYPE_CHECKING:
    from flame.hub.settings import Settings

FORMAT: Final = 1
MANIFEST: Final = "backup.json"
DATABASE: Final = "hub.db"
KEY: Final = "keys/hub.pem"
_ROWS: Final = 500


class Piece(msgspec.Struct, frozen=True):
    """A file of the backup."""

    path: str
    size: int
    sha256: str


class Backup(msgspec.Struct, frozen=True, rename="camel"):
    """``backup.json``."""

    format: int
    release: str
    schema: str
    created: str
    hub: str
    """The fingerprint of the hub's key."""
    log_size: int
    log_root: str
    rows: dict[str, int]
    pieces: list[Piece]
    with_key: bool


# ------------------------------------------------------------------------------------------------------------- backup


def back_up(settings: Settings, target: Path, *, with_key: bool = False) -> Backup:
    """Copy a hub, running or not, into a new directory. Raises Conflict, NotFound, Malformed for damaged objects."""
    if target.exists() and any(target.iterdir()):
        raise Conflict(f"{target} is there already, and not empty.", next_step="Name a directory that is new.")
    key_file = settings.dir / KEY
    if not key_file.is_file():
        raise NotFound(f"There is no hub in {settings.dir}.", next_step="Name its directory with --dir.")
    target.mkdir(parents=True, exist_ok=True, mode=0o700)
    database = open_database(settings)
    try:
        held = database.write_blocking(lambda c: claim(c, [HELD]))
        try:
            _snapshot(settings, database.read_engine, target / DATABASE)
            pieces = _copy_objects(open_objects(settings), target)
        finally:
            database.write_blocking(lambda c: settle(c, held))
    finally:
        database.close()
    if with_key:
        pieces.append(_copy_key(key_file, target / KEY))
    found = _describe(target, IdentityKey.load(key_file).public.fingerprint.hex(), pieces, with_key)
    _write_durably(target / MANIFEST, msgspec.json.format(msgspec.json.encode(found), indent=2))
    return found


def _snapshot(settings: Settings, reader: Engine, target: Path) -> None:
    if settings.database_url is None:
        source = sqlite3.connect(f"file:{settings.dir / DATABASE}?mode=ro", uri=True)
        copy = sqlite3.connect(target)
        try:
            source.backup(copy)  # in one step: one moment, and in WAL mode the writer goes on
        finally:
            source.close()
            copy.close()
        engine = sqlite.writer(target, references=False)
    else:
        engine = sqlite.writer(target, references=False)
        with reader.begin() as reading, engine.begin() as writing:
            prepare(writing, metadata)
            _copy_rows(reading, writing)
    with engine.begin() as connection:
        connection.execute(delete(object_claims))
    engine.dispose()
    target.chmod(0o600)


def _copy_rows(source: Connection, target: Connection) -> None:
    """All tables, a few rows at a time."""
    for table in metadata.sorted_tables:
        if table.name == "schema_version":
            continue
        rows = source.execution_options(yield_per=_ROWS).execute(select(table)).mappings()
        for part in rows.partitions():
            target.execute(insert(table), [dict(row) for row in part])


def _copy_objects(objects: Objects, target: Path) -> list[Piece]:
    """What the snapshot names. Mail that is gone was delivered since: it goes from the snapshot as well."""
    engine = sqlite.writer(target / DATABASE)
    try:
        with engine.begin() as connection:
            files = dict(connection.execute(select(bucket_files.c.hash, bucket_files.c.sha256)).tuples().all())
            blobs = connection.execute(select(letters.c.id, letters.c.blob).where(letters.c.blob.is_not(None))).all()
            pieces = [_copy_object(objects, key_of(name), target, sha256) for name, sha256 in sorted(files.items())]
            for row in blobs:
                try:
                    pieces.append(_copy_object(objects, str(row.blob), target, None))
                except NotFound:
                    _delivered(connection, row.id)
    finally:
        engine.dispose()
    return pieces


def _delivered(connection: Connection, letter: int) -> None:
    connection.execute(delete(deliveries).where(deliveries.c.letter_id == letter))
    connection.execute(update(letters).where(letters.c.id == letter).values(body=None, blob=None))


def _copy_object(objects: Objects, key: str, target: Path, sha256: str | None) -> Piece:
    path = f"objects/{check_key(key)}"
    place = target / path
    place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    hashed, size = hashlib.sha256(), 0
    with objects.open(key) as source, open(os.open(place, _NEW, 0o600), "wb") as copy:
        while piece := source.read(CHUNK):
            hashed.update(piece)
            copy.write(piece)
            size += len(piece)
        copy.flush()
        os.fsync(copy.fileno())
    if sha256 is not None and hashed.hexdigest() != sha256:
        raise Malformed(f"The object {key} is damaged: it is not what its SHA-256 says.")
    return Piece(path, size, hashed.hexdigest())


_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL


def _copy_key(source: Path, target: Path) -> Piece:
    target.parent.mkdir(mode=0o700)
    data = source.read_bytes()
    with open(os.open(target, _NEW, 0o600), "wb") as file:
        file.write(data)
    return Piece(KEY, len(data), hashlib.sha256(data).hexdigest())


def _describe(target: Path, hub: str, pieces: list[Piece], with_key: bool) -> Backup:
    _check_database(target / DATABASE)
    engine = sqlite.reader(target / DATABASE, connections=1)
    with engine.begin() as connection:
        last = connection.execute(select(leaves.c.idx, leaves.c.root).order_by(leaves.c.idx.desc()).limit(1)).first()
        rows = {
            t.name: connection.execute(select(func.count()).select_from(t)).scalar_one() for t in metadata.sorted_tables
        }
        schema = current(connection) or ""
    engine.dispose()
    database = target / DATABASE
    whole = Piece(DATABASE, database.stat().st_size, _digest(database))
    return Backup(
        format=FORMAT,
        release=version("flame-federated"),
        schema=schema,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        hub=hub,
        log_size=last.idx + 1 if last else 0,
        log_root=last.root.hex() if last else "",
        rows=rows,
        pieces=[whole, *pieces],
        with_key=with_key,
    )


# ------------------------------------------------------------------------------------------------------------ restore


def verify(source: Path) -> Backup:
    """Check every byte of a backup. Raises NotFound, Malformed naming what is wrong, Conflict for another schema."""
    try:
        found = msgspec.json.decode((source / MANIFEST).read_bytes(), type=Backup)
    except FileNotFoundError:
        raise NotFound(f"{source} is no backup: it has no {MANIFEST}.") from None
    except msgspec.MsgspecError as error:
        raise Malformed(f"{MANIFEST} cannot be read: {error}") from None
    if found.format != FORMAT or found.schema != HEAD:
        raise Conflict(
            f"The backup is of release {found.release} (schema {found.schema}); this release restores schema {HEAD}.",
            next_step="Restore it with that release, then run `flame hub migrate` with this one.",
        )
    for piece in found.pieces:
        path = source / _safe(piece.path)
        if not path.is_file() or path.stat().st_size != piece.size or _digest(path) != piece.sha256:
            raise Malformed(f"{piece.path} of the backup is missing or damaged.")
    _check_database(source / DATABASE)
    return found


def restore(settings: Settings, source: Path, *, key: Path | None = None) -> Backup:
    """Make a hub from a backup, in an empty directory and an empty database. Raises Conflict when either is not.

    key: the hub's key, for a backup without it. A hub with another key would be a stranger to all its nodes.
    """
    found = verify(source)
    chosen = source / KEY if found.with_key and key is None else key
    if chosen is None:
        raise Invalid("The backup holds no key.", next_step="Give the hub's keys/hub.pem with --key FILE.")
    if IdentityKey.load(chosen).public.fingerprint.hex() != found.hub:
        raise Conflict("This key is not the key of the hub that was backed up: to its nodes it would be a stranger.")
    if settings.dir.exists() and any(settings.dir.iterdir()):
        raise Conflict(f"{settings.dir} is not empty.", next_step="Restore into a directory that is new.")
    settings.dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    _restore_database(settings, source / DATABASE)
    _restore_objects(settings, source, found)
    (settings.dir / "keys").mkdir(mode=0o700)
    _copy_file(chosen, settings.dir / KEY)
    return found


def _restore_database(settings: Settings, source: Path) -> None:
    where = database_place(settings)
    if isinstance(where, Path):
        _copy_file(source, where)
        return
    from flame.storage import postgresql

    reader, writer = sqlite.reader(source, connections=1), postgresql.writer(where)
    try:
        with reader.begin() as reading, writer.begin() as writing:
            if current(writing) is not None:
                raise Conflict("The database is not empty.", next_step="Restore into a new one.")
            prepare(writing, metadata)
            _copy_rows(reading, writing)
            _set_sequences(writing)
    finally:
        reader.dispose()
        writer.dispose()


def _set_sequences(connection: Connection) -> None:
    """PostgreSQL numbers rows by sequences of its own: they go on where the copied rows end."""
    for table in metadata.sorted_tables:
        column = table.autoincrement_column
        if column is None or not isinstance(column.type, Integer) or table.name == "schema_version":
            continue
        name = connection.execute(
            text("SELECT pg_get_serial_sequence(:t, :c)"), {"t": table.name, "c": column.name}
        ).scalar()
        highest = connection.execute(select(func.max(column))).scalar()
        if name and highest is not None:
            connection.execute(text("SELECT setval(CAST(:s AS regclass), :v)"), {"s": name, "v": highest})


def _restore_objects(settings: Settings, source: Path, found: Backup) -> None:
    objects = open_objects(settings)
    for piece in found.pieces:
        key = piece.path.removeprefix("objects/")
        if key == piece.path:
            continue
        spool = objects.spool()
        with (source / piece.path).open("rb") as file:
            while data := file.read(CHUNK):
                spool.write_blocking(data)
        spooled = spool.finish_blocking()
        if spooled.sha256 != piece.sha256:
            raise Malformed(f"{piece.path} of the backup changed while it was read.")
        objects.keep_blocking(spooled, key, same=key.startswith("files/"))


# -------------------------------------------------------------------------------------------------------------- checks


def _check_database(path: Path) -> None:
    with _reading(path) as connection:
        if connection.exec_driver_sql("PRAGMA integrity_check").scalar() != "ok":
            raise Malformed("The database of the backup is damaged.")
        if connection.exec_driver_sql("PRAGMA foreign_key_check").first():
            raise Malformed("The database of the backup is not whole: rows point to others that are not there.")
        if damage := find_damage(connection):
            raise Malformed(f"The log in the backup is not whole: {damage.words}")


@contextmanager
def _reading(path: Path) -> Iterator[Connection]:
    engine = sqlite.reader(path, connections=1)
    try:
        with engine.begin() as connection:
            yield connection
    finally:
        engine.dispose()


def _safe(path: str) -> str:
    known = path in (DATABASE, KEY) or (path.startswith("objects/") and check_key(path))
    if not known:
        raise Malformed("The backup names a file that is none of its own.")
    return path


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _copy_file(source: Path, target: Path) -> None:
    with source.open("rb") as original, open(os.open(target, _NEW, 0o600), "wb") as copy:
        shutil.copyfileobj(original, copy, CHUNK)
        copy.flush()
        os.fsync(copy.fileno())


def _write_durably(path: Path, data: bytes) -> None:
    with open(os.open(path, _NEW, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def shown(found: Backup) -> Mapping[str, Any]:
    """For a person: what was copied."""
    return {
        "created": found.created,
        "release": found.release,
        "rows": sum(found.rows.values()),
        "objects": sum(piece.path.startswith("objects/") for piece in found.pieces),
        "bytes": sum(piece.size for piece in found.pieces),
        "log_size": found.log_size,
        "log_root": found.log_root,
        "hub": found.hub,
        "with_key": found.with_key,
    }
