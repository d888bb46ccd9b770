"""``/core/nodes`` and enrolment: how a node's key comes to be known, checked by two people who read a fingerprint."""

from __future__ import annotations

import hashlib
import secrets
import time
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal

from msgspec import UNSET, Meta, Struct, UnsetType
from sqlalchemy import Connection, delete, insert, select, update
from starlette.requests import Request
from starlette.responses import Response

from flame.crypto.keys import PublicKey, fingerprint_words, parse_fingerprint
from flame.hub.authorisation import Action, Actor, Realm, demand
from flame.hub.columns import fresh, new_id, now
from flame.hub.credentials import Credentials, CredentialsBody, read_credentials, shown_client
from flame.hub.described import About, Described
from flame.hub.identity.sessions import authenticate
from flame.hub.identity.tables import clients
from flame.hub.limits import Attempts
from flame.hub.members.routes import register_member
from flame.hub.nodes.resources import NODE
from flame.hub.nodes.tables import enrolment_tokens, enrolments, nodes
from flame.hub.registry.registries import ExternalName, only_registry, open_secret, provide_project
from flame.hub.registry.resources import REGISTRY
from flame.hub.registry.tables import registries, registry_projects
from flame.hub.resources import (
    Body,
    Id,
    Label,
    Name,
    Row,
    answer,
    changing_routes,
    get_row,
    path_id,
    raw_row,
    read_body,
    readable_routes,
    record,
    related_row,
)
from flame.hub.state import hub_of
from flame.hub.telemetry.events import happened
from flame.model.errors import BadSignature, Conflict, DoesNotMatchApproval, Malformed, NotFound, Refused

TOKEN_SECONDS: Final = 24 * 3600
PURPOSE: Final = b"flame-enrol-v1\0"
_attempts = Attempts(20)


NodeType = Literal["default", "aggregator"]
PublicKeyText = Annotated[str, Meta(min_length=5, max_length=4096, pattern="^[ -~]+$")]
"""What FLAME's clients may write on a node that has not enrolled; it confers nothing."""


class NodeBody(Body):
    name: Name | UnsetType = UNSET
    external_name: ExternalName | UnsetType | None = UNSET
    public_key: PublicKeyText | UnsetType | None = UNSET
    hidden: bool | UnsetType | None = UNSET
    type: NodeType | UnsetType | None = UNSET
    realm_id: Id | UnsetType | None = UNSET
    registry_id: Id | UnsetType | None = UNSET
    organisation: Label | UnsetType | None = UNSET

    def values(self) -> Row:
        """Columns to write; where a column has no empty value, null says nothing."""
        filled = ("name", "external_name", "hidden", "type", "realm_id")
        return {name: value for name, value in self.given().items() if value is not None or name not in filled}


class NewNodeBody(NodeBody, kw_only=True):
    name: Name


async def create_node(request: Request) -> Response:
    """A node and its client; with a registry, also its project there."""
    actor = await authenticate(request)
    body = await read_body(request, NewNodeBody)
    realm = body.realm_id or actor.realm
    demand(actor, Action.CREATE, Realm(realm, "node"))
    row = fresh(**{"external_name": secrets.token_hex(8)} | body.values() | {"realm_id": realm, "client_id": new_id()})
    hub = hub_of(request)

    def store(connection: Connection) -> Row:
        _add_client(connection, row)
        if row.get("registry_id"):
            related_row(connection, actor, REGISTRY, row["registry_id"], "registryId")
        registry = row.get("registry_id") or only_registry(connection)
        if registry:
            row["registry_id"] = registry
            row["registry_project_id"] = provide_project(connection, registry, row["id"], row["external_name"], realm)
        connection.execute(insert(nodes).values(**row))
        hub.log.tell(connection, "administration", row["id"], {"created": "node", "realm": realm, "by": actor.id})
        happened(connection, actor, NODE, row["id"], "created")
        return get_row(connection, actor, NODE, row["id"])

    return record(await hub.database.write(store), NODE, 201)


def _add_client(connection: Connection, node: Row) -> None:
    moment = {"created_at": node["created_at"], "updated_at": node["updated_at"]}
    values = {"id": node["client_id"], "name": node["id"], "display_name": node["id"], "realm_id": node["realm_id"]}
    connection.execute(insert(clients).values(**values, **moment))


