"""The hub's settings: one typed tree, read from ``FLAME_HUB_*`` and nothing else."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from flame.model.errors import Invalid

PREFIX: Final = "FLAME_HUB_"
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
    by threads (0: a free one); nodes hear of it from the hub. Without one they go over the first. Not while recording. password_file: write the first admin's generated password to
    ``DIR/admin-password`` (mode 0600) instead of showing it once. database_url: PostgreSQL instead of ``DIR/hub.db``, as
    ``postgresql://USER@HOST:PORT/NAME``; database_password_file: the file that holds its password. storage_bytes_max: bytes of kept files, and of the
    database, that are allowed. record: see `flame.hub.recorder`.
    """

    dir: Path
    host: str = "127.0.0.1"
    port: int = 8600
    bulk_port: int | None = None
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
    def from_env(cls, environ: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
        """Read the environment; `overrides` win. Raises Invalid naming the variable."""
        environ = os.environ if environ is None else environ
        known = {f.name: str(f.type) for f in fields(cls)}
        values: dict[str, Any] = {}
        for variable in sorted(v for v in environ if v.startswith(PREFIX)):
            name = variable.removeprefix(PREFIX).lower()
            if name not in known:
                raise Invalid(f"The setting {variable} is not known.", next_step=f"Known: {', '.join(sorted(known))}.")
            values[name] = _convert(variable, known[name], environ[variable])
        values.update({name: value for name, value in overrides.items() if value is not None})
        if "dir" not in values:
            raise Invalid("The hub has no directory.", next_step=f"Set {PREFIX}DIR, or give one on the command line.")
        return cls(**values)


def _convert(variable: str, kind: str, text: str) -> Any:
    try:
        if kind.startswith("bool"):
            return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[text.lower()]
        if kind.startswith("int"):
            return int(text)
    except (KeyError, ValueError):
        raise Invalid(f"{variable} is {text[:40]!r}, which is not a {kind.split(' ')[0]}.") from None
    return Path(text) if kind.startswith("Path") else text
