"""Where a researcher's own files lie: ``FLAME_CONFIG_DIR``, else ``$XDG_CONFIG_HOME/flame``, else ``~/.config/flame``."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from flame.model.errors import Invalid

VARIABLE: Final = "FLAME_CONFIG_DIR"


def config_dir() -> Path:
    """Made with mode 0700 when it is not there."""
    given = os.environ.get(VARIABLE)
    base = os.environ.get("XDG_CONFIG_HOME")
    place = Path(given) if given else (Path(base) if base else Path.home() / ".config") / "flame"
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    return place


def read_private_json(path: Path) -> dict[str, Any] | None:
    """None when there is no such file. Raises Invalid for one that others can read, or that is not what we wrote."""
    try:
        if path.stat().st_mode & 0o077:
            raise Invalid(f"{path} can be read by others.", next_step=f"chmod 600 {path}; then log in again.")
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        raise Invalid(f"{path} cannot be read.", next_step="Remove it, and repeat what wrote it.") from None
    return found if isinstance(found, dict) else None


def write_private_json(path: Path, document: dict[str, Any]) -> None:
    """Replace a file of mode 0600; at once or not at all."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(document, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time changes what lies at ``path``."""
    import fcntl

    descriptor = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
