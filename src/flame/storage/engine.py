"""The hub's database: one writer thread with natural group commit, readers beside it; on SQLite or on PostgreSQL.

Features write functions of a SQLAlchemy connection, ``operation(connection) -> value``, and hand them to `write` or
`read`. Whatever queued while the last commit ran goes into one next transaction, each operation in a savepoint of its
own; a caller hears of success after the commit. Nothing waits for a timer, and the event loop never commits.

An operation may run more than once before it counts: what PostgreSQL undid by itself (a deadlock, a line that broke
before the commit) is repeated. So it changes nothing but the database.

The engine is SQLAlchemy's synchronous one behind threads, on purpose: one hand-over per transaction instead of one
per statement, which is what decides the time of a small message.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from sqlalchemy import URL, Connection, Engine, MetaData
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, OperationalError

from flame.model.errors import Exhausted, Invalid, Unavailable
from flame.storage import schema, sqlite
from flame.storage.failpoints import declare, reached

T = TypeVar("T")
Operation = Callable[[Connection], T]

MAX_GROUP: Final = 256
MAX_LAZY: Final = 256
_READERS: Final = 4
_ATTEMPTS: Final = 4
_UNDONE: Final = ("40001", "40P01")
"""PostgreSQL's codes for a transaction that it has undone because of another one: serialisation, deadlock."""
_DISK_FULL: Final = "53100"

metadata = MetaData()
"""The one metadata on which every feature's tables live."""

schema.version_table(metadata)

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
    """One SQLite file (WAL, ``synchronous=FULL``) or PostgreSQL database; one writer thread, a few reading threads.

    where: the file, or the URL (`storage.postgresql.database_url`). bytes_max: the file grows no further than this
    (Exhausted); None: as far as the disk goes. PostgreSQL's own limits hold for PostgreSQL.
    """

    def __init__(self, where: Path | URL, *, bytes_max: int | None = None) -> None:
        self.url = where if isinstance(where, URL) else None
        """Where PostgreSQL is; None: this is SQLite."""
        if isinstance(where, Path):
            self._writer: Engine = sqlite.writer(where, bytes_max=bytes_max)
            self._reader: Engine = sqlite.reader(where, connections=_READERS)
        else:
            from flame.storage import postgresql

            self._writer = postgresql.writer(where)
            self._reader = postgresql.reader(where, connections=_READERS)
        self._pool = ThreadPoolExecutor(_READERS, thread_name_prefix="db-read")
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._lazy: list[_Job] = []
        self._lock = threading.Lock()
        self._closed = False
        self.commits, self.operations = 0, 0
        """Since the start: transactions that wrote, and the operations in them."""
        self._thread = threading.Thread(target=self._serve, name="db-write", daemon=True)

    def open(self) -> None:
        """Create what is missing and start the writer. Raises Conflict for the schema of another release."""
        try:
            with self._writer.begin() as connection:
                schema.prepare(connection, metadata)
        except Exception as error:
            self.close()
            if (told := _translated(error)) is not error:
                raise told from error
            raise
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
        """Run on a read-only connection, in a thread; sees everything that was committed, as of one moment."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self.read_blocking, operation)

    @property
    def read_engine(self) -> Engine:
        """For what takes long: a transaction of its own, beside `read`'s."""
        return self._reader

    def read_blocking(self, operation: Operation[T]) -> T:
        try:
            return self._read(operation)
        except DBAPIError as error:
            if not error.connection_invalidated:
                raise _translated(error) from error
        try:
            return self._read(operation)  # the server was started anew: the pool has let its old lines go
        except DBAPIError as error:
            raise _translated(error) from error

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

    def _read(self, operation: Operation[T]) -> T:
        with self._reader.begin() as connection:
            return operation(connection)

    def _submit(self, operation: Operation[T], label: str | None) -> Future[T]:
        reply: Future[T] = Future()
        with self._lock:
            if self._closed:
                raise Unavailable("The hub is shutting down.", next_step="Try again when it has started.")
            self._jobs.put(_Job(operation, reply, label))
        return reply

    def _serve(self) -> None:
        last = False
        connection: Connection | None = None
        while not last:
            group, last = self._next_group()
            group = [job for job in group if job.reply.set_running_or_notify_cancel()]
            if not group:
                continue
            try:
                connection = connection or self._writer.connect()
            except Exception as error:  # noqa: BLE001 - the server is away: every caller hears of it
                _fail(group, error)
                continue
            _commit(connection, group)
            self.commits += 1
            self.operations += len(group)
        if connection is not None:
            connection.close()

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
    for attempt in range(1, _ATTEMPTS + 1):
        group = [job for job in group if not job.reply.done()]  # its own mistake was told at once
        try:
            done = _attempt(connection, group)
        except Exception as error:  # noqa: BLE001 - whatever it was, every caller of the group hears of it
            _undo(connection)
            if attempt < _ATTEMPTS and isinstance(error, DBAPIError) and _repeatable(error):
                continue
            _fail(group, error)
            return
        for label in _labels(group):
            reached(f"hub.{label}.after-commit")
        for job, value in done:
            job.reply.set_result(value)
        return


