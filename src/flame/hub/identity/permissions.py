"""The names of permissions, and which of them the default roles hold. What a name lets somebody do: `flame.hub.authorisation`."""

from __future__ import annotations

from typing import Final

ROLES: Final = {
    "admin": "everything that concerns the hub itself: realms, people, nodes, images; no decision for a hospital",
    "realm_admin": "people, nodes and projects of the own realm",
    "researcher": "projects and analyses of one's own",
    "steward": "decisions at the hub for the nodes of the own realm",
    "node": "a node's client",
    "auditor": "reading, for the projects that ask the own realm's nodes, and the log",
}
OF_CLIENTS: Final = frozenset({"node"})
"""Roles that no person holds."""


def _four(*things: str) -> frozenset[str]:
    return frozenset(f"{thing}_{verb}" for thing in things for verb in ("create", "read", "update", "delete"))


_CORE = frozenset(
    [
        "event_create",
        "event_read",
        "event_delete",
        "bucket_create",
        "bucket_update",
        "bucket_delete",
        "log_create",
        "log_read",
        "log_delete",
        "project_create",
        "project_update",
        "project_delete",
        "project_approve",
        "registry_manage",
        "registry_project_manage",
        "node_create",
        "node_update",
        "node_delete",
        "analysis_create",
        "analysis_update",
        "analysis_delete",
        "analysis_approve",
        "analysis_execution_start",
        "analysis_execution_stop",
        "analysis_result_read",
        "analysis_self_message_broker_use",
        "analysis_self_storage_use",
        "master_image_manage",
        "master_image_group_manage",
        "service_manage",
    ]
)
_LINKS = ("role_permission", "user_permission", "client_permission", "user_role", "client_role", "client_scope")
_OF_A_REALM = _four("user", "role", "client", "session", "user_attribute", *_LINKS)
_OF_THE_HUB = _four("realm", "permission", "scope", "identity_provider", "key", "policy")

KNOWN: Final = _CORE | _OF_A_REALM | _OF_THE_HUB
"""Every permission that means something at a hub, by the name it has on the wire."""

DECISIONS: Final = frozenset({"project_approve", "analysis_approve"})
_RESEARCH = frozenset(
    [
        "project_create",
        "project_update",
        "project_delete",
        "analysis_create",
        "analysis_update",
        "analysis_delete",
        "analysis_execution_start",
        "analysis_execution_stop",
        "analysis_result_read",
        "bucket_create",
        "bucket_update",
        "bucket_delete",
    ]
)
OF_NODES: Final = frozenset({"analysis_update", "bucket_create", "event_create", "log_create"})
OF_ANALYSES: Final = frozenset({"analysis_self_message_broker_use", "analysis_self_storage_use"})

HELD: Final = {
    "admin": KNOWN - DECISIONS - OF_ANALYSES,
    "realm_admin": _OF_A_REALM
    | _RESEARCH
    | {"realm_read", "realm_update", "permission_read", "node_create", "node_update", "node_delete", "log_read"},
    "researcher": _RESEARCH,
    "steward": DECISIONS,
    "node": OF_NODES,
    "auditor": frozenset({"event_read", "log_read"}),
}
"""Default role -> its permissions."""

IN_A_REALM: Final = HELD["realm_admin"] | HELD["researcher"] | HELD["steward"] | HELD["auditor"]
"""What an administrator of a realm hands out there: nothing that reaches beyond it."""
