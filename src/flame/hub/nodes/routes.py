"""``/core/nodes`` and enrolment: how a node's key comes to be known, checked by two people who read a fingerprint."""

from __future__ import annotations

import hashlib
import secrets
import time
from datetime import UTC, datetime
from typing import Any, Final, Literal

from msgspec import UNSET, UnsetType
from sqlalchemy import Connection, delete, insert, select, update
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from flame.crypto.keys import PublicKey, fingerprint_words, parse_fingerprint
from flame.hub.authorisation import Action, Actor, Realm, demand
from flame.hub.columns import fresh, new_id, now
from flame.hub.identity.passwords import hash_in_thread
from flame.hub.identity.sessions import authenticate
from flame.hub.identity.tables import clients
from flame.hub.limits import Attempts
from flame.hub.members.routes import register_member
from flame.hub.nodes.resources import NODE
from flame.hub.nodes.tables import enrolment_tokens, enrolments, nodes
from flame.hub.problems import wrong
from flame.hub.resources import (
    Body,
    answer,
    changing_routes,
    get_row,
    path_id,
    raw_row,
    read_body,
    readable_routes,
    record,
    text,
)
from flame.hub.state import hub_of
from flame.model.errors import BadSignature, Conflict, DoesNotMatchApproval, Malformed, NotFound, Refused

TOKEN_SECONDS: Final = 24 * 3600
PURPOSE: Final = b"flame-enrol-v1\0"
_attempts = Attempts(20)


class NodeBody(Body):
    name: str | UnsetType = UNSET
    external_name: str | UnsetType | None = UNSET
    public_key: str | UnsetType | None = UNSET
    hidden: bool | UnsetType = UNSET
    type: Literal["default", "aggregator"] | UnsetType = UNSET
    realm_id: str | UnsetType | None = UNSET
    organisation: str | UnsetType | None = UNSET


async def create_node(request: Request) -> Response:
    actor = await authenticate(request)
    body = await read_body(request, NodeBody)
    realm = body.realm_id or actor.realm
    demand(actor, Action.CREATE, Realm(realm))
    values = body.given() | {"name": text(body.name, "name", least=3, most=128), "realm_id": realm}
    if not values.get("external_name"):
        values["external_name"] = secrets.token_hex(8)
    _check_values(values)
    hub = hub_of(request)

    def store(connection: Connection) -> dict[str, Any]:
        client_id, row = new_id(), fresh(**values)
        moment = row["created_at"]
        connection.execute(
            insert(clients).values(
                id=client_id,
                name=row["id"],
                display_name=row["id"],
                realm_id=realm,
                created_at=moment,
                updated_at=moment,
            )
        )
        connection.execute(insert(nodes).values(**row, client_id=client_id))
        hub.log.tell(connection, "administration", row["id"], {"created": "node", "realm": realm, "by": actor.id})
        return get_row(connection, actor, NODE, row["id"])

    return record(await hub.database.write(store), NODE, 201)


async def update_node(request: Request) -> Response:
    actor = await authenticate(request)
    key = path_id(request, NODE)
    body = await read_body(request, NodeBody)
    values = {k: v for k, v in body.given().items() if not (k == "realm_id" and v is None)}
    _check_values(values)
    hub = hub_of(request)

    def store(connection: Connection) -> dict[str, Any]:
        row = raw_row(connection, actor, NODE, key)
        demand(actor, Action.UPDATE, Realm(row.realm_id))
        if "realm_id" in values:
            demand(actor, Action.UPDATE, Realm(values["realm_id"]))
        if row.enrolled and values.get("public_key", row.public_key) != row.public_key:
            raise Conflict("The key of an enrolled node is not changed here.", next_step="Enrol the node anew.")
        connection.execute(update(nodes).where(nodes.c.id == key).values(**values, updated_at=now()))
        hub.log.tell(connection, "administration", key, {"changed": "node", "by": actor.id})
        return get_row(connection, actor, NODE, key)

    return record(await hub.database.write(store), NODE, 202)


