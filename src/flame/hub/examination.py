"""``flame hub doctor``: whether a hub can serve, and what to do where it cannot."""

from __future__ import annotations

import shutil
import ssl
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from flame.crypto.keys import IdentityKey
from flame.hub.app import database_place, open_objects
from flame.model.errors import FlameError
from flame.storage.schema import HEAD

if TYPE_CHECKING:
    from flame.hub.settings import Settings

ENOUGH_DISK: Final = 2 << 30
DAYS_LEFT: Final = 21


@dataclass(frozen=True, slots=True)
class Finding:
    name: str
    state: Literal["good", "warning", "bad"]
    found: str
    next_step: str = ""


def examine(settings: Settings) -> list[Finding]:
    """Every check is made, whatever the others find. Nothing is changed."""
    looks: tuple[Callable[[Settings], Finding], ...] = (_settings, _directory, _key, _database, _objects, _disk, _tls)
    return [_looked(look, settings) for look in looks]


def _looked(look: Callable[[Settings], Finding], settings: Settings) -> Finding:
    name = look.__name__.lstrip("_")
    try:
        return look(settings)
    except FlameError as error:
        return Finding(name, "bad", error.message, error.next_step)
    except (OSError, ssl.SSLError) as error:
        return Finding(name, "bad", f"{type(error).__name__}: {error}")


def _settings(settings: Settings) -> Finding:
    if texts := settings.warnings():
        return Finding("settings", "warning", " ".join(texts), "Settings for tests do not belong on a real hub.")
    public = settings.host not in ("127.0.0.1", "::1", "localhost")
    if public and settings.tls_cert is None and settings.trusted_proxies is None:
        step = (
            "Set tls_cert and tls_key; or listen on 127.0.0.1 behind a proxy with TLS, and name it in trusted_proxies."
        )
        return Finding("settings", "warning", f"The hub listens on {settings.host} without TLS.", step)
    return Finding("settings", "good", f"{settings.host}:{settings.port}")


def _directory(settings: Settings) -> Finding:
    if not settings.dir.is_dir():
        return Finding("directory", "bad", f"{settings.dir} is not there.", "Make the hub with `flame hub init`.")
    mode = stat.S_IMODE(settings.dir.stat().st_mode)
    if mode & 0o077:
        return Finding(
            "directory", "warning", f"{settings.dir} is open to others ({mode:04o}).", f"chmod 700 {settings.dir}"
        )
    return Finding("directory", "good", str(settings.dir))


def _key(settings: Settings) -> Finding:
    path = settings.dir / "keys" / "hub.pem"
    found = IdentityKey.load(path).public.fingerprint.hex()
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        return Finding("key", "bad", f"{path} can be read by others.", f"chmod 600 {path}")
    return Finding("key", "good", found)


def _database(settings: Settings) -> Finding:
    from sqlalchemy.exc import DBAPIError

    from flame.storage.migrations.upgrade import revision

    where = database_place(settings)
    if isinstance(where, Path) and not where.is_file():
        return Finding("database", "bad", f"{where} is not there.", "Make the hub with `flame hub init`.")
    shown = where if isinstance(where, Path) else f"PostgreSQL at {where.host or 'a socket'}, {where.database}"
    try:
        found = revision(where)
    except DBAPIError:
        return Finding(
            "database", "bad", f"{shown} does not answer.", "See that it runs, and its name, user and password."
        )
    if found is None:
        return Finding("database", "bad", f"{shown} is empty.", "Make the hub with `flame hub init`.")
    if found != HEAD:
        step = "Stop the hub, then run `flame hub migrate`." if found < HEAD else "Start the newer release."
        return Finding("database", "bad", f"{shown} has schema {found}; this release needs {HEAD}.", step)
    return Finding("database", "good", f"{shown}, schema {found}")


def _objects(settings: Settings) -> Finding:
    """What can be written, read and removed again."""
    objects, key = open_objects(settings), "doctor/probe"
    objects.remove_blocking(key)
    spool = objects.spool()
    spool.write_blocking(b"probe")
    objects.keep_blocking(spool.finish_blocking(), key)
    with objects.open(key) as file:
        whole = file.read() == b"probe"
    objects.remove_blocking(key)
    if not whole:
        return Finding("objects", "bad", "What was stored did not come back as it was.", "Look at the store.")
    where = "a bucket" if settings.objects_url else str(settings.dir / "objects")
    return Finding("objects", "good", f"{where}: stored, read and removed a probe")


def _disk(settings: Settings) -> Finding:
    free = shutil.disk_usage(settings.dir).free
    state: Literal["good", "warning"] = "good" if free >= ENOUGH_DISK else "warning"
    return Finding(
        "disk", state, f"{free >> 20} MB free in {settings.dir}", "" if state == "good" else "Free some space."
    )


def _tls(settings: Settings) -> Finding:
    if settings.tls_cert is None or settings.tls_key is None:
        return Finding("tls", "good", "not spoken by the hub itself")
    from cryptography import x509

    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(settings.tls_cert, settings.tls_key)
    ends = x509.load_pem_x509_certificate(settings.tls_cert.read_bytes()).not_valid_after_utc
    left = (ends.timestamp() - time.time()) / 86400
    state: Literal["good", "warning", "bad"] = "bad" if left < 0 else "warning" if left < DAYS_LEFT else "good"
    return Finding("tls", state, f"the certificate ends on {ends:%Y-%m-%d}", "" if state == "good" else "Renew it.")
