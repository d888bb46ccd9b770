"""The hub's database: one writer thread with natural group commit, readers beside it.

Features write functions of a SQLAlchemy connection, ``operation(connection) -> value``, and hand them to `write` or
`read`. Whatever queued while the last commit ran goes into one next transaction, each operation in a savepoint of its
own; a caller hears of success after the commit. Nothing waits for a timer, and the event loop never commits.

The engine is SQLAlchemy's synchronous one behind threads, on purpose: one hand-over per transaction instead of one
per statement, which is what decides the time of a small message.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from sqlalchemy import Column as Col
from sqlalchemy import Connection, Engine, Integer, MetaData, String, Table, create_engine, event, insert, select
from sqlalchemy.exc import DBAPIError, OperationalError

from flame.model.errors import Conflict, Exhausted, FlameError, Unavailable
from flame.storage.failpoints import declare, reached

T = TypeVar("T")
Operation = Callable[[Connection], T]

SCHEMA_VERSION: Final = 1
MAX_GROUP: Final = 256
MAX_LAZY: Final = 256
_READERS: Final = 4

metadata = MetaData()
"""The one metadata on which every feature's tables live."""

_schema = Table("schema_version", metadata, Col("id", Integer, primary_key=True), Col("release", String(32)))

LABELS: Final = ("mailbox", "audit", "runs", "approvals", "enrolment", "lock", "upload")
"""Kinds of writes that a kill -9 test can stop just before and just after their commit."""

for _label in LABELS:
    declare(f"hub.{_label}.before-commit", f"nothing of the {_label} write; nobody has been told that it is done")
    declare(f"hub.{_label}.after-commit", f"the whole {_label} write; nobody has been told that it is done")


@dataclass(frozen=True, slots=True)
class _Job:
    run: Operation[Any]
    reply: Future[Any]
    label: str | None


class Database:
    """One SQLite file (WAL, ``synchronous=FULL``) with one writer thread and a few reading threads.

    bytes_max: the file grows no further than this (Exhausted); None: as far as the disk goes.
    """

    def __init__(self, path: Path, *, bytes_max: int | None = None) -> None:
        self._path = path
        self._writer = _sqlite(path, begin="BEGIN IMMEDIATE", bytes_max=bytes_max)
        self._reader = _sqlite(path, begin="BEGIN", read_only=True)
        self._pool = ThreadPoolExecutor(_READERS, thread_name_prefix="db-read")
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._lazy: list[_Job] = []
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="db-write", daemon=True)

    def open(self) -> None:
        """Create what is missing and start the writer. Raises Conflict for a file of a newer release."""
        with self._writer.begin() as connection:
            metadata.create_all(connection)
            version = connection.execute(select(_schema.c.id)).scalar()
            if version is None:
                connection.execute(insert(_schema).values(id=SCHEMA_VERSION, release="0.1"))
            elif version != SCHEMA_VERSION:
                raise Conflict(
                    f"The database has schema {version}; this release knows {SCHEMA_VERSION}.",
                    next_step="Start the release that wrote it.",
                )
        self._thread.start()

    async def write(self, operation: Operation[T], label: str | None = None) -> T:
        """Run within the next transaction; resolves after its commit. See the module's text.

        Raises what the operation raises (it alone is undone), Exhausted on a full disk, Unavailable when closed.
        """
        return await asyncio.wrap_future(self._submit(operation, label))

    def write_blocking(self, operation: Operation[T], label: str | None = None) -> T:
        """As `write`, for threads and for the start of a process."""
        return self._submit(operation, label).result()

    def write_lazily(self, operation: Operation[T]) -> Future[T]:
        """Let an operation ride along with the next write; a crash may lose it. For deletions only."""
        reply: Future[T] = Future()
        with self._lock:
            if self._closed:
                reply.cancel()
                return reply
            self._lazy.append(_Job(operation, reply, None))
            if len(self._lazy) >= MAX_LAZY:
                self._jobs.put(_Job(_nothing, Future(), None))
        return reply

    async def flush(self) -> None:
        """Commit what rides along."""
        if self._lazy:
            await self.write(_nothing)

    async def read(self, operation: Operation[T]) -> T:
        """Run on a read-only connection, in a thread; sees everything that was committed."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self.read_blocking, operation)

    def read_blocking(self, operation: Operation[T]) -> T:
        with self._reader.begin() as connection:
            return operation(connection)

    def close(self) -> None:
        """Finish what was handed in, then close. Safe to call twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._jobs.put(_Job(_nothing, Future(), None))  # takes along what rides along
            self._jobs.put(None)
        if self._thread.is_alive():
            self._thread.join()
        self._pool.shutdown()
        self._reader.dispose()
        self._writer.dispose()

    def _submit(self, operation: Operation[T], label: str | None) -> Future[T]:
        reply: Future[T] = Future()
        with self._lock:
            if self._closed:
                raise Unavailable("The hub is shutting down.", next_step="Try again when it has started.")
            self._jobs.put(_Job(operation, reply, label))
        return reply

    def _serve(self) -> None:
        with self._writer.connect() as connection:
            last = False
            while not last:
                group, last = self._next_group()
                if group:
                    _commit(connection, group)

    def _next_group(self) -> tuple[list[_Job], bool]:
        group: list[_Job] = []
        job = self._jobs.get()
        last = False
        while True:
            if job is None:
                last = True
                break
            group.append(job)
            if len(group) == MAX_GROUP:
                break
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                break
        with self._lock:
            lazy, self._lazy = self._lazy, []
        return lazy + group, last


