"""Revision 0002, from 0001. Written by scripts/migration.py: do not edit."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from flame.storage.migrations import steps

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "endorsements",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("subject", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("signer", sa.String(length=64), nullable=False),
        sa.Column("event", sa.Text(), nullable=False),
        sa.Column("signature", sa.String(length=128), nullable=False),
        sa.Column("created_at", sa.String(length=24), nullable=False),
        sa.Column("updated_at", sa.String(length=24), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("subject", "signer", "kind"),
    )
    with op.batch_alter_table("endorsements", naming_convention=steps.NAMES) as batch_op:
        batch_op.create_index("endorsements_subject", ["subject"], unique=False)

    op.create_table(
        "events",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("ref_type", sa.String(length=64), nullable=False),
        sa.Column("ref_id", sa.String(length=64), nullable=True),
        sa.Column("scope", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("data", sa.Text(), nullable=False),
        sa.Column("expiring", sa.Boolean(), nullable=False),
        sa.Column("expires_at", sa.String(length=24), nullable=True),
        sa.Column("actor_type", sa.String(length=16), nullable=True),
        sa.Column("actor_id", sa.String(length=36), nullable=True),
        sa.Column("actor_name", sa.String(length=128), nullable=True),
        sa.Column("realm_id", sa.String(length=36), nullable=True),
        sa.Column("created_at", sa.String(length=24), nullable=False),
        sa.Column("updated_at", sa.String(length=24), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    with op.batch_alter_table("events", naming_convention=steps.NAMES) as batch_op:
        batch_op.create_index(batch_op.f("ix_events_expires_at"), ["expires_at"], unique=False)
        batch_op.create_index(batch_op.f("ix_events_realm_id"), ["realm_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_events_ref_id"), ["ref_id"], unique=False)

    op.create_table(
        "key_statements",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("member", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("signer", sa.String(length=64), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("signature", sa.String(length=128), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.String(length=24), nullable=False),
        sa.Column("updated_at", sa.String(length=24), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("digest", "signature"),
    )
    with op.batch_alter_table("key_statements", naming_convention=steps.NAMES) as batch_op:
        batch_op.create_index(batch_op.f("ix_key_statements_member"), ["member"], unique=False)

    op.create_table(
        "login_failures",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    with op.batch_alter_table("login_failures", naming_convention=steps.NAMES) as batch_op:
        batch_op.create_index(batch_op.f("ix_login_failures_at"), ["at"], unique=False)
        batch_op.create_index("login_failures_key", ["key", "at"], unique=False)

    op.create_table(
        "login_sources",
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("key"),
    )
    with op.batch_alter_table("login_sources", naming_convention=steps.NAMES) as batch_op:
        batch_op.create_index(batch_op.f("ix_login_sources_at"), ["at"], unique=False)

    op.create_table(
        "object_claims",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("claim", sa.String(length=36), nullable=False),
        sa.Column("expires", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", "claim"),
    )
    op.create_table(
        "registries",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("host", sa.String(length=512), nullable=False),
        sa.Column("account_name", sa.String(length=256), nullable=True),
        sa.Column("account_secret", sa.Text(), nullable=True),
        sa.Column("created_at", sa.String(length=24), nullable=False),
        sa.Column("updated_at", sa.String(length=24), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("host"),
        sa.UniqueConstraint("name"),
    )
    op.create_table(
        "policies",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("type", sa.String(length=64), nullable=False),
        sa.Column("display_name", sa.String(length=256), nullable=True),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("built_in", sa.Boolean(), nullable=False),
        sa.Column("realm_id", sa.String(length=64), nullable=True),
        sa.Column("created_at", sa.String(length=24), nullable=False),
        sa.Column("updated_at", sa.String(length=24), nullable=False),
        sa.ForeignKeyConstraint(["realm_id"], ["realms.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
    )
    with op.batch_alter_table("policies", naming_convention=steps.NAMES) as batch_op:
        batch_op.create_index(batch_op.f("ix_policies_realm_id"), ["realm_id"], unique=False)

    op.create_table(
        "registry_projects",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("type", sa.String(length=16), nullable=False),
        sa.Column("public", sa.Boolean(), nullable=False),
        sa.Column("external_name", sa.String(length=64), nullable=False),
        sa.Column("external_id", sa.String(length=64), nullable=True),
        sa.Column("account_id", sa.String(length=64), nullable=True),
        sa.Column("account_name", sa.String(length=256), nullable=True),
        sa.Column("account_secret", sa.Text(), nullable=True),
        sa.Column("webhook_name", sa.String(length=128), nullable=True),
        sa.Column("webhook_exists", sa.Boolean(), nullable=True),
        sa.Column("registry_id", sa.String(length=64), nullable=False),
        sa.Column("realm_id", sa.String(length=64), nullable=True),
        sa.Column("created_at", sa.String(length=24), nullable=False),
        sa.Column("updated_at", sa.String(length=24), nullable=False),
        sa.ForeignKeyConstraint(["realm_id"], ["realms.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["registry_id"], ["registries.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("external_id", "registry_id"),
        sa.UniqueConstraint("external_name", "registry_id"),
        sa.UniqueConstraint("name", "registry_id"),
    )
    with op.batch_alter_table("registry_projects", naming_convention=steps.NAMES) as batch_op:
        batch_op.create_index(batch_op.f("ix_registry_projects_realm_id"), ["realm_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_registry_projects_registry_id"), ["registry_id"], unique=False)

    op.create_table(
        "scopes",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("display_name", sa.String(length=256), nullable=True),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("built_in", sa.Boolean(), nullable=False),
        sa.Column("realm_id", sa.String(length=64), nullable=True),
        sa.Column("created_at", sa.String(length=24), nullable=False),
        sa.Column("updated_at", sa.String(length=24), nullable=False),
        sa.ForeignKeyConstraint(["realm_id"], ["realms.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("name", "realm_id"),
    )
    with op.batch_alter_table("scopes", naming_convention=steps.NAMES) as batch_op:
        batch_op.create_index(batch_op.f("ix_scopes_realm_id"), ["realm_id"], unique=False)

    op.create_table(
        "authorization_codes",
        sa.Column("code_hash", sa.String(length=64), nullable=False),
        sa.Column("client_id", sa.String(length=64), nullable=False),
        sa.Column("user_id", sa.String(length=64), nullable=False),
        sa.Column("redirect_uri", sa.String(length=2000), nullable=False),
        sa.Column("challenge", sa.String(length=128), nullable=False),
        sa.Column("scope", sa.String(length=512), nullable=False),
        sa.Column("nonce", sa.String(length=256), nullable=True),
        sa.Column("expires", sa.BigInteger(), nullable=False),
        sa.Column("session", sa.String(length=36), nullable=True),
        sa.ForeignKeyConstraint(["client_id"], ["clients.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("code_hash"),
    )
    with op.batch_alter_table("authorization_codes", naming_convention=steps.NAMES) as batch_op:
        batch_op.create_index(batch_op.f("ix_authorization_codes_client_id"), ["client_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_authorization_codes_expires"), ["expires"], unique=False)
        batch_op.create_index(batch_op.f("ix_authorization_codes_user_id"), ["user_id"], unique=False)

    op.create_table(
        "client_roles",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("client_id", sa.String(length=64), nullable=False),
        sa.Column("role_id", sa.String(length=64), nullable=False),
        sa.Column("client_realm_id", sa.String(length=64), nullable=True),
        sa.Column("role_realm_id", sa.String(length=64), nullable=True),
        sa.Column("created_at", sa.String(length=24), nullable=False),
        sa.Column("updated_at", sa.String(length=24), nullable=False),
        sa.ForeignKeyConstraint(["client_id"], ["clients.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["client_realm_id"], ["realms.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["role_id"], ["roles.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["role_realm_id"], ["realms.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("client_id", "role_id"),
    )
    with op.batch_alter_table("client_roles", naming_convention=steps.NAMES) as batch_op:
        batch_op.create_index(batch_op.f("ix_client_roles_client_id"), ["client_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_client_roles_client_realm_id"), ["client_realm_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_client_roles_role_id"), ["role_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_client_roles_role_realm_id"), ["role_realm_id"], unique=False)

    op.create_table(
        "client_scopes",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("client_id", sa.String(length=64), nullable=False),
        sa.Column("scope_id", sa.String(length=64), nullable=False),
        sa.Column("client_realm_id", sa.String(length=64), nullable=True),
        sa.Column("scope_realm_id", sa.String(length=64), nullable=True),
        sa.Column("default", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.String(length=24), nullable=False),
        sa.Column("updated_at", sa.String(length=24), nullable=False),
        sa.ForeignKeyConstraint(["client_id"], ["clients.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["client_realm_id"], ["realms.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["scope_id"], ["scopes.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["scope_realm_id"], ["realms.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("client_id", "scope_id"),
    )
    with op.batch_alter_table("client_scopes", naming_convention=steps.NAMES) as batch_op:
        batch_op.create_index(batch_op.f("ix_client_scopes_client_id"), ["client_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_client_scopes_client_realm_id"), ["client_realm_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_client_scopes_scope_id"), ["scope_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_client_scopes_scope_realm_id"), ["scope_realm_id"], unique=False)

    op.create_table(
        "device_requests",
        sa.Column("device_hash", sa.String(length=64), nullable=False),
        sa.Column("user_code_hash", sa.String(length=64), nullable=False),
        sa.Column("client_id", sa.String(length=64), nullable=False),
        sa.Column("user_id", sa.String(length=64), nullable=True),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("scope", sa.String(length=512), nullable=False),
        sa.Column("interval", sa.Integer(), nullable=False),
        sa.Column("polled", sa.BigInteger(), nullable=False),
        sa.Column("expires", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["client_id"], ["clients.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("device_hash"),
        sa.UniqueConstraint("user_code_hash"),
    )
    with op.batch_alter_table("device_requests", naming_convention=steps.NAMES) as batch_op:
        batch_op.create_index(batch_op.f("ix_device_requests_client_id"), ["client_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_device_requests_expires"), ["expires"], unique=False)
        batch_op.create_index(batch_op.f("ix_device_requests_user_id"), ["user_id"], unique=False)

    op.create_table(
        "permissions",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("display_name", sa.String(length=256), nullable=True),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("built_in", sa.Boolean(), nullable=False),
        sa.Column("policy_id", sa.String(length=64), nullable=True),
        sa.Column("realm_id", sa.String(length=64), nullable=True),
        sa.Column("created_at", sa.String(length=24), nullable=False),
        sa.Column("updated_at", sa.String(length=24), nullable=False),
        sa.ForeignKeyConstraint(["policy_id"], ["policies.id"], ondelete="SET NULL"),
        sa.ForeignKeyConstraint(["realm_id"], ["realms.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("name", "realm_id"),
    )
    with op.batch_alter_table("permissions", naming_convention=steps.NAMES) as batch_op:
        batch_op.create_index(batch_op.f("ix_permissions_policy_id"), ["policy_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_permissions_realm_id"), ["realm_id"], unique=False)

    op.create_table(
        "user_attributes",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("value", sa.Text(), nullable=True),
        sa.Column("user_id", sa.String(length=64), nullable=False),
        sa.Column("realm_id", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.String(length=24), nullable=False),
        sa.Column("updated_at", sa.String(length=24), nullable=False),
        sa.ForeignKeyConstraint(["realm_id"], ["realms.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("name", "user_id"),
    )
    with op.batch_alter_table("user_attributes", naming_convention=steps.NAMES) as batch_op:
        batch_op.create_index(batch_op.f("ix_user_attributes_realm_id"), ["realm_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_user_attributes_user_id"), ["user_id"], unique=False)

    op.create_table(
        "client_permissions",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("client_id", sa.String(length=64), nullable=False),
        sa.Column("permission_id", sa.String(length=64), nullable=False),
        sa.Column("client_realm_id", sa.String(length=64), nullable=True),
        sa.Column("permission_realm_id", sa.String(length=64), nullable=True),
        sa.Column("policy_id", sa.String(length=64), nullable=True),
        sa.Column("created_at", sa.String(length=24), nullable=False),
        sa.Column("updated_at", sa.String(length=24), nullable=False),
        sa.ForeignKeyConstraint(["client_id"], ["clients.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["client_realm_id"], ["realms.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["permission_id"], ["permissions.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["permission_realm_id"], ["realms.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["policy_id"], ["policies.id"], ondelete="SET NULL"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("client_id", "permission_id"),
    )
    with op.batch_alter_table("client_permissions", naming_convention=steps.NAMES) as batch_op:
        batch_op.create_index(batch_op.f("ix_client_permissions_client_id"), ["client_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_client_permissions_client_realm_id"), ["client_realm_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_client_permissions_permission_id"), ["permission_id"], unique=False)
        batch_op.create_index(
            batch_op.f("ix_client_permissions_permission_realm_id"), ["permission_realm_id"], unique=False
        )
        batch_op.create_index(batch_op.f("ix_client_permissions_policy_id"), ["policy_id"], unique=False)

    op.create_table(
        "members",
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("public_key", sa.Text(), nullable=False),
        sa.Column("user_id", sa.String(length=64), nullable=True),
        sa.Column("node_id", sa.String(length=64), nullable=True),
        sa.Column("revoked_at", sa.String(length=24), nullable=True),
        sa.Column("created_at", sa.String(length=24), nullable=False),
        sa.ForeignKeyConstraint(["node_id"], ["nodes.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("fingerprint"),
    )
    with op.batch_alter_table("members", naming_convention=steps.NAMES) as batch_op:
        batch_op.create_index(batch_op.f("ix_members_node_id"), ["node_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_members_user_id"), ["user_id"], unique=False)

    op.create_table(
        "role_permissions",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("role_id", sa.String(length=64), nullable=False),
        sa.Column("permission_id", sa.String(length=64), nullable=False),
        sa.Column("role_realm_id", sa.String(length=64), nullable=True),
        sa.Column("permission_realm_id", sa.String(length=64), nullable=True),
        sa.Column("policy_id", sa.String(length=64), nullable=True),
        sa.Column("created_at", sa.String(length=24), nullable=False),
        sa.Column("updated_at", sa.String(length=24), nullable=False),
        sa.ForeignKeyConstraint(["permission_id"], ["permissions.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["permission_realm_id"], ["realms.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["policy_id"], ["policies.id"], ondelete="SET NULL"),
        sa.ForeignKeyConstraint(["role_id"], ["roles.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["role_realm_id"], ["realms.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("role_id", "permission_id"),
    )
    with op.batch_alter_table("role_permissions", naming_convention=steps.NAMES) as batch_op:
        batch_op.create_index(batch_op.f("ix_role_permissions_permission_id"), ["permission_id"], unique=False)
        batch_op.create_index(
            batch_op.f("ix_role_permissions_permission_realm_id"), ["permission_realm_id"], unique=False
        )
        batch_op.create_index(batch_op.f("ix_role_permissions_policy_id"), ["policy_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_role_permissions_role_id"), ["role_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_role_permissions_role_realm_id"), ["role_realm_id"], unique=False)

    op.create_table(
        "storage_limits",
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("bytes_max", sa.BigInteger(), nullable=True),
        sa.Column("keep_days", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("project_id"),
    )
    op.create_table(
        "user_permissions",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("user_id", sa.String(length=64), nullable=False),
        sa.Column("permission_id", sa.String(length=64), nullable=False),
        sa.Column("user_realm_id", sa.String(length=64), nullable=True),
        sa.Column("permission_realm_id", sa.String(length=64), nullable=True),
        sa.Column("policy_id", sa.String(length=64), nullable=True),
        sa.Column("created_at", sa.String(length=24), nullable=False),
        sa.Column("updated_at", sa.String(length=24), nullable=False),
        sa.ForeignKeyConstraint(["permission_id"], ["permissions.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["permission_realm_id"], ["realms.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["policy_id"], ["policies.id"], ondelete="SET NULL"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["user_realm_id"], ["realms.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("user_id", "permission_id"),
    )
    with op.batch_alter_table("user_permissions", naming_convention=steps.NAMES) as batch_op:
        batch_op.create_index(batch_op.f("ix_user_permissions_permission_id"), ["permission_id"], unique=False)
        batch_op.create_index(
            batch_op.f("ix_user_permissions_permission_realm_id"), ["permission_realm_id"], unique=False
        )
        batch_op.create_index(batch_op.f("ix_user_permissions_policy_id"), ["policy_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_user_permissions_user_id"), ["user_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_user_permissions_user_realm_id"), ["user_realm_id"], unique=False)

    op.create_table(
        "analysis_node_events",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("event_id", sa.String(length=64), nullable=False),
        sa.Column("analysis_id", sa.String(length=64), nullable=False),
        sa.Column("analysis_realm_id", sa.String(length=36), nullable=False),
        sa.Column("node_id", sa.String(length=64), nullable=False),
        sa.Column("node_realm_id", sa.String(length=36), nullable=False),
        sa.Column("created_at", sa.String(length=24), nullable=False),
        sa.Column("updated_at", sa.String(length=24), nullable=False),
        sa.ForeignKeyConstraint(["analysis_id"], ["analyses.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["event_id"], ["events.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["node_id"], ["nodes.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
    )
    with op.batch_alter_table("analysis_node_events", naming_convention=steps.NAMES) as batch_op:
        batch_op.create_index(batch_op.f("ix_analysis_node_events_analysis_id"), ["analysis_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_analysis_node_events_event_id"), ["event_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_analysis_node_events_node_id"), ["node_id"], unique=False)

    with op.batch_alter_table("analyses", naming_convention=steps.NAMES) as batch_op:
        batch_op.alter_column(
            "registry_id", existing_type=sa.VARCHAR(length=36), type_=sa.String(length=64), existing_nullable=True
        )
        batch_op.create_index(batch_op.f("ix_analyses_registry_id"), ["registry_id"], unique=False)
        batch_op.create_index("ix_analyses_updated", ["updated_at", "id"], unique=False)
        batch_op.create_foreign_key(
            "analyses_registry_id_fkey", "registries", ["registry_id"], ["id"], ondelete="SET NULL"
        )

    with op.batch_alter_table("analysis_nodes", naming_convention=steps.NAMES) as batch_op:
        batch_op.add_column(sa.Column("approval_by", sa.String(length=128), nullable=True))

    with op.batch_alter_table("buckets", naming_convention=steps.NAMES) as batch_op:
        batch_op.create_index(batch_op.f("ix_buckets_name"), ["name"], unique=False)

    with op.batch_alter_table("clients", naming_convention=steps.NAMES) as batch_op:
        batch_op.add_column(sa.Column("is_confidential", sa.Boolean(), server_default=sa.true(), nullable=False))
        batch_op.add_column(sa.Column("auth_method", sa.String(length=16), server_default="secret", nullable=False))
        batch_op.add_column(
            sa.Column("token_binding_method", sa.String(length=16), server_default="none", nullable=False)
        )
        batch_op.add_column(sa.Column("redirect_uri", sa.Text(), nullable=True))
        batch_op.add_column(sa.Column("grant_types", sa.String(length=512), nullable=True))
        batch_op.add_column(sa.Column("scope", sa.String(length=512), nullable=True))
        batch_op.add_column(sa.Column("base_url", sa.String(length=2000), nullable=True))
        batch_op.add_column(sa.Column("root_url", sa.String(length=2000), nullable=True))
        batch_op.add_column(sa.Column("backchannel_logout_uri", sa.String(length=2000), nullable=True))
        batch_op.add_column(sa.Column("post_logout_redirect_uri", sa.String(length=2000), nullable=True))

    with op.batch_alter_table("log_leaves", naming_convention=steps.NAMES) as batch_op:
        batch_op.add_column(sa.Column("nodes", sa.LargeBinary(), nullable=True))
        batch_op.add_column(sa.Column("type", sa.String(length=40), server_default="", nullable=False))
        batch_op.add_column(sa.Column("subject", sa.String(length=128), server_default="", nullable=False))
        batch_op.add_column(sa.Column("project_id", sa.String(length=36), nullable=True))
        batch_op.create_index("ix_log_leaves_project", ["project_id"], unique=False)
        batch_op.create_index("ix_log_leaves_subject", ["subject"], unique=False)

    with op.batch_alter_table("nodes", naming_convention=steps.NAMES) as batch_op:
        batch_op.add_column(sa.Column("member", sa.String(length=64), nullable=True))
        batch_op.alter_column(
            "registry_id", existing_type=sa.VARCHAR(length=36), type_=sa.String(length=64), existing_nullable=True
        )
        batch_op.alter_column(
            "registry_project_id",
            existing_type=sa.VARCHAR(length=36),
            type_=sa.String(length=64),
            existing_nullable=True,
        )
        batch_op.create_index(batch_op.f("ix_nodes_registry_id"), ["registry_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_nodes_registry_project_id"), ["registry_project_id"], unique=False)
        batch_op.create_unique_constraint("nodes_external_name_registry_id_key", ["external_name", "registry_id"])
        batch_op.create_foreign_key(
            "nodes_registry_id_fkey", "registries", ["registry_id"], ["id"], ondelete="SET NULL"
        )
        batch_op.create_foreign_key(
            "nodes_registry_project_id_fkey", "registry_projects", ["registry_project_id"], ["id"], ondelete="SET NULL"
        )

    with op.batch_alter_table("project_nodes", naming_convention=steps.NAMES) as batch_op:
        batch_op.add_column(sa.Column("approval_by", sa.String(length=128), nullable=True))

    with op.batch_alter_table("projects", naming_convention=steps.NAMES) as batch_op:
        batch_op.add_column(sa.Column("purpose", sa.Text(), nullable=True))
        batch_op.add_column(sa.Column("data_requested", sa.Text(), nullable=True))
        batch_op.add_column(sa.Column("risk", sa.Text(), nullable=True))
        batch_op.add_column(sa.Column("legal_basis", sa.Text(), nullable=True))
        batch_op.add_column(sa.Column("runtime", sa.String(length=256), nullable=True))
        batch_op.add_column(sa.Column("contact", sa.String(length=256), nullable=True))
        batch_op.add_column(sa.Column("expires", sa.String(length=24), nullable=True))
        batch_op.add_column(sa.Column("ended_at", sa.String(length=24), nullable=True))
        batch_op.add_column(sa.Column("ending", sa.Text(), nullable=True))
        batch_op.add_column(sa.Column("ending_signature", sa.String(length=128), nullable=True))

    with op.batch_alter_table("roles", naming_convention=steps.NAMES) as batch_op:
        batch_op.alter_column(
            "name", existing_type=sa.VARCHAR(length=64), type_=sa.String(length=128), existing_nullable=False
        )
        batch_op.alter_column(
            "built_in", existing_type=sa.BOOLEAN(), server_default=sa.false(), existing_nullable=False
        )
        batch_op.drop_constraint(batch_op.f("roles_name_key"), type_="unique")
        batch_op.create_unique_constraint("roles_name_realm_id_key", ["name", "realm_id"])
        batch_op.drop_constraint(batch_op.f("roles_realm_id_fkey"), type_="foreignkey")
        batch_op.create_foreign_key("roles_realm_id_fkey", "realms", ["realm_id"], ["id"], ondelete="CASCADE")

    with op.batch_alter_table("sessions", naming_convention=steps.NAMES) as batch_op:
        batch_op.add_column(sa.Column("scope", sa.String(length=512), server_default="global", nullable=False))
        batch_op.add_column(sa.Column("client_id", sa.String(length=64), nullable=True))
        batch_op.add_column(sa.Column("realm_id", sa.String(length=64), nullable=True))
        batch_op.add_column(sa.Column("created_at", sa.String(length=24), nullable=True))
        batch_op.add_column(sa.Column("updated_at", sa.String(length=24), nullable=True))
        batch_op.create_index(batch_op.f("ix_sessions_client_id"), ["client_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_sessions_realm_id"), ["realm_id"], unique=False)
        batch_op.create_foreign_key("sessions_realm_id_fkey", "realms", ["realm_id"], ["id"], ondelete="CASCADE")
        batch_op.create_foreign_key("sessions_client_id_fkey", "clients", ["client_id"], ["id"], ondelete="CASCADE")

    with op.batch_alter_table("user_keys", naming_convention=steps.NAMES) as batch_op:
        batch_op.add_column(sa.Column("member", sa.String(length=64), nullable=True))

    with op.batch_alter_table("user_roles", naming_convention=steps.NAMES) as batch_op:
        batch_op.add_column(sa.Column("user_realm_id", sa.String(length=64), nullable=True))
        batch_op.add_column(sa.Column("role_realm_id", sa.String(length=64), nullable=True))
        batch_op.create_index(batch_op.f("ix_user_roles_role_realm_id"), ["role_realm_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_user_roles_user_realm_id"), ["user_realm_id"], unique=False)
        batch_op.create_foreign_key(
            "user_roles_role_realm_id_fkey", "realms", ["role_realm_id"], ["id"], ondelete="CASCADE"
        )
        batch_op.create_foreign_key(
            "user_roles_user_realm_id_fkey", "realms", ["user_realm_id"], ["id"], ondelete="CASCADE"
        )
    steps.after_0002(op.get_bind())
