"""Host environments: a Python installation of this machine that runs may see, named by what is in it.

An environment is four trees, each of which has one place in the sandbox and no writer:

    /opt/py      the interpreter and its standard library   copied once per interpreter, compiled
    /opt/site    the packages a program may import          the site directory that was registered
    /usr, /etc   shared libraries, loader, setpriv, names   copied: only what the files above need

Interpreter and libraries are copies on purpose: the rest of the host's /usr stays invisible, and an update of the host
changes nothing that was approved. The digest covers (path in the sandbox, mode, SHA-256) of every file, so it says what
a program meets and not where that lies on this machine.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Final

from flame.model.errors import DoesNotMatchApproval, Invalid, NotFound, Refused, Unavailable
from flame.runtime.elf import Closure, closure

__all__ = [
    "PREFIX",
    "SITE",
    "HostEnvironment",
    "check",
    "compile_bytecode",
    "load_host_environment",
    "register_host_environment",
]

PREFIX: Final = "/opt/py"
SITE: Final = "/opt/site"

_CURRENT: Final = "environment.json"
_LAYOUT: Final = 2
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}(/[a-z0-9][a-z0-9._-]{0,63}){0,3}")
# What no analysis imports, or what only makes sense where packages are installed
_LEFT_OUT: Final = frozenset(
    {
        "site-packages",
        "dist-packages",
        "test",
        "tests",
        "idlelib",
        "tkinter",
        "turtledemo",
        "ensurepip",
        "lib2to3",
        "__pycache__",
    }
)
_ASK_INTERPRETER: Final = (
    "import json,os,sys,sysconfig;p=sysconfig.get_path;"
    "print(json.dumps({'executable':os.path.realpath(getattr(sys,'_base_executable',sys.executable)),"
    "'prefix':sys.base_prefix,'platlibdir':sys.platlibdir,'stdlib':p('stdlib',vars={'installed_base':sys.base_prefix,'base':sys.base_prefix}),"
    "'version':'%d.%d'%sys.version_info[:2]}))"
)
_STATIC: Final = {
    "etc/hosts": "127.0.0.1 localhost gateway\n",
    "etc/passwd": "root:x:0:0::/:/usr/sbin/nologin\nnobody:x:65534:65534::/:/usr/sbin/nologin\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
}
_ZONES_AT_MOST: Final = 8 << 20
_BLOCK: Final = 1 << 20

Stamp = tuple[int, int, int, int]  # inode, size, mtime_ns, ctime_ns


@dataclass(frozen=True)
class HostEnvironment:
    """A registered environment: where its trees lie on this machine, and the digest of what is in them.

    python is the interpreter inside `prefix`; the sandbox shows it as /opt/py/bin/<name>.
    """

    name: str
    digest: str
    python: Path
    prefix: Path
    site: Path
    system: Path
    record: Path

    @property
    def command(self) -> str:
        """The interpreter's path in the sandbox."""
        return f"{PREFIX}/bin/{self.python.name}"

    @property
    def has_own_sdk(self) -> bool:
        """Whether programs find FLAME's new SDK in it, which speaks frames over the socket. Covered by the digest."""
        return (self.site / "flame" / "sdk" / "__init__.py").is_file()

    @property
    def mounts(self) -> Mapping[str, Path]:
        """Path in the sandbox -> tree on this machine, all to be mounted read-only."""
        return _mounts(self.prefix, self.site, self.system)

    @cached_property
    def links(self) -> Mapping[str, str]:
        """Symbolic links at the sandbox's root that lead into /usr, as on any merged-/usr system."""
        usr = self.system / "usr"
        return {f"/{name}": f"usr/{name}" for name in ("bin", "lib", "lib64") if (usr / name).is_dir()}

    @cached_property
    def system_files(self) -> tuple[str, ...]:
        """Sandbox paths of the shared libraries and programs that were brought from the host."""
        return tuple(sorted(f"/{path.relative_to(self.system)}" for path in self.system.rglob("*") if path.is_file()))


@dataclass(frozen=True)
class _Interpreter:
    executable: Path
    prefix: Path
    stdlib: Path
    platlibdir: str
    version: str


def _mounts(prefix: Path, site: Path, system: Path) -> dict[str, Path]:
    return {PREFIX: prefix, SITE: site, "/usr": system / "usr", "/etc": system / "etc"}


