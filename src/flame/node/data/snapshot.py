"""A source is read once, at the start of a run, by a child process that ends: what it wrote is the run's data.

The child gets two open files and a description; no path, no secrets, no environment. A helper that parses what others
wrote has its own memory, processor and time limits, and takes nothing of the node with it when it falls.
"""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

import msgspec

from flame.model.errors import Exhausted, FlameError, Invalid, NotFound, RunFailed, Unavailable
from flame.model.manifest import DataRequest
from flame.node.data.sources import Source

MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class ReadLimits:
    """What reading one source may use: bytes of the file, bytes of the snapshot, bytes of memory, seconds."""

    file_bytes: int = 2048 * MIB
    snapshot_bytes: int = 4096 * MIB
    memory_bytes: int = 16384 * MIB
    cpu_seconds: int = 600
    seconds: float = 900.0


class Snapshot(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was read: a wire value {column: array or list of text} lies at ``path``, mode 0600."""

    rows: int
    columns: dict[str, str]
    """Name to type (float64, int64, bool, text), in the order of the source or of the request."""
    file_sha256: str
    snapshot_sha256: str


class ReadJob(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the child is told."""

    source: str
    kind: str
    columns: list[str]
    min_rows: int
    file_bytes: int
    snapshot_bytes: int
    memory_bytes: int
    cpu_seconds: int


class ReadError(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the child says when it could not: names places, never a value."""

    code: str
    message: str
    next_step: str


def take_snapshot(source: Source, request: DataRequest, path: Path, limits: ReadLimits | None = None) -> Snapshot:
    """Read a source for a run into the file ``path`` (which must not exist yet). Blocks; call it in a thread.

    Raises NotFound (no file), Invalid (not readable as it stands: says where and what to do), RunFailed (fewer rows
    than the manifest demands), Exhausted (too large), Unavailable (took too long). On an error no file stays behind.
    """
    limits = limits or ReadLimits()
    with contextlib.ExitStack() as stack:
        data = stack.enter_context(_open_regular(source, limits))
        target = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        stack.callback(os.close, target)
        try:
            snapshot = _read(source, request, data.fileno(), target, limits)
            os.fsync(target)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
    return snapshot


def _open_regular(source: Source, limits: ReadLimits) -> Any:
    """The source's file, if it is a plain file at a plain path; nothing is followed, nothing is waited for."""
    if ".." in PurePosixPath(source.path).parts:
        raise Invalid(
            f"The path of source '{source.name}' holds '..'.", next_step="Write the whole path into sources.toml."
        )
    try:
        descriptor = os.open(source.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except FileNotFoundError:
        raise NotFound(
            f"The file of source '{source.name}' is not there.",
            next_step="Check its path with `flame node data list`.",
            source=source.name,
        ) from None
    except (OSError, ValueError) as error:
        if source.path.is_symlink():
            raise Invalid(
                f"The file of source '{source.name}' is a symbolic link.",
                next_step="Name the file itself in sources.toml.",
            ) from None
        reason = error.strerror if isinstance(error, OSError) else "its name is not allowed"
        raise Invalid(
            f"The file of source '{source.name}' cannot be opened: {reason}.",
            next_step="Check the file's owner and mode.",
        ) from None
    status = os.fstat(descriptor)
    try:
        _check_status(source, status, limits)
    except FlameError:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb", buffering=0)


def _check_status(source: Source, status: os.stat_result, limits: ReadLimits) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise Invalid(
            f"Source '{source.name}' is not a plain file.", next_step="Name a .csv or .parquet file in sources.toml."
        )
    if status.st_size == 0:
        raise Invalid(f"The file of source '{source.name}' is empty.", next_step="Export the data again.")
    if status.st_size > limits.file_bytes:
        raise Exhausted(
            f"The file of source '{source.name}' has {status.st_size} bytes; at most {limits.file_bytes} are read.",
            next_step="Offer fewer columns or rows, or write it as Parquet.",
            limit=limits.file_bytes,
        )


def _read(source: Source, request: DataRequest, data: int, target: int, limits: ReadLimits) -> Snapshot:
    job = ReadJob(
        source.name,
        source.kind,
        list(request.columns),
        request.min_rows,
        limits.file_bytes,
        limits.snapshot_bytes,
        limits.memory_bytes,
        limits.cpu_seconds,
    )
    command = [sys.executable, "-I", "-m", "flame.node.data.reader", str(data), str(target)]
    environment = {
        "PATH": "/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "OPENBLAS_NUM_THREADS": "1",
        "ARROW_USER_SIMD_LEVEL": "NONE",
    }
    try:
        child = subprocess.run(
            command,
            input=msgspec.json.encode(job),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # a traceback could show a value
            env=environment,
            cwd="/",
            pass_fds=(data, target),
            timeout=limits.seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(
            f"Reading source '{source.name}' took longer than {limits.seconds:.0f} seconds and was stopped.",
            next_step="Offer fewer columns or rows, or write it as Parquet.",
        ) from None
    return _answer(source, child.returncode, child.stdout)


def _answer(source: Source, status: int, output: bytes) -> Snapshot:
    try:
        if status == 0:
            return msgspec.json.decode(output, type=Snapshot)
        found = msgspec.json.decode(output, type=ReadError)
    except msgspec.DecodeError:
        raise Exhausted(
            f"Reading '{source.name}' ended early (status {status}): it needed more memory or time than is allowed.",
            next_step="Offer fewer columns or rows; look whether the file is what its name says.",
        ) from None
    kinds: dict[str, type[FlameError]] = {kind.code: kind for kind in (RunFailed, Exhausted, NotFound)}
    raise kinds.get(found.code, Invalid)(found.message, next_step=found.next_step, source=source.name)
