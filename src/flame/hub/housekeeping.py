"""What a hub tidies up: at its start what a crash left behind, and now and then what has expired."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING, Final

import structlog
from sqlalchemy import Connection, delete, update

from flame.hub.identity.tables import (
    authorization_codes,
    device_requests,
    login_failures,
    sessions,
    used_assertions,
)
from flame.hub.limits import PERIOD
from flame.hub.nodes.tables import nodes
from flame.hub.objects.upkeep import forget_expired, sweep
from flame.hub.relay.arriving import name_of
from flame.hub.telemetry.events import forget_events
from flame.model.errors import FlameError

if TYPE_CHECKING:
    from flame.hub.state import HubState

_log = structlog.get_logger("flame.hub")
EVERY_SECONDS: Final = 600.0


async def tidy_up(hub: HubState) -> None:
    """At the start: nobody is connected yet, and an object that no row names was never acknowledged."""
    if hub.database.url is None:  # of several processes each shows its own, once it hears the others
        await hub.database.write(
            lambda c: c.execute(update(nodes).where(nodes.c.online.is_(True)).values(online=False))
        )
    await sweep(hub, alone=hub.database.url is None)
    await expire(hub, alone=hub.database.url is None)


async def expire(hub: HubState, *, alone: bool = False) -> None:
    """Forget mail, sessions and assertions whose time is over, and of broken uploads what nobody waits for."""
    now = int(time.time())
    for blob in await hub.mailbox.expire(now):
        await hub.objects.remove(blob)
    wanted = {name_of(*letter) for letter in await hub.mailbox.arriving()}
    await asyncio.to_thread(partial(hub.arrivals.keep_only, wanted, alone=alone))

    def forget(connection: Connection) -> None:
        connection.execute(delete(sessions).where(sessions.c.expires < now))
        connection.execute(delete(used_assertions).where(used_assertions.c.expires < now - 60))
        connection.execute(delete(authorization_codes).where(authorization_codes.c.expires < now - 600))
        connection.execute(delete(device_requests).where(device_requests.c.expires < now - 600))
        connection.execute(delete(login_failures).where(login_failures.c.at < now - PERIOD))
        forget_events(connection)

    await hub.database.write(forget)
    await forget_expired(hub)


async def keep_tidy(hub: HubState) -> None:
    """`expire`, every ten minutes, and what nothing names any more, until it is cancelled. A failure is not the last try."""
    while True:
        await asyncio.sleep(EVERY_SECONDS)
        try:
            await expire(hub)
            await sweep(hub, alone=False)
        except FlameError as error:
            _log.warning("housekeeping_failed", code=error.code, message=error.message)
