"""What the hub's database promises on SQLite and on PostgreSQL alike."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    ForeignKey,
    LargeBinary,
    MetaData,
    String,
    Table,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.exc import IntegrityError

from flame.model.errors import Conflict, Invalid, Unavailable
from flame.storage import postgresql
from flame.storage.engine import MAX_GROUP, Database, is_conflict
from flame.storage.upsert import upsert
from postgres_world import Postgres

FORMS = ("sqlite", "postgresql")

tables = MetaData()
things = Table(
    "conformance_things",
    tables,
    Column("name", String(64), primary_key=True),
    Column("count", BigInteger, nullable=False, default=0),
    Column("flag", Boolean, nullable=False, default=False),
    Column("content", LargeBinary),
)
parts = Table(
    "conformance_parts",
    tables,
    Column("name", String(64), primary_key=True),
    Column("thing", String(64), ForeignKey("conformance_things.name", ondelete="CASCADE"), nullable=False),
)

Open = Callable[[], Database]


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def connect(form: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Opens the same store again and again, as several processes would."""
    opened: list[Database] = []
    if form == "sqlite":
        where: Any = tmp_path / "hub.db"
        version = f"SQLite {sqlite3.sqlite_version}"
    else:
        server: Postgres = request.getfixturevalue("postgres")
        where = server.url(server.fresh())
        with postgresql.connect(where) as connection:
            version = f"PostgreSQL {connection.info.parameter_status('server_version')}"
    request.node.user_properties.append(("form", f"storage on {version}"))

    def build() -> Database:
        database = Database(where)
        database.open()
        database.write_blocking(tables.create_all)
        opened.append(database)
        return database

    yield build
    for database in opened:
        database.close()


@pytest.fixture
def database(connect: Open) -> Database:
    return connect()


def add(name: str, **values: Any) -> Callable[[Connection], None]:
    return lambda c: c.execute(insert(things).values(name=name, **values)) and None


def names(database: Database) -> list[str]:
    return list(database.read_blocking(lambda c: c.execute(select(things.c.name).order_by(things.c.name))).scalars())


class Held:
    """Keeps the writer busy, so that what is handed in meanwhile becomes one group."""

    def __init__(self, database: Database) -> None:
        self._begun, self._go = threading.Event(), threading.Event()
        self._done = database._submit(self._wait, None)
        assert self._begun.wait(30)

    def _wait(self, connection: Connection) -> None:
        self._begun.set()
        assert self._go.wait(30)

    def release(self) -> None:
        self._go.set()
        self._done.result(30)


def test_what_was_acknowledged_is_read_by_everyone_and_after_a_restart(connect: Open) -> None:
    first, second = connect(), connect()
    first.write_blocking(add("a"))
    assert names(second) == ["a"]
    first.close()
    second.close()
    assert names(connect()) == ["a"]


def test_values_come_back_as_they_went_in(database: Database) -> None:
    database.write_blocking(add("ä ☃ \N{GRINNING FACE} '\"\\%_", count=2**62, flag=True, content=bytes(range(256))))
    database.write_blocking(add("nothing"))
    rows = database.read_blocking(lambda c: c.execute(select(things).order_by(things.c.count.desc())).all())
    assert [tuple(row) for row in rows] == [
        ("ä ☃ \N{GRINNING FACE} '\"\\%_", 2**62, True, bytes(range(256))),
        ("nothing", 0, False, None),
    ]
    assert isinstance(rows[0].content, bytes)


def test_what_fails_in_a_group_is_undone_alone(database: Database) -> None:
    held = Held(database)

    def half(connection: Connection) -> None:
        add("half")(connection)
        raise Conflict("No.")

    replies = [database._submit(job, None) for job in (add("a"), half, add("a"), add("b"))]
    held.release()
    replies[0].result(30)
    with pytest.raises(Conflict, match="No"):
        replies[1].result(30)
    with pytest.raises(IntegrityError) as caught:
        replies[2].result(30)
    assert is_conflict(caught.value)
    replies[3].result(30)
    assert names(database) == ["a", "b"]


def test_the_order_of_handing_in_is_the_order_of_commits(database: Database) -> None:
    held = Held(database)
    seen: list[int] = []

    def number(n: int) -> Callable[[Connection], None]:
        def step(connection: Connection) -> None:
            assert connection.execute(select(things.c.count).where(things.c.name == "n")).scalar() == n
            connection.execute(update(things).values(count=n + 1))
            seen.append(n)

        return step

    first = database._submit(add("n"), None)
    replies = [database._submit(number(n), None) for n in range(MAX_GROUP + 50)]
    held.release()
    for reply in [first, *replies]:
        reply.result(30)
    assert seen == list(range(MAX_GROUP + 50))


def test_a_missing_row_is_no_conflict_of_names(database: Database) -> None:
    with pytest.raises(IntegrityError) as caught:
        database.write_blocking(lambda c: c.execute(insert(parts).values(name="p", thing="not there")))
    assert not is_conflict(caught.value)


def test_what_belongs_to_a_row_goes_with_it(database: Database) -> None:
    database.write_blocking(add("a"))
    database.write_blocking(lambda c: c.execute(insert(parts).values(name="p", thing="a")))
    database.write_blocking(lambda c: c.execute(things.delete()))
    assert database.read_blocking(lambda c: c.execute(select(parts)).all()) == []


