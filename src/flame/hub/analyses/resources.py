"""What clients may ask about analyses."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, and_, case, exists, func, literal, select

from flame.hub import authorisation as rules
from flame.hub.analyses.tables import analyses, analysis_bucket_files, analysis_buckets, analysis_nodes
from flame.hub.authorisation import Actor
from flame.hub.nodes.resources import NODE
from flame.hub.nodes.tables import nodes
from flame.hub.projects.resources import PROJECT
from flame.hub.registry.resources import MASTER_IMAGE, REGISTRY
from flame.hub.resources import Relation, Resource, Row
from flame.hub.telemetry.tables import analysis_node_events

_part = analysis_nodes.c.analysis_id == analyses.c.id
_all_nodes = select(func.count(analysis_nodes.c.id)).where(_part).scalar_subquery()
_approved = (
    select(func.count(analysis_nodes.c.id))
    .where(_part, analysis_nodes.c.approval_status == "approved")
    .scalar_subquery()
)


def _has_node(kind: str) -> ColumnElement[bool]:
    return exists().where(_part, nodes.c.id == analysis_nodes.c.node_id, nodes.c.type == kind)


_entrypoint = exists().where(
    analysis_bucket_files.c.analysis_id == analyses.c.id,
    analysis_bucket_files.c.root.is_(True),
    analysis_buckets.c.id == analysis_bucket_files.c.analysis_bucket_id,
    analysis_buckets.c.type == "CODE",
)


def _flag(condition: ColumnElement[bool]) -> ColumnElement[Any]:
    return case((condition, literal(True)), else_=literal(False))


_nodes_valid = _flag(and_(_all_nodes > 0, _all_nodes == _approved))


def _analysis(row: Row) -> Row:
    for name in _FLAGS & set(row):
        row[name] = bool(row[name])
    if "userId" in row and row["userId"] is None:
        row["userId"] = NOBODY  # its account was deleted; FLAME's clients need an id here
    return row


NOBODY = "00000000-0000-0000-0000-000000000000"


_FLAGS = frozenset(
    {
        "configurationEntrypointValid", "configurationImageValid", "configurationNodeAggregatorValid",
        "configurationNodeDefaultValid", "configurationNodesValid", "buildNodesValid", "distributionNodesValid",
    }
)  # fmt: skip

ANALYSIS = Resource(
    "analysis", analyses, rules.readable_analyses,
    filters=frozenset(
        {
            "id", "name", "displayName", "description", "projectId", "realmId", "buildStatus", "executionStatus",
            "configurationLocked", "userId",
        }
    ),
    sorts=frozenset({"name", "displayName", "createdAt", "updatedAt"}), default_sort="-updatedAt",
    relations={
        "project": Relation("project_id", lambda: PROJECT),
        "masterImage": Relation("master_image_id", lambda: MASTER_IMAGE),
        "registry": Relation("registry_id", lambda: REGISTRY),
    },
    computed={
        "nodes": _all_nodes,
        "nodes_approved": _approved,
        "configuration_entrypoint_valid": _flag(_entrypoint),
        "configuration_image_valid": _flag(analyses.c.master_image_id.is_not(None)),
        "configuration_node_aggregator_valid": _flag(_has_node("aggregator")),
        "configuration_node_default_valid": _flag(_has_node("default")),
        "configuration_nodes_valid": _flag(and_(_has_node("aggregator"), _has_node("default"))),
        "build_nodes_valid": _nodes_valid,
        "distribution_nodes_valid": _nodes_valid,
    },
    secret=frozenset({"manifest_missing"}),
    json=frozenset({"imageCommandArguments"}), finish=_analysis,
)  # fmt: skip


def _part_of_analysis(column: ColumnElement[str]) -> Any:
    def readable(actor: Actor) -> ColumnElement[bool]:
        return rules.part_of_readable(column, actor)

    return readable


_ANALYSIS = {"analysis": Relation("analysis_id", lambda: ANALYSIS)}

ANALYSIS_NODE = Resource(
    "analysis-node", analysis_nodes, _part_of_analysis(analysis_nodes.c.analysis_id),
    filters=frozenset({"executionStatus", "approvalStatus", "analysisId", "analysisRealmId", "nodeId", "nodeRealmId"}),
    relations={"node": Relation("node_id", lambda: NODE), **_ANALYSIS},
)  # fmt: skip
ANALYSIS_NODE_EVENT = Resource(
    "analysis-node-event", analysis_node_events, _part_of_analysis(analysis_node_events.c.analysis_id),
    filters=frozenset({"analysisId", "nodeId"}), relations={"node": Relation("node_id", lambda: NODE), **_ANALYSIS},
)  # fmt: skip
ANALYSIS_BUCKET = Resource(
    "analysis-bucket", analysis_buckets, rules.readable_analysis_buckets, filters=frozenset({"analysisId", "type"}),
    sorts=frozenset({"type", "createdAt", "updatedAt"}), relations=_ANALYSIS,
)  # fmt: skip


def _files(actor: Actor) -> ColumnElement[bool]:
    seen = select(analysis_buckets.c.id).where(rules.readable_analysis_buckets(actor))
    return analysis_bucket_files.c.analysis_bucket_id.in_(seen)


ANALYSIS_BUCKET_FILE = Resource(
    "analysis-bucket-file", analysis_bucket_files, _files,
    filters=frozenset({"path", "root", "analysisBucketId", "analysisId"}),
    sorts=frozenset({"path", "createdAt", "updatedAt"}),
    relations={"analysisBucket": Relation("analysis_bucket_id", lambda: ANALYSIS_BUCKET), **_ANALYSIS},
    computed={"robot_id": literal(None)},
)  # fmt: skip
