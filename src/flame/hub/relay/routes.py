"""``/messenger``: one mailbox, reached by a WebSocket or in plain requests; the ways for bulk beside it."""

from __future__ import annotations

from starlette.routing import BaseRoute, WebSocketRoute

from flame.hub.relay.bodies import ROUTES as BODIES
from flame.hub.relay.control import control
from flame.hub.relay.polling import ROUTES as POLLING
from flame.protocol.control import PATH

ROUTES: list[BaseRoute] = [
    WebSocketRoute(PATH, control),
    *POLLING,
    *BODIES,
]
