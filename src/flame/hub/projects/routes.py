"""``/core/projects`` and ``/core/project-nodes``: who works together, and which hospitals are asked."""

from __future__ import annotations

import hashlib
import re
import secrets
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, UnsetType
from sqlalchemy import Connection, delete, func, insert, select, update
from starlette.requests import Request
from starlette.responses import Response

from flame.hub.analyses.commands import take_out
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
from flame.hub.projects.ending import EndBody, end_project, stop_project, void_project
from flame.hub.projects.resources import PROJECT, PROJECT_NODE
from flame.hub.projects.tables import project_members, project_nodes, projects
from flame.hub.registry.resources import MASTER_IMAGE
from flame.hub.resources import (
    Body,
    Id,
    Label,
    LongText,
    camel,
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
from flame.model.manifest import check_text, parse_time
from flame.protocol.documents import Ending, Proposal

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{2,127}")
_ADJECTIVES = ("brave", "calm", "clear", "kind", "quiet", "swift", "warm", "wise")
_NOUNS = ("heron", "lynx", "maple", "otter", "pine", "raven", "river", "stone")


Slug = Annotated[str, Meta(min_length=3, max_length=128)]


class ProjectBody(Body):
    name: Slug | UnsetType | None = UNSET
    display_name: Label | UnsetType | None = UNSET
    description: LongText | UnsetType | None = UNSET
    master_image_id: Id | UnsetType | None = UNSET
    purpose: LongText | UnsetType | None = UNSET
    data_requested: LongText | UnsetType | None = UNSET
    risk: LongText | UnsetType | None = UNSET
    legal_basis: LongText | UnsetType | None = UNSET
    runtime: Label | UnsetType | None = UNSET
    contact: Label | UnsetType | None = UNSET
    expires: Annotated[str, Meta(max_length=20)] | UnsetType | None = UNSET

    def checked(self) -> dict[str, Any]:
        """What was given, with texts that a steward can read as they stand. Raises Invalid."""
        values = self.given()
        for name in _PROPOSED & set(values):
            if values[name]:
                check_text(values[name], camel(name))
        if values.get("expires"):
            parse_time(values["expires"])
        return values


_PROPOSED = frozenset({"purpose", "data_requested", "risk", "legal_basis", "runtime", "contact"})


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
    """Propose a project."""
    actor = await authenticate(request)
    require_people(actor)
    body = await read_body(request, ProjectBody)
    row = fresh(**body.checked() | {"name": slug(body.name), "realm_id": actor.realm, "user_id": actor.id})

    def store(connection: Connection) -> dict[str, Any]:
        if row.get("master_image_id"):
            related_row(connection, actor, MASTER_IMAGE, row["master_image_id"], "masterImageId")
        connection.execute(insert(projects).values(**row))
        happened(connection, actor, PROJECT, row["id"], "created")
        told = {"digest": proposal_of(connection, row["id"]).digest.hex(), "by": actor.id}
        hub_of(request).log.tell(connection, "proposal", row["id"], told)
        return get_row(connection, actor, PROJECT, row["id"])

    return record(await hub_of(request).database.write(store), PROJECT, 201)


async def update_project(request: Request) -> Response:
    """Change a project."""
    actor = await authenticate(request)
    key = path_id(request, PROJECT)
    values = (await read_body(request, ProjectBody)).checked()
    hub = hub_of(request)
    if "name" in values:
        values["name"] = slug(values["name"])

    def store(connection: Connection) -> tuple[dict[str, Any], tuple[str, ...], list[str]]:
        row = raw_row(connection, actor, PROJECT, key)
        facts = project_facts(connection, key)
        demand(actor, Action.UPDATE, facts)
        if row.ended_at:
            raise Conflict("This project has ended.", next_step="Propose a new one.")
        if values.get("master_image_id"):
            related_row(connection, actor, MASTER_IMAGE, values["master_image_id"], "masterImageId")
        before = proposal_of(connection, key).digest
        connection.execute(update(projects).where(projects.c.id == key).values(**values, updated_at=now()))
        happened(connection, actor, PROJECT, key, "updated", row)
        stopped: list[str] = []
        if (after := proposal_of(connection, key).digest) != before:
            if not hub.settings.skip_project_approval:
                void_project(connection, key)
                stopped = stop_project(hub, connection, key, actor.id)
            hub.log.tell(connection, "proposal", key, {"digest": after.hex(), "by": actor.id})
        return get_row(connection, actor, PROJECT, key), tuple(facts.asked), stopped

    shown, asked, stopped = await hub.database.write(store, "approvals")
    for run in stopped:
        hub.runs.forget(bytes.fromhex(run))
    hub.channels.changed(asked, "project", key)
    return record(shown, PROJECT, 202)


async def delete_project(request: Request) -> Response:
    """Delete a project that has no analyses."""
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
        hub_of(request).log.tell(connection, "administration", key, {"deleted": "project", "by": actor.id})
        return shown

    return record(await hub_of(request).database.write(store), PROJECT, 202)


def proposal_of(connection: Connection, key: str) -> Proposal:
    """What a project asks of the hospitals, as the document that they sign about."""
    row = connection.execute(select(projects).where(projects.c.id == key)).one()
    return Proposal(
        project=row.id,
        name=row.display_name or row.name,
        description=row.description or "",
        creator=row.user_id or "",
        purpose=row.purpose or "",
        data_requested=row.data_requested or "",
        risk=row.risk or "",
        legal_basis=row.legal_basis or "",
        runtime=row.runtime or "",
        contact=row.contact or "",
        expires=row.expires or "",
    )


async def proposal(request: Request) -> Response:
    """What a project asks of the hospitals, as the text whose digest they sign."""
    actor = await authenticate(request)
    key = path_id(request, PROJECT)

    def load(connection: Connection) -> dict[str, Any]:
        row = raw_row(connection, actor, PROJECT, key)
        document = proposal_of(connection, key)
        shown: dict[str, Any] = {
            "proposal": document.encoded().decode(),
            "digest": document.digest.hex(),
            "ending": None,
        }
        if row.ended_at:  # without a signature it is the hub's word alone, which stops and deletes nothing elsewhere
            unsigned = Ending(key, "", "", row.ended_at[:19] + "Z").encoded().decode()
            shown["ending"] = {"document": row.ending or unsigned, "signature": row.ending_signature or ""}
        return shown

    return record(await hub_of(request).database.read(load))


async def create_project_node(request: Request) -> Response:
    """Ask a node for a project; asking again finds what is there."""
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
            hub.log.tell(connection, "administration", project.id, {"added": node.id, "by": actor.id})
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
        place = Membership(
            row.node_id, row.node_realm_id, _creators(facts), hub.settings.self_approval, "project",
            rehearsal=hub.settings.skip_project_approval,
        )  # fmt: skip
        if body.approval_status is UNSET and not body.approval:
            return _comment(hub, connection, actor, body, row, place)
        digest = proposal_of(connection, row.project_id).digest.hex()
        public = node_key(connection, actor) if body.approval and actor.node else None
        changed = decide(actor, body, row, Subject("project", digest, row.node_id, place), public)
        connection.execute(update(project_nodes).where(project_nodes.c.id == key).values(**changed, updated_at=now()))
        happened(connection, actor, PROJECT_NODE, key, "updated", row)
        if not body.approval or body.approval.document != row.approval:  # a node says it again after a broken line
            _tell(hub, connection, row, digest, changed, actor)
        return get_row(connection, actor, PROJECT_NODE, key), row.node_id

    row, node = await hub.database.write(store, "approvals")
    hub.channels.changed([node], "project", row["projectId"])
    return record(row, PROJECT_NODE, 202)


def _comment(
    hub: HubState, connection: Connection, actor: Actor, body: DecisionBody, row: Any, place: Membership
) -> tuple[dict[str, Any], str]:
    """A word without a decision; one that came with a signed decision stays beside it."""
    demand(actor, Action.DECIDE, place)
    if row.approval_signed:
        raise Conflict("A signed decision stands, with its own comment.", next_step="Decide anew, with the comment.")
    values = {"comment": body.comment or None, "updated_at": now()}
    connection.execute(update(project_nodes).where(project_nodes.c.id == row.id).values(**values))
    happened(connection, actor, PROJECT_NODE, row.id, "updated", row)
    hub.log.tell(connection, "comment", row.project_id, {"node": row.node_id, "by": actor.id})
    return get_row(connection, actor, PROJECT_NODE, row.id), row.node_id


def _creators(project: Project) -> frozenset[str]:
    return frozenset({project.creator} - {None})  # type: ignore[arg-type]


def _tell(hub: HubState, connection: Connection, row: Any, digest: str, changed: dict[str, Any], actor: Actor) -> None:
    facts = {
        "subject": "project", "digest": digest, "node": row.node_id, "by": actor.id,
        "decision": changed["approval_status"] or "none", "signed": changed["approval_signed"],
    }  # fmt: skip
    if changed["approval"]:
        facts["approval"] = hashlib.sha256(changed["approval"].encode()).hexdigest()
    hub.log.tell(connection, "approval", row.project_id, facts)


async def delete_project_node(request: Request) -> Response:
    """A node that is asked no longer leaves the project's analyses: locks are void, openly; a run is stopped before."""
    actor = await authenticate(request)
    key = path_id(request, PROJECT_NODE)

    def store(connection: Connection) -> dict[str, Any]:
        shown = get_row(connection, actor, PROJECT_NODE, key)
        demand(actor, Action.UPDATE, project_facts(connection, shown["projectId"]))
        take_out(hub_of(request), connection, actor, shown["projectId"], shown["nodeId"])
        happened(connection, actor, PROJECT_NODE, key, "deleted")
        connection.execute(delete(project_nodes).where(project_nodes.c.id == key))
        facts = {"removed": shown["nodeId"], "by": actor.id}
        hub_of(request).log.tell(connection, "administration", shown["projectId"], facts)
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
        facts = {"member": body.user_id, "role": body.role, "by": actor.id}
        hub_of(request).log.tell(connection, "administration", project.id, facts)
        return {"id": values["id"], "projectId": project.id, "userId": body.user_id, "role": body.role}

    return record(await hub_of(request).database.write(store), status=201)


ROUTES = [
    *readable_routes("/core/projects", PROJECT),
    *changing_routes(
        "/core/projects", create=create_project, update=update_project, remove=delete_project, resource=PROJECT,
        body=ProjectBody,
    ),
    Described("GET", "/core/projects/{id}/proposal", proposal, About()),
    Described("POST", "/core/projects/{id}/end", end_project, About(status=202, body=EndBody)),
    *readable_routes("/core/project-nodes", PROJECT_NODE),
    *changing_routes(
        "/core/project-nodes", create=create_project_node, update=decide_project_node, remove=delete_project_node,
        resource=PROJECT_NODE, body=ProjectNodeBody, changes=DecisionBody,
    ),
    Described("POST", "/core/project-members", add_member, About(status=201, body=MemberBody)),
]  # fmt: skip
