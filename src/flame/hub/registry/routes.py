"""``/core/master-images`` and their groups. An image is an environment with a digest; nodes run by digest, never by name."""

from __future__ import annotations

import re
from typing import Any, Final

from msgspec import UNSET, UnsetType
from sqlalchemy import Connection, insert, select, update
from starlette.requests import Request
from starlette.responses import Response

from flame.hub.authorisation import Action, Hub, demand
from flame.hub.columns import fresh, now
from flame.hub.identity.sessions import authenticate
from flame.hub.problems import wrong
from flame.hub.registry.resources import MASTER_IMAGE, MASTER_IMAGE_GROUP
from flame.hub.registry.tables import master_image_groups, master_images
from flame.hub.resources import (
    Body,
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

FIRST_GROUP: Final = "python"
FIRST_IMAGE: Final = "python/base"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_PATH = re.compile(r"[a-z0-9]([a-z0-9._-]*)(/[a-z0-9][a-z0-9._-]*){1,5}")


class ImageBody(Body):
    path: str | UnsetType = UNSET
    virtual_path: str | UnsetType = UNSET
    name: str | UnsetType = UNSET
    digest: str | UnsetType | None = UNSET


async def create_image(request: Request) -> Response:
    """Register an environment, or give a known one its digest (same path: 201 with the changed row)."""
    actor = await authenticate(request)
    demand(actor, Action.CREATE, Hub())
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
    actor = await authenticate(request)
    demand(actor, Action.UPDATE, Hub())
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


ROUTES = [
    *readable_routes("/core/master-images", MASTER_IMAGE),
    *changing_routes("/core/master-images", create=create_image, update=update_image),
    *readable_routes("/core/master-image-groups", MASTER_IMAGE_GROUP),
]