async def update_node(request: Request) -> Response:
    """Change a node's record; never the key of an enrolled one, nor its role in something locked."""
    actor = await authenticate(request)
    key = path_id(request, NODE)
    body = await read_body(request, NodeBody)
    values = body.values()
    hub = hub_of(request)

    def store(connection: Connection) -> Row:
        row = raw_row(connection, actor, NODE, key)
        demand(actor, Action.UPDATE, Realm(row.realm_id, "node"))
        _check_change(connection, actor, row, values)
        changed = values | _registry_change(connection, actor, row, values)
        connection.execute(update(nodes).where(nodes.c.id == key).values(**changed, updated_at=now()))
        hub.log.tell(connection, "administration", key, {"changed": "node", "by": actor.id})
        happened(connection, actor, NODE, key, "updated", before=row)
        return get_row(connection, actor, NODE, key)

    return record(await hub.database.write(store), NODE, 202)


def _check_change(connection: Connection, actor: Actor, row: Any, values: Row) -> None:
    from flame.hub.analyses.tables import analyses, analysis_nodes  # their resources include nodes
    from flame.hub.projects.tables import project_nodes

    if row.enrolled and values.get("public_key", row.public_key) != row.public_key:
        raise Conflict("The key of an enrolled node is not changed here.", next_step="Enrol the node anew.")
    if values.get("realm_id", row.realm_id) != row.realm_id:
        demand(actor, Action.UPDATE, Realm(values["realm_id"], "node"))
        if connection.execute(select(project_nodes.c.id).where(project_nodes.c.node_id == row.id)).first():
            raise Conflict("The node takes part in a project.", next_step="Take it out of its projects first.")
    if values.get("type", row.type) != row.type:
        locked = select(analyses.c.id).join(analysis_nodes, analysis_nodes.c.analysis_id == analyses.c.id)
        locked = locked.where(analysis_nodes.c.node_id == row.id, analyses.c.configuration_locked.is_(True))
        if connection.execute(locked).first():
            raise Conflict(
                "The node takes part in a locked analysis, which was approved with its present role.",
                next_step="Wait for the analysis' end, or have it unlocked.",
            )


def _registry_change(connection: Connection, actor: Actor, row: Any, values: Row) -> Row:
    """Another registry is another project there; none is no project."""
    if "registry_id" not in values or values["registry_id"] == row.registry_id:
        return {}
    if row.registry_project_id:
        connection.execute(delete(registry_projects).where(registry_projects.c.id == row.registry_project_id))
    registry = values["registry_id"]
    if registry is None:
        return {"registry_project_id": None}
    related_row(connection, actor, REGISTRY, registry, "registryId")
    realm, external = values.get("realm_id", row.realm_id), values.get("external_name", row.external_name)
    return {"registry_project_id": provide_project(connection, registry, row.id, external or row.id, realm)}


async def delete_node(request: Request) -> Response:
    """A node that takes part in no analysis, with its client."""
    actor = await authenticate(request)
    key = path_id(request, NODE)
    hub = hub_of(request)

    def store(connection: Connection) -> Row:
        row = raw_row(connection, actor, NODE, key)
        demand(actor, Action.DELETE, Realm(row.realm_id, "node"))
        shown = get_row(connection, actor, NODE, key)
        from flame.hub.analyses.tables import analysis_nodes  # a node of an analysis is history, not only a row

        if connection.execute(select(analysis_nodes.c.id).where(analysis_nodes.c.node_id == key)).first():
            raise Conflict("The node takes part in an analysis.", next_step="Take it out of its analyses first.")
        happened(connection, actor, NODE, key, "deleted")
        connection.execute(delete(nodes).where(nodes.c.id == key))
        connection.execute(delete(clients).where(clients.c.id == row.client_id))
        connection.execute(delete(registry_projects).where(registry_projects.c.id == row.registry_project_id))
        hub.log.tell(connection, "administration", key, {"deleted": "node", "by": actor.id})
        return shown

    shown = await hub.database.write(store)
    hub.channels.stir(shown["clientId"])  # its open line ends
    return record(shown, NODE, 202)


class RegistryCredentials(Struct, rename="camel"):
    """Where a node finds images, as entered by who manages registries."""

    host: str
    external_name: str
    account_name: str | None
    account_secret: str | None


async def registry_credentials(request: Request) -> Response:
    """A node's account at its registry: for the node itself, and for administrators of its realm."""
    actor = await authenticate(request)
    key = path_id(request, NODE)
    hub = hub_of(request)

    def load(connection: Connection) -> RegistryCredentials:
        row = raw_row(connection, actor, NODE, key)
        if actor.node != row.id:
            demand(actor, Action.UPDATE, Realm(row.realm_id, "node"))
        joined = registry_projects.join(registries, registries.c.id == registry_projects.c.registry_id)
        wanted = select(registry_projects, registries.c.host).select_from(joined)
        found = connection.execute(wanted.where(registry_projects.c.id == row.registry_project_id)).first()
        if found is None:
            raise NotFound("The registry-project was not found.", next_step="Give the node a registry.")
        secret = open_secret(hub, found.account_secret, found.id)
        return RegistryCredentials(found.host, found.external_name, found.account_name, secret)

    return answer(await hub.database.read(load))


