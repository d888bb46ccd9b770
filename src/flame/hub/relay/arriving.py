"""Large envelopes on their way in: files that grow, that recipients read along, and that a broken line leaves to be continued.

An envelope is announced to its recipients when its head has been judged, and they may fetch it at once: they get what
has come, and the rest as it comes. It counts as stored when all of it is on the disk and the letter names its object.
A line that breaks leaves the file: the sender asks how far it went and goes on there (`offset_of`, `resume`), also after
a crash of the hub; what lies on the disk then is compared by its digest before anything is added to it.

Everything here blocks and is called from threads.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final
from uuid import uuid4

from flame.crypto.envelope import MAX_HEADER
from flame.model.errors import Conflict, Exhausted, Malformed
from flame.storage.objects import CHUNK, Spooled, disk_full

if TYPE_CHECKING:
    from flame.storage.objects import Objects

STALL_SECONDS: Final = 10.0
"""A reader that has caught up waits so long for more."""
GRACE_SECONDS: Final = 60.0


class Arrival:
    """One envelope of `size` bytes on its way in. One writer at a time: a newer attempt takes over from an older one."""

    def __init__(self, path: Path, size: int, run: bytes) -> None:
        self.path, self.size, self.run = path, size, run
        self.have = 0
        self.is_written = False
        self._attempt = 0
        self._over = False
        self._grown = threading.Condition()

    def take_over(self, offset: int) -> int:
        """Begin to write from `offset` on; returns the attempt's number."""
        with self._grown:
            self._attempt += 1
            self.have = offset
            self.is_written = True
            return self._attempt

    def leave(self, attempt: int) -> None:
        """Nobody writes at present, unless another attempt has taken over."""
        with self._grown:
            if attempt == self._attempt:
                self.is_written = False

    def grew(self, attempt: int, by: int) -> None:
        """Raises ConnectionAbortedError for an attempt that another one has replaced."""
        with self._grown:
            if attempt != self._attempt:
                raise ConnectionAbortedError
            self.have += by
            self._grown.notify_all()

    def is_current(self, attempt: int) -> bool:
        return attempt == self._attempt

    def end(self) -> None:
        """There will be no more of it: all has come, or it is not wanted any more."""
        with self._grown:
            self._over = True
            self._grown.notify_all()

    def beyond(self, position: int, seconds: float = STALL_SECONDS) -> int:
        """How much there is, once it is more than `position`; not more when it has ended, or stalls."""
        until = time.monotonic() + seconds
        with self._grown:
            while self.have <= position and not self._over and (left := until - time.monotonic()) > 0:
                self._grown.wait(left)
            return self.have


