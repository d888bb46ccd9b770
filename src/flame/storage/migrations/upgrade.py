"""Bringing a database forward. Imports Alembic: only `flame hub migrate` comes here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Engine

from flame.model.errors import Conflict
from flame.storage import sqlite
from flame.storage.schema import HEAD, REVISIONS, current, newer, stamp


def upgrade(where: Path | URL, to: str = HEAD) -> tuple[str | None, str]:
    """Bring a database to a revision, all of it or nothing; returns (before, after).

    No hub may run on it. Raises Conflict for one of a newer release, and for rows that point nowhere.
    """
    engine = _engine(where)
    try:
        with engine.begin() as connection:
            before = current(connection)
            if before is not None and before not in REVISIONS:
                raise newer(before)
            if before != to:
                _run(connection, before, to)
                stamp(connection, to)
                _check_references(connection)
            return before, to
    finally:
        engine.dispose()


def revision(where: Path | URL) -> str | None:
    """The revision of a database; None: it is empty."""
    engine = _engine(where)
    try:
        with engine.begin() as connection:
            return current(connection)
    finally:
        engine.dispose()


def scripts() -> ScriptDirectory:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return ScriptDirectory.from_config(config)


def _run(connection: Connection, before: str | None, to: str) -> None:
    directory = scripts()
    if before is not None:
        stamp(connection, before)  # release 0.1 did not know Alembic

    def steps(revision: Any, context: Any) -> Any:
        return directory._upgrade_revs(to, revision)

    with EnvironmentContext(Config(), directory, fn=steps) as environment:
        environment.configure(connection=connection, transactional_ddl=True, render_as_batch=True)
        environment.run_migrations()


def _engine(where: Path | URL) -> Engine:
    if isinstance(where, Path):
        return sqlite.writer(where, references=False)
    from flame.storage import postgresql

    return postgresql.writer(where)


def _check_references(connection: Connection) -> None:
    """SQLite rebuilds a table to change it, for which its references are switched off meanwhile."""
    if connection.dialect.name != "sqlite":
        return
    lost = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
    if lost:
        tables = ", ".join(sorted({str(row[0]) for row in lost}))
        raise Conflict(f"Rows point to others that are not there, in: {tables}. Nothing was changed.")
