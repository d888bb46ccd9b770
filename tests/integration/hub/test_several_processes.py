"""Several hub processes on one PostgreSQL are one hub: what one takes, another pushes at once; killing one loses nothing."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from wire import Changed, Deliver, Wire, channel
from world import PASSWORD, Actor, HubProcess, Node, Study, World, seal

from flame.node.link import Link
from flame.protocol.control import Stored
from flame.storage import postgresql
from line_proxy import LineProxy
from postgres_world import Postgres

WAY = "/messenger/messages"


@pytest.fixture(scope="module")
def database(postgres: Postgres) -> str:
    return postgres.fresh()


@pytest.fixture(scope="module")
def hubs(tmp_path_factory: pytest.TempPathFactory, postgres: Postgres, database: str) -> Iterator[list[HubProcess]]:
    """Two processes that share a directory (key and objects) and a database."""
    folder = tmp_path_factory.mktemp("hub")
    both = []
    for _ in range(2):
        both.append(HubProcess(folder, admin_password=PASSWORD, database_url=postgres.setting(database)))
    yield both
    for hub in both:
        hub.stop()


@pytest.fixture(scope="module")
def worlds(hubs: list[HubProcess]) -> Iterator[list[World]]:
    made = [World(hub) for hub in hubs]
    yield made
    for world in made:
        world.close()


@pytest.fixture(scope="module")
def running(worlds: list[World]) -> tuple[Study, bytes]:
    study = Study.set_up(worlds[0])
    return study, study.start(study.ready())


def at(world: World, actor: Node) -> Node:
    """The same node with the same token at another process."""
    token = actor.http.headers["authorization"].removeprefix("Bearer ")
    return replace(actor, http=world._client(token))


def acknowledge(node: Actor) -> None:
    node("POST", f"{WAY}/ack", 202, json={"seqs": [row["seq"] for row in node.get(WAY)]})


def test_what_one_takes_the_other_pushes_at_once(worlds: list[World], running: tuple[Study, bytes]) -> None:
    study, run = running
    a, _, c = study.nodes
    one, other = worlds

    async def story() -> None:
        async with channel(one, a) as first, channel(other, at(other, c)) as third:
            took = []
            for n in range(30):
                msg_id, envelope = seal(run, a, [c.id], b"%d" % n, n)
                began = time.monotonic()
                await first.put(msg_id, run, envelope)
                item = await third.next(Deliver)
                took.append(time.monotonic() - began)
                assert (item.msg_id, item.body) == (msg_id, envelope)
                await third.ack(item.seq)
            assert sorted(took)[15] < 0.25, f"pushed, not polled: {took}"
            many = [seal(run, a, [c.id], b"%d" % n, n) for n in range(100)]
            for msg_id, envelope in many:
                await first.put(msg_id, run, envelope)
            found = [await third.next(Deliver) for _ in many]
            assert [f.msg_id for f in found] == [m for m, _ in many], "in the order of their sender"
            await third.ack(*(f.seq for f in found))
            await asyncio.sleep(0.2)

    asyncio.run(story())


def test_changes_polls_and_watchers_hear_of_the_other_process(worlds: list[World]) -> None:
    one, other = worlds
    study = Study.set_up(one)
    a, _, c = study.nodes

    async def story() -> None:
        async with channel(other, at(other, c)) as third:
            digest = await asyncio.to_thread(study.ready)
            assert (await third.next(Changed)).id == study.analysis
            there = at(other, a)
            began = await asyncio.to_thread(there, "POST", "/messenger/hello", 200, json={"version": 1, "release": "x"})
            with ThreadPoolExecutor(1) as pool:
                ask = {"wait": "20", "news": began["news"]}
                waiting = pool.submit(there, "GET", WAY, 200, params=ask)
                run = await asyncio.to_thread(study.start, digest)
                news = (await asyncio.wrap_future(waiting))["news"]
                assert {"what": "run", "id": study.analysis} in news["changed"] and not news["missed"]
                waiting = pool.submit(there.get, WAY, wait="20")
                msg_id, envelope = seal(run, c, [a.id], b"x")
                await asyncio.to_thread(study.nodes[2], "PUT", WAY, 202, content=envelope)
                assert (await asyncio.wrap_future(waiting))[0]["msgId"] == msg_id.hex()
            for node in study.nodes:  # the run ends at one process: the other takes nothing more for it
                await asyncio.to_thread(
                    node.change, f"/core/analysis-nodes/{study.place(node)['id']}", executionStatus="executed"
                )
            async with asyncio.timeout(10):
                msg_id, envelope = seal(run, a, [c.id], b"late")
                while (await asyncio.to_thread(there.http.put, WAY, content=envelope)).status_code != 409:
                    await asyncio.sleep(0.05)

    asyncio.run(story())


def test_a_large_envelope_that_comes_in_at_one_is_fetched_at_the_other(
    worlds: list[World], running: tuple[Study, bytes]
) -> None:
    study, run = running
    a, _, c = study.nodes
    msg_id, envelope = seal(run, a, [c.id], os.urandom(6 << 20))
    there = at(worlds[1], c)

    def slowly() -> Iterator[bytes]:
        yield envelope[: 3 << 20]
        time.sleep(1)
        yield envelope[3 << 20 :]

    with ThreadPoolExecutor(1) as pool:
        headers = {"content-length": str(len(envelope))}
        put = pool.submit(a.http.put, WAY, content=slowly(), headers=headers)
        while not (rows := there.get(WAY)):
            time.sleep(0.01)
        assert rows[0]["msgId"] == msg_id.hex() and not put.done()
        assert there("GET", f"{WAY}/{a.id}/{msg_id.hex()}", 200) == envelope
        assert put.result().status_code == 202
    acknowledge(c)


def test_a_line_to_the_database_that_breaks_loses_nothing(
    worlds: list[World], running: tuple[Study, bytes], postgres: Postgres, database: str
) -> None:
    study, run = running
    a, _, c = study.nodes
    one, other = worlds

    async def story() -> None:
        async with channel(one, a) as first, channel(other, at(other, c)) as third:
            with postgresql.connect(postgres.url(database)) as connection:
                ended = connection.execute(
                    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid() AND query LIKE 'SELECT objid%'"
                ).fetchone()
            assert ended is not None and ended[0] == 2, "the listening line of each process was cut"
            sent = [seal(run, a, [c.id], b"%d" % n, n) for n in range(20)]
            for msg_id, envelope in sent:
                await first.put(msg_id, run, envelope)
                await first.next(Stored)
            found = [await third.next(Deliver) for _ in sent]
            assert [f.msg_id for f in found] == [m for m, _ in sent]
            await third.ack(*(f.seq for f in found))
            await asyncio.sleep(0.2)

    asyncio.run(story())


class Hospital:
    """A node's own link, and what it has."""

    def __init__(self, hub: str, node: Node) -> None:
        self.heard: list[Deliver] = []
        self.link = Link(hub, node.client, node.key, on_deliver=self.deliver, on_changed=_ignore, on_connected=_ignore)
        self.task = asyncio.create_task(self.link.run())

    async def deliver(self, frame: Deliver) -> None:
        self.heard.append(frame)
        self.link.ack(frame.seq)

    async def close(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.link.close()


async def _ignore(*_: object) -> None:
    return


def test_killing_one_loses_nothing_and_its_nodes_go_to_the_other(tmp_path: Path, postgres: Postgres) -> None:
    """Nodes know one name; a TCP balancer stands behind it."""
    database = postgres.fresh()
    folder = tmp_path / "hub"
    setting = {"admin_password": PASSWORD, "database_url": postgres.setting(database)}
    hubs = [HubProcess(folder, **setting), HubProcess(folder, **setting)]
    names = [urlsplit(hub.url).netloc for hub in hubs]
    world, second = World(hubs[0]), World(hubs[1])
    study = Study.set_up(world)
    run = study.start(study.ready())
    a, _, c = study.nodes
    to_first = LineProxy(tmp_path / "first", " ".join(names))
    to_second = LineProxy(tmp_path / "second", " ".join(reversed(names)))

    async def story() -> None:
        sender, receiver = Hospital(to_first.url, a), Hospital(to_second.url, c)
        for here in (sender, receiver):
            await asyncio.wait_for(here.link.online.wait(), 20)
        sent = [seal(run, a, [c.id], b"%d" % n, n) for n in range(300)]

        async def send() -> None:
            for msg_id, envelope in sent:
                await sender.link.put("envelope", run, msg_id, envelope)

        sending = asyncio.create_task(send())
        while len(receiver.heard) < 50:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(hubs[0].kill)
        await asyncio.wait_for(sending, 60)
        async with asyncio.timeout(30):
            while {f.msg_id for f in receiver.heard} != {m for m, _ in sent}:
                await asyncio.sleep(0.05)
        order = list(dict.fromkeys(f.msg_id for f in receiver.heard))
        assert order == [m for m, _ in sent]
        shown = Actor(second.admin.http)
        async with asyncio.timeout(20):  # the dead process' nodes are shown where they are now
            while not all([(await asyncio.to_thread(shown.get, f"/core/nodes/{n.id}"))["online"] for n in (a, c)]):
                await asyncio.sleep(0.1)
        await sender.close()
        async with asyncio.timeout(20):
            while (await asyncio.to_thread(shown.get, f"/core/nodes/{a.id}"))["online"]:
                await asyncio.sleep(0.1)
        assert (await asyncio.to_thread(shown.get, f"/core/nodes/{c.id}"))["online"] is True
        await receiver.close()

    asyncio.run(story())
    for proxy in (to_first, to_second):
        proxy.close()
    world.close()
    second.close()
    hubs[1].stop()


def test_a_node_that_a_dead_process_had_is_not_shown_as_online(tmp_path: Path, postgres: Postgres) -> None:
    setting = {"admin_password": PASSWORD, "database_url": postgres.setting(postgres.fresh())}
    hubs = [HubProcess(tmp_path / "hub", **setting), HubProcess(tmp_path / "hub", **setting)]
    world, second = World(hubs[0]), World(hubs[1])
    gone, stays = world.node(world.realm("hospital")), world.node(world.realm("hospital"))

    async def story() -> None:
        async with AsyncExitStack() as open_ones:
            await open_ones.enter_async_context(channel(second, at(second, stays)))
            line: Wire = await open_ones.enter_async_context(channel(world, gone))
            admin = second.admin
            for node in (gone, stays):
                assert (await asyncio.to_thread(admin.get, f"/core/nodes/{node.id}"))["online"] is True
            await asyncio.to_thread(hubs[0].kill)
            await line.socket.wait_closed()
            async with asyncio.timeout(20):
                while (await asyncio.to_thread(admin.get, f"/core/nodes/{gone.id}"))["online"]:
                    await asyncio.sleep(0.1)
                while not (await asyncio.to_thread(admin.get, f"/core/nodes/{stays.id}"))["online"]:
                    await asyncio.sleep(0.1)

    asyncio.run(story())
    world.close()
    second.close()
    hubs[1].stop()


def test_two_processes_write_one_log(worlds: list[World]) -> None:
    """Realms made at both at once: one tree, each entry in it once."""
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda n: worlds[n % 2].realm("r"), range(24)))
    assert len(set(made)) == 24
    heads = [world.admin("GET", "/core/audit/head", 200)["data"] for world in worlds]
    assert heads[0]["size"] == heads[1]["size"] and heads[0]["root"] == heads[1]["root"]
