"""``/core/audit``: events in, receipts and proofs out; the log read, searched and exported.

Everybody who has logged in may have heads, proofs and every entry's hash; an entry's content is for whoever may read
what it is about (`authorisation.readable_log`). So anybody can check the whole log, and reads only what is theirs.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, select
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from flame.crypto.signatures import verify_event
from flame.hub.analyses.tables import runs
from flame.hub.audit import log
from flame.hub.audit.resources import ENTRY
from flame.hub.audit.tables import leaves
from flame.hub.authorisation import Actor, readable_log
from flame.hub.described import About, Described, in_query
from flame.hub.identity.sessions import authenticate
from flame.hub.members.routes import keep_endorsement
from flame.hub.nodes.routes import node_key
from flame.hub.problems import wrong
from flame.hub.query import parse
from flame.hub.resources import answer, asked_of, collection, list_rows, read_body, record
from flame.hub.state import HubState, hub_of
from flame.model.errors import BadSignature, Malformed, NotAllowed, NotFound
from flame.protocol.audit import Entry, event_of, export_end, export_entry, export_start
from flame.protocol.documents import Event, SignedEvent

MAX_EVENT: Final = 16 << 10
MAX_LEAVES: Final = 1000
BATCH: Final = 2000
"""Entries that an export holds in memory at once."""


class EventBody(msgspec.Struct):
    event: str
    """Canonical text."""
    signature: str
    """Hex, by the node's enrolled key."""


async def post_event(request: Request) -> Response:
    """A node's signed event; the answer is the receipt."""
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
        if event.type == "confirmation":
            keep_endorsement(connection, event, body.event, body.signature)
        return hub.log.append(connection, SignedEvent(body.event, body.signature), event).wire()

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


async def head(request: Request) -> Response:
    """The newest signed tree head."""
    await authenticate(request)
    hub = hub_of(request)
    found, signature = await hub.database.read(hub.log.head)
    return record(log.head_wire(found, signature) | {"hubKey": hub.key.public.hex_pem})


async def get_leaves(request: Request) -> Response:
    """``GET /core/audit/leaves?from&to``: as an export holds them."""
    actor = await authenticate(request)
    start, end = _number(request, "from"), _number(request, "to")
    end = min(end, start + MAX_LEAVES)
    found = await hub_of(request).database.read(lambda c: _entries(c, actor, start, end))
    return answer({"data": [entry.wire() for entry in found], "meta": {"from": start, "to": end}})


def _entries(connection: Connection, actor: Actor, start: int, end: int) -> list[Entry]:
    """Entries as `actor` may have them: the content, or the hash alone."""
    seen = readable_log(actor).label("seen")
    wanted = select(leaves.c.leaf, leaves.c.hash, seen).where(leaves.c.idx >= start, leaves.c.idx < end)
    rows = connection.execute(wanted.order_by(leaves.c.idx))
    return [Entry.shown(row.leaf) if row.seen else Entry.hidden(row.hash) for row in rows]


async def entries(request: Request) -> Response:
    """``GET /core/audit/entries``: the log searched, with the query language of every collection."""
    actor = await authenticate(request)
    query = parse(request.query_params.multi_items(), ENTRY.vocabulary)
    rows, total = await hub_of(request).database.read(lambda c: list_rows(c, actor, ENTRY, query))
    return collection(rows, total, query, ENTRY)


async def entry(request: Request) -> Response:
    """``GET /core/audit/entries/:index``: one entry, with the proof that the newest tree head includes it."""
    actor = await authenticate(request)
    text = request.path_params["index"]
    index = int(text) if text.isdigit() and len(text) <= 15 else -1
    hub = hub_of(request)

    def load(connection: Connection) -> dict[str, Any]:
        columns = [column.label(name) for name, column in ENTRY.fields.items()]
        wanted = select(*columns).where(leaves.c.idx == index, readable_log(actor))
        row = connection.execute(wanted).mappings().first()
        if row is None:
            raise NotFound("The log entry was not found.")
        newest, signature = hub.log.head(connection)
        _, proof = hub.log.inclusion(connection, index, newest.size)
        shown = {"head": log.head_wire(newest, signature), "proof": [h.hex() for h in proof]}
        return ENTRY.wire(row) | shown

    return record(await hub.database.read(load))


