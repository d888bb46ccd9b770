"""``flame hub migrate``: from the schema of an older release to this one's."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

from flame.hub.app import alone, database_place
from flame.model.errors import NotFound
from flame.storage.schema import HEAD

if TYPE_CHECKING:
    from flame.hub.settings import Settings


def migrate(settings: Settings) -> dict[str, str | None]:
    """{before, after, copy}. Raises NotFound where there is no hub, Conflict for a newer schema."""
    from flame.storage.migrations.upgrade import revision, upgrade

    where = database_place(settings)
    if isinstance(where, Path) and not where.is_file():
        raise NotFound(f"There is no hub in {settings.dir}.", next_step="Name its directory with --dir.")
    before = revision(where)
    if before is None:
        raise NotFound("The database is empty.", next_step="Make a hub with `flame hub init`.")
    with alone(settings):
        copy = _copied(where) if isinstance(where, Path) and before != HEAD else None
        _, after = upgrade(where)
    return {"before": before, "after": after, "copy": str(copy) if copy else None}


def _copied(path: Path) -> Path:
    """The database as it was, in one file of its own; from an earlier attempt it is kept."""
    target = path.with_name(f"{path.name}.before-{HEAD}")
    if not target.exists():
        half = target.with_suffix(".half")
        half.unlink(missing_ok=True)
        source, copy = sqlite3.connect(path), sqlite3.connect(half)
        source.backup(copy)
        source.close()
        copy.close()
        half.chmod(0o600)
        half.replace(target)
    return target
