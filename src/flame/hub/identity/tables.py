"""The tables of identity."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Index,
    Integer,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
    true,
)

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
    Column("is_confidential", Boolean, nullable=False, default=True, server_default=true()),
    Column("auth_method", String(16), nullable=False, default="secret", server_default="secret"),
    Column("token_binding_method", String(16), nullable=False, default="none", server_default="none"),
    Column("redirect_uri", Text),
    Column("grant_types", String(512)),
    Column("scope", String(512)),
    Column("base_url", String(2000)),
    Column("root_url", String(2000)),
    Column("backchannel_logout_uri", String(2000)),
    Column("post_logout_redirect_uri", String(2000)),
    reference("realm_id", "realms.id"),
    *stamps(),
)
roles = Table(
    "roles",
    metadata,
    identifier(),
    Column("name", String(128), nullable=False),
    Column("display_name", String(256)),
    Column("description", Text),
    Column("target", String(16)),
    Column("built_in", Boolean, nullable=False, default=False, server_default=false()),
    reference("realm_id", "realms.id", nullable=True),
    *stamps(),
    UniqueConstraint("name", "realm_id"),
)
policies = Table(
    "policies",
    metadata,
    identifier(),
    Column("name", String(128), nullable=False),
    Column("type", String(64), nullable=False),
    Column("display_name", String(256)),
    Column("description", Text),
    Column("built_in", Boolean, nullable=False),
    reference("realm_id", "realms.id", nullable=True),
    *stamps(),
)
permissions = Table(
    "permissions",
    metadata,
    identifier(),
    Column("name", String(128), nullable=False),
    Column("display_name", String(256)),
    Column("description", Text),
    Column("built_in", Boolean, nullable=False, default=False),
    reference("policy_id", "policies.id", nullable=True, cascade=False),
    reference("realm_id", "realms.id", nullable=True),
    *stamps(),
    UniqueConstraint("name", "realm_id"),
)
scopes = Table(
    "scopes",
    metadata,
    identifier(),
    Column("name", String(128), nullable=False),
    Column("display_name", String(256)),
    Column("description", Text),
    Column("built_in", Boolean, nullable=False, default=False),
    reference("realm_id", "realms.id", nullable=True),
    *stamps(),
    UniqueConstraint("name", "realm_id"),
)


def _link(name: str, left: str, right: str, *more: Column[Any]) -> Table:
    """Who or what holds which: two references, and the realm of each beside it."""
    plural = {"policy": "policies"}
    return Table(
        name,
        metadata,
        identifier(),
        *(reference(f"{side}_id", f"{plural.get(side, side + 's')}.id") for side in (left, right)),
        *(reference(f"{side}_realm_id", "realms.id", nullable=True) for side in (left, right)),
        *more,
        *stamps(),
        UniqueConstraint(f"{left}_id", f"{right}_id"),
    )


def _policy() -> Column[Any]:
    return reference("policy_id", "policies.id", nullable=True, cascade=False)


role_permissions = _link("role_permissions", "role", "permission", _policy())
user_permissions = _link("user_permissions", "user", "permission", _policy())
client_permissions = _link("client_permissions", "client", "permission", _policy())
user_roles = _link("user_roles", "user", "role")
client_roles = _link("client_roles", "client", "role")
client_scopes = _link("client_scopes", "client", "scope", Column("default", Boolean, nullable=False, default=False))
user_attributes = Table(
    "user_attributes",
    metadata,
    identifier(),
    Column("name", String(128), nullable=False),
    Column("value", Text),
    reference("user_id", "users.id"),
    reference("realm_id", "realms.id"),
    *stamps(),
    UniqueConstraint("name", "user_id"),
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
    Column("scope", String(512), nullable=False, default="global", server_default="global"),
    reference("client_id", "clients.id", nullable=True),
    reference("realm_id", "realms.id", nullable=True),
    *(Column(name, String(24)) for name in ("created_at", "updated_at")),
)
authorization_codes = Table(
    "authorization_codes",
    metadata,
    Column("code_hash", String(64), primary_key=True),
    reference("client_id", "clients.id"),
    reference("user_id", "users.id"),
    Column("redirect_uri", String(2000), nullable=False),
    Column("challenge", String(128), nullable=False),
    Column("scope", String(512), nullable=False),
    Column("nonce", String(256)),
    Column("expires", BigInteger, nullable=False, index=True),
    Column("session", String(36)),
)
device_requests = Table(
    "device_requests",
    metadata,
    Column("device_hash", String(64), primary_key=True),
    Column("user_code_hash", String(64), nullable=False, unique=True),
    reference("client_id", "clients.id"),
    reference("user_id", "users.id", nullable=True),
    Column("state", String(16), nullable=False),
    Column("scope", String(512), nullable=False),
    Column("interval", Integer, nullable=False),
    Column("polled", BigInteger, nullable=False),
    Column("expires", BigInteger, nullable=False, index=True),
)
login_failures = Table(
    "login_failures",
    metadata,
    identifier(),
    Column("key", String(64), nullable=False),
    Column("at", BigInteger, nullable=False, index=True),
    Index("login_failures_key", "key", "at"),
)
login_sources = Table(
    "login_sources",
    metadata,
    Column("key", String(64), primary_key=True),
    Column("at", BigInteger, nullable=False, index=True),
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
    Column("member", String(64)),
    Column("revoked_at", String(24)),
    *stamps(),
    Index("user_keys_active", "user_id", "kind"),
)
