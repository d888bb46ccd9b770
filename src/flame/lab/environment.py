"""The environment that demo, development and tests run programs in: made from what is installed here, and cached."""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from flame.model.errors import DoesNotMatchApproval, NotFound
from flame.runtime.build import build_site, site_fingerprint
from flame.runtime.environments import HostEnvironment, check, load_host_environment, register_host_environment

__all__ = ["BASE", "BASE_DISTRIBUTIONS", "ensure_environment"]

BASE: Final = "python/base"
BASE_DISTRIBUTIONS: Final = ("flame-federated", "numpy", "msgspec")

# long enough that no run still uses a site that was replaced
_KEPT_SECONDS: Final = 24 * 3600


def ensure_environment(cache: Path | None = None) -> HostEnvironment:
    """The environment `python/base`: the SDK, NumPy and msgspec. Made on first use, and again when one of them changed.

    cache: where it is kept; default inside the virtual environment that FLAME is installed in; without one
    $XDG_CACHE_HOME/flame/environments or ~/.cache/flame/environments.
    Safe to call from several processes at once. What is replaced stays for a day, for runs that still use it.
    """
    registry = cache or _default_cache()
    registry.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _alone(registry):
        site = registry / "sites" / f"base-{site_fingerprint(BASE_DISTRIBUTIONS)[:24]}"
        current = _registered(registry)
        if current is not None and current.site == site.resolve():
            return current
        build_site(site, BASE_DISTRIBUTIONS, reuse=current.site if current else None)
        environment = register_host_environment(BASE, site, registry=registry)
        _forget_old(site, environment.record)
        return environment


def _default_cache() -> Path:
    """Inside the virtual environment that FLAME is installed in: it goes with it, and two installations do not meet."""
    prefix = Path(sys.prefix)
    if sys.prefix != sys.base_prefix and os.access(prefix, os.W_OK):
        return prefix / "var" / "flame" / "environments"
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "flame" / "environments"


@contextmanager
def _alone(registry: Path) -> Iterator[None]:
    with (registry / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _registered(registry: Path) -> HostEnvironment | None:
    """What is registered, if it is whole: a cache that somebody cleaned in part is made again."""
    try:
        environment = load_host_environment(BASE, registry)
        check(environment)
    except (NotFound, DoesNotMatchApproval):
        return None
    return environment


def _forget_old(site: Path, record: Path) -> None:
    """Remove what was replaced more than a day ago: sites with their notes, and records."""
    old = [other for other in site.parent.iterdir() if not other.name.startswith(site.name)]
    old += [other for other in record.parent.glob("sha256-*.json") if other != record]
    for other in old:
        if time.time() - other.lstat().st_ctime > _KEPT_SECONDS:
            shutil.rmtree(other) if other.is_dir() else other.unlink()
