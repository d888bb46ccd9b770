"""The hub's application: what is put together, opened at the start, and closed at the end."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import URL
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from flame.crypto.keys import IdentityKey
from flame.hub.analyses import commands
from flame.hub.analyses.routes import ROUTES as ANALYSES
from flame.hub.audit.log import AuditLog, complete, is_incomplete
from flame.hub.audit.routes import ROUTES as AUDIT
from flame.hub.described import About, Described
from flame.hub.housekeeping import keep_tidy, tidy_up
from flame.hub.identity.first_start import first_start
from flame.hub.identity.routes import ROUTES as IDENTITY
from flame.hub.identity.tokens import Tokens
from flame.hub.members.routes import ROUTES as MEMBERS
from flame.hub.nodes.routes import ROUTES as NODES
from flame.hub.objects.routes import ROUTES as OBJECTS
from flame.hub.observing import ROUTES as OBSERVING
from flame.hub.observing import Counts, Observed
from flame.hub.openapi import openapi_routes
from flame.hub.problems import HANDLERS
from flame.hub.projects.routes import ROUTES as PROJECTS
from flame.hub.registry.routes import ROUTES as REGISTRY
from flame.hub.relay.arriving import Arrivals
from flame.hub.relay.channels import Channels
from flame.hub.relay.routes import ROUTES as RELAY
from flame.hub.relay.runs import Runs
from flame.hub.resources import answer
from flame.hub.state import HubState
from flame.hub.telemetry.routes import ROUTES as TELEMETRY
from flame.model.errors import Conflict, Invalid, NotFound
from flame.storage.engine import Database
from flame.storage.mailbox import Quota, SqlMailbox
from flame.storage.objects import LocalObjects, Objects

if TYPE_CHECKING:
    from flame.hub.settings import Settings


async def root(request: Request) -> Response:
    """The release, and the hub's clock."""
    return answer({"version": version("flame-federated"), "timestamp": int(time.time() * 1000)})


ROOTS = ("/", "/core", "/core/", "/storage", "/storage/", "/messenger/", "/telemetry", "/telemetry/")

ROUTES: list[BaseRoute] = [
    *IDENTITY,
    *NODES,
    *MEMBERS,
    *PROJECTS,
    *ANALYSES,
    *REGISTRY,
    *OBJECTS,
    *TELEMETRY,
    *RELAY,
    *AUDIT,
    *(Described("GET", path, root, About(shape="flat", public=True)) for path in ROOTS),
    *OBSERVING,
]
ROUTES += openapi_routes(ROUTES)


def open_hub(settings: Settings) -> tuple[HubState, str | None]:
    """Open all that a hub holds below its directory; on the first start also the admin's generated password.

    Raises Conflict for a directory of a newer release.
    """
    settings.dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = _key(settings.dir / "keys" / "hub.pem")
    database = open_database(settings)
    objects = open_objects(settings)
    hub = HubState(
        settings=settings,
        database=database,
        objects=objects,
        arrivals=Arrivals(settings.dir / "objects" / "arriving", objects),
        mailbox=SqlMailbox(database, quota_of(settings)),
        key=key,
        tokens=Tokens(key, settings.token_seconds, settings.refresh_seconds),
        log=AuditLog(key),
        channels=Channels(),
        runs=Runs(database),
        counts=Counts(),
    )
    hub.runs.ended.append(hub.arrivals.run_ended)
    if database.read_blocking(is_incomplete):
        database.write_blocking(complete)
    database.read_blocking(hub.log.open)
    return hub, database.write_blocking(lambda c: first_start(c, hub.log, settings.admin_password))


def quota_of(settings: Settings) -> Quota:
    """What may wait in the mailboxes."""
    return Quota(
        letters=settings.mailbox_messages_max,
        bytes=settings.mailbox_bytes_max,
        run_letters=settings.mailbox_run_messages_max,
        run_bytes=settings.mailbox_run_bytes_max,
    )


def database_place(settings: Settings) -> Path | URL:
    """The SQLite file below the directory, or the PostgreSQL that the settings name. Raises Invalid."""
    if settings.database_url is None:
        return settings.dir / "hub.db"
    from flame.storage.postgresql import database_url

    return database_url(settings.database_url, _secret(settings.database_password_file))


def open_database(settings: Settings) -> Database:
    """Raises Invalid, Conflict, Unavailable."""
    database = Database(database_place(settings), bytes_max=settings.storage_bytes_max)
    database.open()
    return database


def open_objects(settings: Settings) -> Objects:
    """Files below the directory, or the bucket that the settings name. Raises Invalid, Unavailable."""
    folder = settings.dir / "objects"
    if settings.objects_url is None:
        return LocalObjects(folder, bytes_max=settings.storage_bytes_max)
    from flame.storage.s3 import S3Objects, read_secrets

    secrets = read_secrets(settings.objects_credentials_file)
    return S3Objects(settings.objects_url, folder / "spool", bytes_max=settings.storage_bytes_max, secrets=secrets)


def _secret(path: Path | None) -> str | None:
    """The first line of a file that holds a secret. Raises Invalid."""
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8").partition("\n")[0].rstrip("\r")
    except (OSError, UnicodeDecodeError) as error:
        raise Invalid(f"The password file {path} cannot be read: {type(error).__name__}.") from None


def _key(path: Path) -> IdentityKey:
    try:
        return IdentityKey.load(path)
    except NotFound:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        key = IdentityKey.generate()
        key.save(path)
        return key


def make_app(hub: HubState) -> Any:
    """The ASGI application of an opened hub; closes it when it shuts down."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await tidy_up(hub)
        await commands.resume(hub)
        tidying = asyncio.create_task(keep_tidy(hub))
        if hub.database.url is not None:
            from flame.hub.relay.wakeups import PostgresWakeups

            hub.wakeups = PostgresWakeups(hub, hub.database.url)
            hub.wakeups.start()
        try:
            yield
        finally:
            tidying.cancel()
            hub.channels.close()
            if hub.wakeups is not None:
                await asyncio.to_thread(hub.wakeups.stop)
            await hub.database.flush()
            await hub.settle()
            hub.database.close()

    app = Starlette(routes=ROUTES, exception_handlers=HANDLERS, lifespan=lifespan)
    app.router.redirect_slashes = False
    app.state.hub = hub
    if hub.settings.record is None:
        return Observed(app, hub.counts)
    from flame.hub.recorder import Recorder

    return Recorder(app, hub.settings.record, lambda: hub)


@contextmanager
def alone(settings: Settings) -> Iterator[None]:
    """A SQLite hub is one process. Raises Conflict where another serves this directory, or changes its database."""
    if settings.database_url is not None:
        yield
        return
    settings.dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(settings.dir / "hub.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise Conflict(
            f"A hub runs on {settings.dir} already.", next_step="Stop it; several processes need PostgreSQL."
        ) from None
    finally:
        os.close(descriptor)


def write_place(path: Path, url: str, bulk: str, pid: int) -> None:
    """``hub.json``: where the hub listens; there only while it does."""
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps({"url": url, "bulk": bulk, "pid": pid}))
    temporary.replace(path)
