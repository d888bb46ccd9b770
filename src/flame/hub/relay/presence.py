"""Which nodes are shown as online: those that are connected to a hub process, or poll one."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from sqlalchemy import update

from flame.hub.nodes.tables import nodes
from flame.model.errors import FlameError

if TYPE_CHECKING:
    from flame.hub.state import HubState


async def set_online(hub: HubState, node: str, online: bool) -> None:
    with suppress(FlameError):  # at shutdown the database may be closed already
        await hub.database.write(lambda c: c.execute(update(nodes).where(nodes.c.id == node).values(online=online)))
