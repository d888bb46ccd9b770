"""What a program keeps at its node: objects and tags of (node, project), sealed at rest.

A program that begins anew after a crash of its node is replayed: it finds what was there when its run began, saves the
same objects again, and those are the ones it had saved. What one analysis has kept, another of the project finds only
where its manifest asks for the source ``local``.
"""

from __future__ import annotations

import re
import threading
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from flame.model.errors import Exhausted, Invalid, NotFound

if TYPE_CHECKING:
    from flame.crypto.atrest import StorageKey
    from flame.storage.journal import Journal

SOURCE: Final = "local"
"""The name under which a manifest asks for what earlier analyses of the project have kept."""
QUOTA: Final = 4 << 30
TAG: Final = re.compile(r"[a-z0-9]{1,2}|[a-z0-9][a-z0-9-]{,30}[a-z0-9]")


@dataclass(frozen=True)
class Kept:
    handle: str
    name: str
    tag: str


class LocalObjects:
    """The objects that one start of a program sees. Methods may be called from any thread."""

    def __init__(
        self, journal: Journal, key: StorageKey, *, project: str, analysis: str, run: str, earlier: bool
    ) -> None:
        """earlier: whether objects of other analyses of the project are seen."""
        self._journal, self._key = journal, key
        self._project, self._analysis, self._run, self._earlier = project, analysis, run, earlier
        self._saved = 0
        self._lock = threading.Lock()

    def save(self, name: str, tag: str, content: bytes | bytearray | memoryview) -> str:
        """The object's handle; durable when it returns. Raises Invalid (tag), Exhausted."""
        if tag and not TAG.fullmatch(tag):
            raise Invalid(
                f"{tag[:64]!r} is not allowed as a tag.",
                next_step="Use up to 32 lower-case letters, digits and '-', with a letter or digit at both ends.",
                field="tag",
            )
        with self._lock:
            ordinal, self._saved = self._saved, self._saved + 1
        handle = str(uuid.uuid5(uuid.NAMESPACE_OID, f"{self._run}/{ordinal}"))
        sealed = self._key.seal(memoryview(content), self._context(handle))
        row = (handle, self._project, self._analysis, self._run, ordinal, name, tag, sealed, time.time())

        def write(connection: object) -> None:
            execute = connection.execute  # type: ignore[attr-defined]
            (used,) = execute(
                "SELECT coalesce(sum(length(sealed)), 0) FROM local_objects WHERE project = ?", (self._project,)
            ).fetchone()
            if used + len(sealed) > QUOTA:
                raise Exhausted(
                    f"What this project keeps at the node would take more than {QUOTA} bytes.",
                    next_step="Ask the node's administrator to remove what is not needed any more.",
                )
            execute("INSERT OR REPLACE INTO local_objects VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?)", row)

        self._journal.write_blocking(write)
        return handle

    def read(self, handle: str) -> bytes:
        """Raises NotFound for what this start does not see."""
        if any(kept.handle == handle for kept in self._seen()):
            rows = self._journal.rows_blocking("SELECT sealed FROM local_objects WHERE handle = ?", handle)
            if rows:
                return self._key.open(bytes(rows[0][0]), self._context(handle))
        raise NotFound("There is no such local object.", next_step="Use an id that saving an object gave.")

    def tags(self) -> list[str]:
        """Each once, in the order in which they were first used."""
        return list(dict.fromkeys(kept.tag for kept in self._seen() if kept.tag))

    def tagged(self, tag: str) -> list[Kept]:
        """In the order in which they were saved."""
        return [kept for kept in self._seen() if kept.tag == tag]

    def _seen(self) -> list[Kept]:
        rows = self._journal.rows_blocking(
            "SELECT handle, name, tag, analysis, run, ordinal FROM local_objects WHERE project = ? ORDER BY saved, ordinal",
            self._project,
        )
        with self._lock:
            saved = self._saved
        return [
            Kept(handle, name, tag)
            for handle, name, tag, analysis, run, ordinal in rows
            if (run == self._run and ordinal < saved)
            or (run != self._run and (self._earlier or analysis == self._analysis))
        ]

    def _context(self, handle: str) -> bytes:
        return b"local\0" + self._project.encode() + b"\0" + handle.encode()