def register_host_environment(name: str, site: Path, *, python: Path | None = None, registry: Path) -> HostEnvironment:
    """Register `site` with an interpreter of this machine under a name, and return it with its digest.

    site: a site-packages directory of the environment's own, compiled (see `build_site`), never the node's.
    python: an interpreter; default: the one that this process' virtual environment is based on.
    registry: a directory of the node's, for the copies and the record. Unchanged files are not hashed again. What was
    registered under the name before stays usable by whoever holds it, as long as its own files are unchanged.
    Raises Invalid for a bad name, NotFound for a missing site, Refused when somebody else could change the files or
    when they hold what must not be there (.pth files, sockets, links that lead out).
    """
    if not _NAME.fullmatch(name):
        raise Invalid(
            f"{name!r} is not a name for an environment.",
            next_step="Use lower-case letters, digits, '.', '_' and '-', in parts divided by '/', such as python/base.",
            field="name",
        )
    if not site.is_dir():
        raise NotFound(f"There is no site directory at {site}.", next_step="Build one first, with build_site.")
    site = site.resolve()
    interpreter = _describe(python)
    home = registry.resolve() / name
    home.mkdir(parents=True, exist_ok=True)
    prefix = _copy_interpreter(interpreter, registry.resolve() / "_interpreters")
    system = _copy_system(interpreter, prefix, site, home)
    entries, folders = _inventory(_mounts(prefix, site, system), _known(home))
    digest = _digest(entries)
    environment = HostEnvironment(
        name=name,
        digest=digest,
        python=prefix / "bin" / interpreter.executable.name,
        prefix=prefix,
        site=site,
        system=system,
        record=home / _record_name(digest, site),
    )
    _write_record(environment, entries, folders)
    _write(home / _CURRENT, {"layout": _LAYOUT, "record": environment.record.name})
    return environment


def load_host_environment(name: str, registry: Path) -> HostEnvironment:
    """The environment registered under `name`. Raises NotFound, or Invalid for a bad name."""
    if not _NAME.fullmatch(name):
        raise Invalid(f"{name!r} is not a name for an environment.", field="name")
    record = _current(registry.resolve() / name)
    content = _read(record) if record is not None else None
    if record is None or content is None:
        raise NotFound(
            f"No environment {name} is registered at this node.", next_step="Register it: flame node environment add."
        )
    return HostEnvironment(
        name=name,
        digest=content["digest"],
        python=Path(content["python"]),
        prefix=Path(content["prefix"]),
        site=Path(content["site"]),
        system=Path(content["system"]),
        record=record,
    )


def check(environment: HostEnvironment) -> None:
    """Compare every file with what was registered, by inode, size, mtime and ctime: cheap enough for each start.

    Raises DoesNotMatchApproval naming the first file that was changed, removed or added.
    """
    expected = _expected(environment, _stamp_of_record(environment))
    if expected.digest != environment.digest:
        raise _changed(environment, str(environment.record), "is not the record this environment was loaded from")
    for path, place, mode, stamp in expected.entries:
        try:
            now = os.lstat(place)
        except FileNotFoundError:
            raise _changed(environment, path, "is gone") from None
        if now.st_mode != mode or _stamp(now) != stamp:
            raise _changed(environment, path, "has changed")


@dataclass(frozen=True)
class _Expected:
    """A record ready to be compared: path in the sandbox, path on this machine, mode, stamp."""

    digest: str
    entries: tuple[tuple[str, str, int, Stamp], ...]


def _stamp_of_record(environment: HostEnvironment) -> Stamp:
    try:
        return _stamp(environment.record.stat())
    except FileNotFoundError:
        raise _changed(environment, str(environment.record), "is gone") from None


@lru_cache(maxsize=8)
def _expected(environment: HostEnvironment, _: Stamp) -> _Expected:
    """Read once for each state of the record: a node checks before every start."""
    content = _read(environment.record)
    if content is None:
        raise _changed(environment, str(environment.record), "is of another form")
    roots = {target: str(place) for target, place in environment.mounts.items()}
    entries = [
        (path, _place(roots, path), mode, (stamp[0], stamp[1], stamp[2], stamp[3]))
        for kind in ("files", "folders")
        for path, (mode, stamp, *_) in content[kind].items()
    ]
    return _Expected(content["digest"], tuple(entries))


