"""What enrolment writes is read back as it was; what a hub answers is believed field by field, or not at all."""

from __future__ import annotations

import asyncio
import os
import stat
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

import node_world
from flame.crypto.atrest import StorageKey
from flame.crypto.canonical import digest
from flame.crypto.keys import IdentityKey, PublicKey
from flame.model.errors import (
    Conflict,
    DoesNotMatchApproval,
    FlameError,
    Invalid,
    Malformed,
    NotFound,
    Refused,
    Unavailable,
)
from flame.model.manifest import DataRequest
from flame.node.config import Enrolled, Layout, read_enrolled, write_enrolled
from flame.node.enrolment import init as enrol
from flame.node.enrolment.init import ENROL_CONTEXT, enrolment_request
from flame.node.release.keys import RunKeyStore
from flame.node.schema import RUN_KEYS
from flame.node.supervisor import preparation
from flame.node.supervisor.preparation import RunFolder, check_isolation
from flame.storage.journal import Journal

HUB_KEY = IdentityKey.generate().public.hex_pem
ANSWER = {"hubKey": HUB_KEY, "nodeId": str(uuid4()), "clientId": "c", "name": "Ulm", "type": "default"}


@given(st.lists(st.text(max_size=40), min_size=6, max_size=6))
def test_what_is_written_is_read(values: list[str]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        layout, enrolled = Layout(Path(folder)), Enrolled(*values)
        try:
            write_enrolled(layout, enrolled)
        except Invalid:
            return
        assert read_enrolled(layout) == enrolled


@pytest.mark.parametrize("content", [b"", b"hub = 3\n", b"x = [", b"\xff\xfe", b'hub = "a"\nmore = "b"\n'])
def test_a_file_that_is_none_of_ours_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(NotFound, match="flame node init"):
        read_enrolled(Layout(tmp_path))
    (tmp_path / "node.toml").write_bytes(content)
    with pytest.raises(Invalid, match=r"node\.toml"):
        read_enrolled(Layout(tmp_path))


def answering(monkeypatch: pytest.MonkeyPatch, answer: Any) -> None:
    module = sys.modules["flame.node.enrolment.init"]  # the package's function hides the module of its name
    monkeypatch.setattr(module, "_post", lambda *_: answer)


def test_a_node_makes_its_keys_itself_and_keeps_them_to_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, ANSWER)
    root = tmp_path / "node"
    enrol(root, "http://127.0.0.1:1", "token")
    layout = Layout(root)
    assert read_enrolled(layout).node == ANSWER["nodeId"]
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    for path in (layout.identity, layout.storage_key):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(Conflict, match="a node already"):
        enrol(root, "http://127.0.0.1:1", "token")


@pytest.mark.parametrize(
    "change",
    [
        {"nodeId": "../x"}, {"nodeId": None}, {"nodeId": ANSWER["nodeId"].upper() + "A"}, {"hubKey": "00"}, {"hubKey": None},
        {"name": "a\x1b[2J"}, {"clientId": "a\u202eb"}, {"type": "x" * 5000}, {"name": "\ud800"},
    ],
    ids=str,
)  # fmt: skip
def test_an_answer_that_cannot_be_meant_makes_no_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    answering(monkeypatch, {**ANSWER, **change})
    with pytest.raises(Malformed):
        enrol(tmp_path, "http://127.0.0.1:1", "token")
    assert not (tmp_path / "node.toml").exists()
    answering(monkeypatch, ANSWER)
    key = (tmp_path / "keys" / "identity.pem").read_bytes()
    enrol(tmp_path, "http://127.0.0.1:1", "token")
    assert (tmp_path / "keys" / "identity.pem").read_bytes() == key, "an interrupted attempt's key is used again"


@pytest.mark.parametrize(
    "hub",
    [
        "",
        "hub",
        "ftp://hub",
        "http://",
        "http://hub:port",
        "http://a@hub",
        "http://hub?x=1",
        "http://hub\n.org",
        "http://[x",
    ],
)
def test_what_is_no_address_is_refused(tmp_path: Path, hub: str) -> None:
    with pytest.raises(Invalid, match=r"https://hub\.example\.org"):
        enrol(tmp_path, hub, "token")


@pytest.mark.parametrize(
    ("status", "content", "error"),
    [
        (400, b'{"message":"No."}', Refused), (400, b"[1]", Refused), (502, b"<html>", Refused), (302, b"", Refused),
        (200, b"[1]", Malformed), (200, b"<html>", Malformed), (200, b'{"data":[1]}', Malformed), (200, b"[" * 9999, Malformed),
    ],
)  # fmt: skip
def test_a_hubs_answer_is_read_or_refused(status: int, content: bytes, error: type[FlameError]) -> None:
    from flame.node.enrolment.init import _answer

    with pytest.raises(error) as caught:
        _answer(status, content)
    assert caught.value.next_step


def test_enrolment_binds_the_token_to_the_key() -> None:
    key = IdentityKey.generate()
    request = enrolment_request("token", key)
    public = PublicKey.from_hex_pem(request["publicKey"])
    public.verify(bytes.fromhex(request["signature"]), ENROL_CONTEXT + digest(b"token" + public.raw))
    assert "PRIVATE" not in bytes.fromhex(request["publicKey"]).decode()


# --- keys of runs ---------------------------------------------------------------------------------------------------


