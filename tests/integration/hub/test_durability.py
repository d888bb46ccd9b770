"""What was acknowledged is there after kill -9; what is refused for want of space loses nothing; secrets are shown once."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import httpx2
import pytest
from world import PASSWORD, HubProcess, Study, World, seal

import flame.storage.engine
import flame.storage.objects
from flame.storage.failpoints import FAILPOINTS

HERE = [name for name in sorted(FAILPOINTS) if name.startswith("hub.")]
MAIL = [name for name in HERE if ".mailbox." in name or ".objects." in name]
assert flame.storage.engine and flame.storage.objects


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "hub"


def test_kill_nine_keeps_what_was_acknowledged(directory: Path) -> None:
    hub = HubProcess(directory, admin_password=PASSWORD)
    world = World(hub)
    study = Study.set_up(world)
    run = study.start(study.ready())
    a, _, c = study.nodes
    small, large = seal(run, a, [c.id], b"small", 0), seal(run, a, [c.id], os.urandom(1 << 20), 1)
    for _, envelope in (small, large):
        a("PUT", "/messenger/messages", 202, content=envelope)
    (row,) = study.upload(c, "RESULT", {"1.flame": b"sealed"})["data"]
    before = world.admin("GET", "/core/audit/export", 200)
    hub.kill()
    hub.start()
    again = revived(world, a, c, study.researcher, world.admin)
    for msg_id, envelope in (small, large):
        assert c("GET", f"/messenger/messages/{a.id}/{msg_id.hex()}", 200) == envelope
    assert study.researcher("GET", f"/storage/bucket-files/{row['id']}/stream", 200) == b"sealed"
    assert world.admin("GET", "/core/audit/export", 200) == before
    assert study.researcher.get(f"/core/analyses/{study.analysis}/runs")[0]["id"] == run.hex()
    for client in again:
        client.close()
    world.close()
    hub.stop()


def revived(world: World, *actors: object) -> list[httpx2.Client]:
    """The same tokens at the hub's new address."""
    made = []
    for actor in actors:
        headers = {"authorization": actor.http.headers["authorization"]}
        actor.http = httpx2.Client(base_url=world.hub.url, headers=headers, timeout=60, trust_env=False)
        made.append(actor.http)
    return made


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> object:
    hub = HubProcess(tmp_path_factory.mktemp("points") / "hub", admin_password=PASSWORD)
    world = World(hub)
    study = Study.set_up(world)
    run = study.start(study.ready())
    hub.stop()
    yield hub, study, run
    hub.extra = {}
    hub.stop()
    world.close()


@pytest.mark.parametrize("name", MAIL)
def test_a_put_that_dies_halfway_is_repeated_and_delivered_once(prepared: object, tmp_path: Path, name: str) -> None:
    hub, study, run = prepared
    marker = tmp_path / "died"
    hub.extra = {"FLAME_TEST_HOOKS": "1", "FLAME_FAILPOINT": name, "FLAME_FAILPOINT_ONCE": str(marker)}
    hub.start()
    a, _, c = study.nodes
    opened = revived(study.world, a, c)
    msg_id, envelope = seal(run, a, [c.id], os.urandom(1 << 20))
    with pytest.raises(httpx2.HTTPError):
        a("PUT", "/messenger/messages", content=envelope)
    hub.wait()
    assert marker.exists()
    hub.start()
    opened += revived(study.world, a, c)
    waiting = c.get("/messenger/messages")
    assert len(waiting) == (0 if name == "hub.mailbox.before-commit" else 1)  # announced before its body has come
    if name in ("hub.mailbox.before-commit", "hub.objects.after-keep"):
        assert [p for p in (hub.dir / "objects").rglob("*") if p.is_file() and p.parent.name != "files"] == []
    a("PUT", "/messenger/messages", 202, content=envelope)
    (item,) = c.get("/messenger/messages")
    assert c("GET", f"/messenger/messages/{a.id}/{msg_id.hex()}", 200) == envelope
    c("POST", "/messenger/messages/ack", 202, json={"seqs": [item["seq"]]})
    assert c.get("/messenger/messages") == []
    for client in opened:
        client.close()
    hub.stop()


