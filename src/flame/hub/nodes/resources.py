"""What clients may ask about nodes."""

from __future__ import annotations

from sqlalchemy import func, literal, select

from flame.hub import authorisation as rules
from flame.hub.identity.tables import realms
from flame.hub.nodes.tables import nodes
from flame.hub.registry.resources import REGISTRY, REGISTRY_PROJECT
from flame.hub.resources import Relation, Resource

_realm_name = (
    select(func.coalesce(realms.c.display_name, realms.c.name)).where(realms.c.id == nodes.c.realm_id).scalar_subquery()
)
organisation = func.coalesce(nodes.c.organisation, _realm_name)
"""The organisation that a manifest names for a node: its own field, else its realm."""


NODE = Resource(
    "node", nodes, rules.readable_nodes,
    filters=frozenset({"id", "name", "online", "hidden", "clientId", "realmId", "type", "robotId"}),
    sorts=frozenset({"name", "updatedAt", "createdAt"}),
    computed={"organisation": organisation, "robot_id": literal(None)},
    relations={
        "registry": Relation("registry_id", lambda: REGISTRY),
        "registryProject": Relation("registry_project_id", lambda: REGISTRY_PROJECT),
    },
)  # fmt: skip