def test_a_runs_keys_are_made_once_sealed_and_gone_after_it(tmp_path: Path) -> None:
    async def story() -> None:
        journal = Journal(tmp_path / "runs.db", RUN_KEYS, secure_delete=True)
        store = RunKeyStore(journal, StorageKey.generate())
        both = await asyncio.gather(store.obtain("ab"), store.obtain("ab"))
        raw = both[0].run_key.private_bytes
        assert both[1].run_key.private_bytes == raw, "of two who ask at once, both get the same"
        assert (await store.obtain("ab")).mask_key.private_bytes_raw() == both[0].mask_key.private_bytes_raw()
        assert (await store.obtain("cd")).run_key.private_bytes != raw
        ((sealed,),) = await journal.rows("SELECT sealed FROM run_keys WHERE run = 'ab'")
        on_disk = b"".join(path.read_bytes() for path in tmp_path.iterdir())
        assert raw not in on_disk
        assert bytes(sealed) in on_disk
        await store.delete("ab")
        assert bytes(sealed) not in b"".join(path.read_bytes() for path in tmp_path.iterdir())
        assert (await store.obtain("ab")).run_key.private_bytes != raw
        journal.close()

    asyncio.run(story())


# --- what the hub gives as code -------------------------------------------------------------------------------------


class Store:
    """The hub's lists and files, as a test wants them."""

    def __init__(self, files: dict[str, bytes], **extra: Any) -> None:
        self.files, self.extra, self.asked = files, extra, 0

    async def request(self, method: str, path: str) -> Any:
        self.asked += 1
        rows = [{"path": name, "bucketFileId": name, "analysisBucket": {"type": "CODE"}} for name in self.files]
        return {"data": rows, "meta": {"total": len(rows)}, **self.extra}

    async def download(self, path: str, limit: int) -> bytes:
        return self.files[path.split("/")[3]]


def fetched(tmp_path: Path, store: Store, code: dict[str, bytes]) -> Path:
    folder = RunFolder(tmp_path / "run")
    folder.fresh()
    context = cast("Any", SimpleNamespace(link=store))
    asyncio.run(preparation._code(context, node_world.manifest(code=code), folder))
    return folder.code


def test_exactly_the_approved_files_are_written(tmp_path: Path) -> None:
    store = Store({"main.py": b"1", "extra.py": b"2", "../../escape.py": b"3"})
    code = fetched(tmp_path, store, {"main.py": b"1"})
    assert [p.name for p in code.rglob("*")] == ["main.py"]
    assert stat.S_IMODE((code / "main.py").stat().st_mode) == 0o444
    assert sorted(p.name for p in tmp_path.rglob("*.py")) == ["main.py"]


@pytest.mark.parametrize("given_", [b"2", b"", b"11"])
def test_another_content_than_the_approved_one_is_not_written(tmp_path: Path, given_: bytes) -> None:
    with pytest.raises(DoesNotMatchApproval, match="Nothing has run"):
        fetched(tmp_path, Store({"main.py": given_}), {"main.py": b"1"})
    assert list((tmp_path / "run" / "code").iterdir()) == []


@pytest.mark.parametrize(
    "extra", [{"data": None}, {"data": [1]}, {"data": [{}]}, {"meta": {}}, {"meta": {"total": "x"}}], ids=str
)
def test_a_list_that_cannot_be_read_is_malformed(tmp_path: Path, extra: dict[str, Any]) -> None:
    with pytest.raises(Malformed, match="operator"):
        fetched(tmp_path, Store({"main.py": b"1"}, **extra), {"main.py": b"1"})


def test_a_list_that_never_ends_is_left(tmp_path: Path) -> None:
    store = Store({f"{i}.py": b"" for i in range(50)}, meta={"total": 10**12})
    with pytest.raises(NotFound, match=r"main\.py"):
        fetched(tmp_path, store, {"main.py": b"1"})
    assert store.asked < 100


def test_an_order_that_comes_before_the_sandbox_was_tried_waits() -> None:
    context = cast("Any", SimpleNamespace(isolation=None, policy=None))
    with pytest.raises(Unavailable):
        check_isolation(context, node_world.manifest())


def test_a_file_without_a_header_tells_nobody_its_first_patient(tmp_path: Path) -> None:
    """The reader's words list the columns, which here are a patient; they stay at the node."""
    data, folder = tmp_path / "data.csv", RunFolder(tmp_path / "run")
    data.write_text("Mueller,45,positive\nMaier,50,negative\n")
    (tmp_path / "sources.toml").write_text(
        f'[[source]]\nname = "data"\npath = "{data}"\nprojects = ["{node_world.PROJECT}"]\n'
    )
    folder.fresh()
    context = SimpleNamespace(
        layout=Layout(tmp_path), node=node_world.DATA_NODES[0], policy=SimpleNamespace(public_data=False)
    )
    manifest = node_world.manifest(data=(DataRequest("*", "data", "table", ("age",), 0),))
    with pytest.raises(Refused, match="has no column") as caught:
        asyncio.run(preparation._data(cast("Any", context), manifest, folder))
    assert "Mueller" not in str(caught.value)
    assert "Mueller" in folder.output.read_text()


def test_after_a_run_only_its_output_is_left(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.fresh()
    folder.work.mkdir()
    for path in (folder.code / "a", folder.data / "d.value", folder.work / "w", folder.output):
        path.write_bytes(b"x")
    os.chmod(folder.code / "a", 0o444)
    assert stat.S_IMODE(folder.root.stat().st_mode) == 0o700
    folder.remove()
    assert [p.name for p in folder.root.iterdir()] == ["output.txt"]