async def get_credentials(request: Request) -> Response:
    """A node's client. Its secret is not shown again: the hub keeps a hash."""
    actor = await authenticate(request)
    key = path_id(request, NODE)

    def load(connection: Connection) -> Credentials:
        row = raw_row(connection, actor, NODE, key)
        demand(actor, Action.UPDATE, Realm(row.realm_id, "node"))
        return shown_client(connection, row.client_id)

    return answer(await hub_of(request).database.read(load))


async def set_credentials(request: Request) -> Response:
    """``POST /core/nodes/:id/client/credentials``: a new secret, shown once, for clients that cannot use a key."""
    actor = await authenticate(request)
    key = path_id(request, NODE)
    given = await read_credentials(request)
    hub = hub_of(request)

    def store(connection: Connection) -> Credentials:
        row = raw_row(connection, actor, NODE, key)
        demand(actor, Action.UPDATE, Realm(row.realm_id, "node"))
        hub.log.tell(connection, "administration", key, {"changed": "client secret", "by": actor.id})
        return given.store(connection, row.client_id)

    return answer(await hub.database.write(store))


# ------------------------------------------------------------------------------------------------------------ enrolment


async def enrolment_token(request: Request) -> Response:
    """``POST /core/nodes/:id/enrolment-token``: for one enrolment within a day. Shown once; the hub keeps its hash."""
    actor = await authenticate(request)
    key = path_id(request, NODE)
    hub = hub_of(request)
    token, expires = secrets.token_urlsafe(32), int(time.time()) + TOKEN_SECONDS

    def store(connection: Connection) -> None:
        row = raw_row(connection, actor, NODE, key)
        demand(actor, Action.UPDATE, Realm(row.realm_id, "node"))
        connection.execute(update(enrolment_tokens).where(enrolment_tokens.c.node_id == key).values(used=True))
        values = fresh(node_id=key, token_hash=_hash(token), expires=expires, used=False)
        connection.execute(insert(enrolment_tokens).values(**values))
        hub.log.tell(connection, "administration", key, {"created": "enrolment token", "by": actor.id})

    await hub.database.write(store)
    shown = datetime.fromtimestamp(expires, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return record({"token": token, "expires": shown}, status=201)


class EnrolmentBody(Body):
    token: str
    public_key: str
    signature: str


async def enrol(request: Request) -> Response:
    """``POST /core/enrolments``: a node shows its token, its key, and that it holds the key. No login."""
    address = request.client.host if request.client else "unknown"
    _attempts.check(address)
    body = await read_body(request, EnrolmentBody)
    hub = hub_of(request)
    try:
        public = _proven_key(body)
        row = await hub.database.write(lambda c: _enrol(c, body.token, public), "enrolment")
    except (Refused, Malformed, NotFound):
        _attempts.failed(address)
        raise
    content = {
        "nodeId": row.id,
        "clientId": row.client_id,
        "realmId": row.realm_id,
        "name": row.name,
        "type": row.type,
        "hubKey": hub.key.public.hex_pem,
        "fingerprint": public.fingerprint.hex(),
        "words": fingerprint_words(public.fingerprint),
        "state": "pending",
    }
    return record(content, status=201)


def _proven_key(body: EnrolmentBody) -> PublicKey:
    public = PublicKey.from_hex_pem(body.public_key)
    try:
        signature = bytes.fromhex(body.signature)
    except ValueError:
        raise Malformed("The signature is not hexadecimal.") from None
    public.verify(signature, PURPOSE + hashlib.sha256(body.token.encode() + public.raw).digest())
    return public


def _enrol(connection: Connection, token: str, public: PublicKey) -> Any:
    table = enrolment_tokens
    there = connection.execute(select(table).where(table.c.token_hash == _hash(token))).first()
    if there is None or there.used or there.expires < time.time():
        raise NotFound(
            "This enrolment token is not valid: unknown, used, or older than a day.",
            next_step="Ask the hub's administrator for a new one.",
        )
    _check_unused(connection, public, there.node_id)
    connection.execute(update(table).where(table.c.id == there.id).values(used=True))
    connection.execute(delete(enrolments).where(enrolments.c.node_id == there.node_id, enrolments.c.state == "pending"))
    values = fresh(node_id=there.node_id, public_key=public.hex_pem, fingerprint=public.fingerprint.hex())
    connection.execute(insert(enrolments).values(**values, state="pending"))
    return connection.execute(select(nodes).where(nodes.c.id == there.node_id)).one()


def _check_unused(connection: Connection, public: PublicKey, node_id: str) -> None:
    other = select(nodes.c.id).where(nodes.c.public_key == public.hex_pem, nodes.c.id != node_id)
    other = other.where(nodes.c.enrolled.is_(True))  # what a client wrote on a node that has not enrolled is no claim
    if connection.execute(other).first():
        raise Conflict("This key belongs to another node already.", next_step="Give each node a key of its own.")


class ConfirmBody(Body):
    fingerprint: str


async def confirm(request: Request) -> Response:
    """``POST /core/nodes/:id/enrolment/confirm``: an administrator has compared the fingerprint with the node's."""
    actor = await authenticate(request)
    key = path_id(request, NODE)
    body = await read_body(request, ConfirmBody)
    wanted = parse_fingerprint(body.fingerprint).hex()
    hub = hub_of(request)

    def store(connection: Connection) -> dict[str, Any]:
        row = raw_row(connection, actor, NODE, key)
        demand(actor, Action.UPDATE, Realm(row.realm_id, "node"))
        pending = (enrolments.c.node_id == key) & (enrolments.c.state == "pending")
        waiting = connection.execute(select(enrolments).where(pending)).first()
        if waiting is None:
            raise NotFound("No enrolment of this node waits for a confirmation.")
        _check_fingerprint(waiting.fingerprint, wanted)
        _check_unused(connection, PublicKey.from_hex_pem(waiting.public_key), key)
        moment = now()
        connection.execute(
            update(enrolments).where(enrolments.c.id == waiting.id).values(state="confirmed", updated_at=moment)
        )
        member = register_member(connection, "node", waiting.public_key, node=key)
        values = {"public_key": waiting.public_key, "enrolled": True, "member": member, "updated_at": moment}
        connection.execute(update(nodes).where(nodes.c.id == key).values(**values))
        facts = {"fingerprint": waiting.fingerprint, "publicKey": waiting.public_key, "by": actor.id}
        hub.log.tell(connection, "enrolment", key, facts)
        return get_row(connection, actor, NODE, key)

    return record(await hub.database.write(store, "enrolment"), NODE, 202)


def _check_fingerprint(have: str, wanted: str) -> None:
    if not secrets.compare_digest(have, wanted):
        raise DoesNotMatchApproval(
            "The fingerprint is not that of the key which waits for confirmation.",
            next_step="Compare it with the node once more. If it still differs, somebody else has used the token.",
        )


async def enrolment_state(request: Request) -> Response:
    """``GET /core/nodes/:id/enrolment``: what an administrator has to compare."""
    actor = await authenticate(request)
    key = path_id(request, NODE)

    def load(connection: Connection) -> dict[str, Any]:
        row = raw_row(connection, actor, NODE, key)
        demand(actor, Action.UPDATE, Realm(row.realm_id, "node"))
        newest = select(enrolments).where(enrolments.c.node_id == key).order_by(enrolments.c.created_at.desc())
        found = connection.execute(newest).first()
        if found is None:
            raise NotFound("This node has not enrolled.")
        words = fingerprint_words(bytes.fromhex(found.fingerprint))
        return {"state": found.state, "fingerprint": found.fingerprint, "words": words, "publicKey": found.public_key}

    return record(await hub_of(request).database.read(load))


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def node_key(connection: Connection, actor: Actor) -> PublicKey:
    """The enrolled identity key of the node that is asking. Raises BadSignature without one."""
    row = connection.execute(select(nodes).where(nodes.c.id == actor.node)).first()
    if row is None or not row.enrolled:
        raise BadSignature("This node has no enrolled key.", next_step="Enrol it: `flame node init`.")
    return PublicKey.from_hex_pem(row.public_key)


ROUTES = [
    *readable_routes("/core/nodes", NODE),
    *changing_routes(
        "/core/nodes", create=create_node, update=update_node, remove=delete_node, resource=NODE, body=NewNodeBody,
        changes=NodeBody,
    ),
    Described("GET", "/core/nodes/{id}/registry/credentials", registry_credentials, About(RegistryCredentials, "flat")),
    Described("GET", "/core/nodes/{id}/client/credentials", get_credentials, About(Credentials, "flat")),
    Described(
        "POST", "/core/nodes/{id}/client/credentials", set_credentials,
        About(Credentials, "flat", body=CredentialsBody),
    ),
    Described("POST", "/core/nodes/{id}/enrolment-token", enrolment_token, About(status=201)),
    Described("GET", "/core/nodes/{id}/enrolment", enrolment_state, About()),
    Described("POST", "/core/nodes/{id}/enrolment/confirm", confirm, About(NODE, status=202, body=ConfirmBody)),
    Described("POST", "/core/enrolments", enrol, About(status=201, body=EnrolmentBody, public=True)),
]  # fmt: skip
