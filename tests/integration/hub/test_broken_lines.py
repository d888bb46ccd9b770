"""Large envelopes over lines that break, in both directions, and a hub that is killed in between: nothing is sent twice
that is there already, and what comes out is what went in."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from hashlib import sha256
from pathlib import Path
from urllib.parse import urlsplit
from uuid import UUID

import pytest
from wire import channel
from world import PASSWORD, HubProcess, Node, Study, World, seal

from flame.crypto.envelope import RecipientKey, Sealer
from flame.crypto.keys import HybridKey
from flame.model.errors import FlameError, Refused, Unavailable
from flame.node.link import Bulk, Unbroken
from flame.protocol.control import Deliver
from line_proxy import LineProxy

WAY = "/messenger/messages"
MIB = 1 << 20


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubProcess]:
    hub = HubProcess(tmp_path_factory.mktemp("hub"), admin_password=PASSWORD, bulk_port="0")
    yield hub
    hub.stop()


@pytest.fixture(scope="module")
def running(world: World) -> tuple[Study, bytes]:
    study = Study.set_up(world)
    return study, study.start(study.ready())


@pytest.fixture(params=["the port for bulk", "the hub's own address"])
def way(request: pytest.FixtureRequest, world: World) -> str:
    """Both ways of large envelopes keep the same promises."""
    return bulk_of(world) if request.param == "the port for bulk" else world.hub.url


@pytest.fixture
def proxy(way: str, tmp_path: Path) -> Iterator[LineProxy]:
    proxy = LineProxy(tmp_path / "proxy", urlsplit(way).netloc)
    yield proxy
    proxy.close()


def bulk_of(world: World) -> str:
    return str(json.loads((world.hub.dir / "hub.json").read_text())["bulk"])


def bulk(node: Node, url: str | Callable[[], str]) -> Bulk:
    token = str(node.http.headers["authorization"]).removeprefix("Bearer ")
    return Bulk(url if callable(url) else lambda: url, lambda: token)


def pieces(envelope: bytes) -> Iterator[bytes]:
    for start in range(0, len(envelope), 300_000):
        yield envelope[start : start + 300_000]


def sent_at_last(sending: Bulk, msg_id: bytes, envelope: bytes) -> int:
    """How many lines it took."""
    for attempt in range(1, 60):
        try:
            if attempt == 1:
                sending.put(WAY, len(envelope), pieces(envelope))
            else:
                sending.put_on(msg_id, len(envelope), lambda: pieces(envelope))
        except Unavailable:
            time.sleep(0.05)
        else:
            return attempt
    raise AssertionError("it never came through")


def fetched(fetching: Bulk, sender: Node, msg_id: bytes, size: int) -> tuple[bytes, int]:
    """The body, and how often the line broke."""
    breaks: list[FlameError] = []
    buffer = bytearray(size)
    with closing(Unbroken(fetching, f"{WAY}/{sender.id}/{msg_id.hex()}", breaks.append)) as stream:
        view = memoryview(buffer)
        while view:
            view = view[stream.readinto(view[:100_000]) :]
    return bytes(buffer), len(breaks)


def acknowledge(node: Node) -> None:
    node("POST", f"{WAY}/ack", 202, json={"seqs": [row["seq"] for row in node.get(WAY)]})


def test_an_upload_goes_on_where_the_line_broke(running: tuple[Study, bytes], proxy: LineProxy, way: str) -> None:
    study, run = running
    a, _, c = study.nodes
    msg_id, envelope = seal(run, a, [c.id], os.urandom(10 * MIB))
    proxy.set(f"cut {3 * MIB}")
    with closing(bulk(a, proxy.url)) as sending, closing(bulk(c, way)) as fetching:
        lines = sent_at_last(sending, msg_id, envelope)
        assert 4 <= lines <= 12, "each line carried on, none began anew"
        assert fetched(fetching, a, msg_id, len(envelope)) == (envelope, 0)
        proxy.set("pass")
        with suppress(Unavailable):  # a line from before that was near its cut: a node asks again, too
            sending.put_on(msg_id, len(envelope), lambda: pytest.fail("it is there, and nothing of it is sent again"))
        sending.put_on(msg_id, len(envelope), lambda: pytest.fail("it is there, and nothing of it is sent again"))
    assert len(c.get(WAY)) == 1
    acknowledge(c)


def test_a_download_goes_on_where_the_line_broke(running: tuple[Study, bytes], proxy: LineProxy, way: str) -> None:
    study, run = running
    a, _, c = study.nodes
    msg_id, envelope = seal(run, a, [c.id], os.urandom(10 * MIB))
    proxy.set(f"cut {3 * MIB}")
    with closing(bulk(a, way)) as sending, closing(bulk(c, proxy.url)) as fetching:
        sending.put(WAY, len(envelope), pieces(envelope))
        body, breaks = fetched(fetching, a, msg_id, len(envelope))
        assert body == envelope and 3 <= breaks <= 8
    acknowledge(c)


def test_a_recipient_reads_along_while_it_is_sent(running: tuple[Study, bytes], way: str) -> None:
    study, run = running
    a, b, c = study.nodes
    msg_id, envelope = seal(run, a, [b.id, c.id], os.urandom(8 * MIB))
    half, go_on = len(envelope) // 2, threading.Event()

    def slowly() -> Iterator[bytes]:
        yield envelope[:half]
        assert go_on.wait(20)
        yield envelope[half:]

    async def announced() -> Deliver:
        async with channel(study.world, c) as third:
            return await third.next(Deliver)

    with (
        closing(bulk(a, way)) as sending,
        closing(bulk(c, way)) as fetching,
        closing(bulk(b, way)) as second,
        ThreadPoolExecutor(2) as pool,
    ):
        put = pool.submit(sending.put, WAY, len(envelope), slowly())
        assert asyncio.run(announced()).msg_id == msg_id, "announced before all of it has come"
        other = pool.submit(fetched, second, a, msg_id, len(envelope))
        with closing(Unbroken(fetching, f"{WAY}/{a.id}/{msg_id.hex()}", pytest.fail)) as stream:
            body = bytearray()
            while len(body) < half - 2 * MIB:
                buffer = bytearray(MIB)
                body += buffer[: stream.readinto(buffer)]
            assert not put.done(), "half of it is here, and the rest has not been sent"
            go_on.set()
            while len(body) < len(envelope):
                buffer = bytearray(MIB)
                body += buffer[: stream.readinto(memoryview(buffer)[: len(envelope) - len(body)])]
        put.result(20)
        assert bytes(body) == envelope
        assert other.result(20) == (envelope, 0)
    acknowledge(b)
    acknowledge(c)


def test_what_lies_there_is_compared_before_anything_is_added(running: tuple[Study, bytes], way: str) -> None:
    study, run = running
    a, b, c = study.nodes
    msg_id, envelope = seal(run, a, [c.id], os.urandom(2 * MIB))
    path = f"/messenger/uploads/{msg_id.hex()}"
    a.refused(404, "GET", path)
    with closing(bulk(a, way)) as sending, closing(bulk(b, way)) as other:
        with pytest.raises(ZeroDivisionError):
            sending.put(WAY, len(envelope), _breaking(envelope[:MIB]))
        while (offset := a("GET", path).get("offset", 0)) == 0:
            time.sleep(0.01)
        b.refused(404, "GET", path)
        rest = envelope[offset:]
        headers = {"Content-Range": f"bytes {offset}-{len(envelope) - 1}/{len(envelope)}"}
        for digest in ("", "zz", "0" * 64, sha256(envelope[: offset - 1]).hexdigest()):
            with pytest.raises(Refused):
                sending.put(path, len(rest), [rest], headers | {"Upload-Prefix-SHA256": digest})
        right = {"Upload-Prefix-SHA256": sha256(envelope[:offset]).hexdigest()}
        for said in ("bytes 5-4/3", f"bytes {offset}-/{len(envelope) + 1}", "bytes=0-", ""):
            with pytest.raises(Refused):
                sending.put(path, len(rest), [rest], right | {"Content-Range": said})
        with pytest.raises(Refused):
            other.put(path, len(rest), [rest], right | headers)
        sending.put_on(msg_id, len(envelope), lambda: pieces(envelope))
        with closing(bulk(c, way)) as fetching:
            assert fetched(fetching, a, msg_id, len(envelope))[0] == envelope
            for asked in ("bytes=5-9", "bytes=-5", f"bytes={len(envelope)}-", "lines=1-"):
                c.refused(400, "GET", f"{WAY}/{a.id}/{msg_id.hex()}", headers={"range": asked})
    acknowledge(c)


def _breaking(data: bytes) -> Iterator[bytes]:
    """A body whose sender breaks off."""
    yield data
    raise ZeroDivisionError


def test_a_hub_that_is_killed_goes_on_with_what_it_had(tmp_path: Path) -> None:
    hub = HubProcess(tmp_path / "hub", admin_password=PASSWORD, bulk_port="0")
    world = World(hub)
    study = Study.set_up(world)
    run = study.start(study.ready())
    a, _, c = study.nodes
    proxy = LineProxy(tmp_path / "proxy", urlsplit(bulk_of(world)).netloc, f"cut {4 * MIB}")
    msg_id, envelope = seal(run, a, [c.id], os.urandom(12 * MIB))
    with closing(bulk(a, proxy.url)) as sending, closing(bulk(c, proxy.url)) as fetching:
        with pytest.raises(Unavailable):
            sending.put(WAY, len(envelope), pieces(envelope))
        hub.kill()
        hub.start()
        proxy.aim(urlsplit(bulk_of(world)).netloc)
        assert 3 <= sent_on(sending, msg_id, envelope) <= 6, "what had come before the crash was not sent again"
        hub.kill()
        hub.start()
        proxy.aim(urlsplit(bulk_of(world)).netloc)
        breaks: list[FlameError] = []
        buffer = bytearray(len(envelope))

        def pause(why: FlameError) -> None:
            breaks.append(why)
            if len(breaks) == 1:
                hub.kill()
                hub.start()
                proxy.aim(urlsplit(bulk_of(world)).netloc)
            time.sleep(0.05)

        with closing(Unbroken(fetching, f"{WAY}/{a.id}/{msg_id.hex()}", pause)) as stream:
            view = memoryview(buffer)
            while view:
                view = view[stream.readinto(view) :]
        assert bytes(buffer) == envelope and breaks
    proxy.close()
    world.close()
    hub.stop()


def sent_on(sending: Bulk, msg_id: bytes, envelope: bytes) -> int:
    for attempt in range(1, 30):
        try:
            sending.put_on(msg_id, len(envelope), lambda: pieces(envelope))
        except Unavailable:
            time.sleep(0.05)
        else:
            return attempt
    raise AssertionError("it never came through")


def test_what_is_larger_than_the_room_is_refused_before_it_starts(tmp_path: Path) -> None:
    hub = HubProcess(tmp_path / "hub", admin_password=PASSWORD, bulk_port="0", storage_bytes_max=str(64 * MIB))
    world = World(hub)
    study = Study.set_up(world)
    run = study.start(study.ready())
    a, _, c = study.nodes
    size = 3 << 30
    recipients = [RecipientKey(UUID(c.id).bytes, HybridKey.generate().public_bytes, 0)]
    now = int(time.time())
    sealer = Sealer(
        a.key, total_len=size, type="message", run=run, sender=UUID(a.id).bytes, msg_id=os.urandom(16), round=0,
        created=now, expires=now + 3600, content_type="x", log_size=0, log_root=bytes(32), recipients=recipients,
    )  # fmt: skip
    start = sealer.header.encode() + bytes(MIB)
    for way in (bulk_of(world), hub.url):
        for length, status, words in ((sealer.length, 507, "storage is full"), (10 << 30, 400, "Content-Length")):
            with closing(http.client.HTTPConnection(urlsplit(way).netloc, timeout=20)) as line:
                line.putrequest("PUT", WAY)
                line.putheader("Authorization", a.http.headers["authorization"])
                line.putheader("Content-Length", str(length))
                line.endheaders()
                line.send(start)  # and no more of it: the answer comes all the same
                answer = line.getresponse()
                assert answer.status == status and words in json.loads(answer.read())["message"]
    assert c.get(WAY) == []
    place = hub.dir / "objects"
    assert [p for folder in ("arriving", "kept/mail") for p in (place / folder).glob("*")] == []
    world.close()
    hub.stop()
