"""What a hub tidies up: at its start what a crash left behind, and now and then what has expired."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

from sqlalchemy import Connection, delete, select, update

from flame.hub.identity.tables import sessions, used_assertions
from flame.hub.nodes.tables import nodes
from flame.hub.objects.tables import bucket_files
from flame.storage.mailbox import letters

if TYPE_CHECKING:
    from flame.hub.state import HubState

EVERY_SECONDS: Final = 600.0


async def tidy_up(hub: HubState) -> None:
    """At the start: nobody is connected yet, and an object that no row names was never acknowledged."""
    await hub.database.write(lambda c: c.execute(update(nodes).where(nodes.c.online.is_(True)).values(online=False)))
    named = await hub.database.read(_named)
    for key in await asyncio.to_thread(hub.objects.keys):
        if key not in named:
            await hub.objects.remove(key)
    await expire(hub)


def _named(connection: Connection) -> set[str]:
    files = {f"files/{name}" for name in connection.execute(select(bucket_files.c.hash)).scalars()}
    mail = connection.execute(select(letters.c.blob).where(letters.c.blob.is_not(None))).scalars()
    return files | {str(blob) for blob in mail}


async def expire(hub: HubState) -> None:
    """Forget mail, sessions and assertions whose time is over."""
    now = int(time.time())
    for blob in await hub.mailbox.expire(now):
        await hub.objects.remove(blob)

    def forget(connection: Connection) -> None:
        connection.execute(delete(sessions).where(sessions.c.expires < now))
        connection.execute(delete(used_assertions).where(used_assertions.c.expires < now - 60))

    await hub.database.write(forget)


async def keep_tidy(hub: HubState) -> None:
    """`expire`, every ten minutes, until it is cancelled."""
    while True:
        await asyncio.sleep(EVERY_SECONDS)
        await expire(hub)
