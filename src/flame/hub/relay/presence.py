"""Which nodes are shown as online: those that are connected to a hub process, or poll one.

With several processes each knows its own: whoever marks a node as offline asks all to show theirs, in one transaction,
so that what is shown in the end is right whatever the order.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from sqlalchemy import Connection, update

from flame.hub.nodes.tables import nodes
from flame.model.errors import FlameError

if TYPE_CHECKING:
    from flame.hub.relay.wakeups import PostgresWakeups
    from flame.hub.state import HubState


async def set_online(hub: HubState, node: str, online: bool) -> None:
    def write(connection: Connection) -> None:
        connection.execute(update(nodes).where(nodes.c.id == node).values(online=online))
        if not online:
            _ask_all(connection, hub.wakeups)

    with suppress(FlameError):  # at shutdown the database may be closed already
        await hub.database.write(write)


async def clear_online(hub: HubState, wakeups: PostgresWakeups) -> None:
    """A process is gone, and with it the connections of its nodes."""

    def write(connection: Connection) -> None:
        connection.execute(update(nodes).where(nodes.c.online.is_(True)).values(online=False))
        _ask_all(connection, wakeups)

    with suppress(FlameError):
        await hub.database.write(write)


async def show_here(hub: HubState) -> None:
    """The nodes of this process are online, whatever somebody else may have thought."""
    here = hub.channels.here()
    if here:
        with suppress(FlameError):
            await hub.database.write(
                lambda c: c.execute(
                    update(nodes).where(nodes.c.id.in_(here), nodes.c.online.is_(False)).values(online=True)
                )
            )


def _ask_all(connection: Connection, wakeups: PostgresWakeups | None) -> None:
    if wakeups is not None:
        wakeups.ask_to_show(connection)
