"""Files that hold a secret: written once, readable by their owner alone."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from flame.model.errors import Conflict, Malformed, NotFound, Refused


def write_private(path: Path, data: bytes) -> None:
    """Write a new file of mode 0600 and force it, and its name, to the disk. Never overwrites (Conflict)."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        raise Conflict(
            f"{path} exists already; a key is never overwritten.",
            next_step="Move the old key away first, if you are sure that nothing needs it.",
        ) from error
    except OSError as error:
        raise Refused(f"{path} cannot be written: {error.strerror}.") from error
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, 0o600)  # whatever the umask made of it
        file.write(data)
        file.flush()
        os.fsync(descriptor)
    _sync_directory(path.parent)


def read_private(path: Path, *, max_bytes: int) -> bytes:
    """Read a file that nobody but its owner can read; refuses others, larger ones, and what is not a regular file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise NotFound(f"There is no key file at {path}.") from error
    except OSError as error:
        raise Refused(f"{path} cannot be read: {error.strerror}.") from error
    with os.fdopen(descriptor, "rb") as file:
        _check_private(path, os.fstat(descriptor))
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise Malformed(f"{path} is larger than a key file can be.")
    return data


def _check_private(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise Refused(f"{path} is not a regular file.")
    if status.st_mode & 0o077:
        raise Refused(
            f"{path} can be read or written by others than its owner (mode {stat.S_IMODE(status.st_mode):04o}).",
            next_step=f"Run `chmod 600 {path}`; if others could read it until now, make a new key.",
        )


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
