"""Objects: files of any size that stream in and out in bounded memory.

What comes in is written to a spool, hashed, and forced to the disk; only then does it get its name. So an object that
can be seen is whole, and one that was acknowledged survives a crash. The embedded form keeps objects as files, which are
read through obstore; `storage/s3.py` keeps them in a bucket through the same obstore.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import os
import shutil
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol
from uuid import uuid4

from flame.model.errors import Conflict, Exhausted, Malformed, NotFound
from flame.storage.failpoints import declare, reached

if TYPE_CHECKING:
    from io import FileIO

CHUNK: Final = 1 << 20
AFTER_SPOOL = declare("hub.objects.after-spool", "the whole body in the spool, under no name yet")
AFTER_KEEP = declare("hub.objects.after-keep", "the object under its name; no row of the database names it yet")


@dataclass(frozen=True, slots=True)
class Spooled:
    """A body on the disk without a name yet: `sha256` in hex, None when it was not asked for."""

    path: Path
    size: int
    sha256: str | None


class Spool(Protocol):
    async def write(self, data: bytes) -> None:
        """Add bytes. Raises Exhausted (nothing is kept) when disk or cap are used up."""

    async def finish(self) -> Spooled:
        """Everything is on the disk."""

    async def discard(self) -> None:
        """Forget it. After `finish` as well; does nothing once the object is kept."""


@dataclass(frozen=True, slots=True)
class Kept:
    """An object that is there: `modified` in seconds since 1970."""

    key: str
    size: int
    modified: float


class Objects(Protocol):
    usage: Usage

    def spool(self, *, hashed: bool = True, at_most: int | None = None) -> FileSpool: ...

    async def keep(self, spooled: Spooled, key: str) -> None:
        """Give a spooled body its name; whole and durable, or not at all. Raises Conflict when the name is taken."""

    def keep_blocking(self, spooled: Spooled, key: str, *, same: bool = False) -> None:
        """As `keep`, for threads. same: the key is the body's digest, so what is there already is this body."""

    def stream(self, key: str) -> AsyncIterator[bytes]:
        """Its bytes in pieces of about 1 MiB. Raises NotFound."""

    def open(self, key: str) -> FileIO:
        """As a file, for readers in threads (bulk of the relay). Raises NotFound."""

    def kept(self) -> Iterator[Kept]:
        """Everything that is there. Blocks: for threads."""

    async def remove(self, key: str) -> None:
        """Forget it; no error when it is gone already."""

    def remove_blocking(self, key: str) -> None:
        """As `remove`, for threads."""


