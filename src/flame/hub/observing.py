"""What an operator's machines ask: is it alive, is it ready, how much does it do. And one line for each failed request.

Requests are counted by method, route (as written in the code, without anybody's ids) and status; the log has the same
and nothing of headers, queries or bodies. The counts are plain numbers here: `prometheus_client` is imported when
somebody asks for them.
"""

from __future__ import annotations

import hmac
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from importlib.metadata import version
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final

import structlog
from sqlalchemy import select
from starlette.requests import Request
from starlette.responses import Response

from flame.hub.described import About, Described
from flame.hub.identity.tables import realms
from flame.hub.resources import answer
from flame.hub.state import hub_of
from flame.model.errors import FlameError, NotAllowed, Unavailable

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from flame.hub.state import HubState

SLOW_SECONDS: Final = 5.0
BUCKETS: Final = (0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0)
MEDIA: Final = "text/plain; version=0.0.4; charset=utf-8"

_log = structlog.get_logger("flame.hub")
Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]


class Counts:
    """Requests since the start, by (method, route, status); their times by route."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, str, int]] = Counter()
        self.seconds: Counter[str] = Counter()
        self.within: Counter[tuple[str, float]] = Counter()

    def add(self, method: str, route: str, status: int, seconds: float) -> None:
        self.requests[method, route, status] += 1
        self.seconds[route] += seconds  # type: ignore[assignment]
        bucket = next((limit for limit in BUCKETS if seconds <= limit), float("inf"))
        self.within[route, bucket] += 1


class Observed:
    """The application, counted. What fails or takes long leaves a line in the log."""

    def __init__(self, app: Any, counts: Counts) -> None:
        self._app, self._counts = app, counts

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status = time.perf_counter(), 500

        async def watching(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watching)
        finally:
            seconds = time.perf_counter() - begun
            method = scope["method"] if scope["method"] in _METHODS else "other"
            route = getattr(scope.get("route"), "path", "none")
            self._counts.add(method, route, status, seconds)
            if status >= 400 or seconds >= SLOW_SECONDS:
                _log.info("request", method=method, route=route, status=status, ms=round(seconds * 1000))


_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


async def healthz(request: Request) -> Response:
    """The process answers."""
    return answer({"ok": True})


async def readyz(request: Request) -> Response:
    """The hub can serve: its database answers, and its log is what it wrote."""
    hub = hub_of(request)
    try:
        await hub.database.read(lambda c: c.execute(select(realms.c.id).limit(1)).first())
    except FlameError:
        raise Unavailable("The hub's database does not answer.", next_step="Tell the hub's operator.") from None
    if hub.log.damage is not None:
        raise Unavailable("The hub's log is damaged: nothing is added to it.", next_step="Tell the hub's operator.")
    return answer({"ok": True})


async def metrics(request: Request) -> Response:
    """Numbers for Prometheus; with the operator's token, or from the hub's own machine."""
    hub = hub_of(request)
    _check_caller(request, hub)
    from prometheus_client.exposition import generate_latest
    from prometheus_client.registry import CollectorRegistry

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(hub))
    return Response(generate_latest(registry), media_type=MEDIA)


def _check_caller(request: Request, hub: HubState) -> None:
    path = hub.settings.metrics_token_file
    if path is not None:
        wanted = path.read_text(encoding="utf-8").partition("\n")[0].strip()
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if wanted and hmac.compare_digest(given.encode(), wanted.encode()):
            return
        raise NotAllowed("The metrics need the operator's token.")
    host = request.client.host if request.client else ""
    passed_on = any(name in request.headers for name in ("forwarded", "x-forwarded-for", "x-real-ip", "via"))
    if passed_on or not _is_here(host):
        raise NotAllowed(
            "The metrics are for callers on the hub's own machine.", next_step="Set FLAME_HUB_METRICS_TOKEN_FILE."
        )


def _is_here(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


class _Collector:
    def __init__(self, hub: HubState) -> None:
        self._hub = hub

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.metrics_core import CounterMetricFamily as Count
        from prometheus_client.metrics_core import GaugeMetricFamily as Gauge
        from prometheus_client.metrics_core import HistogramMetricFamily as Histogram

        hub, counts = self._hub, self._hub.counts
        info = Gauge("flame_hub_info", "The hub's release.", labels=["version"])
        info.add_metric([version("flame-federated")], 1)
        yield info
        requests = Count("flame_hub_requests", "Requests answered.", labels=["method", "route", "status"])
        for (method, route, status), number in list(counts.requests.items()):
            requests.add_metric([method, route, str(status)], number)
        yield requests
        times = Histogram("flame_hub_request_seconds", "Time to answer.", labels=["route"])
        for route, total in list(counts.seconds.items()):
            so_far, buckets = 0, []
            for limit in (*BUCKETS, float("inf")):
                so_far += counts.within[route, limit]
                buckets.append(("+Inf" if limit == float("inf") else str(limit), so_far))
            times.add_metric([route], buckets, total)
        yield times
        yield Gauge("flame_hub_connected_nodes", "Nodes that listen here.", value=len(hub.channels.here()))
        yield Gauge("flame_hub_objects_bytes", "Bytes of kept objects.", value=hub.objects.usage.used)
        yield Count("flame_hub_database_commits", "Transactions that wrote.", value=hub.database.commits)
        yield Count("flame_hub_database_operations", "Operations in them.", value=hub.database.operations)


ROUTES = [
    Described("GET", "/healthz", healthz, About(shape="flat", public=True)),
    Described("GET", "/readyz", readyz, About(shape="flat", public=True)),
    Described("GET", "/metrics", metrics, About(shape="bytes", public=True, media=("text/plain",))),
]
