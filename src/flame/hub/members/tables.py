"""The tables of members."""

from __future__ import annotations

from sqlalchemy import Column, Index, Integer, String, Table, Text, UniqueConstraint

from flame.hub.columns import identifier, reference, stamps
from flame.storage.engine import metadata

members = Table(
    "members",
    metadata,
    Column("fingerprint", String(64), primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("public_key", Text, nullable=False),
    reference("user_id", "users.id", nullable=True),
    reference("node_id", "nodes.id", nullable=True),
    Column("revoked_at", String(24)),
    Column("created_at", String(24), nullable=False),
)
key_statements = Table(
    "key_statements",
    metadata,
    identifier(),
    Column("member", String(64), nullable=False, index=True),
    Column("kind", String(16), nullable=False),
    Column("signer", String(64), nullable=False),
    Column("number", Integer, nullable=False),
    Column("document", Text, nullable=False),
    Column("signature", String(128), nullable=False),
    Column("digest", String(64), nullable=False),
    *stamps(),
    UniqueConstraint("digest", "signature"),
)
endorsements = Table(
    "endorsements",
    metadata,
    identifier(),
    Column("subject", String(64), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("signer", String(64), nullable=False),
    Column("event", Text, nullable=False),
    Column("signature", String(128), nullable=False),
    *stamps(),
    UniqueConstraint("subject", "signer", "kind"),
    Index("endorsements_subject", "subject"),
)
