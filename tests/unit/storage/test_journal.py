"""The node's journal: what was acknowledged is on the disk, one bad operation spoils no other."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from flame.model.errors import Conflict, Exhausted, Invalid, Unavailable
from flame.storage.journal import Journal

SCHEMA = ("CREATE TABLE note (id INTEGER PRIMARY KEY, text TEXT NOT NULL)",)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path / "journal.db", SCHEMA)
    yield journal
    journal.close()


def add(text: str) -> object:
    return lambda connection: connection.execute("INSERT INTO note (text) VALUES (?)", (text,)).lastrowid


def texts(connection: sqlite3.Connection) -> list[str]:
    return [row[0] for row in connection.execute("SELECT text FROM note ORDER BY id")]


def test_what_was_written_is_read_back(journal: Journal) -> None:
    assert journal.write_blocking(add("a")) == 1
    assert journal.read_blocking(texts) == ["a"]


def test_an_operation_that_raises_undoes_itself_alone(journal: Journal) -> None:
    def spoil(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO note (text) VALUES ('never')")
        raise Invalid("no")

    async def together() -> list[object]:
        jobs = [journal.write(add("a")), journal.write(spoil), journal.write(add("b"))]
        return await asyncio.gather(*jobs, return_exceptions=True)

    first, second, third = asyncio.run(together())
    assert (first, third) == (1, 2)
    assert isinstance(second, Invalid)
    assert journal.read_blocking(texts) == ["a", "b"]


def test_what_queues_while_a_commit_runs_goes_into_one_transaction(journal: Journal) -> None:
    """The writer is held within one operation; all that is handed in meanwhile shares the next transaction."""
    started, go = threading.Event(), threading.Event()

    def hold(connection: sqlite3.Connection) -> int:
        started.set()
        go.wait(10)
        return connection.total_changes

    def transaction_number(connection: sqlite3.Connection) -> int:
        connection.execute("INSERT INTO note (text) VALUES ('x')")
        return int(connection.execute("SELECT count(*) FROM note").fetchone()[0])

    async def scenario() -> list[int]:
        first = asyncio.ensure_future(journal.write(hold))
        await asyncio.to_thread(started.wait, 10)
        rest = [asyncio.ensure_future(journal.write(transaction_number)) for _ in range(50)]
        await asyncio.sleep(0)
        commits = _commits(journal)
        go.set()
        await first
        numbers = await asyncio.gather(*rest)
        assert len(commits) <= 2
        return list(numbers)

    assert asyncio.run(scenario()) == list(range(1, 51))


def _commits(journal: Journal) -> list[int]:
    seen: list[int] = []
    original = journal._next_group

    def counting() -> object:
        group = original()
        seen.append(len(group[0]))
        return group

    journal._next_group = counting  # type: ignore[method-assign]
    return seen


def test_a_reader_cannot_write(journal: Journal) -> None:
    with pytest.raises(sqlite3.OperationalError):
        journal.read_blocking(add("no"))


def test_a_newer_file_is_refused_and_an_older_one_migrated(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    Journal(path, SCHEMA).close()
    newer = Journal(path, [*SCHEMA, "ALTER TABLE note ADD COLUMN mark INTEGER"])
    newer.write_blocking(lambda c: c.execute("INSERT INTO note (text, mark) VALUES ('a', 1)"))
    newer.close()
    with pytest.raises(Conflict, match="newer release"):
        Journal(path, SCHEMA)


def test_a_migration_that_fails_leaves_the_old_version(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    Journal(path, SCHEMA).close()
    with pytest.raises(sqlite3.OperationalError):
        Journal(path, [*SCHEMA, "CREATE TABLE more (id INTEGER); CREATE TABLE note (id INTEGER)"])
    journal = Journal(path, SCHEMA)
    assert journal.read_blocking(lambda c: c.execute("PRAGMA user_version").fetchone()[0]) == 1
    assert (
        journal.read_blocking(
            lambda c: c.execute("SELECT count(*) FROM sqlite_master WHERE name = 'more'").fetchone()[0]
        )
        == 0
    )
    journal.close()


def test_a_full_disk_is_said_in_words_and_loses_nothing(journal: Journal) -> None:
    journal.write_blocking(add("kept"))
    pages = journal.write_blocking(lambda c: c.execute("PRAGMA page_count").fetchone()[0])
    journal.write_blocking(lambda c: c.execute(f"PRAGMA max_page_count={pages}").fetchone())
    with pytest.raises(Exhausted, match="disk is full"):
        journal.write_blocking(add("x" * 100_000))
    journal.write_blocking(lambda c: c.execute("PRAGMA max_page_count=100000").fetchone())
    journal.write_blocking(add("after"))
    assert journal.read_blocking(texts) == ["kept", "after"]


def test_a_closed_journal_says_so(journal: Journal) -> None:
    journal.close()
    with pytest.raises(Unavailable):
        journal.write_blocking(add("late"))


def test_kill_nine_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    program = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from flame.storage.journal import Journal
        journal = Journal(Path(sys.argv[1]), ["CREATE TABLE note (id INTEGER PRIMARY KEY, text TEXT NOT NULL)"])
        while True:
            insert = "INSERT INTO note (text) VALUES ('x')"
            print(journal.write_blocking(lambda c: c.execute(insert).lastrowid), flush=True)
        """
    )
    path = tmp_path / "journal.db"
    process = subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    acknowledged = [int(process.stdout.readline()) for _ in range(40)]
    os.kill(process.pid, signal.SIGKILL)
    acknowledged += [int(line) for line in process.stdout if line.endswith("\n")]
    process.stdout.close()
    process.wait()
    journal = Journal(path, SCHEMA)
    kept = journal.read_blocking(lambda c: [row[0] for row in c.execute("SELECT id FROM note ORDER BY id")])
    assert set(acknowledged) <= set(kept)
    journal.close()


def test_neither_journal_nor_fail_points_bring_an_orm() -> None:
    code = (
        "import sys, flame.storage.journal, flame.storage.failpoints\n"
        "print({'sqlalchemy', 'obstore'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
