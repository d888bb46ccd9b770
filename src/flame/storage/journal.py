"""A small durable database for one process: SQLite in WAL mode, one writer thread, natural group commit.

Whatever was handed in while the last commit ran goes into one next transaction; nobody waits for a timer, and the
event loop never commits. Standard library only, so that a node at rest carries no ORM.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from flame.model.errors import Conflict, Exhausted, FlameError, Unavailable

T = TypeVar("T")
Operation = Callable[[sqlite3.Connection], T]

MAX_GROUP: Final = 512
"""Operations in one transaction, so that the first of a long queue need not wait for the last."""


@dataclass(frozen=True, slots=True)
class _Job:
    run: Operation[Any]
    reply: Future[Any]


class Journal:
    """One SQLite file with one writer.

    schema: one SQL script per version, only ever added to; each runs once, in order, in a transaction of its own.
    A file written by a newer program is refused (Conflict). `secure_delete` overwrites what is deleted.

    `write` runs a function in the next transaction, in a savepoint of its own: when it raises, it alone is undone,
    and the caller gets the error. It resolves after the commit: what it wrote survives a crash. A full disk raises
    Exhausted, a closed journal Unavailable.
    """

    def __init__(self, path: Path, schema: Sequence[str], *, secure_delete: bool = False) -> None:
        self._path = path
        self._secure_delete = secure_delete
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._readers = threading.local()
        self._open_readers: list[sqlite3.Connection] = []
        self._lock = threading.Lock()
        self._closed = False
        connection = self._connect()
        try:
            _migrate(connection, schema, path)
        except BaseException:
            connection.close()
            raise
        self._thread = threading.Thread(
            target=self._serve, args=(connection,), name=f"journal:{path.name}", daemon=True
        )
        self._thread.start()

    async def write(self, operation: Operation[T]) -> T:
        return await asyncio.wrap_future(self.submit(operation))

    def write_blocking(self, operation: Operation[T]) -> T:
        """As `write`, for threads. Never from the event loop."""
        return self.submit(operation).result()

    async def read(self, operation: Operation[T]) -> T:
        """Run a function on a read-only connection, in a thread; sees everything that was committed."""
        return await asyncio.to_thread(self.read_blocking, operation)

    def read_blocking(self, operation: Operation[T]) -> T:
        """As `read`, on this thread's own connection."""
        connection: sqlite3.Connection | None = getattr(self._readers, "connection", None)
        if connection is None:
            connection = self._reader()
        return operation(connection)

    async def execute(self, sql: str, *values: Any) -> None:
        """One statement in the next transaction."""
        await self.write(lambda connection: connection.execute(sql, values))

    async def rows(self, sql: str, *values: Any) -> list[Any]:
        """All rows of one question, as tuples."""
        return await self.read(lambda connection: connection.execute(sql, values).fetchall())

    def rows_blocking(self, sql: str, *values: Any) -> list[Any]:
        """As `rows`, for threads."""
        return self.read_blocking(lambda connection: connection.execute(sql, values).fetchall())

    def truncate_wal(self) -> None:
        """Move the write-ahead log into the file and empty it, so that nothing deleted survives there."""
        connection = self._connect()
        try:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            connection.close()

    def close(self) -> None:
        """Finish what was handed in, then close. Safe to call twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._jobs.put(None)
        self._thread.join()
        for connection in self._open_readers:
            connection.close()

    def submit(self, operation: Operation[T]) -> Future[T]:
        """Hand an operation in; what is handed in later, from any thread, is committed with it or after it."""
        reply: Future[T] = Future()
        with self._lock:  # so that nothing is queued behind the end
            if self._closed:
                raise Unavailable(f"{self._path.name} is closed.", next_step="Try again when the service has started.")
            self._jobs.put(_Job(operation, reply))
        return reply

    def _reader(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"{self._path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None, check_same_thread=False
        )
        connection.execute("PRAGMA busy_timeout=10000")
        connection.execute("PRAGMA query_only=ON")
        self._readers.connection = connection
        with self._lock:
            self._open_readers.append(connection)
        return connection

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA busy_timeout=10000")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")
        if self._secure_delete:
            connection.execute("PRAGMA secure_delete=ON")
        return connection

    def _serve(self, connection: sqlite3.Connection) -> None:
        while True:
            group, last = self._next_group()
            if group:
                _commit(connection, group)
            if last:
                connection.close()
                return

    def _next_group(self) -> tuple[list[_Job], bool]:
        group: list[_Job] = []
        job = self._jobs.get()
        while job is not None:
            group.append(job)
            if len(group) == MAX_GROUP:
                return group, False
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return group, False
        return group, True


def _commit(connection: sqlite3.Connection, group: Sequence[_Job]) -> None:
    """One transaction for the group; every reply is given after the commit, never before."""
    done: list[tuple[_Job, object]] = []
    try:
        connection.execute("BEGIN IMMEDIATE")
        for job in group:
            _run(connection, job, done)
        connection.execute("COMMIT")
    except sqlite3.Error as error:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        _fail(group, error)
        return
    for job, value in done:
        job.reply.set_result(value)


def _run(connection: sqlite3.Connection, job: _Job, done: list[tuple[_Job, object]]) -> None:
    if not job.reply.set_running_or_notify_cancel():
        return
    connection.execute("SAVEPOINT job")
    try:
        value = job.run(connection)
    except BaseException as error:  # it belongs to the caller, who gets it through the reply
        if connection.in_transaction:  # SQLite itself rolls everything back when the disk is full
            connection.execute("ROLLBACK TO job")
            connection.execute("RELEASE job")
            job.reply.set_exception(_translated(error))
            return
        job.reply.set_exception(_translated(error))
        raise sqlite3.OperationalError("the transaction was rolled back") from error
    connection.execute("RELEASE job")
    done.append((job, value))


def _fail(jobs: Sequence[_Job], error: sqlite3.Error) -> None:
    for job in jobs:
        if not job.reply.done():
            job.reply.set_exception(_translated(error))


def _translated(error: BaseException) -> BaseException:
    if not isinstance(error, sqlite3.OperationalError) or isinstance(error, FlameError):
        return error
    if "full" in str(error):
        return Exhausted("The disk is full; nothing was stored.", next_step="Free space, then repeat the request.")
    if "locked" in str(error) or "rolled back" in str(error):
        return Unavailable("The database was busy; nothing was stored.", next_step="Repeat the request.")
    return error


def _migrate(connection: sqlite3.Connection, schema: Sequence[str], path: Path) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(schema):
        raise Conflict(
            f"{path.name} was written by a newer release (schema {version}; this one knows {len(schema)}).",
            next_step="Start the newer release again, or restore the back-up made before the upgrade.",
        )
    for number, script in enumerate(schema[version:], start=version + 1):
        connection.executescript(f"BEGIN IMMEDIATE; {script}; PRAGMA user_version={number}; COMMIT;")
