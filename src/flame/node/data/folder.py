"""A folder as a source: its files by name, frozen at the start of a run by size, time and SHA-256.

Files are read where they lie. One that was changed since the run began is refused: a run sees one state of its data.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Final

import msgspec

from flame.model.errors import DoesNotMatchApproval, Exhausted, Invalid, NotFound, RunFailed

MAX_FILES: Final = 100_000
RESOURCES: Final = ".ndjson"
"""Files with this ending hold FHIR resources, one a line."""


class File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    size: int
    modified_ns: int
    sha256: str


class FolderSnapshot(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    root: str
    files: dict[str, File]
    """By name below the folder, with '/'; sorted."""

    @property
    def objects(self) -> list[str]:
        return [name for name in self.files if not name.endswith(RESOURCES)]

    @property
    def resources(self) -> list[str]:
        return [name for name in self.files if name.endswith(RESOURCES)]

    @property
    def sha256(self) -> str:
        return hashlib.sha256(msgspec.json.encode(self.files, order="sorted")).hexdigest()

    def open(self, name: str) -> BufferedReader:
        """A file for reading. Raises NotFound, or DoesNotMatchApproval when it is not the frozen one any more."""
        known = self.files.get(name)
        if known is None:
            raise NotFound("This source has no such file.", next_step="List the source's files first.")
        try:
            file = _open_below(Path(self.root), name)
        except OSError:
            raise _changed(name) from None
        status = os.fstat(file.fileno())
        if (status.st_size, status.st_mtime_ns) != (known.size, known.modified_ns):
            file.close()
            raise _changed(name)
        return file


def freeze_folder(root: Path, min_rows: int) -> FolderSnapshot:
    """Raises NotFound, Invalid (links, devices), RunFailed (fewer files than ``min_rows``), Exhausted."""
    if root.is_symlink() or not root.is_dir():
        raise NotFound("The folder of the source is not there.", next_step="Check it with `flame node data list`.")
    files: dict[str, File] = {}
    for name in sorted(_names(root)):
        if len(files) >= MAX_FILES:
            raise Exhausted(f"The folder holds more than {MAX_FILES} files.", next_step="Offer fewer at once.")
        with _open_below(root, name) as file:
            status = os.fstat(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        files[name] = File(status.st_size, status.st_mtime_ns, digest)
    if len(files) < min_rows:
        raise RunFailed(
            f"The source has fewer than the {min_rows} files that the manifest demands.",
            next_step="Nothing to do here: the manifest's author set the number.",
        )
    return FolderSnapshot(str(root), files)


def _names(root: Path) -> Iterator[str]:
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            if name.startswith("."):
                continue
            path = Path(folder, name)
            if not stat.S_ISREG(path.lstat().st_mode):
                raise Invalid(f"The folder holds '{name[:64]}', which is no plain file.", next_step="Take it out.")
            relative = path.relative_to(root).as_posix()
            if not relative.isprintable():
                raise Invalid("A file of the folder has a name that cannot be shown.", next_step="Rename it.")
            yield relative


def _open_below(root: Path, name: str) -> BufferedReader:
    """Each step is opened without following links, so that nothing outside the folder is reached."""
    *parents, last = name.split("/")
    at = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        for parent in parents:
            step = os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
            os.close(at)
            at = step
        return os.fdopen(os.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=at), "rb")
    finally:
        os.close(at)


def _changed(name: str) -> DoesNotMatchApproval:
    return DoesNotMatchApproval(
        f"The file '{name[:64]}' was changed or removed since the run began.", next_step="Start the analysis again."
    )
