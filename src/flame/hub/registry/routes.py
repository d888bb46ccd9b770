"""``/core/master-images`` and their groups. An image is an environment with a digest; nodes run by digest, never by name."""

from __future__ import annotations

import re
from typing import Any, Final, Literal

from msgspec import UNSET, UnsetType
from sqlalchemy import Connection, delete, insert, select, update
from starlette.requests import Request
from starlette.responses import Response

from flame.hub.authorisation import Action, Hub, demand
from flame.hub.columns import fresh, now
from flame.hub.described import About, Described
from flame.hub.identity.sessions import authenticate
from flame.hub.problems import wrong
from flame.hub.registry.registries import ROUTES as REGISTRIES
from flame.hub.registry.resources import MASTER_IMAGE, MASTER_IMAGE_GROUP
from flame.hub.registry.tables import master_image_groups, master_images
from flame.hub.resources import (
    Body,
    Id,
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
    text,
)
from flame.hub.state import HubState, hub_of
from flame.model.errors import Conflict

FIRST_GROUP: Final = "python"
FIRST_IMAGE: Final = "python/base"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_PATH = re.compile(r"[a-z0-9]([a-z0-9._-]*)(/[a-z0-9][a-z0-9._-]*){1,5}")


class ImageBody(Body):
    path: str | UnsetType = UNSET
    virtual_path: str | UnsetType = UNSET
    name: Name | UnsetType = UNSET
    digest: str | UnsetType | None = UNSET


class ImageCommandBody(Body):
    command: Literal["sync", "build"]
    id: Id | UnsetType = UNSET


async def create_image(request: Request) -> Response:
    """Register an environment, or give a known one its digest (same path: 201 with the changed row)."""
    actor = await authenticate(request)
    demand(actor, Action.CREATE, Hub("master_image_manage"))
    body = await read_body(request, ImageBody)
    path = text(body.virtual_path or body.path, "virtualPath", most=512)
    if not _PATH.fullmatch(path):
        raise wrong("virtualPath", "A path is written as group/name.")
    digest = _digest(body.digest)
    hub = hub_of(request)

    def store(connection: Connection) -> dict[str, Any]:
        known = connection.execute(select(master_images.c.id).where(master_images.c.virtual_path == path)).scalar()
        if known is None:
            known = add_image(connection, path, digest)
        else:
            connection.execute(
                update(master_images).where(master_images.c.id == known).values(digest=digest, updated_at=now())
            )
        hub.log.tell(connection, "environment", known, {"path": path, "digest": digest or ""})
        return get_row(connection, actor, MASTER_IMAGE, known)

    return record(await hub.database.write(store, "audit"), MASTER_IMAGE, 201)


async def update_image(request: Request) -> Response:
    """Give an environment another digest."""
    actor = await authenticate(request)
    demand(actor, Action.UPDATE, Hub("master_image_manage"))
    key = path_id(request, MASTER_IMAGE)
    digest = _digest((await read_body(request, ImageBody)).digest)
    hub = hub_of(request)

    def store(connection: Connection) -> dict[str, Any]:
        row = raw_row(connection, actor, MASTER_IMAGE, key)
        connection.execute(
            update(master_images).where(master_images.c.id == key).values(digest=digest, updated_at=now())
        )
        hub.log.tell(connection, "environment", key, {"path": row.virtual_path, "digest": digest or ""})
        return get_row(connection, actor, MASTER_IMAGE, key)

    return record(await hub.database.write(store, "audit"), MASTER_IMAGE, 202)


def _digest(value: str | UnsetType | None) -> str | None:
    if value is None or value is UNSET:
        return None
    if not _DIGEST.fullmatch(value):
        raise wrong("digest", "A digest is sha256: and 64 hexadecimal digits.")
    return value


def add_image(connection: Connection, path: str, digest: str | None) -> str:
    """A master image, and its group when that is new."""
    group, _, name = path.rpartition("/")
    table = master_image_groups
    if connection.execute(select(table.c.id).where(table.c.virtual_path == group)).first() is None:
        connection.execute(insert(table).values(**fresh(name=group, path=group, virtual_path=group)))
    row = fresh(
        name=name, path=path, virtual_path=path, group_virtual_path=group, command="python", digest=digest,
        build_status="executed", build_progress=100,
    )  # fmt: skip
    connection.execute(insert(master_images).values(**row))
    return str(row["id"])


