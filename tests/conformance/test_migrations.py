"""A database of an older release comes forward with all its rows, on SQLite and on PostgreSQL; others are refused."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import URL, Engine, MetaData, inspect, select, text

import flame.hub.app  # imports every feature's tables
from flame.crypto.keys import IdentityKey
from flame.hub.analyses.tables import analyses
from flame.hub.audit.log import AuditLog
from flame.model.errors import Conflict
from flame.storage import postgresql, sqlite
from flame.storage.engine import Database, metadata
from flame.storage.migrations import steps
from flame.storage.migrations.upgrade import scripts, upgrade
from flame.storage.schema import HEAD, REVISIONS
from postgres_world import Postgres

OLD_HUB = Path(__file__).parents[1] / "data" / "hub-0.1.tar.gz"
"""The directory of a hub of release 0.1: two studies with runs, mail that waits, a third in the making."""

Where = Path | URL


@pytest.fixture(params=["sqlite", "postgresql"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Where:
    request.node.user_properties.append(("form", f"migrations on {request.param}"))
    if request.param == "sqlite":
        return tmp_path / "hub.db"
    server: Postgres = request.getfixturevalue("postgres")
    return server.url(server.fresh())


@pytest.fixture
def old(tmp_path: Path) -> Path:
    with tarfile.open(OLD_HUB) as archive:
        archive.extractall(tmp_path / "old", filter="data")
    return tmp_path / "old"


@pytest.fixture
def of_0_1(empty: Where, old: Path) -> Where:
    """Release 0.1's own file; or, as 0.1 knew no PostgreSQL, all its rows in the tables that it would have made."""
    if isinstance(empty, Path):
        return old / "hub.db"
    upgrade(empty, REVISIONS[0])
    copy_rows(sqlite.reader(old / "hub.db", connections=1), postgresql.writer(empty))
    return empty


def copy_rows(source: Engine, target: Engine) -> None:
    tables = MetaData()
    tables.reflect(target)
    with source.begin() as reading, target.begin() as writing:
        for table in tables.sorted_tables:
            if table.name != "alembic_version" and (rows := reading.execute(select(table)).mappings().all()):
                writing.execute(table.insert(), [dict(row) for row in rows])
    source.dispose()
    target.dispose()


def engine_of(where: Where) -> Engine:
    return sqlite.writer(where) if isinstance(where, Path) else postgresql.writer(where)


def look(where: Where, at: Callable[[Any], Any]) -> Any:
    engine = engine_of(where)
    try:
        with engine.begin() as connection:
            return at(connection)
    finally:
        engine.dispose()


def shape(connection: Any) -> dict[str, Any]:
    """Everything that makes a schema, whatever its constraints are called and however its columns are ordered."""
    there = inspect(connection)
    found = {}
    for table in set(there.get_table_names()) - {"alembic_version"}:
        columns = {c["name"]: (str(c["type"]), c["nullable"], c["default"]) for c in there.get_columns(table)}
        found[table] = {
            "columns": columns,
            "key": there.get_pk_constraint(table)["constrained_columns"],
            "unique": {tuple(u["column_names"]) for u in there.get_unique_constraints(table)},
            "references": {
                (tuple(f["constrained_columns"]), f["referred_table"], tuple(f["referred_columns"]), f["options"].get("ondelete"))
                for f in there.get_foreign_keys(table)
            },
            "indexes": {
                (i["name"], tuple(i["column_names"]), bool(i["unique"]))
                for i in there.get_indexes(table)
                if not i.get("duplicates_constraint")
            },
        }  # fmt: skip
    return found


def rows(connection: Any, columns: dict[str, list[str]]) -> dict[str, set[str]]:
    """Each table's rows, by these columns."""
    tables = MetaData()
    tables.reflect(connection)
    chosen = {name: [tables.tables[name].c[column] for column in known] for name, known in columns.items()}
    return {name: {repr(tuple(row)) for row in connection.execute(select(*what))} for name, what in chosen.items()}


@pytest.fixture
def columns(old: Path) -> dict[str, list[str]]:
    """The columns of release 0.1, without those that say which release it is, and how far the log has come."""
    connection = sqlite3.connect(old / "hub.db")
    names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    found = {name: [row[1] for row in connection.execute(f"PRAGMA table_info({name})")] for name in names}
    connection.close()
    return {name: known for name, known in found.items() if name not in ("schema_version", "log_frontier")}


