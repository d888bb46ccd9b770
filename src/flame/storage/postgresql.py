"""The two SQLAlchemy engines on one PostgreSQL database: one that writes, one that reads. Imports psycopg when used.

One transaction writes at a time, over all hub processes: each takes the same advisory lock when it begins. So features
may look and then act within an operation, as on SQLite, and the order of numbers is the order of commits. What a
process has to say still goes into one transaction with everything else that waits (`storage/engine.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError

from flame.model.errors import Invalid

if TYPE_CHECKING:
    import psycopg

SCHEMES: Final = ("postgresql", "postgres")
WRITING: Final = 0x464C414D45
"""The advisory lock of whoever writes: "FLAME"."""

_WRITER: Final = {
    "synchronous_commit": "on",  # an answer means that it is on the disk
    "lock_timeout": "30s",
    "idle_in_transaction_session_timeout": "60s",  # a process that hangs within a transaction lets the others go on
    "tcp_keepalives_idle": "10",  # and so does a machine that is gone
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
}
_READER: Final = {"statement_timeout": "60s", "idle_in_transaction_session_timeout": "60s"}


def database_url(text: str, password: str | None = None) -> URL:
    """A setting as a URL that hides its password when it is shown. Raises Invalid, without repeating the text."""
    next_step = "Write postgresql://USER@HOST:PORT/NAME, with the password in FLAME_HUB_DATABASE_PASSWORD_FILE."
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise Invalid("The database's URL cannot be read.", next_step=next_step) from None
    if url.drivername not in SCHEMES:
        raise Invalid(f"The database's URL begins with '{url.drivername}', not 'postgresql'.", next_step=next_step)
    if not url.database:
        raise Invalid("The database's URL names no database.", next_step=next_step)
    url = url.set(drivername="postgresql+psycopg")
    return url if password is None else url.set(password=password)


def writer(url: URL) -> Engine:
    engine = _engine(url, connections=1, session=_WRITER)

    @event.listens_for(engine, "begin")
    def start(connection: Connection) -> None:
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITING})")

    return engine


def reader(url: URL, *, connections: int) -> Engine:
    return _engine(url, connections=connections, session=_READER, read_only=True)


def connect(url: URL) -> psycopg.Connection[Any]:
    """A connection beside the engines', in autocommit: to LISTEN, or to copy. The caller closes it."""
    import psycopg

    arguments = url.translate_connect_args(username="user", database="dbname") | dict(url.query)
    return psycopg.connect(autocommit=True, connect_timeout=10, application_name="flame-hub", **arguments)


def _options(url: URL) -> tuple[str, ...]:
    given = url.query.get("options", ())
    return (given,) if isinstance(given, str) else tuple(given)


def _engine(url: URL, *, connections: int, session: Mapping[str, str], read_only: bool = False) -> Engine:
    try:
        import psycopg
    except ImportError:
        raise Invalid(
            "PostgreSQL needs psycopg, which is not installed.",
            next_step="pip install 'flame-federated[hub,postgresql]'",
        ) from None
    engine = create_engine(
        url,
        pool_size=connections,
        max_overflow=0,
        connect_args={
            "connect_timeout": 10,
            "application_name": "flame-hub",
            "options": " ".join([*_options(url), *(f"-c {name}={value}" for name, value in session.items())]),
        },
    )

    @event.listens_for(engine, "connect")
    def prepare(connection: psycopg.Connection[Any], record: object) -> None:
        if read_only:  # a list, its count and what it includes are of one moment
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            connection.read_only = True

    return engine
