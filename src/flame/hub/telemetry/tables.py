"""The tables of events, and of which belong to a node's part in an analysis."""

from __future__ import annotations

from sqlalchemy import Boolean, Column, String, Table, Text

from flame.hub.columns import identifier, reference, stamps
from flame.storage.engine import metadata

events = Table(
    "events",
    metadata,
    identifier(),
    Column("ref_type", String(64), nullable=False),
    Column("ref_id", String(64), index=True),
    Column("scope", String(64), nullable=False),
    Column("name", String(64), nullable=False),
    Column("data", Text, nullable=False),
    Column("expiring", Boolean, nullable=False, default=True),
    Column("expires_at", String(24), index=True),
    Column("actor_type", String(16)),
    Column("actor_id", String(36)),
    Column("actor_name", String(128)),
    Column("realm_id", String(36), index=True),
    *stamps(),
)
analysis_node_events = Table(
    "analysis_node_events",
    metadata,
    identifier(),
    reference("event_id", events.c.id),
    reference("analysis_id", "analyses.id"),
    Column("analysis_realm_id", String(36), nullable=False),
    reference("node_id", "nodes.id"),
    Column("node_realm_id", String(36), nullable=False),
    *stamps(),
)