def _attempt(connection: Connection, group: Sequence[_Job]) -> list[tuple[_Job, object]]:
    transaction = connection.begin()
    if len(group) == 1:  # the common case of a quiet hub: the transaction is the operation's own, without a savepoint
        done: list[tuple[_Job, object]] = [(group[0], group[0].run(connection))]
    else:
        done = []
        for job in group:
            _run(connection, job, done)
    for label in _labels(group):
        reached(f"hub.{label}.before-commit")
    try:
        transaction.commit()
    except DBAPIError as error:
        if _sqlstate(error) in _UNDONE:
            raise
        raise _translated(error, "It is not known whether it was stored.") from error  # so it is not repeated here
    return done


def _run(connection: Connection, job: _Job, done: list[tuple[_Job, object]]) -> None:
    savepoint = connection.begin_nested()
    try:
        value = job.run(connection)
        savepoint.commit()
    except Exception as error:
        if isinstance(error, DBAPIError) and _repeatable(error):
            raise
        job.reply.set_exception(_translated(error))
        savepoint.rollback()  # raises when SQLite has rolled back everything (disk full): then the whole group fails
        return
    done.append((job, value))


def _undo(connection: Connection) -> None:
    transaction = connection.get_transaction()
    if transaction is not None:
        try:
            transaction.rollback()
        except DBAPIError:  # the line is broken, or SQLite has rolled back by itself
            connection.invalidate()
            transaction.close()


def _fail(group: Sequence[_Job], error: BaseException) -> None:
    for job in group:
        if not job.reply.done():
            job.reply.set_exception(_translated(error))


def _labels(group: Sequence[_Job]) -> set[str]:
    return {job.label for job in group if job.label}


def _repeatable(error: DBAPIError) -> bool:
    """Whether nothing of the transaction counts, and another try may succeed."""
    return error.connection_invalidated or _sqlstate(error) in _UNDONE


def _translated(error: BaseException, state: str = "Nothing was stored.") -> BaseException:
    if isinstance(error, DataError):
        return Invalid("A value is too long, too large, or holds a character that cannot be stored.")
    if not isinstance(error, OperationalError):
        return error
    if "full" in str(error.orig) or _sqlstate(error) == _DISK_FULL:
        return Exhausted(
            "The hub's disk is full; nothing was stored.", next_step="Ask the hub's operator for space, then repeat."
        )
    return Unavailable(f"The hub's database was busy or away. {state}", next_step="Repeat the request.")


def _sqlstate(error: DBAPIError) -> str:
    return getattr(error.orig, "sqlstate", None) or ""


def is_conflict(error: DBAPIError) -> bool:
    """Whether a statement failed because something with this unique name is there already."""
    return isinstance(error, IntegrityError) and (_sqlstate(error) == "23505" or "UNIQUE" in str(error.orig))
