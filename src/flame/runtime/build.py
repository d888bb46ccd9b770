"""Building the site directory of an environment out of what is installed here: no network, no installer.

The result holds the files of the named distributions and of what they require, compiled, with fixed times and modes;
no scripts, no .pth files, nothing of the node. Of FLAME itself only the rooms that an analysis imports are copied.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

from flame.model.errors import Invalid, NotFound
from flame.runtime.environments import SITE, compile_bytecode

__all__ = ["OWN_ROOMS", "build_site", "site_fingerprint"]

# What an analysis imports; hub and node rooms never enter a sandbox
OWN_ROOMS: Final = ("model", "wire", "sdk", "star", "methods")

_OWN: Final = "flame-federated"
_STATE: Final = ".build.json"
_LAYOUT: Final = 1
_TIME: Final = 315532800  # 1980-01-01: the earliest time that every archive format can hold
_NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
_KEPT_METADATA: Final = frozenset({"METADATA", "WHEEL", "top_level.txt", "entry_points.txt"})


@dataclass(frozen=True)
class _Part:
    """One distribution: where each of its files comes from, by its path in the site; and texts that are made here."""

    name: str
    version: str
    files: dict[str, Path]
    texts: dict[str, str]

    def fingerprint(self) -> str:
        whole = hashlib.sha256(f"{_LAYOUT}\0{sys.version}\0{self.name}\0{self.version}\0{self.texts}\n".encode())
        for target, source in sorted(self.files.items()):
            status = source.stat()
            whole.update(f"{target}\0{source}\0{status.st_ino}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        return whole.hexdigest()


def build_site(target: Path, distributions: Sequence[str], *, reuse: Path | None = None) -> Path:
    """Make `target` a site directory with these distributions and what they require (without extras).

    Atomic: `target` appears whole or not at all, and is left alone when it is up to date. reuse: an earlier site, from
    which the compiled files of unchanged distributions are copied. Returns `target`.
    Raises NotFound for a distribution that is not installed here.
    """
    parts = _parts(distributions)
    prints = {part.name: part.fingerprint() for part in parts}
    if _state(target) == prints:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    earlier = next((site for site in (reuse, target) if site is not None and site.is_dir()), None)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".new-") as scratch:
        tree = Path(scratch) / "site"
        tree.mkdir()
        _fill(tree, parts, prints, earlier)
        if target.exists():
            target.rename(Path(scratch) / "old")
        tree.rename(target)
        _state_file(target).write_text(json.dumps(prints, sort_keys=True))
    return target


def site_fingerprint(distributions: Sequence[str]) -> str:
    """Says whether a site built now would differ: over names, versions and the stamps of all files."""
    prints = sorted((part.name, part.fingerprint()) for part in _parts(distributions))
    return hashlib.sha256(json.dumps(prints).encode()).hexdigest()


def _fill(tree: Path, parts: Sequence[_Part], prints: dict[str, str], earlier: Path | None) -> None:
    before = (_state(earlier) or {}) if earlier else {}
    modules: list[Path] = []
    for part in parts:
        unchanged = earlier if before.get(part.name) == prints[part.name] else None
        for name, source in part.files.items():
            _place(source, tree / name)
            if name.endswith(".py") and not (unchanged and _take_bytecode(unchanged, tree, name)):
                modules.append(tree / name)
        for name, text in part.texts.items():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_text(text)
    if modules:
        base = Path(getattr(sys, "_base_executable", sys.executable))
        compile_bytecode(base, tree, SITE, modules)
    _settle(tree)


def _place(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    if os.access(source, os.X_OK):
        target.chmod(0o755)


def _take_bytecode(earlier: Path, tree: Path, module: str) -> bool:
    compiled = Path(importlib.util.cache_from_source(module))
    if not (earlier / compiled).is_file():
        return False
    _place(earlier / compiled, tree / compiled)
    return True


def _settle(tree: Path) -> None:
    """The same modes and times whoever builds, so that the digest depends on the contents alone."""
    for folder, _, files in os.walk(tree, topdown=False):
        for file in files:
            path = Path(folder, file)
            path.chmod(0o555 if path.stat().st_mode & 0o100 else 0o444)
            os.utime(path, (_TIME, _TIME))
        Path(folder).chmod(0o755)
        os.utime(folder, (_TIME, _TIME))


def _state_file(site: Path) -> Path:
    return site.with_name(site.name + _STATE)


def _state(site: Path) -> dict[str, str] | None:
    if not site.is_dir():
        return None
    try:
        content = json.loads(_state_file(site).read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return content if isinstance(content, dict) else None


# -- what belongs to a distribution -----------------------------------------------------------------------------


def _parts(distributions: Sequence[str]) -> list[_Part]:
    found: dict[str, _Part] = {}
    todo = [(name, True) for name in distributions]
    while todo:
        name, must_exist = todo.pop()
        key = _normal(name)
        if key in found:
            continue
        try:
            installed = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            if not must_exist:
                continue
            raise NotFound(
                f"The distribution {name} is not installed here, so no environment can be built with it.",
                next_step=f"Install {name} beside the node, then build again.",
                distribution=name,
            ) from None
        found[key] = _own_part(installed) if key == _OWN else _part(key, installed)
        todo += _requirements(installed)
    return [found[key] for key in sorted(found)]


def _normal(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise Invalid(f"{name!r} is not the name of a distribution.", field="distributions")
    return re.sub(r"[-_.]+", "-", name).lower()


def _requirements(installed: metadata.Distribution) -> Iterator[tuple[str, bool]]:
    """Names it requires without extras. One under a condition (such as a platform) is taken if it is installed."""
    for requirement in installed.requires or ():
        wanted, _, condition = requirement.partition(";")
        name = _NAME.match(wanted.strip())
        if name and not re.search(r"\bextra\b", condition):
            yield name.group(), not condition


def _part(name: str, installed: metadata.Distribution) -> _Part:
    files: dict[str, Path] = {}
    for listed in installed.files or ():
        target = listed.as_posix()
        if ".." in listed.parts or listed.is_absolute() or listed.suffix in (".pth", ".pyc") or not _wanted(listed):
            continue
        source = Path(str(listed.locate()))
        if source.is_file():
            files[target] = source
    return _Part(name, installed.version, files, {})


def _wanted(listed: metadata.PackagePath) -> bool:
    """Of the metadata only what programs read: the rest names this machine (direct_url) or its installer."""
    top = listed.parts[0]
    if not top.endswith(".dist-info"):
        return True
    return listed.name in _KEPT_METADATA or "licenses" in listed.parts


def _own_part(installed: metadata.Distribution) -> _Part:
    """The analysis side of FLAME, wherever it is imported from: an editable install has no list of its files."""
    package = Path(next(iter(_locations("flame"))))
    files = {f"flame/{name}": package / name for name in ("__init__.py", "py.typed") if (package / name).is_file()}
    for room in OWN_ROOMS:
        files |= _tree(package / room, f"flame/{room}")
    for place in _locations("flamesdk"):
        files |= _tree(Path(place), "flamesdk")
    info = f"flame_federated-{installed.version}.dist-info"
    texts = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {_OWN}\nVersion: {installed.version}\n",
        f"{info}/top_level.txt": "flame\nflamesdk\n",
    }
    return _Part(_OWN, installed.version, files, texts)


def _locations(package: str) -> list[str]:
    spec = importlib.util.find_spec(package)
    return list(spec.submodule_search_locations or ()) if spec else []


def _tree(source: Path, target: str) -> dict[str, Path]:
    return {
        f"{target}/{path.relative_to(source).as_posix()}": path
        for path in sorted(source.rglob("*"))
        if path.is_file() and path.suffix not in (".pyc", ".pth") and "__pycache__" not in path.parts
    }
