"""The storage key of a node and the key files of people."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flame.crypto.atrest import StorageKey
from flame.crypto.keyfile import read_keyfile, write_keyfile
from flame.crypto.keys import HybridKey, IdentityKey
from flame.model.errors import Conflict, FlameError, Invalid, Malformed, Refused


def test_what_was_sealed_is_opened_again(tmp_path: Path) -> None:
    key = StorageKey.generate()
    key.save(tmp_path / "storage.key")
    assert (tmp_path / "storage.key").stat().st_mode & 0o777 == 0o600
    blob = key.seal(b"a run key", b"run/1")
    assert b"a run key" not in blob
    assert StorageKey.load(tmp_path / "storage.key").open(blob, b"run/1") == b"a run key"
    assert key.seal(b"a run key", b"run/1") != blob
    assert key.open(key.seal(b"", b""), b"") == b""


def test_another_key_place_or_byte_is_refused() -> None:
    key = StorageKey.generate()
    blob = key.seal(b"a run key", b"run/1")
    with pytest.raises(Refused):
        key.open(blob, b"run/2")
    with pytest.raises(Refused):
        StorageKey.generate().open(blob, b"run/1")
    for place in range(len(blob)):
        with pytest.raises((Refused, Malformed)):
            key.open(blob[:place] + bytes([blob[place] ^ 1]) + blob[place + 1 :], b"run/1")
        with pytest.raises((Refused, Malformed)):
            key.open(blob[:place], b"run/1")


def test_a_storage_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "storage.key"
    StorageKey.generate().save(path)
    path.chmod(0o644)
    with pytest.raises(Refused):
        StorageKey.load(path)
    path.chmod(0o600)
    with pytest.raises(Conflict):
        StorageKey.generate().save(path)
    path.write_bytes(bytes(31))
    with pytest.raises(Malformed):
        StorageKey.load(path)


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    key, path = IdentityKey.generate(), tmp_path / "signing.json"
    write_keyfile(path, "signing", key.private_bytes, key.public.raw, "größer als null")
    return path


def test_a_key_file_opens_with_its_passphrase(tmp_path: Path) -> None:
    key, path = HybridKey.generate(), tmp_path / "result.json"
    write_keyfile(path, "result", key.private_bytes, key.public_bytes, "größer als null")
    opened = read_keyfile(path, "gro\u0308ßer als null")  # the same passphrase, typed on another system
    assert (opened.kind, opened.private, opened.public) == ("result", key.private_bytes, key.public_bytes)
    assert opened.protected
    assert key.private_bytes.hex() not in path.read_text()
    assert opened.private.hex() not in repr(opened)
    assert path.stat().st_mode & 0o777 == 0o600
    assert json.loads(path.read_text())["kdf"]["memory_kib"] == 64 * 1024


@pytest.mark.parametrize("passphrase", ["", "wrong", "größer als null "])
def test_another_passphrase_is_refused(key_file: Path, passphrase: str) -> None:
    with pytest.raises(Refused, match="passphrase"):
        read_keyfile(key_file, passphrase)


@pytest.mark.parametrize(
    ("name", "value"), [("kind", "result"), ("public", "00" * 32), ("version", 2), ("sealed", "00"), ("extra", 1)]
)
def test_a_changed_key_file_is_refused(key_file: Path, name: str, value: object) -> None:
    document = json.loads(key_file.read_text()) | {name: value}
    key_file.write_text(json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False))
    with pytest.raises(FlameError):
        read_keyfile(key_file, "größer als null")


@pytest.mark.parametrize(
    "change", [{"memory_kib": 8}, {"memory_kib": 2**40}, {"passes": 1}, {"name": "none"}, {"more": 1}]
)
def test_a_weaker_or_costlier_derivation_is_refused_before_it_runs(key_file: Path, change: dict[str, object]) -> None:
    document = json.loads(key_file.read_text())
    document["kdf"] |= change
    key_file.write_text(json.dumps(document, sort_keys=True, separators=(",", ":")))
    with pytest.raises(Malformed, match="derivation"):
        read_keyfile(key_file, "größer als null")


def test_an_unprotected_key_file_must_be_asked_for(tmp_path: Path) -> None:
    key, path = IdentityKey.generate(), tmp_path / "key.json"
    with pytest.raises(Invalid):
        write_keyfile(path, "signing", key.private_bytes, key.public.raw, "")
    assert not path.exists()
    write_keyfile(path, "signing", key.private_bytes, key.public.raw, "", allow_unprotected=True)
    opened = read_keyfile(path, "")
    assert (opened.private, opened.protected) == (key.private_bytes, False)


def test_sealing_does_not_load_what_only_key_files_need() -> None:
    program = (
        "import sys, flame.crypto.envelope, flame.crypto.announce, flame.crypto.translog, flame.crypto.atrest\n"
        "loaded = [m for m in sys.modules if 'argon2' in m or m.split('.')[0] in ('msgspec', 'numpy', 'asyncio')]\n"
        "sys.exit(repr(loaded) if loaded else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_mark_knows_the_same_bytes_again_and_no_others() -> None:
    key, data = StorageKey.generate(), os.urandom(100_000)
    mark = key.mark(data, b"run 1")
    assert key.mark(bytearray(data), b"run 1") == mark
    assert key.mark(memoryview(data), b"run 1") == mark
    assert key.mark(data, b"run 2") != mark
    assert key.mark(data[:-1], b"run 1") != mark
    assert key.mark(data[:50] + bytes([data[50] ^ 1]) + data[51:], b"run 1") != mark
    assert key.mark(b"", b"run 1") != key.mark(b"\0", b"run 1")
    assert StorageKey.generate().mark(data, b"run 1") != mark