def test_every_fail_point_says_what_is_persisted() -> None:
    assert len(HERE) >= 10 and all(FAILPOINTS[name] for name in HERE)


def test_a_full_store_refuses_in_words_and_loses_nothing(directory: Path) -> None:
    hub = HubProcess(directory, admin_password=PASSWORD, storage_bytes_max=str(4 << 20))
    world = World(hub)
    study = Study.set_up(world)
    study.upload(study.researcher, "CODE", {"main.py": b"kept"})
    answer = study.upload(study.researcher, "CODE", {"big.bin": os.urandom(5 << 20)}, 507)
    assert answer["code"] == "storage_insufficient" and "Nothing was stored" in answer["message"]
    names = [row["path"] for row in study.researcher.get("/core/analysis-bucket-files")]
    assert names == ["main.py"]
    assert [path for path in (directory / "objects" / "spool").rglob("*") if path.is_file()] == []
    study.upload(study.researcher, "CODE", {"fits.bin": os.urandom(3 << 20)})
    study.submit({"main.py": b"print(1)"})
    run = study.start(study.ready())
    a, _, c = study.nodes
    sent = []
    for n in range(200):
        msg_id, envelope = seal(run, a, [c.id], os.urandom(100 << 10), n)
        answer = a("PUT", "/messenger/messages", content=envelope)
        if "stored" not in answer:
            assert (answer["statusCode"], answer["code"]) == (507, "storage_insufficient")
            break
        sent.append((msg_id, envelope))
    else:
        raise AssertionError("the database grew without end")
    for msg_id, envelope in sent:
        assert c("GET", f"/messenger/messages/{a.id}/{msg_id.hex()}", 200) == envelope
    world.close()
    hub.stop()


def test_the_first_password_is_shown_once_and_never_a_default(directory: Path) -> None:
    hub = HubProcess(directory)
    line = hub.process.stdout.readline()
    password = re.fullmatch(r"The password of admin is (\S{20,})\n", line)[1]
    World(hub, password).close()
    hub.stop()
    hub.start()
    World(hub, password).close()
    hub.process.send_signal(15)
    assert hub.process.stdout.read() == ""
    hub.wait()
    assert not (directory / "hub.json").exists()
    assert password not in (directory / "hub.log").read_text()


def test_the_first_password_may_go_to_a_private_file(directory: Path) -> None:
    hub = HubProcess(directory, password_file="1")
    path = directory / "admin-password"
    assert path.stat().st_mode & 0o777 == 0o600
    World(hub, path.read_text()).close()
    hub.stop()


def test_test_settings_warn_and_unknown_ones_stop(directory: Path) -> None:
    hub = HubProcess(directory, admin_password=PASSWORD, allow_self_approval="1")
    hub.process.send_signal(15)
    text = hub.process.stderr.read()
    hub.wait()
    assert text.count("Warning:") == 2 and PASSWORD not in text
    with pytest.raises(AssertionError, match="FLAME_HUB_NONSENSE is not known"):
        HubProcess(directory, nonsense="1")


def test_the_recorder_sees_every_byte_by_category(directory: Path, tmp_path: Path) -> None:
    hub = HubProcess(directory, admin_password=PASSWORD, record=str(tmp_path / "record"))
    world = World(hub)
    study = Study.set_up(world)
    study.submit({"main.py": b"CANARY-CODE"})
    run = study.start(study.ready())
    a, _, c = study.nodes
    _, envelope = seal(run, a, [c.id], os.urandom(1 << 20))
    a("PUT", "/messenger/messages", 202, content=envelope)
    study.upload(c, "RESULT", {"1.flame": b"CANARY-RESULT"})
    token = a.http.headers["authorization"].encode()
    world.close()
    counts = json.loads((tmp_path / "record" / "counts.json").read_text())
    hub.stop()
    found = {name: (tmp_path / "record" / name).read_bytes() for name in ("sealed", "code", "control")}
    assert envelope in found["sealed"] and b"CANARY-RESULT" in found["sealed"]
    assert b"CANARY-CODE" in found["code"] and b"CANARY" not in found["control"]
    assert study.analysis.encode() in found["control"]
    assert b"authorization: " + token not in found["control"]
    assert counts["messages"] == 1 and counts["sealed_bytes"] >= len(envelope)
