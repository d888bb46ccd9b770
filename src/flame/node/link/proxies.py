"""The proxy on the way to the hub, as the environment names it: HTTPS_PROXY, HTTP_PROXY, NO_PROXY."""

from __future__ import annotations

from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass


def proxy_of(url: str) -> str | None:
    """The proxy for a hub's address; None: the way is direct. A WebSocket goes where its plain requests go."""
    where = urlsplit(url)
    host = where.hostname or ""
    if proxy_bypass(f"{host}:{where.port}" if where.port else host):
        return None
    return getproxies().get(where.scheme)
