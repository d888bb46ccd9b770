"""``/auth/clients``: programs that authenticate by themselves, or for people."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import UNSET, UnsetType
from sqlalchemy import Connection, delete, insert, select, update
from starlette.requests import Request
from starlette.responses import Response

from flame.hub.analyses.tables import analyses
from flame.hub.authorisation import Action, Hub, Realm, demand
from flame.hub.columns import fresh, now
from flame.hub.identity import resources as known
from flame.hub.identity.passwords import hash_in_thread
from flame.hub.identity.rights import demand_over
from flame.hub.identity.sessions import authenticate
from flame.hub.identity.tables import clients, sessions
from flame.hub.nodes.tables import nodes
from flame.hub.problems import wrong
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
from flame.hub.state import hub_of
from flame.model.errors import Conflict

GRANTS: Final = frozenset(
    {"client_credentials", "authorization_code", "refresh_token", "urn:ietf:params:oauth:grant-type:device_code"}
)
MAX_PLACES: Final = 10
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})

ClientName = Annotated[str, msgspec.Meta(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$")]
Secret = Annotated[str, msgspec.Meta(min_length=8, max_length=512)]
Uri = Annotated[str, msgspec.Meta(max_length=2000)]
Words = Annotated[str, msgspec.Meta(max_length=512, pattern=r"^[\x21-\x7e ]*$")]


class _Options(Body):
    display_name: Label | UnsetType | None = UNSET
    description: LongText | UnsetType | None = UNSET
    secret: Secret | UnsetType | None = UNSET
    active: bool | UnsetType = UNSET
    is_confidential: bool | UnsetType = UNSET
    redirect_uri: Uri | UnsetType | None = UNSET
    grant_types: Words | UnsetType | None = UNSET
    scope: Words | UnsetType | None = UNSET
    base_url: Uri | UnsetType | None = UNSET
    root_url: Uri | UnsetType | None = UNSET
    auth_method: Literal["none", "secret", "tls"] | UnsetType = UNSET
    token_binding_method: Literal["none", "tls"] | UnsetType = UNSET
    backchannel_logout_uri: Uri | UnsetType | None = UNSET
    post_logout_redirect_uri: Uri | UnsetType | None = UNSET


class ClientBody(_Options, kw_only=True):
    name: ClientName
    realm_id: Id | UnsetType | None = UNSET


class ClientChanges(_Options, kw_only=True):
    name: ClientName | UnsetType = UNSET


async def create_client(request: Request) -> Response:
    """Make a client. Its id and the secret that was given here authenticate it; the hub keeps the secret's hash."""
    actor = await authenticate(request)
    body = await read_body(request, ClientBody)
    realm = body.realm_id or actor.realm
    demand(actor, Action.CREATE, Realm(realm, "client"))
    values = await _values(body)
    row = fresh(**{"display_name": body.name} | values | {"realm_id": realm})
    row["display_name"] = row["display_name"] or body.name
    hub = hub_of(request)

    def store(connection: Connection) -> dict[str, Any]:
        related_row(connection, actor, known.REALM, realm, "realmId")
        connection.execute(insert(clients).values(**row))
        hub.log.tell(connection, "administration", row["id"], {"created": "client", "realm": realm, "by": actor.id})
        return get_row(connection, actor, known.CLIENT, row["id"])

    return record(await hub.database.write(store), known.CLIENT, 201)


async def update_client(request: Request) -> Response:
    """Change a client. A new secret, or `active` false, ends its tokens at once."""
    actor = await authenticate(request)
    key = path_id(request, known.CLIENT)
    values = await _values(await read_body(request, ClientChanges))
    hub = hub_of(request)

    def store(connection: Connection) -> dict[str, Any]:
        row = raw_row(connection, actor, known.CLIENT, key)
        demand(actor, Action.UPDATE, Hub() if row.built_in else Realm(row.realm_id, "client"))
        demand_over(connection, actor, "client", row)
        connection.execute(update(clients).where(clients.c.id == key).values(**values, updated_at=now()))
        if "secret_hash" in values or values.get("active") is False:
            theirs = (sessions.c.subject == key) | (sessions.c.client_id == key)
            connection.execute(update(sessions).where(theirs).values(revoked=True))
        hub.log.tell(connection, "administration", key, {"changed": "client", "by": actor.id})
        return get_row(connection, actor, known.CLIENT, key)

    row = await hub.database.write(store)
    hub.channels.stir(key)  # a node that is connected as this client hears of it
    return record(row, known.CLIENT, 202)


async def delete_client(request: Request) -> Response:
    """Delete a client; its tokens end at once. A node's or an analysis' goes with the node or the analysis."""
    actor = await authenticate(request)
    key = path_id(request, known.CLIENT)
    hub = hub_of(request)

    def store(connection: Connection) -> dict[str, Any]:
        shown = get_row(connection, actor, known.CLIENT, key)
        row = raw_row(connection, actor, known.CLIENT, key)
        demand(actor, Action.DELETE, Realm(row.realm_id, "client"))
        demand_over(connection, actor, "client", row)
        if row.built_in:
            raise Conflict("This client is the hub's own.", next_step="Set 'active' to false instead.")
        for table, what in ((nodes, "a node"), (analyses, "an analysis")):
            if connection.execute(select(table.c.id).where(table.c.client_id == key)).first():
                raise Conflict(f"This is the client of {what}, and goes with it.")
        connection.execute(delete(sessions).where(sessions.c.subject == key))
        connection.execute(delete(clients).where(clients.c.id == key))
        hub.log.tell(connection, "administration", key, {"deleted": "client", "by": actor.id})
        return shown

    return record(await hub.database.write(store), known.CLIENT, 202)


async def _values(body: _Options) -> dict[str, Any]:
    """The columns of a body: the secret as its hash, addresses and grants checked."""
    values = body.given()
    if "secret" in values:
        secret = values.pop("secret")
        values["secret_hash"] = await hash_in_thread(secret) if secret else None
    if values.get("redirect_uri"):
        given = places(values["redirect_uri"])
        if len(given) > MAX_PLACES:
            raise wrong("redirectUri", f"A client has at most {MAX_PLACES} places to return to.")
        values["redirect_uri"] = " ".join(_checked_place(place) for place in given)
    unknown = sorted(set(places(values.get("grant_types"))) - GRANTS)
    if unknown:
        raise wrong(
            "grantTypes", f"'{unknown[0][:60]}' is not a grant for clients.", f"Known: {', '.join(sorted(GRANTS))}."
        )
    return values


def places(text: str | UnsetType | None) -> list[str]:
    """What stands in a text, divided by blanks or commas."""
    return [part for part in re.split(r"[\s,]+", text) if part] if text else []


def _checked_place(uri: str) -> str:
    """Where a login may lead: compared as a whole later, so neither patterns nor fragments."""
    try:
        parts = urlsplit(uri)
        fits = parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK)
        fits = fits and bool(parts.hostname) and parts.port != 0 and parts.username is None
    except ValueError:
        fits = False
    if not fits or "#" in uri or "*" in uri or not uri.isascii() or any(c in uri for c in "\"'<>\\;"):
        raise wrong(
            "redirectUri", f"'{uri[:80]}' is not a place to return to.", "Use https, or http on this machine, in full."
        )
    return uri


ROUTES: Final = [
    *readable_routes("/auth/clients", known.CLIENT),
    *changing_routes(
        "/auth/clients", create=create_client, update=update_client, remove=delete_client,
        resource=known.CLIENT, body=ClientBody, changes=ClientChanges,
    ),
]  # fmt: skip
