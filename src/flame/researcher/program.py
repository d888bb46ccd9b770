"""A program on disk: which files belong to it, and which of them runs."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from flame.model.errors import Invalid, NotFound

MAX_PROGRAM_BYTES: Final = 64 << 20


def read_program(path: Path) -> dict[str, bytes]:
    """A program's files by relative name. Hidden files and byte code stay behind.

    Raises NotFound, Invalid (no file, links, more than 64 MB).
    """
    if path.is_file():
        return {path.name: path.read_bytes()}
    if not path.is_dir():
        raise NotFound(f"There is no program at {path}.", next_step="Name a Python file, or a folder of files.")
    files: dict[str, bytes] = {}
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path)
        if any(part.startswith(".") or part == "__pycache__" for part in name.parts) or file.is_dir():
            continue
        if file.is_symlink():
            raise Invalid(f"{file} is a link.", next_step="Put the file itself into the program's folder.")
        files[name.as_posix()] = file.read_bytes()
    if not files or sum(map(len, files.values())) > MAX_PROGRAM_BYTES:
        raise Invalid(f"{path} holds no program: it is empty, or larger than {MAX_PROGRAM_BYTES >> 20} MB.")
    return files


def choose_entrypoint(files: dict[str, bytes], wanted: str | None) -> str:
    """The file that runs: the one asked for, main.py, or the only Python file. Raises NotFound, Invalid."""
    if wanted is not None:
        if wanted not in files:
            raise NotFound(
                f"The program has no file '{wanted[:200]}'.", next_step=f"It has: {', '.join(sorted(files)[:20])}."
            )
        return wanted
    programs = [name for name in files if name.endswith(".py")]
    if "main.py" in programs:
        return "main.py"
    if len(programs) == 1:
        return programs[0]
    raise Invalid("It is not clear which file runs.", next_step="Name it with --entrypoint FILE.")