def _place(roots: Mapping[str, str], path: str) -> str:
    for target, root in roots.items():
        if path == target or path.startswith(target + "/"):
            return root + path[len(target) :]
    raise Invalid(f"The record names {path}, which lies in no tree of the environment.", field="files")


def _changed(environment: HostEnvironment, path: str, what: str) -> DoesNotMatchApproval:
    return DoesNotMatchApproval(
        f"The environment {environment.name} is not the one that was approved: {path} {what} since it was registered.",
        next_step="Register it again and have the new digest approved, or restore the file.",
        environment=environment.name,
        digest=environment.digest,
        file=path,
    )


# -- the interpreter ------------------------------------------------------------------------------------------------


def _describe(python: Path | None) -> _Interpreter:
    asked = str(python) if python else getattr(sys, "_base_executable", sys.executable)
    answer = subprocess.run(
        [asked, "-I", "-S", "-c", _ASK_INTERPRETER], capture_output=True, text=True, check=False, env={}
    )
    if answer.returncode != 0:
        raise Unavailable(f"The interpreter {asked} does not run: {answer.stderr.strip()[-300:]}")
    told = json.loads(answer.stdout)
    return _Interpreter(
        executable=Path(told["executable"]),
        prefix=Path(told["prefix"]),
        stdlib=Path(told["stdlib"]),
        platlibdir=told["platlibdir"],
        version=told["version"],
    )


def _copy_interpreter(interpreter: _Interpreter, store: Path) -> Path:
    """The interpreter with its standard library, compiled, as a tree of ours; made once."""
    sources = sorted(_standard_library(interpreter.stdlib))
    fingerprint = hashlib.sha256(f"{_LAYOUT}\0{interpreter}".encode())
    for source in (interpreter.executable, *sources):
        fingerprint.update(f"{source}\0{_stamp(source.stat())}\n".encode())
    target = store / fingerprint.hexdigest()[:24]
    if target.is_dir():
        return target
    store.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=store, prefix=".new-") as scratch:
        tree = Path(scratch) / "py"
        library = tree / interpreter.platlibdir / f"python{interpreter.version}"
        _copy(interpreter.executable, tree / "bin" / interpreter.executable.name)
        for source in sources:
            _copy(source, library / source.relative_to(interpreter.stdlib))
        (library / "site-packages").mkdir(exist_ok=True)
        compile_bytecode(interpreter.executable, tree, PREFIX)
        _settle(tree)
        _move_into_place(tree, target)
    return target


def _standard_library(stdlib: Path) -> Iterator[Path]:
    for folder, names, files in os.walk(stdlib):
        names[:] = [name for name in names if name not in _LEFT_OUT and not name.startswith("config-")]
        for file in files:
            path = Path(folder, file)
            unwanted = path.suffix in (".a", ".pyc", ".exe") or file.startswith(("_tkinter.", "_test", "xxlimited"))
            if not unwanted and path.is_file():
                yield path


def compile_bytecode(python: Path, tree: Path, seen_as: str, files: Iterable[Path] | None = None) -> None:
    """Compile a tree (or only `files` of it) into unchecked bytecode that names modules by their sandbox path.

    Unchecked, because the tree is read-only and covered by the digest: no stat per import, the same bytes everywhere.
    Files that are not valid Python (templates, tests of parsers) stay uncompiled.
    """
    options = [
        "-q",
        "-q",
        "--invalidation-mode",
        "unchecked-hash",
        "-s",
        str(tree),
        "-p",
        seen_as,
        "-j",
        str(os.cpu_count() or 1),
    ]
    command = [str(python), "-I", "-S", "-m", "compileall", *options]
    if files is None:
        subprocess.run([*command, str(tree)], check=False, env={}, stdin=subprocess.DEVNULL, capture_output=True)
        return
    listed = "".join(f"{file}\n" for file in files)
    subprocess.run([*command, "-i", "-"], check=False, env={}, input=listed.encode(), capture_output=True)


# -- libraries and programs of the host ---------------------------------------------------------------------------


