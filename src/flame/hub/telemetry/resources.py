"""What clients may ask about events."""

from __future__ import annotations

from flame.hub import authorisation as rules
from flame.hub.resources import Resource
from flame.hub.telemetry.tables import events

EVENT = Resource(
    "event", events, rules.readable_events,
    filters=frozenset({"scope", "name", "refType", "refId", "realmId", "createdAt", "updatedAt"}),
    sorts=frozenset({"expiresAt", "createdAt", "updatedAt"}), json=frozenset({"data"}),
    constant=dict.fromkeys(("requestPath", "requestMethod", "requestIpAddress", "requestUserAgent")),
)  # fmt: skip