def test_all_rows_of_release_0_1_come_forward(of_0_1: Where, columns: dict[str, list[str]]) -> None:
    before = look(of_0_1, lambda c: rows(c, columns))
    assert sum(len(found) for found in before.values()) > 100
    assert upgrade(of_0_1) == (REVISIONS[0], HEAD)
    assert look(of_0_1, lambda c: rows(c, columns)) == before
    assert upgrade(of_0_1) == (HEAD, HEAD)


def test_a_migrated_database_is_like_a_fresh_one(of_0_1: Where, empty: Where, tmp_path: Path, request: Any) -> None:
    upgrade(of_0_1)
    fresh: Where = tmp_path / "fresh.db"
    if isinstance(of_0_1, URL):
        server: Postgres = request.getfixturevalue("postgres")
        fresh = server.url(server.fresh())
    database = Database(fresh)
    database.open()
    database.close()
    assert look(of_0_1, shape) == look(fresh, shape)


def test_nothing_is_left_to_migrate(of_0_1: Where) -> None:
    """Fails when a table has changed and scripts/migration.py was not run."""
    upgrade(of_0_1)

    def differences(connection: Any) -> list[Any]:
        defaults = connection.dialect.name != "sqlite"  # where Alembic takes '' for none; the test above compares them
        context = MigrationContext.configure(connection, opts={"compare_server_default": defaults})
        return list(compare_metadata(context, metadata))

    assert look(of_0_1, differences) == []


def test_the_hub_goes_on_with_what_it_had(of_0_1: Where, old: Path) -> None:
    """The log's head, signed by the same key, covers the same leaves; the analyses are there."""
    before = look(of_0_1, lambda c: c.execute(text("SELECT count(*), max(idx) FROM log_leaves")).one())
    upgrade(of_0_1)
    database = Database(of_0_1)
    database.open()
    try:
        log = AuditLog(IdentityKey.load(old / "keys" / "hub.pem"))
        head, _ = asyncio.run(database.read(log.head))
        assert (head.size, head.size - 1) == tuple(before)
        assert database.read_blocking(lambda c: len(c.execute(select(analyses.c.id)).all())) == 3
    finally:
        database.close()


def test_an_older_schema_is_not_opened_and_the_words_say_what_to_do(of_0_1: Where) -> None:
    with pytest.raises(Conflict, match="needs 0002") as caught:
        Database(of_0_1).open()
    assert "flame hub migrate" in caught.value.next_step


def test_a_newer_schema_is_neither_opened_nor_migrated(empty: Where) -> None:
    database = Database(empty)
    database.open()
    database.close()
    look(empty, lambda c: c.execute(text("UPDATE alembic_version SET version_num = '9999'")))
    for attempt in (lambda: Database(empty).open(), lambda: upgrade(empty)):
        with pytest.raises(Conflict, match="9999"):
            attempt()


def test_a_migration_that_fails_changes_nothing(
    of_0_1: Where, columns: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = look(of_0_1, lambda c: rows(c, columns)), look(of_0_1, shape)

    def fail(connection: Any) -> None:
        raise RuntimeError("the power is gone")

    monkeypatch.setattr(steps, "after_0002", fail)
    with pytest.raises(RuntimeError):
        upgrade(of_0_1)
    assert (look(of_0_1, lambda c: rows(c, columns)), look(of_0_1, shape)) == before
    monkeypatch.undo()
    assert upgrade(of_0_1)[1] == HEAD


def test_release_0_1_refuses_what_was_migrated(of_0_1: Where) -> None:
    upgrade(of_0_1)
    assert look(of_0_1, lambda c: c.execute(text("SELECT id FROM schema_version")).scalars().all()) != [1]


def test_revisions_are_one_line_and_known() -> None:
    directory = scripts()
    assert directory.get_heads() == [HEAD]
    assert [script.revision for script in directory.walk_revisions()] == list(reversed(REVISIONS))


def test_a_start_does_not_import_alembic(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; import flame.hub.app; from flame.storage.engine import Database;"
        f"d = Database(Path({str(tmp_path / 'hub.db')!r})); d.open(); d.close();"
        "print([m for m in ('alembic', 'psycopg', 'prometheus_client', 'obstore') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert done.stdout.strip() == "[]"


assert flame.hub.app