def _copy_system(interpreter: _Interpreter, prefix: Path, site: Path, home: Path) -> Path:
    programs = [
        Path(found) for name in ("setpriv",) if (found := shutil.which(name, path="/usr/bin:/bin:/usr/sbin:/sbin"))
    ]
    extensions = [
        path for tree in (prefix, site) for path in tree.rglob("*") if ".so" in path.suffixes and path.is_file()
    ]
    # the original interpreter, because its search path may be relative to where it lies
    needed = closure([interpreter.executable, *programs, *extensions], inside=[prefix, site])
    files = _system_layout(needed, programs)
    stamps = [f"{target}\0{source}\0{_stamp(source.stat())}" for target, source in files.items()]
    fingerprint = hashlib.sha256("\n".join([str(_LAYOUT), json.dumps(_STATIC), *stamps]).encode()).hexdigest()[:24]
    target = home / f"system-{fingerprint}"
    if target.is_dir():
        return target
    with tempfile.TemporaryDirectory(dir=home, prefix=".new-") as scratch:
        tree = Path(scratch) / "system"
        for place, source in files.items():
            _copy(source, tree / place)
        for place, text in _STATIC.items():
            (tree / place).parent.mkdir(parents=True, exist_ok=True)
            (tree / place).write_text(text)
        _settle(tree)
        _move_into_place(tree, target)
    return target


def _system_layout(needed: Closure, programs: list[Path]) -> dict[str, Path]:
    """Where each file goes: libraries beside libc, because that folder is in the loader's own search path."""
    libc = next((place for name, place in needed.libraries.items() if name.startswith("libc.so")), None)
    folder = _below_usr(libc.parent) if libc else "usr/lib"
    files = {f"{folder}/{name}": place.resolve() for name, place in needed.libraries.items()}
    if needed.loader:
        files[f"{_below_usr(needed.loader.parent)}/{needed.loader.name}"] = needed.loader.resolve()
    files |= {f"usr/bin/{program.name}": program.resolve() for program in programs}
    for tree in (Path("/usr/lib/locale/C.utf8"), Path("/usr/share/zoneinfo")):
        files |= _small_tree(tree)
    return dict(sorted(files.items()))


def _below_usr(folder: Path) -> str:
    parts = folder.parts[1:]
    return "/".join(parts if parts[:1] == ("usr",) else ("usr", *parts))


def _small_tree(tree: Path) -> dict[str, Path]:
    """All files of a tree of data; nothing when it is missing or large. Zones: the plain ones, each once."""
    files: dict[str, Path] = {}
    total = 0
    for folder, names, inside in os.walk(tree):
        names[:] = [name for name in names if name not in ("right", "posix", "SystemV")]
        for name in inside:
            path = Path(folder, name)
            if path.is_file():
                files[str(path).lstrip("/")] = path.resolve()
                total += path.stat().st_size
    return files if total <= _ZONES_AT_MOST else {}


# -- trees ----------------------------------------------------------------------------------------------------------


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(0o755 if os.access(source, os.X_OK) else 0o644)


def _settle(tree: Path) -> None:
    """Modes that do not depend on this process' umask: everybody may read, nobody but the owner may write."""
    for folder, _, files in os.walk(tree):
        Path(folder).chmod(0o755)
        for file in files:
            path = Path(folder, file)
            path.chmod(0o555 if path.stat().st_mode & 0o100 else 0o444)


def _move_into_place(tree: Path, target: Path) -> None:
    try:
        tree.rename(target)
    except OSError:
        if not target.is_dir():  # somebody else was quicker: theirs has the same fingerprint
            raise


def _inventory(
    trees: Mapping[str, Path], known: Mapping[str, tuple[Stamp, str]]
) -> tuple[dict[str, tuple[int, Stamp, str]], dict[str, tuple[int, Stamp]]]:
    """Every file (mode, stamp, SHA-256) and folder (mode, stamp) by its path in the sandbox."""
    found: list[tuple[str, Path, os.stat_result]] = []
    folders: dict[str, tuple[int, Stamp]] = {}
    for seen_as, tree in trees.items():
        for path, status in _walk(tree):
            target = seen_as if path == tree else f"{seen_as}/{path.relative_to(tree)}"
            if stat.S_ISDIR(status.st_mode):
                folders[target] = (status.st_mode, _stamp(status))
            else:
                found.append((target, path, status))
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        sums = list(pool.map(lambda item: _sum(item[1], item[2], known.get(item[0])), found))
    files = {
        target: (status.st_mode, _stamp(status), sum_) for (target, _, status), sum_ in zip(found, sums, strict=True)
    }
    return files, folders


