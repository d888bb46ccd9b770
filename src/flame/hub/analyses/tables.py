"""The tables of analyses."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Index, Integer, String, Table, Text, UniqueConstraint

from flame.hub.columns import identifier, reference, stamps
from flame.storage.engine import metadata

analyses = Table(
    "analyses",
    metadata,
    identifier(),
    Column("name", String(128), nullable=False),
    Column("display_name", String(256)),
    Column("description", Text),
    Column("configuration_locked", Boolean, nullable=False, default=False),
    Column("build_status", String(16)),
    Column("build_progress", Integer),
    Column("build_hash", String(128)),
    Column("build_os", String(32)),
    Column("build_size", BigInteger),
    Column("distribution_status", String(16)),
    Column("distribution_progress", Integer),
    Column("execution_status", String(16)),
    Column("execution_progress", Integer),
    Column("image_command_arguments", Text),
    reference("registry_id", "registries.id", nullable=True, cascade=False),
    Column("manifest_digest", String(64)),
    Column("manifest_missing", Text),
    reference("client_id", "clients.id", nullable=True, cascade=False),
    reference("realm_id", "realms.id"),
    reference("user_id", "users.id", nullable=True, cascade=False),
    reference("project_id", "projects.id"),
    reference("master_image_id", "master_images.id", nullable=True, cascade=False),
    *stamps(),
    Index("ix_analyses_updated", "updated_at", "id"),
)
analysis_nodes = Table(
    "analysis_nodes",
    metadata,
    identifier(),
    reference("analysis_id", "analyses.id"),
    reference("node_id", "nodes.id"),
    Column("approval_status", String(16)),
    Column("approval_signed", Boolean, nullable=False, default=False),
    Column("approval", Text),
    Column("approval_signature", String(128)),
    Column("approval_by", String(128)),
    Column("comment", Text),
    Column("execution_status", String(16)),
    Column("execution_progress", Integer),
    Column("execution_run", String(64)),
    Column("execution_reason", Text),
    Column("artifact_tag", String(128)),
    Column("artifact_digest", String(128)),
    Column("analysis_realm_id", String(36), nullable=False),
    Column("node_realm_id", String(36), nullable=False),
    *stamps(),
    UniqueConstraint("analysis_id", "node_id"),
)
analysis_buckets = Table(
    "analysis_buckets",
    metadata,
    identifier(),
    Column("type", String(8), nullable=False),
    reference("bucket_id", "buckets.id", unique=True),
    reference("analysis_id", "analyses.id"),
    Column("realm_id", String(36), nullable=False),
    *stamps(),
)
analysis_bucket_files = Table(
    "analysis_bucket_files",
    metadata,
    identifier(),
    Column("path", String(512), nullable=False),
    Column("root", Boolean, nullable=False, default=False),
    Column("bucket_id", String(36), nullable=False),
    reference("bucket_file_id", "bucket_files.id"),
    reference("analysis_bucket_id", "analysis_buckets.id"),
    reference("analysis_id", "analyses.id"),
    Column("realm_id", String(36), nullable=False),
    Column("user_id", String(36)),
    Column("client_id", String(36)),
    *stamps(),
    UniqueConstraint("analysis_bucket_id", "path"),
)
manifests = Table(
    "manifests",
    metadata,
    Column("digest", String(64), primary_key=True),
    reference("analysis_id", "analyses.id"),
    Column("document", Text, nullable=False),
    Column("signature", String(128)),
    Column("signer", String(64)),
    Column("created_at", String(24), nullable=False),
)
LIVE = ("ordered", "stopping")
"""States of a run that goes on."""

runs = Table(
    "runs",
    metadata,
    Column("id", String(64), primary_key=True),
    reference("analysis_id", "analyses.id"),
    reference("manifest_digest", "manifests.digest"),
    Column("number", Integer, nullable=False),
    Column("order", Text, nullable=False),
    Column("signature", String(128), nullable=False),
    Column("state", String(16), nullable=False),
    Column("expires", BigInteger, nullable=False),
    Column("created_at", String(24), nullable=False),
    UniqueConstraint("manifest_digest", "number"),
)
analysis_logs = Table(
    "analysis_logs",
    metadata,
    identifier(),
    reference("analysis_id", "analyses.id"),
    reference("node_id", "nodes.id", nullable=True),
    Column("time", String(24), nullable=False),
    Column("level", String(16), nullable=False),
    Column("message", Text, nullable=False),
    Column("service", String(64), nullable=False),
    Column("channel", String(16), nullable=False),
    Column("labels", Text, nullable=False),
)
