"""The two SQLAlchemy engines on one SQLite file: one that writes, one that reads."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from sqlalchemy import Connection, Engine, create_engine, event


def writer(path: Path, *, bytes_max: int | None = None, references: bool = True) -> Engine:
    """references: rows may not point to what is not there; without, only while tables are being changed."""
    return _engine(path, begin="BEGIN IMMEDIATE", connections=1, bytes_max=bytes_max, references=references)


def reader(path: Path, *, connections: int) -> Engine:
    return _engine(path, begin="BEGIN", connections=connections, read_only=True)


def _engine(
    path: Path,
    *,
    begin: str,
    connections: int,
    read_only: bool = False,
    bytes_max: int | None = None,
    references: bool = True,
) -> Engine:
    engine = create_engine(
        f"sqlite:///{path}",
        pool_size=connections,
        max_overflow=0,
        connect_args={"check_same_thread": False, "isolation_level": None},
    )

    @event.listens_for(engine, "connect")
    def prepare(connection: sqlite3.Connection, record: object) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA busy_timeout=10000")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute(f"PRAGMA foreign_keys={'ON' if references else 'OFF'}")
        if read_only:
            connection.execute("PRAGMA query_only=ON")
        elif bytes_max is not None:
            (page,) = connection.execute("PRAGMA page_size").fetchone()
            connection.execute(f"PRAGMA max_page_count={max(64, bytes_max // page)}")

    @event.listens_for(engine, "begin")
    def start(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine
