"""Which schema a database has, and which this release needs. Light: Alembic is imported only to change one."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Column, Connection, Integer, MetaData, String, Table, delete, insert, inspect, select

from flame.model.errors import Conflict

REVISIONS: Final = ("0001", "0002")
"""All revisions, oldest first, as `storage/migrations/versions` has them. 0001 is release 0.1."""
HEAD: Final = REVISIONS[-1]

RELEASE: Final = "0.2"
_SEEN_BY_0_1: Final = 2
"""What stands in `schema_version` from 0002 on, so that release 0.1, which looks only there, refuses the database."""

_revision = Table("alembic_version", MetaData(), Column("version_num", String(32), primary_key=True))


def version_table(metadata: MetaData) -> Table:
    """Release 0.1's own record of its schema."""
    return Table("schema_version", metadata, Column("id", Integer, primary_key=True), Column("release", String(32)))


def current(connection: Connection) -> str | None:
    """The revision of a database; None: it is empty."""
    there = inspect(connection)
    if there.has_table(_revision.name):
        return str(connection.execute(select(_revision.c.version_num)).scalar_one())
    return REVISIONS[0] if there.has_table("schema_version") else None


def prepare(connection: Connection, metadata: MetaData) -> None:
    """Make an empty database's tables. Raises Conflict unless the schema is then the one that this release needs."""
    found = current(connection)
    if found is None:
        metadata.create_all(connection)
        stamp(connection, HEAD)
    elif found not in REVISIONS:
        raise newer(found)
    elif found != HEAD:
        raise Conflict(
            f"The database has the schema of an older release ({found}); this release needs {HEAD}.",
            next_step="Stop every hub process, then run `flame hub migrate`.",
        )


def newer(found: str) -> Conflict:
    return Conflict(
        f"The database has a schema that this release does not know ({found}); a newer release wrote it.",
        next_step=f"Start the newer release. This one knows {', '.join(REVISIONS)}.",
    )


def stamp(connection: Connection, revision: str) -> None:
    """Say that the tables are those of a revision."""
    _revision.create(connection, checkfirst=True)
    connection.execute(delete(_revision))
    connection.execute(insert(_revision).values(version_num=revision))
    if revision != REVISIONS[0]:
        table = version_table(MetaData())
        connection.execute(delete(table))
        connection.execute(insert(table).values(id=_SEEN_BY_0_1, release=RELEASE))
