"""Keys under a passphrase, tokens and pages that nobody else can read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flame.cli.people import read_passphrase
from flame.model.errors import Conflict, Invalid, NotFound, Refused
from flame.researcher.keys import Keys, chain_of, list_keys
from flame.researcher.place import read_private_json, write_private_json
from flame.researcher.view import page


def test_keys_are_made_once_and_open_with_their_passphrase_alone(tmp_path: Path) -> None:
    made = Keys.make(tmp_path / "keys", "a passphrase")
    assert {key.path.stat().st_mode & 0o777 for key in list_keys(tmp_path / "keys")} == {0o600}
    assert all(key.protected for key in list_keys(tmp_path / "keys"))
    content = b"".join(key.path.read_bytes() for key in list_keys(tmp_path / "keys"))
    for private in (made.sign.private_bytes, made.result.private_bytes):
        assert private.hex().encode() not in content
    again = Keys.load(tmp_path / "keys", "a passphrase")
    assert again.sign_fingerprint == made.sign_fingerprint == chain_of(tmp_path / "keys", "sign")[0].fingerprint
    with pytest.raises(Refused, match="passphrase"):
        Keys.load(tmp_path / "keys", "another")
    with pytest.raises(Conflict):
        Keys.make(tmp_path / "keys", "a passphrase")
    with pytest.raises(NotFound):
        Keys.load(tmp_path / "nothing")


def test_a_passphrase_comes_from_a_file_or_a_descriptor(tmp_path: Path) -> None:
    (tmp_path / "pass").write_text("öne two\nsecond line\n")
    assert read_passphrase(tmp_path / "pass", None) == "öne two"
    reader, writer = os.pipe()
    os.write(writer, b"from a pipe\n")
    os.close(writer)
    assert read_passphrase(None, reader) == "from a pipe"
    (tmp_path / "empty").write_text("\n")
    for file, descriptor in ((tmp_path / "empty", None), (tmp_path / "pass", 3), (None, 987)):
        with pytest.raises(Invalid):
            read_passphrase(file, descriptor)
    with pytest.raises(NotFound):
        read_passphrase(tmp_path / "missing", None)


def test_a_file_of_tokens_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "login.json"
    write_private_json(path, {"access": "secret"})
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_private_json(path) == {"access": "secret"}
    path.chmod(0o644)
    with pytest.raises(Invalid, match="others"):
        read_private_json(path)
    assert read_private_json(tmp_path / "none.json") is None


def test_a_result_cannot_become_part_of_the_page() -> None:
    hostile = b'{"<script>alert(1)</script>": "<img src=x onerror=alert(1)>", "rows": [{"a": "\\u003cb\\u003e"}]}'
    shown = page([("Run 1: <b>", hostile), ("text", b"<script>"), ("bytes", b"\xff\xfe")], "n0nce").decode()
    assert "<script" not in shown and "<img" not in shown and "<b>" not in shown
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in shown and "<table>" in shown
    assert "2 bytes that are no text" in shown
