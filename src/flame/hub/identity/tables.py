"""The tables of identity."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Index, String, Table, Text, UniqueConstraint

from flame.hub.columns import identifier, reference, stamps
from flame.storage.engine import metadata

realms = Table(
    "realms",
    metadata,
    identifier(),
    Column("name", String(128), nullable=False, unique=True),
    Column("display_name", String(256)),
    Column("description", Text),
    Column("built_in", Boolean, nullable=False, default=False),
    *stamps(),
)
users = Table(
    "users",
    metadata,
    identifier(),
    Column("name", String(128), nullable=False),
    Column("name_locked", Boolean, nullable=False, default=False),
    Column("first_name", String(128)),
    Column("last_name", String(128)),
    Column("display_name", String(256)),
    Column("email", String(256)),
    Column("password_hash", String(256)),
    Column("active", Boolean, nullable=False, default=True),
    reference("realm_id", "realms.id"),
    *stamps(),
    UniqueConstraint("name", "realm_id"),
)
clients = Table(
    "clients",
    metadata,
    identifier(),
    Column("name", String(128), nullable=False),
    Column("display_name", String(256)),
    Column("description", Text),
    Column("secret_hash", String(256)),
    Column("active", Boolean, nullable=False, default=True),
    Column("built_in", Boolean, nullable=False, default=False),
    reference("realm_id", "realms.id"),
    *stamps(),
)
roles = Table(
    "roles",
    metadata,
    identifier(),
    Column("name", String(64), nullable=False, unique=True),
    Column("display_name", String(256)),
    Column("description", Text),
    Column("target", String(16)),
    Column("built_in", Boolean, nullable=False, default=True),
    reference("realm_id", "realms.id", nullable=True, cascade=False),
    *stamps(),
)
user_roles = Table(
    "user_roles",
    metadata,
    identifier(),
    reference("user_id", "users.id"),
    reference("role_id", "roles.id"),
    *stamps(),
    UniqueConstraint("user_id", "role_id"),
)
sessions = Table(
    "sessions",
    metadata,
    identifier(),
    Column("kind", String(8), nullable=False),
    Column("subject", String(36), nullable=False, index=True),
    Column("refresh_id", String(36)),
    Column("expires", BigInteger, nullable=False),
    Column("revoked", Boolean, nullable=False, default=False),
)
used_assertions = Table(
    "used_assertions",
    metadata,
    Column("client_id", String(36), primary_key=True),
    Column("jti", String(128), primary_key=True),
    Column("expires", BigInteger, nullable=False, index=True),
)
user_keys = Table(
    "user_keys",
    metadata,
    identifier(),
    reference("user_id", "users.id"),
    Column("kind", String(8), nullable=False),
    Column("public_key", Text, nullable=False),
    Column("fingerprint", String(64), nullable=False),
    Column("revoked_at", String(24)),
    *stamps(),
    Index("user_keys_active", "user_id", "kind"),
)
