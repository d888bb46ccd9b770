"""The tables of projects."""

from __future__ import annotations

from sqlalchemy import Boolean, Column, String, Table, Text, UniqueConstraint

from flame.hub.columns import identifier, reference, stamps
from flame.hub.registry.tables import master_images
from flame.storage.engine import metadata

projects = Table(
    "projects",
    metadata,
    identifier(),
    Column("name", String(128), nullable=False, unique=True),
    Column("display_name", String(256)),
    Column("description", Text),
    Column("purpose", Text),
    Column("data_requested", Text),
    Column("risk", Text),
    Column("legal_basis", Text),
    Column("runtime", String(256)),
    Column("contact", String(256)),
    Column("expires", String(24)),
    Column("ended_at", String(24)),
    Column("ending", Text),
    Column("ending_signature", String(128)),
    reference("master_image_id", master_images.c.id, nullable=True, cascade=False),
    reference("realm_id", "realms.id"),
    reference("user_id", "users.id", nullable=True, cascade=False),
    *stamps(),
)
project_members = Table(
    "project_members",
    metadata,
    identifier(),
    reference("project_id", "projects.id"),
    reference("user_id", "users.id"),
    Column("role", String(16), nullable=False),
    *stamps(),
    UniqueConstraint("project_id", "user_id"),
)
project_nodes = Table(
    "project_nodes",
    metadata,
    identifier(),
    reference("project_id", "projects.id"),
    reference("node_id", "nodes.id"),
    Column("approval_status", String(16)),
    Column("approval_signed", Boolean, nullable=False, default=False),
    Column("approval", Text),
    Column("approval_signature", String(128)),
    Column("approval_by", String(128)),
    Column("comment", Text),
    Column("project_realm_id", String(36), nullable=False),
    Column("node_realm_id", String(36), nullable=False),
    *stamps(),
    UniqueConstraint("project_id", "node_id"),
)
