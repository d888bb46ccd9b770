"""What one hub process holds: its settings, its database, its key, and who is connected."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starlette.requests import HTTPConnection

    from flame.crypto.keys import IdentityKey
    from flame.hub.audit.log import AuditLog
    from flame.hub.identity.tokens import Tokens
    from flame.hub.observing import Counts
    from flame.hub.relay.arriving import Arrivals
    from flame.hub.relay.channels import Channels
    from flame.hub.relay.runs import Runs
    from flame.hub.relay.wakeups import PostgresWakeups
    from flame.hub.settings import Settings
    from flame.storage.engine import Database
    from flame.storage.mailbox import SqlMailbox
    from flame.storage.objects import Objects


@dataclass(slots=True)
class HubState:
    settings: Settings
    database: Database
    objects: Objects
    arrivals: Arrivals
    mailbox: SqlMailbox
    key: IdentityKey
    tokens: Tokens
    log: AuditLog
    channels: Channels
    runs: Runs
    counts: Counts
    bulk_url: str = ""
    wakeups: PostgresWakeups | None = None
    """With the other processes on the same database."""
    _tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    def in_background(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Let something go on after the answer; held here so that it is not collected, awaited at the end."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def acknowledged(self, node: str, seqs: list[int]) -> None:
        """A node holds these letters: they go with the next write, and then their objects."""
        self.in_background(self._clear(asyncio.wrap_future(self.mailbox.acknowledge_lazily(node, seqs))))

    async def _clear(self, blobs: asyncio.Future[list[str]]) -> None:
        for blob in await blobs:
            await self.objects.remove(blob)

    async def settle(self) -> None:
        """Wait for what goes on in the background."""
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)


def hub_of(connection: HTTPConnection) -> HubState:
    state: HubState = connection.app.state.hub
    return state
