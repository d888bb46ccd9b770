"""The tables of master images, and of registries as FLAME's clients know them."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Integer, String, Table, Text, UniqueConstraint

from flame.hub.columns import identifier, reference, stamps
from flame.storage.engine import metadata

master_image_groups = Table(
    "master_image_groups",
    metadata,
    identifier(),
    Column("name", String(128), nullable=False),
    Column("path", String(512)),
    Column("virtual_path", String(512), nullable=False, unique=True),
    *stamps(),
)
master_images = Table(
    "master_images",
    metadata,
    identifier(),
    Column("name", String(128), nullable=False),
    Column("path", String(512)),
    Column("virtual_path", String(512), nullable=False, unique=True),
    Column("group_virtual_path", String(512), nullable=False),
    Column("command", String(512)),
    Column("command_arguments", Text),
    Column("digest", String(71)),
    Column("build_status", String(16)),
    Column("build_progress", Integer),
    Column("build_hash", String(128)),
    Column("build_size", BigInteger),
    *stamps(),
)
registries = Table(
    "registries",
    metadata,
    identifier(),
    Column("name", String(128), nullable=False, unique=True),
    Column("host", String(512), nullable=False, unique=True),
    Column("account_name", String(256)),
    Column("account_secret", Text),
    *stamps(),
)
registry_projects = Table(
    "registry_projects",
    metadata,
    identifier(),
    Column("name", String(128), nullable=False),
    Column("type", String(16), nullable=False),
    Column("public", Boolean, nullable=False, default=False),
    Column("external_name", String(64), nullable=False),
    Column("external_id", String(64)),
    Column("account_id", String(64)),
    Column("account_name", String(256)),
    Column("account_secret", Text),
    Column("webhook_name", String(128)),
    Column("webhook_exists", Boolean),
    reference("registry_id", "registries.id"),
    reference("realm_id", "realms.id", nullable=True),
    *stamps(),
    UniqueConstraint("name", "registry_id"),
    UniqueConstraint("external_name", "registry_id"),
    UniqueConstraint("external_id", "registry_id"),
)