def test_looking_and_then_acting_loses_nothing_between_processes(connect: Open) -> None:
    """Each operation reads a number and writes the next one: no two may read the same."""
    first, second = connect(), connect()
    first.write_blocking(add("n"))

    def step(connection: Connection) -> int:
        count = connection.execute(select(things.c.count)).scalar_one()
        connection.execute(update(things).values(count=count + 1))
        return int(count)

    replies = [database._submit(step, None) for _ in range(100) for database in (first, second)]
    assert sorted(reply.result(60) for reply in replies) == list(range(200))


def test_one_read_is_of_one_moment(database: Database) -> None:
    database.write_blocking(add("a"))

    def twice(connection: Connection) -> tuple[int, int]:
        before = len(connection.execute(select(things)).all())
        database.write_blocking(add("b"))
        return before, len(connection.execute(select(things)).all())

    assert database.read_blocking(twice) == (1, 1)
    assert names(database) == ["a", "b"]


def test_a_reader_cannot_write(database: Database) -> None:
    with pytest.raises(Exception, match=r"(?i)read.?only|Nothing was stored"):
        database.read_blocking(add("a"))
    assert names(database) == []


def test_what_rides_along_is_there_after_a_flush_and_at_the_end(connect: Open) -> None:
    database = connect()

    async def scenario() -> None:
        rides = database.write_lazily(add("a"))
        assert names(database) == []
        await database.flush()
        assert rides.done()

    asyncio.run(scenario())
    assert names(database) == ["a"]
    database.write_lazily(add("b"))
    database.close()
    assert names(connect()) == ["a", "b"]


def test_closing_finishes_what_was_handed_in_and_refuses_more(connect: Open) -> None:
    database = connect()
    held = Held(database)
    replies = [database._submit(add(str(n)), None) for n in range(10)]
    threading.Timer(0.05, held.release).start()
    database.close()
    assert all(reply.done() and reply.exception() is None for reply in replies)
    with pytest.raises(Unavailable):
        database.write_blocking(add("late"))
    assert len(names(connect())) == 10


def test_an_insert_may_yield_or_update(database: Database) -> None:
    once = upsert(things).on_conflict_do_nothing().returning(things.c.name)
    assert database.write_blocking(lambda c: c.execute(once, {"name": "a"}).scalar()) == "a"
    assert database.write_blocking(lambda c: c.execute(once, {"name": "a"}).scalar()) is None
    again = upsert(things).values(name="a", count=1)
    again = again.on_conflict_do_update(index_elements=[things.c.name], set_={"count": things.c.count + 5})
    assert database.write_blocking(lambda c: c.execute(again.returning(things.c.count)).scalar()) == 5


# ------------------------------------------------------------------------------------- what only a server can do to us


@pytest.fixture
def served(postgres: Postgres) -> Iterator[Database]:
    database = Database(postgres.url(postgres.fresh()))
    database.open()
    database.write_blocking(tables.create_all)
    yield database
    database.close()


def undone(code: str) -> str:
    return f"DO $$ BEGIN RAISE EXCEPTION 'another was quicker' USING ERRCODE = '{code}'; END $$"


CUT = "SELECT pg_terminate_backend(pg_backend_pid())"


@pytest.mark.parametrize("trouble", [undone("40001"), undone("40P01"), CUT], ids=["serialisation", "deadlock", "cut"])
@pytest.mark.parametrize("alone", [True, False])
def test_a_transaction_that_the_server_undid_is_repeated_whole(served: Database, trouble: str, alone: bool) -> None:
    tries = 0

    def once(connection: Connection) -> None:
        nonlocal tries
        tries += 1
        add("mine")(connection)
        if tries == 1:
            connection.execute(text(trouble))

    held = Held(served)
    replies = [served._submit(job, None) for job in ((once,) if alone else (add("before"), once, add("after")))]
    held.release()
    for reply in replies:
        reply.result(30)
    assert tries == 2
    assert names(served) == (["mine"] if alone else ["after", "before", "mine"])


def test_one_that_is_undone_for_ever_is_told_so(served: Database) -> None:
    with pytest.raises(Unavailable, match="Nothing was stored"):
        served.write_blocking(lambda c: c.execute(text(undone("40001"))))
    served.write_blocking(add("a"))
    assert names(served) == ["a"]


@pytest.mark.parametrize("value", ["x" * 65, "nul\0"])
def test_what_cannot_be_stored_is_the_callers_mistake(served: Database, value: str) -> None:
    with pytest.raises(Invalid):
        served.write_blocking(add(value))
    with pytest.raises(Invalid):
        served.read_blocking(lambda c: c.execute(select(things).where(things.c.name == "nul\0")).all())


def test_a_server_may_be_started_anew(tmp_path: Path) -> None:
    from postgres_world import running

    with running(durable=True) as server:
        database = Database(server.url(server.fresh()))
        database.open()
        try:
            database.write_blocking(tables.create_all)
            database.write_blocking(add("a"))
            assert names(database) == ["a"]
            server.stop()
            with pytest.raises(Unavailable):
                names(database)
            with pytest.raises(Unavailable):
                database.write_blocking(add("lost"))
            server.start()
            database.write_blocking(add("b"))
            assert names(database) == ["a", "b"]
        finally:
            database.close()


def test_a_password_is_never_shown() -> None:
    url = postgresql.database_url("postgresql://flame@db.example/hub", "s3cret")
    assert "s3cret" not in str(url) + repr(url)
    for text_ in (
        "mysql://u:s3cret@h/d",
        "postgresql://u:s3cret@h:port/d",
        "nonsense:s3cret",
        "postgresql://u:s3cret@h",
    ):
        with pytest.raises(Invalid) as caught:
            postgresql.database_url(text_)
        assert "s3cret" not in str(caught.value)
