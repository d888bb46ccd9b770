"""A real PostgreSQL server for tests: its own data directory, a socket in that directory, no port.

Programs come from ``FLAME_TEST_POSTGRES`` (a bin directory) or from where distributions put them. PostgreSQL refuses to
run as root: then it runs as ``postgres``, or as ``nobody``. Where there is none, tests are skipped with the reason; they
fail instead when ``REQUIRE_BACKENDS`` names ``postgresql``.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from sqlalchemy import URL

from flame.storage import postgresql

STARTED_WITHIN = 60.0
_USER = "flame"
_PLACES = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/usr/local/opt/postgresql*/bin")
_FAST = ("fsync=off", "full_page_writes=off")


def programs() -> Path | None:
    """The directory of ``postgres``, the newest version first."""
    if given := os.environ.get("FLAME_TEST_POSTGRES"):
        return Path(given)
    found = [path for place in _PLACES for path in Path("/").glob(place[1:]) if (path / "postgres").exists()]
    found.sort(key=lambda path: [int(part) for part in path.parent.name.split(".") if part.isdigit()])
    on_path = shutil.which("postgres")
    return found[-1] if found else Path(on_path).parent if on_path else None


class Postgres:
    """A server; `durable`: it forces each commit to the disk. `stop` ends it, `start` lets it go on."""

    def __init__(self, binaries: Path, folder: Path, *, durable: bool = False) -> None:
        self._binaries, self._data, self._durable = binaries, folder / "data", durable
        self.folder = folder
        self._as = _other_user()
        if self._as is not None:
            os.chown(folder, self._as.pw_uid, self._as.pw_gid)
        self._run("initdb", "-D", str(self._data), "-U", _USER, "-A", "trust", "-E", "UTF8", "--locale=C", "-N")
        self.start()

    def start(self) -> None:
        options = [
            "-k", str(self.folder), "-c", "listen_addresses=", "-c", "max_connections=60", "-c", "shared_buffers=32MB",
        ]  # fmt: skip
        for option in () if self._durable else _FAST:
            options += ["-c", option]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(self._binaries / "postgres"), "-D", str(self._data), *options],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder, start_new_session=True,
                **self._identity(),
            )  # fmt: skip
        until = time.monotonic() + STARTED_WITHIN
        while True:
            with suppress(Exception):
                postgresql.connect(self.url("postgres")).close()
                return
            assert self._process.poll() is None and time.monotonic() < until, (self.folder / "log").read_text()
            time.sleep(0.02)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT: connections are cut, what was committed is kept. SIGQUIT: as if the machine had failed."""
        if self._process.poll() is None:
            self._process.send_signal(how)
        self._process.wait(timeout=60)

    def url(self, database: str) -> URL:
        return postgresql.database_url(f"postgresql://{_USER}@/{database}?host={self.folder}")

    def setting(self, database: str) -> str:
        """The same as ``FLAME_HUB_DATABASE_URL``."""
        return f"postgresql://{_USER}@/{database}?host={self.folder}"

    def fresh(self) -> str:
        """The name of a new, empty database."""
        name = f"hub_{secrets.token_hex(6)}"
        with postgresql.connect(self.url("postgres")) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')
        return name

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [str(self._binaries / program), *arguments], check=True, capture_output=True, cwd=self.folder,
            **self._identity(),
        )  # fmt: skip

    def _identity(self) -> dict[str, object]:
        if self._as is None:
            return {}
        return {
            "user": self._as.pw_uid,
            "group": self._as.pw_gid,
            "extra_groups": [],
            "env": {"PATH": os.environ["PATH"]},
        }


def _other_user() -> pwd.struct_passwd | None:
    if os.getuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            return pwd.getpwnam(name)
    raise AssertionError("PostgreSQL does not run as root, and there is neither a user 'postgres' nor 'nobody'.")


@contextmanager
def running(*, durable: bool = False) -> Iterator[Postgres]:
    """A server in a directory of its own, ended and removed afterwards. Skips where there is none."""
    binaries = programs()
    if binaries is None:
        reason = "PostgreSQL is not installed (apt-get install postgresql, or FLAME_TEST_POSTGRES=bin directory)"
        if "postgresql" in os.environ.get("REQUIRE_BACKENDS", "").split(","):
            pytest.fail(reason)
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="flame-pg-"))  # short: a socket's path has 107 bytes at most
    try:
        server = Postgres(binaries, folder, durable=durable)
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One server for all tests of a session; each takes a database of its own (`Postgres.fresh`)."""
    with running() as server:
        yield server
