"""``/core/audit``: events in, receipts and proofs out."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from sqlalchemy import Connection, select
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from flame.crypto.signatures import verify_event
from flame.crypto.translog import consistency_proof, inclusion_proof
from flame.hub.audit.log import head_wire
from flame.hub.audit.tables import leaves
from flame.hub.authorisation import Actor
from flame.hub.identity.sessions import authenticate
from flame.hub.nodes.routes import node_key
from flame.hub.problems import wrong
from flame.hub.resources import answer, read_body, record
from flame.hub.state import hub_of
from flame.model.errors import BadSignature, Malformed, NotAllowed
from flame.protocol.documents import Event, SignedEvent

MAX_EVENT: Final = 16 << 10
MAX_LEAVES: Final = 1000


class EventBody(msgspec.Struct):
    event: str
    """Canonical text."""
    signature: str
    """Hex, by the node's enrolled key."""


async def post_event(request: Request) -> Response:
    actor = await authenticate(request)
    if actor.node is None:
        raise NotAllowed("Only nodes write to the log; what people do at the hub, the hub writes.")
    body = await read_body(request, EventBody)
    event = _read_event(body)
    hub = hub_of(request)

    def store(connection: Connection) -> dict[str, Any]:
        public = node_key(connection, actor)
        if event.signer != public.fingerprint.hex():
            raise BadSignature("The event names another signer than the node's enrolled key.")
        verify_event(public, bytes.fromhex(body.signature), event.digest)
        return hub.log.append(connection, SignedEvent(body.event, body.signature), event.signer).wire()

    return record(await hub.database.write(store, "audit"), status=201)


def _read_event(body: EventBody) -> Event:
    if len(body.event) > MAX_EVENT:
        raise Malformed(f"An event has at most {MAX_EVENT} characters.")
    event: Event = Event.decode(body.event.encode())
    if len(body.signature) != 128 or body.signature != body.signature.lower():
        raise Malformed("A signature is 128 lower-case hexadecimal digits.")
    try:
        bytes.fromhex(body.signature)
        nonce = bytes.fromhex(event.nonce)
    except ValueError:
        raise Malformed("Signature and nonce are hexadecimal.") from None
    if len(nonce) != 16:
        raise Malformed("A nonce is 32 hexadecimal digits.")
    return event


def _reader(actor: Actor) -> None:
    """Heads and proofs are for everybody who has logged in; leaves for auditors, administrators and nodes."""
    if actor.node is None and not actor.has("admin", "auditor", "realm_admin"):
        raise NotAllowed("The log's entries are for auditors, administrators and nodes.")


async def head(request: Request) -> Response:
    await authenticate(request)
    hub = hub_of(request)
    found, signature = await hub.database.read(hub.log.head)
    return record(head_wire(found, signature) | {"hubKey": hub.key.public.hex_pem})


async def get_leaves(request: Request) -> Response:
    _reader(await authenticate(request))
    start, end = _number(request, "from"), _number(request, "to")
    end = min(end, start + MAX_LEAVES)

    def load(connection: Connection) -> list[str]:
        wanted = select(leaves.c.leaf).where(leaves.c.idx >= start, leaves.c.idx < end).order_by(leaves.c.idx)
        return [leaf.decode() for leaf in connection.execute(wanted).scalars()]

    return answer({"data": await hub_of(request).database.read(load), "meta": {"from": start, "to": end}})


async def consistency(request: Request) -> Response:
    await authenticate(request)
    old, new = _number(request, "old"), _number(request, "new")

    def load(connection: Connection) -> list[str]:
        return [h.hex() for h in consistency_proof(_hashes(connection, new), old, new)]

    return record({"old": old, "new": new, "proof": await hub_of(request).database.read(load)})


async def inclusion(request: Request) -> Response:
    await authenticate(request)
    index, size = _number(request, "index"), _number(request, "size")

    def load(connection: Connection) -> dict[str, Any]:
        hashes = _hashes(connection, size)
        proof = [h.hex() for h in inclusion_proof(hashes, index, size)]
        return {"index": index, "size": size, "leafHash": hashes[index].hex(), "proof": proof}

    return record(await hub_of(request).database.read(load))


def _hashes(connection: Connection, size: int) -> list[bytes]:
    statement = select(leaves.c.hash).where(leaves.c.idx < size).order_by(leaves.c.idx)
    return list(connection.execute(statement).scalars())


async def export(request: Request) -> Response:
    """``GET /core/audit/export``: what `flame.protocol.audit.verify_export` reads."""
    _reader(await authenticate(request))
    hub = hub_of(request)

    def load(connection: Connection) -> dict[str, Any]:
        found, signature = hub.log.head(connection)
        wanted = select(leaves.c.leaf).where(leaves.c.idx < found.size).order_by(leaves.c.idx)
        texts = [leaf.decode() for leaf in connection.execute(wanted).scalars()]
        return {"version": 1, "hubKey": hub.key.public.hex_pem, "head": head_wire(found, signature), "leaves": texts}

    return answer(await hub.database.read(load))


def _number(request: Request, name: str) -> int:
    text = request.query_params.get(name, "")
    if not text.isdigit() or len(text) > 15:
        raise wrong(name, f"'{name}' is a whole number.")
    return int(text)


ROUTES = [
    Route("/core/audit/events", post_event, methods=["POST"]),
    Route("/core/audit/head", head, methods=["GET"]),
    Route("/core/audit/leaves", get_leaves, methods=["GET"]),
    Route("/core/audit/consistency", consistency, methods=["GET"]),
    Route("/core/audit/inclusion", inclusion, methods=["GET"]),
    Route("/core/audit/export", export, methods=["GET"]),
]
