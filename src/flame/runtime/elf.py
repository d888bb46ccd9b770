"""Which shared libraries a program needs: read from the ELF files themselves, nothing is executed."""

from __future__ import annotations

import mmap
import platform
import struct
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flame.model.errors import Malformed

__all__ = ["Closure", "Needs", "closure", "read_needs"]

_MAGIC: Final = b"\x7fELF\x02\x01"  # 64 bit, little-endian
_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NEEDED, _DT_STRTAB, _DT_RPATH, _DT_RUNPATH = 1, 5, 15, 29
_CACHE_MARK: Final = {"x86_64": "x86-64", "aarch64": "AArch64"}
# opened by libc itself when a thread is cancelled: no file names it
_OPENED_LATER: Final = ("libgcc_s.so.1",)


@dataclass(frozen=True)
class Needs:
    """What one ELF file asks the loader for."""

    interpreter: str | None
    libraries: tuple[str, ...]
    search: tuple[str, ...]


@dataclass(frozen=True)
class Closure:
    """Libraries outside the given trees: soname -> file, the loader, and names that no file was found for."""

    libraries: dict[str, Path]
    loader: Path | None
    missing: tuple[str, ...]


def read_needs(file: Path) -> Needs | None:
    """DT_NEEDED, DT_RUNPATH/DT_RPATH and PT_INTERP of a file; None when it is not a 64-bit ELF file.

    Raises Malformed when it begins like one and is not.
    """
    with file.open("rb") as stream:
        if stream.read(6) != _MAGIC:
            return None
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return _parse(data)
            except (struct.error, IndexError, ValueError) as wrong:
                raise Malformed(f"{file} is not a readable ELF file: {wrong}") from wrong


def _parse(data: mmap.mmap) -> Needs:
    (program_headers,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    loads: list[tuple[int, int, int]] = []
    dynamic: tuple[int, int] | None = None
    interpreter: str | None = None
    for index in range(count):
        kind, _, offset, address, _, in_file, _, _ = struct.unpack_from(
            "<IIQQQQQQ", data, program_headers + index * size
        )
        if kind == _PT_LOAD:
            loads.append((address, in_file, offset))
        elif kind == _PT_DYNAMIC:
            dynamic = (offset, in_file)
        elif kind == _PT_INTERP:
            interpreter = _text(data, offset)
    if dynamic is None:
        return Needs(interpreter, (), ())
    entries = _dynamic_entries(data, *dynamic)
    strings = next((_file_offset(loads, value) for tag, value in entries if tag == _DT_STRTAB), None)
    if strings is None:
        return Needs(interpreter, (), ())
    names = tuple(_text(data, strings + value) for tag, value in entries if tag == _DT_NEEDED)
    search = [
        part
        for tag, value in entries
        if tag in (_DT_RPATH, _DT_RUNPATH)
        for part in _text(data, strings + value).split(":")
    ]
    return Needs(interpreter, names, tuple(part for part in search if part))


def _dynamic_entries(data: mmap.mmap, offset: int, length: int) -> list[tuple[int, int]]:
    entries = []
    for at in range(offset, offset + length - 15, 16):
        tag, value = struct.unpack_from("<qQ", data, at)
        if tag == 0:
            break
        entries.append((tag, value))
    return entries


def _file_offset(loads: Iterable[tuple[int, int, int]], address: int) -> int:
    for start, size, offset in loads:
        if start <= address < start + size:
            return offset + address - start
    raise ValueError("an address lies outside the file")


def _text(data: mmap.mmap, offset: int) -> str:
    end = data.find(b"\0", offset)
    if end < 0:
        raise ValueError("a name does not end")
    return data[offset:end].decode()


def _system_libraries() -> dict[str, Path]:
    """The loader's cache, by soname."""
    for program in ("/sbin/ldconfig", "/usr/sbin/ldconfig"):
        if Path(program).exists():
            listed = subprocess.run([program, "-p"], capture_output=True, text=True, check=False, env={})
            return dict(_cache_lines(listed.stdout))
    return {}


def _cache_lines(text: str) -> Iterator[tuple[str, Path]]:
    mark = _CACHE_MARK.get(platform.machine(), "")
    found: set[str] = set()
    for line in text.splitlines():
        name, arrow, path = line.strip().partition(" => ")
        soname, _, about = name.partition(" ")
        if arrow and mark in about and soname not in found:
            found.add(soname)
            yield soname, Path(path)


_DEFAULT_FOLDERS: Final = tuple(
    Path(folder)
    for folder in (
        f"/lib/{platform.machine()}-linux-gnu",
        f"/usr/lib/{platform.machine()}-linux-gnu",
        "/lib64",
        "/usr/lib64",
        "/lib",
        "/usr/lib",
    )
)


def closure(roots: Iterable[Path], inside: Iterable[Path]) -> Closure:
    """All libraries that `roots` need, directly or not, except those that lie inside the trees `inside`.

    Libraries inside a tree travel with it (found by their $ORIGIN path); the others have to be brought along.
    """
    cache = _system_libraries()
    trees = [tree.resolve() for tree in inside]
    found: dict[str, Path] = {}
    missing: set[str] = set()
    loader: Path | None = None
    seen: set[Path] = set()
    todo = [root for root in roots if root.is_file()]
    while todo:
        file = todo.pop()
        if (real := file.resolve()) in seen:
            continue
        seen.add(real)
        needs = read_needs(real)
        if needs is None:
            continue
        if needs.interpreter:
            loader = Path(needs.interpreter)
        wanted = [*needs.libraries, *(name for name in _OPENED_LATER if name in cache)]
        for name in wanted:
            place = _find(name, needs.search, real.parent, cache)
            if place is None:
                missing.add(name)
                continue
            todo.append(place)
            if not any(place.resolve().is_relative_to(tree) for tree in trees):
                found.setdefault(name, place)
    if loader is not None:
        found.pop(loader.name, None)
    return Closure(dict(sorted(found.items())), loader, tuple(sorted(missing - found.keys())))


def _find(name: str, search: Iterable[str], origin: Path, cache: dict[str, Path]) -> Path | None:
    folders = [Path(part.replace("${ORIGIN}", str(origin)).replace("$ORIGIN", str(origin))) for part in search]
    for folder in folders:
        if (candidate := folder / name).is_file():
            return candidate
    if name in cache and cache[name].is_file():
        return cache[name]
    for folder in _DEFAULT_FOLDERS:
        if (candidate := folder / name).is_file():
            return candidate
    return None
