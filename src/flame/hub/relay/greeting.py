"""How a node and the hub begin, over a WebSocket or by a plain request: on which version of the protocol they settle."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flame import __version__
from flame.protocol.control import Hello, Welcome, settle

if TYPE_CHECKING:
    from flame.hub.state import HubState


async def welcome(hub: HubState, hello: Hello) -> Welcome:
    """Raises Incompatible, in words that say which side to upgrade."""
    version = settle(hello, __version__)
    head = await hub.database.read(hub.log.shown)
    return Welcome(version, __version__, head.size, head.root, hub.bulk_url)
