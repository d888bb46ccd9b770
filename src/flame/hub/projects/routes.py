"""``/core/projects`` and ``/core/project-nodes``: who works together, and which hospitals are asked."""

from __future__ import annotations

import re
import secrets
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, UnsetType
from sqlalchemy import Connection, delete, func, insert, select, update
from starlette.requests import Request
from starlette.responses import Response

from flame.hub.analyses.tables import analyses
from flame.hub.authorisation import Action, Actor, Membership, Project, demand, project_facts
from flame.hub.columns import fresh, now
from flame.hub.decisions import DecisionBody, Subject, decide
from flame.hub.described import About, Described
from flame.hub.identity.sessions import authenticate
from flame.hub.identity.tables import users
from flame.hub.nodes.resources import NODE
from flame.hub.nodes.routes import node_key
from flame.hub.problems import wrong
from flame.hub.projects.resources import PROJECT, PROJECT_NODE
from flame.hub.projects.tables import project_members, project_nodes, projects
from flame.hub.registry.resources import MASTER_IMAGE
from flame.hub.resources import (
    Body,
    Id,
    Label,
    LongText,
    changing_routes,
    get_row,
    path_id,
    raw_row,
    read_body,
    readable_routes,
    record,
    related_row,
)
from flame.hub.state import HubState, hub_of
from flame.hub.telemetry.events import happened
from flame.model.errors import Conflict, NotAllowed
from flame.protocol.documents import Proposal

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{2,127}")
_ADJECTIVES = ("brave", "calm", "clear", "kind", "quiet", "swift", "warm", "wise")
_NOUNS = ("heron", "lynx", "maple", "otter", "pine", "raven", "river", "stone")


Slug = Annotated[str, Meta(min_length=3, max_length=128)]


class ProjectBody(Body):
    name: Slug | UnsetType | None = UNSET
    display_name: Label | UnsetType | None = UNSET
    description: LongText | UnsetType | None = UNSET
    master_image_id: Id | UnsetType | None = UNSET


class ProjectNodeBody(Body):
    project_id: Id
    node_id: Id


class MemberBody(Body):
    project_id: Id
    user_id: Id
    role: Literal["editor", "reader"] = "reader"


def slug(given: str | UnsetType | None) -> str:
    """A name as FLAME writes it: lower case, or a made-up one. Raises Invalid."""
    if not given:
        return f"{secrets.choice(_ADJECTIVES)}-{secrets.choice(_NOUNS)}-{secrets.token_hex(3)}"
    name = given.lower()
    if not _NAME.fullmatch(name):
        raise wrong("name", "A name is 3 to 128 letters, digits, '.', '_' and '-'.")
    return name


def require_people(actor: Actor) -> None:
    """Projects and analyses are asked for by people who may."""
    if actor.kind != "user" or not actor.can("project_create", "analysis_create"):
        raise NotAllowed("This needs the role 'researcher'.", next_step="Ask an administrator of your realm for it.")


async def create_project(request: Request) -> Response:
    actor = await authenticate(request)
    require_people(actor)
    body = await read_body(request, ProjectBody)
    row = fresh(**body.given() | {"name": slug(body.name), "realm_id": actor.realm, "user_id": actor.id})

    def store(connection: Connection) -> dict[str, Any]:
        if row.get("master_image_id"):
            related_row(connection, actor, MASTER_IMAGE, row["master_image_id"], "masterImageId")
        connection.execute(insert(projects).values(**row))
        happened(connection, actor, PROJECT, row["id"], "created")
        return get_row(connection, actor, PROJECT, row["id"])

    return record(await hub_of(request).database.write(store), PROJECT, 201)


async def update_project(request: Request) -> Response:
    actor = await authenticate(request)
    key = path_id(request, PROJECT)
    values = (await read_body(request, ProjectBody)).given()
    if "name" in values:
        values["name"] = slug(values["name"])

    def store(connection: Connection) -> dict[str, Any]:
        row = raw_row(connection, actor, PROJECT, key)
        demand(actor, Action.UPDATE, project_facts(connection, key))
        if values.get("master_image_id"):
            related_row(connection, actor, MASTER_IMAGE, values["master_image_id"], "masterImageId")
        connection.execute(update(projects).where(projects.c.id == key).values(**values, updated_at=now()))
        happened(connection, actor, PROJECT, key, "updated", row)
        return get_row(connection, actor, PROJECT, key)

    return record(await hub_of(request).database.write(store), PROJECT, 202)


async def delete_project(request: Request) -> Response:
    actor = await authenticate(request)
    key = path_id(request, PROJECT)

    def store(connection: Connection) -> dict[str, Any]:
        shown = get_row(connection, actor, PROJECT, key)
        demand(actor, Action.DELETE, project_facts(connection, key))
        held = connection.execute(
            select(func.count()).select_from(analyses).where(analyses.c.project_id == key)
        ).scalar()
        if held:
            raise Conflict(f"The project still has {held} analyses.", next_step="Delete them first.")
        happened(connection, actor, PROJECT, key, "deleted")
        connection.execute(delete(projects).where(projects.c.id == key))
        return shown

    return record(await hub_of(request).database.write(store), PROJECT, 202)


def proposal_of(connection: Connection, key: str) -> Proposal:
    """What a project asks of the hospitals, as the document that they sign about."""
    row = connection.execute(select(projects).where(projects.c.id == key)).one()
    return Proposal(row.id, row.display_name or row.name, row.description or "", row.user_id or "")


