"""Running a hub: uvicorn on one address, a log without secrets, and a file that says where it is."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
import uvicorn

from flame.hub.app import alone, make_app, open_hub, write_place
from flame.hub.relay.bulk import BulkPlane
from flame.model.errors import Invalid

if TYPE_CHECKING:
    from flame.hub.settings import Settings
    from flame.hub.state import HubState

HUB_JSON = "hub.json"
HUB_LOG = "hub.log"
PASSWORD_FILE = "admin-password"  # noqa: S105 - the file's name


def serve(settings: Settings) -> None:
    """Run a hub until SIGTERM or SIGINT.

    Writes ``DIR/hub.json`` {url, pid} once it listens. On the first start the generated password of ``admin`` goes to
    standard output, one line, once; or, with `password_file`, to ``DIR/admin-password`` (mode 0600).
    """
    with alone(settings):
        hub, password = open_hub(settings)
        _start_log(settings.dir / HUB_LOG)
        log = structlog.get_logger("flame.hub")
        for warning in settings.warnings():
            log.warning("test_setting", message=warning)
            print(f"Warning: {warning}", file=sys.stderr)  # noqa: T201
        if password is not None:
            _hand_over(settings, password)
        _Server(_configured(hub, settings), hub, settings, settings.dir / HUB_JSON).run()


def _configured(hub: HubState, settings: Settings) -> uvicorn.Config:
    for path in (settings.tls_cert, settings.tls_key):
        if path is not None and not os.access(path, os.R_OK):
            raise Invalid(f"{path} cannot be read: TLS needs it.", next_step="See `flame hub doctor`.")
    return uvicorn.Config(
        make_app(hub),
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http="httptools",
        ws="websockets-sansio",
        ws_max_size=1 << 20,
        ws_per_message_deflate=False,
        access_log=False,
        log_config=None,
        server_header=False,
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
        proxy_headers=settings.trusted_proxies is not None,
        forwarded_allow_ips=settings.trusted_proxies or "",
        timeout_graceful_shutdown=settings.stop_seconds,
    )


class _Server(uvicorn.Server):
    """uvicorn, which says where it listens."""

    def __init__(self, config: uvicorn.Config, hub: HubState, settings: Settings, place: Path) -> None:
        super().__init__(config)
        self._hub, self._settings = hub, settings
        self._bulk: BulkPlane | None = None
        self._place = place

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        if self.should_exit:
            return
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        if self._settings.bulk_port is not None and self._settings.record is None:
            self._bulk = BulkPlane(self._hub, self._settings.host, self._settings.bulk_port)
            self._hub.bulk_url = self._bulk.url
            self._bulk.start()
        shown = f"[{host}]" if ":" in host else host
        scheme = "http" if self._settings.tls_cert is None else "https"
        url = f"{scheme}://{shown}:{port}"
        await asyncio.to_thread(write_place, self._place, url, self._hub.bulk_url, os.getpid())
        structlog.get_logger("flame.hub").info("listening", host=host, port=port)

    async def shutdown(self, sockets: Any = None) -> None:
        self._place.unlink(missing_ok=True)
        if self._bulk is not None:
            self._bulk.stop()
        await super().shutdown(sockets)


def _hand_over(settings: Settings, password: str) -> None:
    if settings.password_file:
        descriptor = os.open(settings.dir / PASSWORD_FILE, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(password)
    else:
        print(f"The password of admin is {password}", flush=True)  # noqa: T201


def _start_log(path: Path) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    file = os.fdopen(descriptor, "a", buffering=1)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.WriteLoggerFactory(file),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(handlers=[logging.StreamHandler(file)], level=logging.WARNING, force=True)
