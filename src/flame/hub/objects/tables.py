"""The tables of buckets."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, ForeignKey, Integer, String, Table, UniqueConstraint

from flame.hub.columns import identifier, reference, stamps
from flame.storage.engine import metadata

buckets = Table(
    "buckets",
    metadata,
    identifier(),
    Column("name", String(256), nullable=False, index=True),
    Column("region", String(256)),
    Column("actor_id", String(36), nullable=False),
    Column("actor_type", String(16), nullable=False),
    reference("realm_id", "realms.id"),
    *stamps(),
)
bucket_files = Table(
    "bucket_files",
    metadata,
    identifier(),
    Column("name", String(512), nullable=False),
    Column("path", String(512), nullable=False),
    Column("directory", String(512), nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("hash", String(64), nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("actor_id", String(36), nullable=False),
    Column("actor_type", String(16), nullable=False),
    reference("realm_id", "realms.id"),
    reference("bucket_id", "buckets.id"),
    *stamps(),
    UniqueConstraint("bucket_id", "path"),
)
object_claims = Table(
    "object_claims",
    metadata,
    # whoever is about to name an object says so first, so that nobody takes it for forgotten
    Column("name", String(64), primary_key=True),
    Column("claim", String(36), primary_key=True),
    Column("expires", BigInteger, nullable=False),
)
storage_limits = Table(
    "storage_limits",
    metadata,
    Column("project_id", String(64), ForeignKey("projects.id", ondelete="CASCADE"), primary_key=True),
    Column("bytes_max", BigInteger),
    Column("keep_days", Integer),
)
