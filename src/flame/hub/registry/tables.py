"""The tables of master images."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Integer, String, Table, Text

from flame.hub.columns import identifier, stamps
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
