"""The credentials of a node's or an analysis' client: a secret is set, shown once, and kept as a hash."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Annotated

from msgspec import UNSET, Meta, Struct, UnsetType
from sqlalchemy import Connection, select, update
from starlette.requests import Request

from flame.hub.columns import now
from flame.hub.identity.passwords import hash_in_thread
from flame.hub.identity.tables import clients, sessions
from flame.hub.resources import Body, Label, Row, read_body


class CredentialsBody(Body):
    """Without a secret, or with null, the hub makes one."""

    secret: Annotated[str, Meta(min_length=8, max_length=512)] | UnsetType | None = UNSET
    name: Annotated[str, Meta(min_length=1, max_length=128)] | UnsetType | None = UNSET
    display_name: Label | UnsetType | None = UNSET


class Credentials(Struct, rename="camel"):
    id: str
    name: str
    display_name: str
    secret: str | None = None


@dataclass(frozen=True, slots=True)
class NewCredentials:
    """What is to be stored, its secret hashed already (that takes a while, and is done outside of transactions)."""

    secret: str
    hashed: str
    names: Row

    def store(self, connection: Connection, client: str) -> Credentials:
        """Sessions that the former secret has opened end."""
        values = self.names | {"secret_hash": self.hashed, "updated_at": now()}
        connection.execute(update(clients).where(clients.c.id == client).values(**values))
        connection.execute(update(sessions).where(sessions.c.subject == client).values(revoked=True))
        shown = shown_client(connection, client)
        shown.secret = self.secret
        return shown


async def read_credentials(request: Request) -> NewCredentials:
    body = await read_body(request, CredentialsBody)
    secret = body.secret or secrets.token_hex(32)
    names = {name: value for name, value in (("name", body.name), ("display_name", body.display_name)) if value}
    return NewCredentials(secret, await hash_in_thread(secret), names)


def shown_client(connection: Connection, client: str | None) -> Credentials:
    row = connection.execute(select(clients).where(clients.c.id == client)).one()
    return Credentials(row.id, row.name, row.display_name or row.name)
