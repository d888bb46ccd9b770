"""The tables of the transparency log. Rows are only ever added."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Index, Integer, LargeBinary, String, Table

from flame.storage.engine import metadata

leaves = Table(
    "log_leaves",
    metadata,
    Column("idx", Integer, primary_key=True, autoincrement=False),
    Column("leaf", LargeBinary, nullable=False),
    Column("hash", LargeBinary(32), nullable=False, unique=True),
    Column("signer", String(64), nullable=False),
    Column("root", LargeBinary(32), nullable=False),
    Column("time", BigInteger, nullable=False),
    # what this leaf completes: the hashes of the perfect subtrees of 2, 4, 8 … leaves that end with it, joined.
    # On average one hash a leaf, and all that a proof needs. NULL in a log of a release that did not keep them.
    Column("nodes", LargeBinary),
    # copies of what stands in the leaf, to search by, and the project that it belongs to, so that it stays readable
    # for the project's people when the analysis itself is gone
    Column("type", String(40), nullable=False, server_default=""),
    Column("subject", String(128), nullable=False, server_default=""),
    Column("project_id", String(36)),
    Index("ix_log_leaves_subject", "subject"),
    Index("ix_log_leaves_project", "project_id"),
)
frontier = Table(
    "log_frontier",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("state", LargeBinary, nullable=False),
)
