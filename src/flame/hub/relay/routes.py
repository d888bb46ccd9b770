"""``/messenger``: one mailbox, reached by a WebSocket or in plain requests; the ways for bulk beside it."""

from __future__ import annotations

from starlette.routing import BaseRoute, Route, WebSocketRoute

from flame.hub.relay.bodies import get_message, put_message
from flame.hub.relay.control import control
from flame.hub.relay.polling import ROUTES as POLLING
from flame.protocol.control import PATH

ROUTES: list[BaseRoute] = [
    WebSocketRoute(PATH, control),
    *POLLING,
    Route("/messenger/messages", put_message, methods=["PUT"]),
    Route("/messenger/messages/{sender}/{msg_id}", get_message, methods=["GET"]),
]
