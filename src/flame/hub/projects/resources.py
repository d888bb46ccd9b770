"""What clients may ask about projects."""

from __future__ import annotations

from sqlalchemy import func, literal, select

from flame.hub import authorisation as rules
from flame.hub.analyses.tables import analyses
from flame.hub.nodes.resources import NODE
from flame.hub.projects.tables import project_nodes, projects
from flame.hub.registry.resources import MASTER_IMAGE
from flame.hub.resources import Relation, Resource

_nodes = select(func.count()).where(project_nodes.c.project_id == projects.c.id).scalar_subquery()
_analyses = select(func.count()).where(analyses.c.project_id == projects.c.id).scalar_subquery()

PROJECT = Resource(
    "project", projects, rules.readable_projects,
    filters=frozenset({"id", "name", "displayName", "realmId", "userId"}),
    sorts=frozenset({"id", "name", "displayName", "updatedAt", "createdAt"}),
    relations={"masterImage": Relation("master_image_id", lambda: MASTER_IMAGE)},
    secret=frozenset({"ending", "ending_signature"}),
    computed={"nodes": _nodes, "analyses": _analyses, "client_id": literal(None), "robot_id": literal(None)},
)  # fmt: skip
PROJECT_NODE = Resource(
    "project-node", project_nodes, rules.readable_project_nodes,
    filters=frozenset({"approvalStatus", "projectRealmId", "projectId", "nodeRealmId", "nodeId"}),
    relations={"node": Relation("node_id", lambda: NODE), "project": Relation("project_id", lambda: PROJECT)},
)  # fmt: skip