async def delete_node(request: Request) -> Response:
    actor = await authenticate(request)
    key = path_id(request, NODE)
    hub = hub_of(request)

    def store(connection: Connection) -> dict[str, Any]:
        row = raw_row(connection, actor, NODE, key)
        demand(actor, Action.DELETE, Realm(row.realm_id))
        shown = get_row(connection, actor, NODE, key)
        from flame.hub.analyses.tables import analysis_nodes  # a node of an analysis is history, not only a row

        if connection.execute(select(analysis_nodes.c.id).where(analysis_nodes.c.node_id == key)).first():
            raise Conflict("The node takes part in an analysis.", next_step="Take it out of its analyses first.")
        connection.execute(delete(nodes).where(nodes.c.id == key))
        connection.execute(delete(clients).where(clients.c.id == row.client_id))
        hub.log.tell(connection, "administration", key, {"deleted": "node", "by": actor.id})
        return shown

    return record(await hub.database.write(store), NODE, 202)


def _check_values(values: dict[str, Any]) -> None:
    if values.get("public_key"):
        values["public_key"] = PublicKey.from_hex_pem(values["public_key"]).hex_pem
    external = values.get("external_name")
    if external is not None and not (1 <= len(external) <= 64 and external.replace("-", "").replace("_", "").isalnum()):
        raise wrong("externalName", "'externalName' is 1 to 64 letters, digits, '-' and '_'.")


class CredentialsBody(Body):
    secret: str | None = None
    name: str | None = None
    display_name: str | None = None


async def set_credentials(request: Request) -> Response:
    """``POST /core/nodes/:id/client/credentials``: a new secret, shown once, for clients that cannot use a key."""
    actor = await authenticate(request)
    key = path_id(request, NODE)
    body = await read_body(request, CredentialsBody)
    secret = body.secret or secrets.token_hex(32)
    hashed = await hash_in_thread(text(secret, "secret", least=8, most=512))
    hub = hub_of(request)

    def store(connection: Connection) -> dict[str, Any]:
        row = raw_row(connection, actor, NODE, key)
        demand(actor, Action.UPDATE, Realm(row.realm_id))
        changed = {"secret_hash": hashed, "updated_at": now()}
        changed |= {k: v for k, v in (("name", body.name), ("display_name", body.display_name)) if v}
        connection.execute(update(clients).where(clients.c.id == row.client_id).values(**changed))
        hub.log.tell(connection, "administration", key, {"changed": "client secret", "by": actor.id})
        client = connection.execute(select(clients).where(clients.c.id == row.client_id)).one()
        return {"id": client.id, "name": client.name, "displayName": client.display_name or client.name}

    return answer(await hub.database.write(store) | {"secret": secret})


# ------------------------------------------------------------------------------------------------------------ enrolment


async def enrolment_token(request: Request) -> Response:
    """``POST /core/nodes/:id/enrolment-token``: for one enrolment within a day. Shown once; the hub keeps its hash."""
    actor = await authenticate(request)
    key = path_id(request, NODE)
    hub = hub_of(request)
    token, expires = secrets.token_urlsafe(32), int(time.time()) + TOKEN_SECONDS

    def store(connection: Connection) -> None:
        row = raw_row(connection, actor, NODE, key)
        demand(actor, Action.UPDATE, Realm(row.realm_id))
        connection.execute(update(enrolment_tokens).where(enrolment_tokens.c.node_id == key).values(used=True))
        values = fresh(node_id=key, token_hash=_hash(token), expires=expires, used=False)
        connection.execute(insert(enrolment_tokens).values(**values))

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
        demand(actor, Action.UPDATE, Realm(row.realm_id))
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
        hub.log.tell(connection, "enrolment", key, {"fingerprint": waiting.fingerprint, "by": actor.id})
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
        demand(actor, Action.UPDATE, Realm(row.realm_id))
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
    *changing_routes("/core/nodes", create=create_node, update=update_node, remove=delete_node),
    Route("/core/nodes/{id}/client/credentials", set_credentials, methods=["POST"]),
    Route("/core/nodes/{id}/enrolment-token", enrolment_token, methods=["POST"]),
    Route("/core/nodes/{id}/enrolment", enrolment_state, methods=["GET"]),
    Route("/core/nodes/{id}/enrolment/confirm", confirm, methods=["POST"]),
    Route("/core/enrolments", enrol, methods=["POST"]),
]
