"""``/core/registries``, ``/core/registry-projects`` and ``/core/services/registry``: records that FLAME's clients keep.

No registry is contacted, and none is pretended: what stands here is what people have entered, and which of it belongs to
which node. Account secrets are sealed under the hub's key; they are shown to who manages registries, and only on demand.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import UNSET, UnsetType
from sqlalchemy import Connection, delete, func, insert, select, update
from starlette.requests import Request
from starlette.responses import Response

from flame.crypto.atrest import StorageKey
from flame.hub.authorisation import Action, Hub, demand
from flame.hub.columns import fresh, now
from flame.hub.described import About, Described
from flame.hub.identity.sessions import authenticate
from flame.hub.problems import wrong
from flame.hub.registry.resources import REGISTRY, REGISTRY_PROJECT
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
from flame.hub.state import HubState, hub_of
from flame.model.errors import Conflict

Kind = Literal["default", "aggregator", "incoming", "outgoing", "masterImages", "node"]
ExternalName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
Secret = Annotated[str, msgspec.Meta(max_length=1024)]

OWN_PROJECTS: Final[tuple[tuple[str, Kind, bool], ...]] = (
    ("incoming", "incoming", False),
    ("outgoing", "outgoing", False),
    ("master", "masterImages", True),
)
"""What ``setup`` makes: name, type, public."""


class RegistryBody(Body):
    name: Name | UnsetType = UNSET
    host: Annotated[str, msgspec.Meta(min_length=3, max_length=512)] | UnsetType = UNSET
    account_name: Label | UnsetType | None = UNSET
    account_secret: Secret | UnsetType | None = UNSET


class NewRegistryBody(RegistryBody, kw_only=True):
    name: Name
    host: Annotated[str, msgspec.Meta(min_length=3, max_length=512)]


class RegistryProjectBody(Body):
    name: Annotated[str, msgspec.Meta(min_length=3, max_length=128)] | UnsetType = UNSET
    type: Kind | UnsetType = UNSET
    registry_id: Id | UnsetType = UNSET
    external_name: ExternalName | UnsetType = UNSET
    account_name: Label | UnsetType | None = UNSET
    account_secret: Secret | UnsetType | None = UNSET


class NewRegistryProjectBody(RegistryProjectBody, kw_only=True):
    name: Annotated[str, msgspec.Meta(min_length=3, max_length=128)]
    type: Kind
    registry_id: Id
    external_name: ExternalName


class RegistryCommandBody(Body):
    command: Literal["setup", "cleanup", "delete", "projectLink", "projectUnlink"]
    id: Id


def _vault(hub: HubState) -> StorageKey:
    return StorageKey(hashlib.sha256(b"flame-hub-registry-secrets-v1\0" + hub.key.private_bytes).digest())


def seal_secret(hub: HubState, values: Row, row: str) -> None:
    """Replace a secret in the clear by its sealed form, bound to the row that holds it."""
    given = values.get("account_secret")
    if given:
        values["account_secret"] = _vault(hub).seal(given.encode(), row.encode()).hex()


def open_secret(hub: HubState, sealed: str | None, row: str) -> str | None:
    return _vault(hub).open(bytes.fromhex(sealed), row.encode()).decode() if sealed else sealed


def _reveal(hub: HubState, row: Row) -> Row:
    if row.get("accountSecret"):
        row["accountSecret"] = open_secret(hub, row["accountSecret"], row["id"])
    return row


def host_name(given: str) -> str:
    """The host of an address, with its port when one is given: ``https://r.example/x`` -> ``r.example``."""
    try:
        parts = urlsplit(given if "//" in given else f"//{given}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or not all(c.isalnum() or c in "-.:_" for c in host):
        raise wrong("host", "'host' is the name of a host.")
    return f"{host}:{port}" if port else host


# ----------------------------------------------------------------------------------------------------------- registries


async def create_registry(request: Request) -> Response:
    """Enter a registry."""
    actor = await authenticate(request)
    demand(actor, Action.CREATE, Hub("registry_manage"))
    body = await read_body(request, NewRegistryBody)
    hub = hub_of(request)
    row = fresh(**body.given() | {"host": host_name(body.host)})
    seal_secret(hub, row, row["id"])

    def store(connection: Connection) -> Row:
        connection.execute(insert(registries).values(**row))
        hub.log.tell(connection, "administration", row["id"], {"created": "registry", "by": actor.id})
        return get_row(connection, actor, REGISTRY, row["id"])

    return record(await hub.database.write(store), REGISTRY, 201)


async def update_registry(request: Request) -> Response:
    """Change what is known of a registry."""
    actor = await authenticate(request)
    demand(actor, Action.UPDATE, Hub("registry_manage"))
    key = path_id(request, REGISTRY)
    body = await read_body(request, RegistryBody)
    hub = hub_of(request)
    values = body.given()
    if body.host is not UNSET:
        values["host"] = host_name(body.host)
    seal_secret(hub, values, key)

    def store(connection: Connection) -> Row:
        raw_row(connection, actor, REGISTRY, key)
        connection.execute(update(registries).where(registries.c.id == key).values(**values, updated_at=now()))
        hub.log.tell(connection, "administration", key, {"changed": "registry", "by": actor.id})
        return get_row(connection, actor, REGISTRY, key)

    return record(await hub.database.write(store), REGISTRY, 202)


async def delete_registry(request: Request) -> Response:
    """Forget a registry and its projects; nodes and analyses are then without one."""
    actor = await authenticate(request)
    demand(actor, Action.DELETE, Hub("registry_manage"))
    key = path_id(request, REGISTRY)
    hub = hub_of(request)

    def store(connection: Connection) -> Row:
        shown = get_row(connection, actor, REGISTRY, key)
        connection.execute(delete(registries).where(registries.c.id == key))
        hub.log.tell(connection, "administration", key, {"deleted": "registry", "by": actor.id})
        return shown

    return record(await hub.database.write(store), REGISTRY, 202)


# ---------------------------------------------------------------------------------------------------- registry projects


async def create_registry_project(request: Request) -> Response:
    """Enter a project of a registry."""
    actor = await authenticate(request)
    demand(actor, Action.CREATE, Hub("registry_project_manage"))
    body = await read_body(request, NewRegistryProjectBody)
    hub = hub_of(request)
    row = fresh(**body.given(), public=body.type == "masterImages")
    seal_secret(hub, row, row["id"])

    def store(connection: Connection) -> Row:
        related_row(connection, actor, REGISTRY, body.registry_id, "registryId")
        connection.execute(insert(registry_projects).values(**row))
        return get_row(connection, actor, REGISTRY_PROJECT, row["id"])

    return record(await hub.database.write(store), REGISTRY_PROJECT, 201)


async def update_registry_project(request: Request) -> Response:
    """Change what is known of a registry's project: its account, say."""
    actor = await authenticate(request)
    demand(actor, Action.UPDATE, Hub("registry_project_manage"))
    key = path_id(request, REGISTRY_PROJECT)
    body = await read_body(request, RegistryProjectBody)
    hub = hub_of(request)
    values = body.given()
    seal_secret(hub, values, key)

    def store(connection: Connection) -> Row:
        raw_row(connection, actor, REGISTRY_PROJECT, key)
        if body.registry_id is not UNSET:
            related_row(connection, actor, REGISTRY, body.registry_id, "registryId")
        table = registry_projects
        connection.execute(update(table).where(table.c.id == key).values(**values, updated_at=now()))
        return get_row(connection, actor, REGISTRY_PROJECT, key)

    return record(await hub.database.write(store), REGISTRY_PROJECT, 202)


async def delete_registry_project(request: Request) -> Response:
    """Forget a registry's project."""
    actor = await authenticate(request)
    demand(actor, Action.DELETE, Hub("registry_project_manage"))
    key = path_id(request, REGISTRY_PROJECT)

    def store(connection: Connection) -> Row:
        shown = get_row(connection, actor, REGISTRY_PROJECT, key)
        connection.execute(delete(registry_projects).where(registry_projects.c.id == key))
        return shown

    return record(await hub_of(request).database.write(store), REGISTRY_PROJECT, 202)


def only_registry(connection: Connection) -> str | None:
    """The one registry, where there is exactly one: a new node gets its project there."""
    found = list(connection.execute(select(registries.c.id).limit(2)).scalars())
    return found[0] if len(found) == 1 else None


def provide_project(connection: Connection, registry: str, node: str, external_name: str, realm: str) -> str:
    """A registry's project for one node; its id."""
    row = fresh(name=node, type="node", public=False, external_name=external_name, registry_id=registry, realm_id=realm)
    connection.execute(insert(registry_projects).values(**row))
    return str(row["id"])


# ------------------------------------------------------------------------------------------------------------- commands


async def command(request: Request) -> Response:
    """``setup`` makes the three projects of a registry; ``cleanup`` changes nothing; ``delete`` forgets the registry."""
    actor = await authenticate(request)
    demand(actor, Action.UPDATE, Hub("service_manage"))
    body = await read_body(request, RegistryCommandBody)
    hub = hub_of(request)

    def store(connection: Connection) -> None:
        if body.command in ("projectLink", "projectUnlink"):
            raise Conflict(
                "This hub contacts no registry, so it links no project there.",
                next_step="Make the project in the registry itself, and enter its account here.",
            )
        related_row(connection, actor, REGISTRY, body.id, "id")
        if body.command == "setup":
            _set_up(connection, body.id)
        elif body.command == "delete":
            connection.execute(delete(registries).where(registries.c.id == body.id))
        facts = {"command": body.command, "by": actor.id}
        hub.log.tell(connection, "administration", body.id, facts)

    await hub.database.write(store)
    return answer(None, 202)


def _set_up(connection: Connection, registry: str) -> None:
    table = registry_projects
    for name, kind, public in OWN_PROJECTS:
        known = select(func.count()).where(table.c.registry_id == registry, table.c.type == kind)
        if connection.execute(known.select_from(table)).scalar():
            continue
        row = fresh(name=name, type=kind, public=public, external_name=secrets.token_hex(10), registry_id=registry)
        connection.execute(insert(table).values(**row))


async def hook(request: Request) -> Response:
    """Where a registry's web hook would call; nothing follows from it."""
    demand(await authenticate(request), Action.UPDATE, Hub("service_manage"))
    await read_body(request, dict)
    return answer(None, 202)


ROUTES = [
    *readable_routes("/core/registries", REGISTRY, _reveal),
    *changing_routes(
        "/core/registries", create=create_registry, update=update_registry, remove=delete_registry,
        resource=REGISTRY, body=NewRegistryBody, changes=RegistryBody,
    ),
    *readable_routes("/core/registry-projects", REGISTRY_PROJECT, _reveal),
    *changing_routes(
        "/core/registry-projects", create=create_registry_project, update=update_registry_project,
        remove=delete_registry_project, resource=REGISTRY_PROJECT, body=NewRegistryProjectBody,
        changes=RegistryProjectBody,
    ),
    Described("POST", "/core/services/registry/command", command, About(shape="nothing", status=202, body=RegistryCommandBody)),
    Described("POST", "/core/services/registry/hook", hook, About(shape="nothing", status=202)),
]  # fmt: skip
