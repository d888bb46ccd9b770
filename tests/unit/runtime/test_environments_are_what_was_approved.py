"""The digest of an environment is of its contents, and a start finds every change."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flame.lab.environment import ensure_environment
from flame.model.errors import DoesNotMatchApproval, Invalid, NotFound, Refused
from flame.runtime import HostEnvironment, check, load_host_environment, register_host_environment
from flame.runtime.build import OWN_ROOMS, build_site
from flame.runtime.elf import closure, read_needs


@pytest.fixture(scope="module")
def interpreters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry whose interpreter is copied already: that is the slow part."""
    registry = tmp_path_factory.mktemp("registry")
    site = tmp_path_factory.mktemp("empty")
    register_host_environment("python/empty", site, registry=registry)
    return registry


@pytest.fixture
def site(tmp_path: Path) -> Path:
    site = tmp_path / "site"
    (site / "package").mkdir(parents=True)
    (site / "package" / "__init__.py").write_text("VALUE = 1\n")
    (site / "package" / "data.bin").write_bytes(bytes(range(256)))
    return site


def test_the_digest_does_not_depend_on_the_place(interpreters: Path, site: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "of another name"
    shutil.copytree(site, moved)
    first = register_host_environment("python/one", site, registry=interpreters)
    second = register_host_environment("python/two", moved, registry=interpreters)
    assert first.digest == second.digest
    assert first.digest.startswith("sha256:")
    assert len(first.digest) == 71


def test_the_digest_depends_on_contents_paths_and_modes(interpreters: Path, site: Path) -> None:
    def digest() -> str:
        return register_host_environment("python/one", site, registry=interpreters).digest

    seen = [digest()]
    (site / "package" / "__init__.py").write_text("VALUE = 2\n")
    seen.append(digest())
    (site / "package" / "__init__.py").rename(site / "package" / "other.py")
    seen.append(digest())
    (site / "package" / "other.py").chmod(0o755)
    seen.append(digest())
    assert len(set(seen)) == 4


def _append(site: Path) -> None:
    with (site / "package" / "__init__.py").open("a") as file:
        file.write("# more\n")


def _same_size_and_time(site: Path) -> None:
    """A change that hides: same length, old mtime; the inode's change time tells."""
    file = site / "package" / "__init__.py"
    before = file.stat()
    file.write_text("VALUE = 7\n")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "contents": (_append, "/opt/site/package/__init__.py"),
    "hidden": (_same_size_and_time, "/opt/site/package/__init__.py"),
    "removed": (lambda site: (site / "package" / "data.bin").unlink(), "/opt/site/package/data.bin"),
    "added": (lambda site: (site / "sitecustomize.py").write_text("x = 1"), "/opt/site"),
    "mode": (lambda site: (site / "package" / "data.bin").chmod(0o755), "/opt/site/package/data.bin"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_after_registration_is_found_and_named(interpreters: Path, site: Path, change: str) -> None:
    environment = register_host_environment("python/one", site, registry=interpreters)
    check(environment)
    apply, named = CHANGES[change]
    apply(site)
    with pytest.raises(DoesNotMatchApproval) as caught:
        check(environment)
    assert caught.value.fields["file"] == named


def test_a_change_of_the_interpreter_is_found(interpreters: Path, site: Path) -> None:
    environment = register_host_environment("python/one", site, registry=interpreters)
    module = next(environment.prefix.glob("lib*/python3*/json/__init__.py"))
    original, status = module.read_bytes(), module.stat()
    module.chmod(0o644)
    try:
        module.write_bytes(original + b"# more")
        with pytest.raises(DoesNotMatchApproval, match=r"json/__init__\.py"):
            check(environment)
    finally:
        module.write_bytes(original)
        module.chmod(status.st_mode)


def test_what_was_registered_before_stays_usable_while_its_files_are_unchanged(
    interpreters: Path, site: Path, tmp_path: Path
) -> None:
    old = register_host_environment("python/one", site, registry=interpreters)
    for name in ("same", "changed"):
        shutil.copytree(site, tmp_path / name)
    _append(tmp_path / "changed")
    same = register_host_environment("python/one", tmp_path / "same", registry=interpreters)
    changed = register_host_environment("python/one", tmp_path / "changed", registry=interpreters)
    assert load_host_environment("python/one", interpreters) == changed
    assert old.digest == same.digest != changed.digest
    for environment in (old, same, changed):
        check(environment)


def test_registering_again_makes_the_old_digest_invalid(interpreters: Path, site: Path) -> None:
    old = register_host_environment("python/one", site, registry=interpreters)
    _append(site)
    new = register_host_environment("python/one", site, registry=interpreters)
    check(new)
    assert load_host_environment("python/one", interpreters) == new
    with pytest.raises(DoesNotMatchApproval):
        check(old)


def _socket(site: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(site / "s"))


UNFIT: dict[str, Callable[[Path], object]] = {
    "a .pth file": lambda site: (site / "evil.pth").write_text("import os"),
    "writable by all": lambda site: (site / "package" / "data.bin").chmod(0o666),
    "a folder writable by the group": lambda site: (site / "package").chmod(0o775),
    "a socket": _socket,
    "a pipe": lambda site: os.mkfifo(site / "p"),
    "a link that leads out": lambda site: (site / "out").symlink_to("../../secret"),
    "an absolute link": lambda site: (site / "out").symlink_to("/etc/hostname"),
    "setuid": lambda site: (site / "package" / "data.bin").chmod(0o4755),
}


@pytest.mark.parametrize("what", UNFIT)
def test_what_must_not_be_in_an_environment_is_refused(interpreters: Path, site: Path, what: str) -> None:
    UNFIT[what](site)
    with pytest.raises(Refused):
        register_host_environment("python/one", site, registry=interpreters)


@pytest.mark.parametrize("name", ["", "../up", "/abs", "UPPER", "a//b", "a/", "x" * 70, "_interpreters", "a b"])
def test_a_bad_name_is_refused(interpreters: Path, site: Path, name: str) -> None:
    with pytest.raises(Invalid):
        register_host_environment(name, site, registry=interpreters)


def test_an_unknown_name_is_not_found(interpreters: Path) -> None:
    with pytest.raises(NotFound):
        load_host_environment("python/nothing", interpreters)


# -- building ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_site(tmp_path_factory.mktemp("built") / "site", ["flame-federated", "msgspec"])


def test_a_site_holds_the_analysis_side_and_nothing_of_the_node(built: Path) -> None:
    assert {path.name for path in (built / "flame").iterdir() if path.is_dir()} - {"__pycache__"} <= set(OWN_ROOMS)
    assert (built / "flame" / "model" / "errors.py").is_file()
    assert (built / "flamesdk" / "__init__.py").is_file()
    assert not list(built.rglob("*.pth"))
    assert not list(built.rglob("direct_url.json"))
    assert {path.name for path in built.iterdir()} >= {"numpy", "msgspec"}, "what is required comes along"


def test_a_site_is_compiled_and_names_no_place_of_this_machine(built: Path) -> None:
    source = built / "flame" / "model" / "errors.py"
    compiled = next((source.parent / "__pycache__").glob("errors.*.pyc"))
    assert int.from_bytes(compiled.read_bytes()[4:8], "little") == 0b01, "unchecked"
    assert b"/opt/site/flame/model/errors.py" in compiled.read_bytes()
    assert str(built).encode() not in compiled.read_bytes()


def test_building_again_changes_nothing(built: Path) -> None:
    before = built.stat().st_ino
    assert build_site(built, ["flame-federated", "msgspec"]) == built
    assert built.stat().st_ino == before


def test_two_builds_give_the_same_digest(built: Path, interpreters: Path, tmp_path: Path) -> None:
    other = build_site(tmp_path / "site", ["msgspec", "flame-federated"])
    reused = build_site(tmp_path / "reused", ["msgspec", "flame-federated"], reuse=other)
    digests = {
        register_host_environment("python/x", site, registry=interpreters).digest for site in (built, other, reused)
    }
    assert len(digests) == 1


def test_an_unknown_distribution_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no-such-thing"):
        build_site(tmp_path / "site", ["no-such-thing"])
    assert not (tmp_path / "site").exists()


def test_the_lab_keeps_its_environment(tmp_path_factory: pytest.TempPathFactory) -> None:
    cache = tmp_path_factory.getbasetemp().parent / "flame-environments"
    first = ensure_environment(cache)
    second = ensure_environment(cache)
    assert first == second
    assert first.name == "python/base"


# -- libraries --------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("ldd") is None, reason="needs ldd to compare with")
def test_the_closure_is_what_the_loader_would_load() -> None:
    program = Path(sys._base_executable).resolve()  # type: ignore[attr-defined]
    listed = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=True).stdout
    expected = {line.split()[0] for line in listed.splitlines() if "=>" in line}
    found = closure([program], inside=[])
    assert expected <= found.libraries.keys()
    assert found.loader is not None
    assert found.loader.exists()


def test_what_is_no_elf_file_needs_nothing(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("#!/bin/sh")
    (tmp_path / "empty").write_text("")
    assert read_needs(tmp_path / "text") is None
    assert read_needs(tmp_path / "empty") is None


@pytest.mark.skipif(not Path("/usr/bin/python3").exists(), reason="no interpreter of the distribution")
def test_the_interpreter_of_the_distribution_brings_only_its_library(site: Path, tmp_path: Path) -> None:
    """Its prefix is /usr: only lib/python3.x of it is taken."""
    environment = register_host_environment(
        "python/debian", site, python=Path("/usr/bin/python3"), registry=tmp_path / "r"
    )
    assert {path.name for path in environment.prefix.iterdir()} <= {"bin", "lib", "lib64"}
    assert len(list((environment.prefix / "bin").iterdir())) == 1
    usr = environment.system / "usr"
    assert {path.name for path in (usr / "bin").iterdir()} == {"setpriv"}
    assert isinstance(environment, HostEnvironment)