def _walk(tree: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Every file and folder below `tree`, and the tree itself. Refuses what must not be in an environment."""
    status = tree.lstat()
    _refuse_writable(tree, status)
    yield tree, status
    for folder, names, files in os.walk(tree):
        for name in (*names, *files):
            path = Path(folder, name)
            status = path.lstat()
            _refuse(path, status, tree)
            yield path, status


def _refuse(path: Path, status: os.stat_result, tree: Path) -> None:
    if stat.S_ISLNK(status.st_mode):
        if path.readlink().is_absolute() or not path.resolve().is_relative_to(tree.resolve()):
            raise _unfit(path, "is a link that leads out of the environment")
        return
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        raise _unfit(path, "is a socket, a pipe or a device")
    if path.suffix == ".pth":
        raise _unfit(path, "runs code in every program (.pth)")
    _refuse_writable(path, status)


def _refuse_writable(path: Path, status: os.stat_result) -> None:
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise _unfit(path, "can be written by others than its owner")
    if status.st_mode & (stat.S_ISUID | stat.S_ISGID) and stat.S_ISREG(status.st_mode):
        raise _unfit(path, "changes the user that runs it (setuid)")
    if status.st_uid not in (0, os.geteuid()):
        raise _unfit(path, "belongs to another user than the node or root")


def _unfit(path: Path, why: str) -> Refused:
    return Refused(
        f"{path} {why}, so it cannot be part of an environment.",
        next_step="Remove it or correct its owner and mode, then register again.",
        file=str(path),
    )


def _sum(path: Path, status: os.stat_result, known: tuple[Stamp, str] | None) -> str:
    if known is not None and known[0] == _stamp(status):
        return known[1]
    if stat.S_ISLNK(status.st_mode):
        return hashlib.sha256(str(path.readlink()).encode()).hexdigest()
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _digest(files: Mapping[str, tuple[int, Stamp, str]]) -> str:
    whole = hashlib.sha256(f"flame-host-environment-v{_LAYOUT}\n".encode())
    for path, (mode, _, sum_) in sorted(files.items()):
        whole.update(f"{path}\0{mode:o}\0{sum_}\n".encode("utf-8", "surrogateescape"))
    return f"sha256:{whole.hexdigest()}"


def _stamp(status: os.stat_result) -> Stamp:
    return (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


# -- the record -----------------------------------------------------------------------------------------------------


def _record_name(digest: str, site: Path) -> str:
    """One record for each contents and place: two sites that are equal are still different files."""
    place = hashlib.sha256(str(site).encode()).hexdigest()
    return f"{digest.replace(':', '-')}-{place[:16]}.json"


def _current(home: Path) -> Path | None:
    """The record that was registered last."""
    content = _read(home / _CURRENT)
    return home / str(content["record"]) if content is not None else None


def _known(home: Path) -> dict[str, tuple[Stamp, str]]:
    record = _current(home)
    content = _read(record) if record is not None else None
    if content is None:
        return {}
    return {path: ((s[0], s[1], s[2], s[3]), sum_) for path, (_, s, sum_) in content["files"].items()}


def _read(record: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(record.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as wrong:
        raise Unavailable(
            f"The record {record} cannot be read: {wrong}", next_step="Register the environment again."
        ) from wrong
    return content if isinstance(content, dict) and content.get("layout") == _LAYOUT else None


def _write_record(
    environment: HostEnvironment,
    files: Mapping[str, tuple[int, Stamp, str]],
    folders: Mapping[str, tuple[int, Stamp]],
) -> None:
    content = {
        "layout": _LAYOUT,
        "name": environment.name,
        "digest": environment.digest,
        "python": str(environment.python),
        "prefix": str(environment.prefix),
        "site": str(environment.site),
        "system": str(environment.system),
        "files": files,
        "folders": folders,
    }
    _write(environment.record, content)


def _write(place: Path, content: Mapping[str, object]) -> None:
    """Whole or not at all, also when the machine loses its power."""
    handle, name = tempfile.mkstemp(dir=place.parent, prefix=".record-")
    with os.fdopen(handle, "w") as stream:
        json.dump(content, stream, separators=(",", ":"))
        stream.flush()
        os.fsync(stream.fileno())
    Path(name).rename(place)