async def start(request: Request) -> Response:
    """The order of one run as it stands in the log, and its way from the head that somebody has seen, in one answer."""
    actor = await authenticate(request)
    run, seen = request.path_params["run"], _number(request, "seen")
    hub = hub_of(request)

    def load(connection: Connection) -> dict[str, Any]:
        analysis = connection.execute(select(runs.c.analysis_id).where(runs.c.id == run)).scalar()
        about = (leaves.c.type == "start") & (leaves.c.subject == analysis) & readable_log(actor)
        wanted = select(leaves.c.idx, leaves.c.leaf).where(about).order_by(leaves.c.idx.desc())
        for index, leaf in connection.execute(wanted):
            shown, signed = event_of(leaf.decode())
            if shown.facts.get("run") == run:
                return _start(connection, hub, index, signed, seen)
        raise NotFound("The log holds no order for this run.")

    return record(await hub.database.read(load))


def _start(connection: Connection, hub: HubState, index: int, signed: SignedEvent, seen: int) -> dict[str, Any]:
    newest, signature = hub.log.head(connection)
    _, proof = hub.log.inclusion(connection, index, newest.size)
    joined = hub.log.consistency(connection, seen, newest.size) if seen <= newest.size else []
    return {
        "index": index, "event": json.loads(signed.event), "signature": signed.signature,
        "head": log.head_wire(newest, signature), "proof": [h.hex() for h in proof],
        "seen": seen, "consistency": [h.hex() for h in joined],
    }  # fmt: skip


async def consistency(request: Request) -> Response:
    """The proof that a newer tree only adds to an older one."""
    await authenticate(request)
    old, new = _number(request, "old"), _number(request, "new")
    hub = hub_of(request)
    proof = await hub.database.read(lambda c: hub.log.consistency(c, old, new))
    return record({"old": old, "new": new, "proof": [h.hex() for h in proof]})


async def inclusion(request: Request) -> Response:
    """The proof that an entry stands in a tree."""
    await authenticate(request)
    index, size = _number(request, "index"), _number(request, "size")
    hub = hub_of(request)
    hashed, proof = await hub.database.read(lambda c: hub.log.inclusion(c, index, size))
    return record({"index": index, "size": size, "leafHash": hashed.hex(), "proof": [h.hex() for h in proof]})


async def export(request: Request) -> Response:
    """``GET /core/audit/export``: what `flame.protocol.audit.verify_export` reads, a few entries at a time."""
    actor = await authenticate(request)
    hub = hub_of(request)
    found, signature = await hub.database.read(hub.log.exported_head)
    start = export_start(hub.key.public, found, signature)
    return StreamingResponse(_exported(hub, actor, start, found.size), media_type="application/json")


async def _exported(hub: HubState, actor: Actor, start: bytes, size: int) -> AsyncIterator[bytes]:
    yield start
    for first in range(0, size, BATCH):
        until = min(first + BATCH, size)
        rows = await hub.database.read(lambda c, a=first, b=until: _entries(c, actor, a, b))  # type: ignore[misc]
        yield b"".join(export_entry(row, first=first + place == 0) for place, row in enumerate(rows))
    yield export_end()


def _number(request: Request, name: str) -> int:
    text = request.query_params.get(name, "")
    if not text.isdigit() or len(text) > 15:
        raise wrong(name, f"'{name}' is a whole number.")
    return int(text)


_COUNT = in_query("integer", minimum=0)

ROUTES = [
    Described("POST", "/core/audit/events", post_event, About(status=201, body=EventBody)),
    Described("GET", "/core/audit/head", head, About()),
    Described("GET", "/core/audit/leaves", get_leaves, About(query={"from": _COUNT, "to": _COUNT})),
    Described("GET", "/core/audit/entries", entries, About(shape="list", query=asked_of(ENTRY))),
    Described("GET", "/core/audit/entries/{index}", entry, About()),
    Described("GET", "/core/audit/starts/{run}", start, About(query={"seen": _COUNT})),
    Described("GET", "/core/audit/consistency", consistency, About(query={"old": _COUNT, "new": _COUNT})),
    Described("GET", "/core/audit/inclusion", inclusion, About(query={"index": _COUNT, "size": _COUNT})),
    Described("GET", "/core/audit/export", export, About(shape="flat")),
]
