"""The hub's settings: one typed tree. Options win over ``FLAME_HUB_*``, which win over a TOML file, over defaults."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from flame.model.errors import Invalid

PREFIX: Final = "FLAME_HUB_"
SECRET: Final = frozenset({"admin_password", "database_url"})
"""Never shown: they are secrets, or may hold one."""
_TEST_ONLY: Final = {
    "admin_password": "The admin's password comes from the environment; use this for tests only.",
    "allow_self_approval": "One person may request and approve the same analysis.",
    "skip_project_approval": "Projects count as approved at the hub by every node at once; a real node runs nothing on it.",
    "skip_analysis_approval": "Analyses count as approved at the hub by every node at once, and administrators stand in "
    "for nodes; a real node runs nothing on it.",
    "record": "Every byte that the hub receives and sends is recorded in a directory.",
}


@dataclass(frozen=True, slots=True)
class Settings:
    """What a hub is started with. `dir` holds all its state.

    port: 0 takes a free one (``DIR/hub.json`` says which). bulk_port: a second port, for large envelopes alone, served
    by threads (0: a free one); nodes hear of it from the hub. Without one they go over the first. Not while recording,
    nor with TLS. tls_cert, tls_key: PEM files; the hub then speaks HTTPS itself. trusted_proxies: addresses and networks
    whose ``X-Forwarded-For`` and ``-Proto`` are believed. metrics_token_file: who shows this token may read ``/metrics``;
    without one, only callers on this machine. password_file: write the first admin's generated password to
    ``DIR/admin-password`` (mode 0600) instead of showing it once. database_url: PostgreSQL instead of ``DIR/hub.db``, as
    ``postgresql://USER@HOST:PORT/NAME``; database_password_file: the file that holds its password. objects_url: S3 instead
    of ``DIR/objects``. storage_bytes_max: bytes of kept files, and of the database, that are allowed. record: see
    `flame.hub.recorder`. What each means in full: ``docs/reference/settings.md``.
    """

    dir: Path
    host: str = "127.0.0.1"
    port: int = 8600
    bulk_port: int | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    trusted_proxies: str | None = None
    stop_seconds: int = 5
    metrics_token_file: Path | None = None
    admin_password: str | None = None
    password_file: bool = False
    allow_self_approval: bool = False
    skip_project_approval: bool = False
    skip_analysis_approval: bool = False
    record: Path | None = None
    database_url: str | None = None
    database_password_file: Path | None = None
    objects_url: str | None = None
    objects_credentials_file: Path | None = None
    project_bytes_max: int | None = None
    project_keep_days: int | None = None
    storage_bytes_max: int | None = None
    mailbox_messages_max: int = 20_000
    mailbox_bytes_max: int = 64 << 30
    mailbox_run_messages_max: int = 10_000
    mailbox_run_bytes_max: int = 32 << 30
    body_idle_seconds: int = 30
    token_seconds: int = 3600
    refresh_seconds: int = 30 * 24 * 3600

    def __repr__(self) -> str:
        return f"Settings(dir={str(self.dir)!r}, host={self.host!r}, port={self.port})"

    @property
    def self_approval(self) -> bool:
        """Whether one person may request and approve the same."""
        return self.allow_self_approval or self.skip_project_approval or self.skip_analysis_approval

    def warnings(self) -> list[str]:
        """What an operator has to know about settings that are meant for tests."""
        return [text for name, text in _TEST_ONLY.items() if getattr(self, name)]

    @classmethod
    def from_env(
        cls, environ: Mapping[str, str] | None = None, *, config: Path | None = None, **overrides: Any
    ) -> Settings:
        """The settings from everywhere; `overrides` win. Raises Invalid naming the variable, or the file and its key.

        config: a TOML file, else what ``FLAME_HUB_CONFIG`` names.
        """
        found = {name: value for name, (value, _) in collect(environ, config, overrides).items()}
        if "dir" not in found:
            raise Invalid("The hub has no directory.", next_step=f"Set {PREFIX}DIR, or give one on the command line.")
        return cls(**found)

    def __post_init__(self) -> None:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise Invalid(
                "TLS needs both a certificate and its key.", next_step="Set tls_cert and tls_key, or neither."
            )
        if self.tls_cert is not None and self.bulk_port is not None:
            raise Invalid(
                "The port for large envelopes speaks no TLS.", next_step="Leave out bulk_port, or put a proxy in front."
            )
        if self.database_password_file is not None and self.database_url is None:
            raise Invalid("A password is given for a database that is not.", next_step="Set database_url.")
        for text in (self.trusted_proxies or "").split(","):
            try:
                ipaddress.ip_network(text.strip() or "127.0.0.1")
            except ValueError:
                raise Invalid(f"trusted_proxies has {text[:40]!r}, which is no address and no network.") from None


CONFIG: Final = f"{PREFIX}CONFIG"


def collect(
    environ: Mapping[str, str] | None, config: Path | None, overrides: Mapping[str, Any]
) -> dict[str, tuple[Any, str]]:
    """Every setting that is given somewhere, and where: name -> (value, source)."""
    environ = os.environ if environ is None else environ
    known = {f.name: str(f.type) for f in fields(Settings)}
    if config is None and environ.get(CONFIG):
        config = Path(environ[CONFIG])
    found = _from_file(config, known) if config is not None else {}
    for variable in sorted(v for v in environ if v.startswith(PREFIX) and v != CONFIG):
        name = variable.removeprefix(PREFIX).lower()
        if name not in known:
            raise Invalid(f"The setting {variable} is not known.", next_step=f"Known: {', '.join(sorted(known))}.")
        found[name] = (_convert(variable, known[name], environ[variable]), "environment")
    found.update({name: (value, "command line") for name, value in overrides.items() if value is not None})
    return found


def from_arguments(texts: Sequence[str]) -> dict[str, Any]:
    """``NAME=VALUE`` of the command line, typed. Raises Invalid, also for what a command line would show to everybody."""
    known = {f.name: str(f.type) for f in fields(Settings)}
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or name not in known:
            raise Invalid(f"--set {name[:40]!r} is no setting.", next_step=f"Known: {', '.join(sorted(known))}.")
        if name in SECRET:
            raise Invalid(
                f"--set {name}: everybody on this machine can read a command line.",
                next_step=f"Give it by {PREFIX}{name.upper()} or in the settings file.",
            )
        found[name] = _convert(f"--set {name}", known[name], value)
    return found


def _from_file(path: Path, known: Mapping[str, str]) -> dict[str, tuple[Any, str]]:
    import tomllib

    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise Invalid(f"The settings file {path} cannot be read: {error}.") from None
    found = {}
    for name, value in content.items():
        if name not in known:
            raise Invalid(f"{path}: '{name[:40]}' is no setting.", next_step=f"Known: {', '.join(sorted(known))}.")
        kind = known[name].split(" ")[0]
        if type(value).__name__ != {"Path": "str"}.get(kind, kind):
            raise Invalid(f"{path}: '{name}' is not a {kind}.")
        found[name] = (path.parent / value if kind == "Path" else value, str(path))
    return found


def _convert(variable: str, kind: str, text: str) -> Any:
    try:
        if kind.startswith("bool"):
            return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[text.lower()]
        if kind.startswith("int"):
            return int(text)
    except (KeyError, ValueError):
        raise Invalid(f"{variable} is {text[:40]!r}, which is not a {kind.split(' ')[0]}.") from None
    return Path(text) if kind.startswith("Path") else text
