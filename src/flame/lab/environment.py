"""The environment that demo, development and tests run programs in: made from what is installed here, and cached."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from flame.model.errors import Conflict, DoesNotMatchApproval, Invalid, NotFound
from flame.runtime.build import build_site, site_fingerprint
from flame.runtime.environments import (
    SITE,
    HostEnvironment,
    check,
    compile_bytecode,
    load_host_environment,
    register_host_environment,
)

__all__ = ["BASE", "BASE_DISTRIBUTIONS", "ensure_environment", "register_interpreter"]

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


def register_interpreter(name: str, python: Path, registry: Path) -> HostEnvironment:
    """Register an interpreter of this machine, with the packages that are installed beside it, under a name.

    What is installed is copied: a later installation there changes nothing here. Raises NotFound, Invalid, Conflict.
    """
    if name == BASE:
        raise Conflict(f"The name {BASE} is taken by FLAME's own environment.", next_step="Choose another name.")
    packages = _packages_of(python)
    registry.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _alone(registry):
        label = name.replace("/", "-")
        site = registry / "sites" / f"{label}-{_fingerprint(python, packages)[:24]}"
        if not site.is_dir():
            _copy_packages(python, packages, site)
        return register_host_environment(name, site, python=python, registry=registry)


_ASK_PACKAGES: Final = (
    "import json,sysconfig;p=sysconfig.get_paths();print(json.dumps(sorted({p['purelib'],p['platlib']})))"
)
_NOT_FOR_RUNS: Final = frozenset({"pip", "setuptools", "wheel", "_distutils_hack", "pkg_resources", "__pycache__"})


def _packages_of(python: Path) -> list[Path]:
    try:
        answer = subprocess.run(
            [python, "-I", "-c", _ASK_PACKAGES], capture_output=True, text=True, check=False, env={}, timeout=60
        )
    except OSError as error:
        raise NotFound(
            f"There is no interpreter at {python}: {error.strerror}.", next_step="Name python itself."
        ) from None
    if answer.returncode != 0:
        raise Invalid(f"{python} is no Python interpreter that runs.", next_step="Name the 'python' of an environment.")
    return [folder for folder in map(Path, json.loads(answer.stdout)) if folder.is_dir()]


def _package_files(packages: list[Path]) -> Iterator[tuple[Path, Path]]:
    """Each file and its name below the site; no installers, no byte code, nothing that runs by itself (.pth)."""
    for folder in packages:
        for where, names, files in os.walk(folder, followlinks=False):
            names[:] = sorted(n for n in names if n not in _NOT_FOR_RUNS and not n.startswith(("pip-", "setuptools-")))
            for file in sorted(files):
                path = Path(where, file)
                if path.suffix not in (".pth", ".pyc") and path.is_file():
                    yield path, path.relative_to(folder)


def _fingerprint(python: Path, packages: list[Path]) -> str:
    whole = hashlib.sha256(f"{python.resolve()}".encode())
    for path, name in _package_files(packages):
        status = path.stat()
        whole.update(f"{name}\0{status.st_ino}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return whole.hexdigest()


def _copy_packages(python: Path, packages: list[Path], site: Path) -> None:
    site.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=site.parent, prefix=".new-") as scratch:
        tree = Path(scratch) / "site"
        tree.mkdir()
        for path, name in _package_files(packages):
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, tree / name)
            (tree / name).chmod(0o755 if os.access(path, os.X_OK) else 0o644)
        compile_bytecode(python, tree, SITE)
        for where, _, files in os.walk(tree):
            Path(where).chmod(0o755)
            for file in files:
                path = Path(where, file)
                path.chmod(0o555 if path.stat().st_mode & 0o100 else 0o444)
        tree.rename(site)


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