async def delete_image(request: Request) -> Response:
    """Forget an image that no locked analysis runs in."""
    actor = await authenticate(request)
    demand(actor, Action.DELETE, Hub("master_image_manage"))
    key = path_id(request, MASTER_IMAGE)
    hub = hub_of(request)

    def store(connection: Connection) -> Row:
        from flame.hub.analyses.tables import analyses  # its resources include images

        shown = get_row(connection, actor, MASTER_IMAGE, key)
        used = (analyses.c.master_image_id == key) & analyses.c.configuration_locked.is_(True)
        if connection.execute(select(analyses.c.id).where(used)).first():
            raise Conflict("A locked analysis runs in this image.", next_step="Unlock or delete the analysis first.")
        connection.execute(delete(master_images).where(master_images.c.id == key))
        hub.log.tell(connection, "environment", key, {"path": shown["virtualPath"], "deleted": True})
        return shown

    return record(await hub.database.write(store, "audit"), MASTER_IMAGE, 202)


async def delete_group(request: Request) -> Response:
    """Forget a group that holds no image."""
    actor = await authenticate(request)
    demand(actor, Action.DELETE, Hub("master_image_group_manage"))
    key = path_id(request, MASTER_IMAGE_GROUP)

    def store(connection: Connection) -> Row:
        shown = get_row(connection, actor, MASTER_IMAGE_GROUP, key)
        inside = master_images.c.group_virtual_path == shown["virtualPath"]
        if connection.execute(select(master_images.c.id).where(inside)).first():
            raise Conflict("The group still holds images.", next_step="Delete them first.")
        connection.execute(delete(master_image_groups).where(master_image_groups.c.id == key))
        return shown

    return record(await hub_of(request).database.write(store), MASTER_IMAGE_GROUP, 202)


async def image_command(request: Request) -> Response:
    """``sync`` brings back FLAME's base image where it is missing; ``build`` of an image is done at once.

    An image here is an environment that nodes hold, known by its digest: there is nothing that a hub would build.
    """
    actor = await authenticate(request)
    demand(actor, Action.UPDATE, Hub("master_image_manage"))
    body = await read_body(request, ImageCommandBody)
    hub = hub_of(request)

    def store(connection: Connection) -> str | None:
        if body.command == "sync":
            known = select(master_images.c.id).where(master_images.c.virtual_path == FIRST_IMAGE)
            if connection.execute(known).first() is None:
                add_image(connection, FIRST_IMAGE, None)
            return None
        if body.id is UNSET:
            raise wrong("id", "Which image is to be built?")
        row = related_row(connection, actor, MASTER_IMAGE, body.id, "id")
        values = {"build_status": "starting", "build_progress": 0, "updated_at": now()}
        connection.execute(update(master_images).where(master_images.c.id == row.id).values(**values))
        return str(row.id)

    started = await hub.database.write(store)
    if started is not None:
        hub.in_background(_finish_build(hub, started))
    return answer(None, 202)


async def _finish_build(hub: HubState, key: str) -> None:
    done = {
        "build_status": "executed",
        "build_progress": 100,
        "build_hash": master_images.c.digest,
        "updated_at": now(),
    }
    await hub.database.write(lambda c: c.execute(update(master_images).where(master_images.c.id == key).values(**done)))


ROUTES = [
    *readable_routes("/core/master-images", MASTER_IMAGE),
    Described("POST", "/core/master-images/command", image_command, About(shape="nothing", status=202, body=ImageCommandBody)),
    *changing_routes(
        "/core/master-images", create=create_image, update=update_image, remove=delete_image,
        resource=MASTER_IMAGE, body=ImageBody,
    ),
    *readable_routes("/core/master-image-groups", MASTER_IMAGE_GROUP),
    *changing_routes("/core/master-image-groups", remove=delete_group, resource=MASTER_IMAGE_GROUP),
    *REGISTRIES,
]  # fmt: skip