class _Spooling:
    """Bodies on their way in, on the disk of this process: in a directory of its own, which the next start clears."""

    def __init__(self, folder: Path, bytes_max: int | None) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _clear(folder)  # what a crash left there was never acknowledged
        self._spool = folder / uuid4().hex
        self._spool.mkdir(mode=0o700)
        self._mine = os.open(self._spool, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(self._mine, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held for life: another process clears around it
        self.usage = Usage(bytes_max)

    def spool(self, *, hashed: bool = True, at_most: int | None = None) -> FileSpool:
        return FileSpool(self._spool / uuid4().hex, self.usage, hashed=hashed, at_most=at_most)

    def _stays(self, spooled: Spooled) -> None:
        """It is there already: what was spooled is not needed."""
        spooled.path.unlink(missing_ok=True)
        self.usage.give_back(spooled.size)


class LocalObjects(_Spooling):
    """Objects as files below one directory. `bytes_max`: the sum of all of them, spool included."""

    def __init__(self, root: Path, *, bytes_max: int | None = None) -> None:
        super().__init__(root / "spool", bytes_max)
        self._kept = root / "kept"
        self._kept.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._store: Any = None
        self.usage.used = sum(one.size for one in self.kept())

    async def keep(self, spooled: Spooled, key: str) -> None:
        await asyncio.to_thread(self.keep_blocking, spooled, key)

    def keep_blocking(self, spooled: Spooled, key: str, *, same: bool = False) -> None:
        reached(AFTER_SPOOL)
        target = self._path(key)
        if same and target.exists():
            self._stays(spooled)
        else:
            self._rename(spooled.path, target)
        reached(AFTER_KEEP)

    async def stream(self, key: str) -> AsyncIterator[bytes]:
        if not self._path(key).is_file():
            raise NotFound("The file was not found.")
        answer = await self._obstore().get_async(key)
        async for piece in answer.stream(min_chunk_size=CHUNK):
            yield bytes(piece)

    def open(self, key: str) -> FileIO:
        try:
            return self._path(key).open("rb", buffering=0)
        except FileNotFoundError:
            raise NotFound("The file was not found.") from None

    def kept(self) -> Iterator[Kept]:
        for folder, _, names in os.walk(self._kept):
            for name in names:
                path = Path(folder) / name
                with suppress(FileNotFoundError):
                    found = path.stat()
                    yield Kept(path.relative_to(self._kept).as_posix(), found.st_size, found.st_mtime)

    async def remove(self, key: str) -> None:
        await asyncio.to_thread(self.remove_blocking, key)

    def remove_blocking(self, key: str) -> None:
        path = self._path(key)
        with suppress(FileNotFoundError):
            size = path.stat().st_size
            path.unlink()
            self.usage.give_back(size)

    def _rename(self, source: Path, target: Path) -> None:
        if target.exists():
            raise Conflict("An object of this name is there already.")
        if not target.parent.is_dir():
            target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            _sync(target.parent.parent)
        source.rename(target)
        _sync(target.parent)

    def _path(self, key: str) -> Path:
        return self._kept.joinpath(*check_key(key).split("/"))

    def _obstore(self) -> Any:
        if self._store is None:
            from obstore.store import LocalStore

            self._store = LocalStore(self._kept)
        return self._store


def check_key(key: str) -> str:
    """Raises Malformed for what is not the name of an object."""
    parts = key.split("/")
    if any(not part or part.startswith(".") or not part.replace("-", "").isalnum() for part in parts):
        raise Malformed("This is not the name of an object.")
    return key


class Usage:
    """Bytes on the disk against a cap. Counted from several threads."""

    def __init__(self, bytes_max: int | None) -> None:
        self.used = 0
        self._max = bytes_max
        self._lock = threading.Lock()

    def take(self, size: int) -> None:
        with self._lock:
            if self._max is not None and self.used + size > self._max:
                raise Exhausted(
                    f"The hub's storage is full: {self._max} bytes are allowed. Nothing was stored.",
                    next_step="Delete results and programs that are no longer needed, or ask the hub's operator for space.",
                )
            self.used += size

    def give_back(self, size: int) -> None:
        with self._lock:
            self.used = max(0, self.used - size)


class FileSpool:
    """A body on its way in: buffered to 1 MiB, written in threads, optionally hashed on the way."""

    def __init__(self, path: Path, usage: Usage, *, hashed: bool, at_most: int | None) -> None:
        self._path = path
        self._usage = usage
        self._hash = hashlib.sha256() if hashed else None
        self._at_most = at_most
        self._buffer = bytearray()
        self._file: FileIO | None = None
        self._size = 0

    async def write(self, data: bytes) -> None:
        self._buffer += data
        if len(self._buffer) >= CHUNK:
            await self._drain()

    async def finish(self) -> Spooled:
        await self._drain()
        await self._guarded(self._close_durably)
        return Spooled(self._path, self._size, self._hash.hexdigest() if self._hash else None)

    def write_blocking(self, data: bytes | memoryview) -> None:
        """As `write`, for threads, unbuffered: the caller's pieces are large."""
        self._claim(len(data))
        with disk_full():
            self._append(data)

    def finish_blocking(self) -> Spooled:
        with disk_full():
            self._close_durably()
        return Spooled(self._path, self._size, self._hash.hexdigest() if self._hash else None)

    async def discard(self) -> None:
        if self._file is not None and not self._file.closed:
            self._file.close()
        if self._path.exists():
            self._path.unlink()
            self._usage.give_back(self._size)

    async def _drain(self) -> None:
        data, self._buffer = self._buffer, bytearray()
        self._claim(len(data))
        await self._guarded(lambda: self._append(data))

    def _claim(self, size: int) -> None:
        if self._at_most is not None and self._size + size > self._at_most:
            raise Malformed(f"More than the announced {self._at_most} bytes came.")
        self._usage.take(size)
        self._size += size

    async def _guarded(self, step: Any) -> None:
        with disk_full():
            await asyncio.to_thread(step)

    def _append(self, data: bytes | bytearray | memoryview) -> None:
        if self._file is None:
            self._file = open(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb", buffering=0)  # noqa: SIM115
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]
        if self._hash is not None:
            self._hash.update(data)

    def _close_durably(self) -> None:
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._file.close()


@contextmanager
def disk_full() -> Iterator[None]:
    """What the system says of a full disk, in words: Exhausted."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise Exhausted(
                "The hub's disk is full; nothing was stored.",
                next_step="Ask the hub's operator for space, then repeat the request.",
            ) from error
        raise


def _clear(folder: Path) -> None:
    """Remove the spools of processes that are gone; those that live hold a lock on theirs."""
    for path in folder.iterdir():
        if not path.is_dir():
            path.unlink()
            continue
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path)
        except BlockingIOError:
            pass
        finally:
            os.close(descriptor)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
