"""A node reaches its hub through what stands in a hospital's way: proxies that let no WebSocket through, and forward proxies."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from wire import channel
from world import Node, Study, World, seal

from flame.model.errors import Refused
from flame.node.link import Bulk, Link
from flame.node.link import link as link_module
from flame.protocol.control import Changed, Deliver, Stored
from line_proxy import LineProxy

BLOCKING = ["no-upgrade", "strip", "swallow"]


@pytest.fixture(scope="module")
def running(world: World) -> tuple[Study, bytes]:
    study = Study.set_up(world)
    return study, study.start(study.ready())


@pytest.fixture
def proxy(world: World, tmp_path: Path) -> Iterator[LineProxy]:
    proxy = LineProxy(tmp_path / "proxy", urlsplit(world.hub.url).netloc)
    yield proxy
    proxy.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(link_module, "GREETING_SECONDS", 1.0)
    monkeypatch.setattr(link_module, "SOCKET_SECONDS", 1.0)
    monkeypatch.setattr(link_module, "SOCKET_AGAIN_FIRST", 0.3)


class Hospital:
    """A node's own link, and what it hears."""

    def __init__(self, hub: str, node: Node) -> None:
        self.node = node
        self.heard: list[Deliver] = []
        self.changes: list[Changed] = []
        self.connected = 0
        self.link = Link(
            hub, node.client, node.key, on_deliver=self.deliver, on_changed=self.changed, on_connected=self.connect
        )

    async def deliver(self, frame: Deliver) -> None:
        self.heard.append(frame)
        self.link.ack(frame.seq)

    async def changed(self, frame: Changed) -> None:
        self.changes.append(frame)

    async def connect(self) -> None:
        self.connected += 1


@asynccontextmanager
async def hospital(hub: str, node: Node) -> AsyncIterator[Hospital]:
    here = Hospital(hub, node)
    running = asyncio.create_task(here.link.run())
    try:
        await asyncio.wait_for(here.link.online.wait(), 20)
        yield here
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await here.link.close()


async def until(condition: object, seconds: float = 15) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("mode", BLOCKING)
def test_where_no_websocket_goes_through_messages_do(running: tuple[Study, bytes], proxy: LineProxy, mode: str) -> None:
    study, run = running
    a, b, c = study.nodes
    proxy.set(mode)

    async def story() -> None:
        async with hospital(proxy.url, c) as third, channel(study.world, a) as first:
            assert third.link.polls and third.connected == 1
            sent = [seal(run, a, [c.id], b"%d" % n, n) for n in range(40)]
            for msg_id, envelope in sent:
                await first.put(msg_id, run, envelope)
            await until(lambda: len(third.heard) >= len(sent))
            assert [f.msg_id for f in third.heard] == [m for m, _ in sent]
            assert [f.body for f in third.heard] == [e for _, e in sent]
            began = time.monotonic()
            msg_id, envelope = seal(run, a, [c.id], b"now")
            await first.put(msg_id, run, envelope)
            await until(lambda: third.heard[-1].msg_id == msg_id)
            assert time.monotonic() - began < 1, "a poll waits for nothing but its message"
            back = [seal(run, c, [a.id, b.id], b"%d" % n, n) for n in range(40)]
            await asyncio.gather(*(third.link.put("envelope", run, m, e) for m, e in back))
            found = []
            while len(found) < len(back):
                item = await first.next(Deliver)
                found.append(item.msg_id)
                await first.ack(item.seq)
            assert found == [m for m, _ in back], "in the order in which they were handed in"
            while await asyncio.to_thread(c.get, "/messenger/messages"):  # what was acknowledged goes
                await asyncio.sleep(0.02)
        rows = await asyncio.to_thread(b.get, "/messenger/messages")
        await asyncio.to_thread(b, "POST", "/messenger/messages/ack", 202, json={"seqs": [r["seq"] for r in rows]})

    asyncio.run(story())