class Attempt:
    """One connection's writing. Ended by `finish`; or by `leave`, and what has come stays for the next attempt."""

    def __init__(self, arrivals: Arrivals, arrival: Arrival, offset: int) -> None:
        self._arrivals, self.arrival = arrivals, arrival
        self._claimed = arrival.size - offset
        arrivals.objects.usage.take(self._claimed)  # Exhausted: refused before it starts
        self._number = arrival.take_over(offset)
        try:
            with disk_full():
                descriptor = os.open(arrival.path, os.O_WRONLY | os.O_CREAT, 0o600)
                self._file = os.fdopen(descriptor, "wb", buffering=0)
                self._file.truncate(offset)
                self._file.seek(offset)
        except BaseException:
            self._give_back()
            raise

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Raises Malformed for more than was announced, Exhausted on a full disk."""
        if len(data) > self._claimed:
            raise Malformed(f"More than the announced {self.arrival.size} bytes came.")
        if not self.arrival.is_current(self._number):
            raise ConnectionAbortedError
        with disk_full():
            view = memoryview(data)
            while view:
                view = view[self._file.write(view) :]
        self._claimed -= len(data)
        self.arrival.grew(self._number, len(data))

    def finish(self) -> str:
        """All of it is on the disk, under a name of its own; returns the name. Raises Malformed when some is missing."""
        if self._claimed:
            raise Malformed("The body is not as long as announced.")
        if not self.arrival.is_current(self._number):
            raise ConnectionAbortedError
        with disk_full():
            os.fsync(self._file.fileno())
        self._file.close()
        blob = f"mail/{uuid4().hex}"
        self._arrivals.objects.keep_blocking(Spooled(self.arrival.path, self.arrival.size, None), blob)
        return blob

    def leave(self) -> None:
        """Harmless after `finish`."""
        self._file.close()
        self.arrival.leave(self._number)
        self._give_back()

    def _give_back(self) -> None:
        self._arrivals.objects.usage.give_back(self._claimed)
        self._claimed = 0


class Arrivals:
    """What is on its way in, by sender and message id. `folder` is this process' own."""

    def __init__(self, folder: Path, objects: Objects) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._folder = folder
        self.objects = objects
        self._known: dict[str, Arrival] = {}
        self._lock = threading.Lock()
        objects.usage.used += sum(path.stat().st_size for path in folder.iterdir())

    def begin(self, sender: str, msg_id: bytes, size: int, run: bytes) -> Attempt:
        """From the first byte on. Raises Exhausted when there is no room for all of it."""
        return self._attempt(sender, msg_id, size, run, 0)

    def offset_of(self, sender: str, msg_id: bytes) -> int:
        """How much of it has come, whoever brought it."""
        with suppress(FileNotFoundError):
            return self._path(sender, msg_id).stat().st_size
        return 0

    def start_of(self, sender: str, msg_id: bytes) -> bytes:
        """Its first bytes: more than its header."""
        with suppress(FileNotFoundError), self._path(sender, msg_id).open("rb") as file:
            return file.read(MAX_HEADER)
        return b""

    def resume(self, sender: str, msg_id: bytes, size: int, run: bytes, offset: int, digest: str) -> Attempt:
        """From `offset` on, if what lies before it has this SHA-256. Raises Conflict: begin again then."""
        if not 0 < offset <= self.offset_of(sender, msg_id) or offset > size:
            raise Conflict("There is less of this message here.", next_step="Ask how much there is, or send all of it.")
        if self._digest(sender, msg_id, offset) != digest:
            self.discard(sender, msg_id)
            raise Conflict("What lies here of this message is something else.", next_step="Send all of it.")
        return self._attempt(sender, msg_id, size, run, offset)

    def find(self, sender: str, msg_id: bytes) -> Arrival | None:
        """What comes in at this process."""
        return self._known.get(name_of(sender, msg_id))

    def done(self, sender: str, msg_id: bytes) -> None:
        """Its object has its name."""
        with self._lock:
            arrival = self._known.pop(name_of(sender, msg_id), None)
        if arrival is not None:
            arrival.end()

    def discard(self, sender: str, msg_id: bytes) -> None:
        """Forget it, and what has come of it."""
        self.done(sender, msg_id)
        self._unlink(self._path(sender, msg_id))

    def run_ended(self, run: bytes) -> None:
        """Nobody waits for what has come. What still comes is ended by its writer, who looks whether the run goes on."""
        for name, arrival in list(self._known.items()):
            if arrival.run == run and not arrival.is_written:
                self._forget(name)

    def keep_only(self, wanted: Collection[str], *, alone: bool) -> None:
        """Remove what nobody waits for any more; `wanted`: names as `name_of` gives them.

        alone: nobody can be about to announce one of them, for nobody is connected yet, and there is no other process.
        """
        for path in self._folder.iterdir():
            known = self._known.get(path.name)
            if path.name in wanted or (known and known.is_written):
                continue
            with suppress(FileNotFoundError):
                if alone or path.stat().st_mtime < time.time() - GRACE_SECONDS:
                    self._forget(path.name)

    def _forget(self, name: str) -> None:
        with self._lock:
            arrival = self._known.pop(name, None)
        if arrival is not None:
            arrival.take_over(0)
            arrival.end()
        self._unlink(self._folder / name)

    def _attempt(self, sender: str, msg_id: bytes, size: int, run: bytes, offset: int) -> Attempt:
        path = self._path(sender, msg_id)
        lost = self.offset_of(sender, msg_id) - offset
        with self._lock:
            arrival = self._known.get(path.name)
            if arrival is None:
                arrival = self._known[path.name] = Arrival(path, size, run)
        self.objects.usage.give_back(max(0, lost))
        try:
            return Attempt(self, arrival, offset)
        except Exhausted:
            self._forget(path.name)
            raise

    def _digest(self, sender: str, msg_id: bytes, size: int) -> str:
        found = hashlib.sha256()
        with self._path(sender, msg_id).open("rb") as file:
            while size and (piece := file.read(min(size, CHUNK))):
                found.update(piece)
                size -= len(piece)
        return found.hexdigest()

    def _unlink(self, path: Path) -> None:
        with suppress(FileNotFoundError):
            size = path.stat().st_size
            path.unlink()
            self.objects.usage.give_back(size)

    def _path(self, sender: str, msg_id: bytes) -> Path:
        return self._folder / name_of(sender, msg_id)


def name_of(sender: str, msg_id: bytes) -> str:
    """The name of what arrives: a file's, and the key by which recipients elsewhere wait for it."""
    return f"{sender}-{msg_id.hex()}"