async def proposal(request: Request) -> Response:
    """``GET /core/projects/:id/proposal``"""
    actor = await authenticate(request)
    key = path_id(request, PROJECT)

    def load(connection: Connection) -> Proposal:
        raw_row(connection, actor, PROJECT, key)
        return proposal_of(connection, key)

    document = await hub_of(request).database.read(load)
    return record({"proposal": document.encoded().decode(), "digest": document.digest.hex()})


async def create_project_node(request: Request) -> Response:
    actor = await authenticate(request)
    body = await read_body(request, ProjectNodeBody)
    hub = hub_of(request)

    def store(connection: Connection) -> dict[str, Any]:
        project = related_row(connection, actor, PROJECT, body.project_id, "projectId")
        demand(actor, Action.UPDATE, project_facts(connection, project.id))
        node = related_row(connection, actor, NODE, body.node_id, "nodeId")
        there = (project_nodes.c.project_id == project.id) & (project_nodes.c.node_id == node.id)
        known = connection.execute(select(project_nodes.c.id).where(there)).scalar()
        if known is None:
            row = fresh(
                project_id=project.id, node_id=node.id, project_realm_id=project.realm_id, node_realm_id=node.realm_id,
                approval_status="approved" if hub.settings.skip_project_approval else None,
            )  # fmt: skip
            connection.execute(insert(project_nodes).values(**row))
            happened(connection, actor, PROJECT_NODE, row["id"], "created")
            known = row["id"]
        return get_row(connection, actor, PROJECT_NODE, known)

    row = await hub.database.write(store)
    hub.channels.changed([body.node_id], "project", body.project_id)
    return record(row, PROJECT_NODE, 201)


async def decide_project_node(request: Request) -> Response:
    """``POST /core/project-nodes/:id``: a hospital's decision about a project."""
    actor = await authenticate(request)
    key = path_id(request, PROJECT_NODE)
    body = await read_body(request, DecisionBody)
    hub = hub_of(request)

    def store(connection: Connection) -> tuple[dict[str, Any], str]:
        row = raw_row(connection, actor, PROJECT_NODE, key)
        facts = project_facts(connection, row.project_id)
        place = Membership(row.node_id, row.node_realm_id, _creators(facts), hub.settings.self_approval, "project")
        digest = proposal_of(connection, row.project_id).digest.hex()
        public = node_key(connection, actor) if body.approval and actor.node else None
        changed = decide(actor, body, row, Subject("project", digest, row.node_id, place), public)
        connection.execute(update(project_nodes).where(project_nodes.c.id == key).values(**changed, updated_at=now()))
        happened(connection, actor, PROJECT_NODE, key, "updated", row)
        _tell(hub, connection, row, digest, changed, actor)
        return get_row(connection, actor, PROJECT_NODE, key), row.node_id

    row, node = await hub.database.write(store, "approvals")
    hub.channels.changed([node], "project", row["projectId"])
    return record(row, PROJECT_NODE, 202)


def _creators(project: Project) -> frozenset[str]:
    return frozenset({project.creator} - {None})  # type: ignore[arg-type]


def _tell(hub: HubState, connection: Connection, row: Any, digest: str, changed: dict[str, Any], actor: Actor) -> None:
    facts = {
        "subject": "project", "digest": digest, "node": row.node_id, "by": actor.id,
        "decision": changed["approval_status"] or "none", "signed": changed["approval_signed"],
    }  # fmt: skip
    hub.log.tell(connection, "approval", row.project_id, facts)


async def delete_project_node(request: Request) -> Response:
    actor = await authenticate(request)
    key = path_id(request, PROJECT_NODE)

    def store(connection: Connection) -> dict[str, Any]:
        shown = get_row(connection, actor, PROJECT_NODE, key)
        demand(actor, Action.UPDATE, project_facts(connection, shown["projectId"]))
        happened(connection, actor, PROJECT_NODE, key, "deleted")
        connection.execute(delete(project_nodes).where(project_nodes.c.id == key))
        return shown

    return record(await hub_of(request).database.write(store), PROJECT_NODE, 202)


async def add_member(request: Request) -> Response:
    """``POST /core/project-members`` (ours): an editor or a reader."""
    actor = await authenticate(request)
    body = await read_body(request, MemberBody)

    def store(connection: Connection) -> dict[str, Any]:
        project = raw_row(connection, actor, PROJECT, body.project_id)
        demand(actor, Action.UPDATE, project_facts(connection, project.id))
        known = connection.execute(select(users.c.id).where(users.c.id == body.user_id, users.c.active.is_(True)))
        if known.first() is None:
            raise wrong("userId", "There is no such user.")
        values = fresh(project_id=project.id, user_id=body.user_id, role=body.role)
        connection.execute(insert(project_members).values(**values))
        return {"id": values["id"], "projectId": project.id, "userId": body.user_id, "role": body.role}

    return record(await hub_of(request).database.write(store), status=201)


ROUTES = [
    *readable_routes("/core/projects", PROJECT),
    *changing_routes(
        "/core/projects", create=create_project, update=update_project, remove=delete_project, resource=PROJECT,
        body=ProjectBody,
    ),
    Described("GET", "/core/projects/{id}/proposal", proposal, About()),
    *readable_routes("/core/project-nodes", PROJECT_NODE),
    *changing_routes(
        "/core/project-nodes", create=create_project_node, update=decide_project_node, remove=delete_project_node,
        resource=PROJECT_NODE, body=ProjectNodeBody, changes=DecisionBody,
    ),
    Described("POST", "/core/project-members", add_member, About(status=201, body=MemberBody)),
]  # fmt: skip
