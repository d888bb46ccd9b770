"""The hub alone, as a real process over HTTP, on SQLite and on PostgreSQL: what one asks of it when it has grown.

The people and nodes are those of the hub's tests (`tests/integration/hub/world.py`); what cannot be made in the time by
asking (100,000 analyses) is copied into the database behind the running hub.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
from sqlalchemy import insert, select

from figures import MIB, Figure, figure
from flame.hub.analyses.tables import analyses
from flame.storage.engine import Database

TESTS = Path(__file__).parent.parent / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "integration" / "hub")]

from wire import channel  # noqa: E402
from world import PASSWORD, HubProcess, Node, Study, World, seal  # noqa: E402

from flame.protocol.control import Deliver, Stored  # noqa: E402
from postgres_world import Postgres, programs  # noqa: E402

ANALYSES = 100_000
NODES = 1_000
LETTERS = 2_000
LETTER_BYTES = 2_000
WINDOW = 64
OBJECT_BYTES = 256 << 20


@dataclass
class Grown:
    """A hub with a study, and its database from behind."""

    hub: HubProcess
    world: World
    study: Study
    database: Database


@contextmanager
def grown(kind: str) -> Iterator[Grown]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="flame-bench-")))
        settings = {"admin_password": PASSWORD}
        where: Any = folder / "hub" / "hub.db"
        if kind == "postgresql":
            binaries = programs()
            assert binaries is not None
            (folder / "postgres").mkdir()
            folder.chmod(0o755)
            server = Postgres(binaries, folder / "postgres", durable=True)
            stack.callback(server.stop)
            name = server.fresh()
            settings["database_url"], where = server.setting(name), server.url(name)
        hub = HubProcess(folder / "hub", **settings)
        stack.callback(hub.stop)
        world = World(hub)
        stack.callback(world.close)
        database = Database(where)
        database.open()
        stack.callback(database.close)
        yield Grown(hub, world, Study.set_up(world), database)


def measure(kind: str) -> list[Figure]:
    with grown(kind) as it:
        found = [*logins(it), *lists(it), *relay(it), *objects(it), *connected(it)]
    return [Figure(f"{f.name} ({kind})", f.value, f.min, f.max, f.unit, f.goal) for f in found]


# --- what is measured -----------------------------------------------------------------------------------------------


def logins(it: Grown) -> list[Figure]:
    """Password logins, two at a time: argon2id decides."""
    people = [it.world.person(it.world.realm("staff"), "researcher") for _ in range(2)]
    names = [_name(it, person.id) for person in people]

    def login(number: int) -> float:
        body = {"grant_type": "password", "username": names[number % 2], "password": PASSWORD}
        started = time.perf_counter()
        it.world.anonymous()("POST", "/auth/token", 200, json=body)
        return time.perf_counter() - started

    return [figure("hub: login", _each(login, 40, at_once=2), "ms", "", 1000)]


def _name(it: Grown, user: str) -> str:
    return str(it.world.admin.get(f"/auth/users/{user}")["name"])


def lists(it: Grown) -> list[Figure]:
    """Pages of a collection of 100,000 analyses, as its researcher, as the admin, and filtered."""
    _copy_analyses(it)
    asked = {
        "own, newest first": (it.study.researcher, {"sort": "-updatedAt"}),
        "all, newest first": (it.world.admin, {"sort": "-updatedAt"}),
        "filtered by project and state": (
            it.study.researcher,
            {
                "filter[projectId]": it.study.project,
                "filter[executionStatus]": "null",
                "include": "project,masterImage",
            },
        ),
        "page 1000": (it.world.admin, {"page[offset]": "50000", "page[limit]": "50"}),
    }
    found = []
    for what, (who, query) in asked.items():

        def ask(number: int, who: Any = who, query: dict[str, str] = query) -> float:
            started = time.perf_counter()
            assert len(who.get("/core/analyses", **query)) == 50
            return time.perf_counter() - started

        times = _each(ask, 40)
        p95 = statistics.quantiles(times, n=20)[-1]
        found.append(figure(f"hub: list of {ANALYSES} analyses, {what}, p95", [p95], "ms", "", 1000))
    return found


def _copy_analyses(it: Grown) -> None:
    def copy(connection: Any) -> None:
        row = dict(connection.execute(select(analyses).where(analyses.c.id == it.study.analysis)).mappings().one())
        for start in range(0, ANALYSES, 5000):
            rows = [row | {"id": str(uuid4()), "name": f"copy-{start + i}"} for i in range(5000)]
            connection.execute(insert(analyses), rows)

    it.database.write_blocking(copy)


def relay(it: Grown) -> list[Figure]:
    """Small letters from one node to another: stored, pushed, acknowledged; at most 64 under way."""
    run = it.study.start(it.study.ready())
    first, _, last = it.study.nodes
    letters = [seal(run, first, [last.id], bytes(LETTER_BYTES), n=i) for i in range(LETTERS)]

    async def exchange() -> float:
        async with channel(it.world, first) as sender, channel(it.world, last) as receiver:
            free = asyncio.Semaphore(WINDOW)

            async def send() -> None:
                for msg_id, letter in letters:
                    await free.acquire()
                    await sender.put(msg_id, run, letter)

            async def settle() -> None:
                for _ in letters:
                    await sender.next(Stored, seconds=60)

            async def receive() -> None:
                for _ in letters:
                    item = await receiver.next(Deliver, seconds=60)
                    await receiver.ack(item.seq)
                    free.release()

            started = time.perf_counter()
            await asyncio.gather(send(), settle(), receive())
            return time.perf_counter() - started

    seconds = asyncio.run(exchange())
    return [figure("hub: letters relayed", [LETTERS / seconds], "per s", "")]


def objects(it: Grown) -> list[Figure]:
    """One large file into a bucket and out of it, and what the hub's memory grew by."""
    bucket = it.study.researcher.make("/storage/buckets", name=f"bench-{uuid4().hex[:8]}")["id"]
    process = psutil.Process(it.hub.process.pid)
    before = process.memory_info().rss
    with tempfile.TemporaryFile() as file:
        for _ in range(OBJECT_BYTES // MIB):
            file.write(uuid4().bytes * (MIB // 16))
        file.seek(0)
        started = time.perf_counter()
        parts = [("file", ("large.bin", file, "application/octet-stream"))]
        row = it.study.researcher("POST", f"/storage/buckets/{bucket}/upload", 201, files=parts)["data"][0]
        up = time.perf_counter() - started
    started = time.perf_counter()
    size = 0
    with it.study.researcher.http.stream(
        "GET", f"/storage/bucket-files/{row['id']}/stream", headers={"accept-encoding": "identity"}
    ) as answer:
        for piece in answer.iter_bytes(MIB):
            size += len(piece)
    down = time.perf_counter() - started
    assert size == OBJECT_BYTES
    grew = (process.memory_info().rss - before) / MIB
    return [
        figure("hub: upload of 256 MB", [OBJECT_BYTES / MIB / up], "MB/s", ""),
        figure("hub: download of 256 MB", [OBJECT_BYTES / MIB / down], "MB/s", ""),
        figure("hub: memory after both, above before", [grew], "MB", ""),
    ]


def connected(it: Grown) -> list[Figure]:
    """A thousand nodes with open channels: how soon one hears of its letter, and what they cost the hub."""
    realm = it.world.realm("hospitals")
    nodes: list[Node] = []
    process = psutil.Process(it.hub.process.pid)
    before = process.memory_info().rss / MIB
    for _ in range(NODES):
        nodes.append(it.world.node(realm))

    async def open_all() -> tuple[float, float]:
        async with asyncio.TaskGroup() as group:
            opened: asyncio.Queue[None] = asyncio.Queue()
            done = asyncio.Event()
            slots = asyncio.Semaphore(32)

            async def hold(node: Node) -> None:
                await slots.acquire()
                async with channel(it.world, node):
                    slots.release()
                    opened.put_nowait(None)
                    await done.wait()

            started = time.perf_counter()
            for node in nodes:
                group.create_task(hold(node))
            for _ in nodes:
                await opened.get()
            seconds = time.perf_counter() - started
            memory = process.memory_info().rss / MIB
            done.set()
        return seconds, memory

    seconds, memory = asyncio.run(open_all())
    return [
        figure(f"hub: {NODES} nodes open their channels", [seconds], "s", ""),
        figure(f"hub: memory with {NODES} nodes, above before", [memory - before], "MB", ""),
    ]


def _each(act: Callable[[int], float], times: int, at_once: int = 1) -> list[float]:
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(act, range(times)))


MEASUREMENTS: dict[str, Callable[[], list[Figure]]] = {
    "hub-sqlite": lambda: measure("sqlite"),
    "hub-postgresql": lambda: measure("postgresql"),
}