def _nothing(connection: Connection) -> None:
    return None


def _commit(connection: Connection, group: Sequence[_Job]) -> None:
    """One transaction for the group; every reply is given after the commit, never before."""
    if len(group) == 1:
        _commit_alone(connection, group[0])
        return
    done: list[tuple[_Job, object]] = []
    labels = {job.label for job in group if job.label}
    try:
        with connection.begin():
            for job in group:
                _run(connection, job, done)
            for label in labels:
                reached(f"hub.{label}.before-commit")
    except Exception as error:  # noqa: BLE001 - whatever it was, every caller of the group hears of it
        connection.invalidate() if connection.in_transaction() else None
        for job in group:
            if not job.reply.done():
                job.reply.set_exception(_translated(error))
        return
    for label in labels:
        reached(f"hub.{label}.after-commit")
    for job, value in done:
        job.reply.set_result(value)


def _commit_alone(connection: Connection, job: _Job) -> None:
    """The common case of a quiet hub: the transaction is the operation's own, and needs no savepoint."""
    if not job.reply.set_running_or_notify_cancel():
        return
    try:
        with connection.begin():
            value = job.run(connection)
            if job.label:
                reached(f"hub.{job.label}.before-commit")
    except Exception as error:  # noqa: BLE001 - it belongs to the caller, who gets it through the reply
        connection.invalidate() if connection.in_transaction() else None
        job.reply.set_exception(_translated(error))
        return
    if job.label:
        reached(f"hub.{job.label}.after-commit")
    job.reply.set_result(value)


def _run(connection: Connection, job: _Job, done: list[tuple[_Job, object]]) -> None:
    if not job.reply.set_running_or_notify_cancel():
        return
    savepoint = connection.begin_nested()
    try:
        value = job.run(connection)
        savepoint.commit()
    except Exception as error:  # noqa: BLE001 - it belongs to the caller, who gets it through the reply
        job.reply.set_exception(_translated(error))
        savepoint.rollback()  # raises when SQLite has rolled back everything (disk full): then the whole group fails
        return
    done.append((job, value))


def _translated(error: BaseException) -> BaseException:
    if isinstance(error, FlameError) or not isinstance(error, OperationalError):
        return error
    if "full" in str(error.orig):
        return Exhausted(
            "The hub's disk is full; nothing was stored.", next_step="Ask the hub's operator for space, then repeat."
        )
    return Unavailable("The hub's database was busy; nothing was stored.", next_step="Repeat the request.")


def _sqlite(path: Path, *, begin: str, read_only: bool = False, bytes_max: int | None = None) -> Engine:
    engine = create_engine(
        f"sqlite:///{path}",
        pool_size=_READERS if read_only else 1,
        max_overflow=0,
        connect_args={"check_same_thread": False, "isolation_level": None},
    )

    @event.listens_for(engine, "connect")
    def prepare(connection: sqlite3.Connection, record: object) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA busy_timeout=10000")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")
        if read_only:
            connection.execute("PRAGMA query_only=ON")
        elif bytes_max is not None:
            (page,) = connection.execute("PRAGMA page_size").fetchone()
            connection.execute(f"PRAGMA max_page_count={max(64, bytes_max // page)}")

    @event.listens_for(engine, "begin")
    def start(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine


def is_conflict(error: DBAPIError) -> bool:
    """Whether a statement failed because something with this unique name is there already."""
    return "UNIQUE" in str(error.orig)
