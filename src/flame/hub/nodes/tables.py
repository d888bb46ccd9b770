"""The tables of nodes and their enrolment."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, String, Table, Text, UniqueConstraint

from flame.hub.columns import identifier, reference, stamps
from flame.storage.engine import metadata

nodes = Table(
    "nodes",
    metadata,
    identifier(),
    Column("name", String(128), nullable=False),
    Column("external_name", String(64)),
    Column("public_key", Text),
    Column("hidden", Boolean, nullable=False, default=False),
    Column("type", String(16), nullable=False, default="default"),
    Column("online", Boolean, nullable=False, default=False),
    Column("organisation", String(256)),
    reference("registry_id", "registries.id", nullable=True, cascade=False),
    reference("registry_project_id", "registry_projects.id", nullable=True, cascade=False),
    Column("enrolled", Boolean, nullable=False, default=False),
    Column("member", String(64)),
    reference("client_id", "clients.id", nullable=True, cascade=False),
    reference("realm_id", "realms.id"),
    *stamps(),
    UniqueConstraint("name", "realm_id"),
    UniqueConstraint("external_name", "registry_id"),
)
enrolment_tokens = Table(
    "enrolment_tokens",
    metadata,
    identifier(),
    reference("node_id", "nodes.id"),
    Column("token_hash", String(64), nullable=False, unique=True),
    Column("expires", BigInteger, nullable=False),
    Column("used", Boolean, nullable=False, default=False),
    *stamps(),
)
enrolments = Table(
    "enrolments",
    metadata,
    identifier(),
    reference("node_id", "nodes.id"),
    Column("public_key", Text, nullable=False),
    Column("fingerprint", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    *stamps(),
)