def test_refusals_and_changes_are_heard_by_polls_as_well(world: World, proxy: LineProxy) -> None:
    study = Study.set_up(world)
    a, _, c = study.nodes
    proxy.set("no-upgrade")

    async def story() -> None:
        async with hospital(proxy.url, a) as first:
            digest = await asyncio.to_thread(study.ready)
            await until(lambda: ("analysis", study.analysis) in [(f.what, f.id) for f in first.changes])
            run = await asyncio.to_thread(study.start, digest)
            await until(lambda: ("run", study.analysis) in [(f.what, f.id) for f in first.changes])
            msg_id, envelope = seal(os.urandom(32), a, [c.id], b"x")
            with pytest.raises(Refused, match="not known here"):
                await first.link.put("envelope", run, msg_id, envelope)
            row = await asyncio.to_thread(study.researcher.get, f"/core/nodes/{a.id}")
            assert row["online"] is True
            assert first.connected == 1, "nothing was missed, so nothing was asked for again"

    asyncio.run(story())


def test_the_websocket_comes_back_when_the_proxy_lets_it(running: tuple[Study, bytes], proxy: LineProxy) -> None:
    study, run = running
    a, _, c = study.nodes
    proxy.set("no-upgrade")

    async def story() -> None:
        async with hospital(proxy.url, c) as third, channel(study.world, a) as first:
            assert third.link.polls
            proxy.set("pass")
            await until(lambda: third.link.online.is_set() and not third.link.polls)
            msg_id, envelope = seal(run, a, [c.id], b"by the socket")
            await first.put(msg_id, run, envelope)
            await first.next(Stored)
            await until(lambda: msg_id in [f.msg_id for f in third.heard])
            proxy.set("no-upgrade")
            await third.link._session.close()  # type: ignore[union-attr]  # the line breaks
            third.link._session = None
            await until(lambda: third.link.polls)
            msg_id, envelope = seal(run, a, [c.id], b"by a poll again")
            await first.put(msg_id, run, envelope)
            await until(lambda: msg_id in [f.msg_id for f in third.heard])
            await asyncio.sleep(0.3)

    asyncio.run(story())


def test_a_hub_that_is_down_is_not_taken_for_a_proxy(proxy: LineProxy, running: tuple[Study, bytes]) -> None:
    study, _ = running
    proxy.set("dead")

    async def story() -> None:
        here = Hospital(proxy.url, study.nodes[0])
        task = asyncio.create_task(here.link.run())
        await until(lambda: here.link.last_error)
        assert not here.link.polls and not here.link.online.is_set()
        proxy.set("pass")
        await asyncio.wait_for(here.link.online.wait(), 20)
        assert not here.link.polls
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await here.link.close()

    asyncio.run(story())


def test_a_forward_proxy_that_the_environment_names_is_used_for_everything(
    running: tuple[Study, bytes], proxy: LineProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, run = running
    a, _, c = study.nodes
    proxy.aim("127.0.0.1:1")  # nothing goes there by itself
    monkeypatch.setenv("http_proxy", proxy.url)

    async def story() -> None:
        async with hospital(study.world.hub.url, a) as first:
            msg_id, envelope = seal(run, a, [c.id], os.urandom(1 << 20))
            bulk = Bulk(lambda: study.world.hub.url, first.link.bearer_blocking)
            await asyncio.to_thread(bulk.put, "/messenger/messages", len(envelope), [envelope])
            bulk.close()
        _, path = next((r["msgId"], r["sender"]) for r in await asyncio.to_thread(c.get, "/messenger/messages"))
        assert path == a.id
        assert await asyncio.to_thread(c, "GET", f"/messenger/messages/{a.id}/{msg_id.hex()}", 200) == envelope

    asyncio.run(story())
    rows = c.get("/messenger/messages")
    c("POST", "/messenger/messages/ack", 202, json={"seqs": [row["seq"] for row in rows]})
    seen = " ".join(proxy.seen())
    assert "/auth/token" in seen and "PUT http://" in seen and "/messenger/control" in seen
