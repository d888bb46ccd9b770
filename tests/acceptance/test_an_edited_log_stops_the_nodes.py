"""A hub whose log was rewritten while it was stopped meets nodes that kept an earlier head: nothing starts there any more.

The database is changed with its own tool, as somebody with the hub's machine could: ``sqlite3``, ``psql``. In each case
the hub comes back, an unchanged node refuses it and says which two heads do not fit; then the true log is put back, and
the node works again.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest

from acceptance.federations import make_sites, submitted
from flame.crypto.canonical import canonical
from flame.crypto.translog import Frontier, leaf_hash
from flame.lab.federation import Federation
from flame.researcher.api import Api
from postgres_world import Postgres, programs

PATIENCE = 60.0
Leaf = tuple[int, bytes]


class Store(Protocol):
    """The hub's database, seen from outside while the hub is stopped."""

    def variables(self) -> dict[str, str]: ...
    def tool(self, statements: str) -> str:
        """What the database's own command-line tool answers."""

    def keep(self) -> None:
        """Remember everything."""

    def put_back(self) -> None: ...


@dataclass
class Sqlite:
    hub: Path

    def variables(self) -> dict[str, str]:
        return {}

    def tool(self, statements: str) -> str:
        with closing(sqlite3.connect(self.hub / "hub.db", isolation_level=None)) as database:
            rows = [row for part in statements.split(";\n") for row in database.execute(part)]
        return "\n".join("|".join(map(str, row)) for row in rows)

    def keep(self) -> None:
        self._copy(self.hub, self.hub.parent / "kept")

    def put_back(self) -> None:
        self._copy(self.hub.parent / "kept", self.hub)

    def _copy(self, there: Path, here: Path) -> None:
        here.mkdir(exist_ok=True)
        for old in here.glob("hub.db*"):
            old.unlink()
        for path in there.glob("hub.db*"):
            shutil.copy2(path, here)


@dataclass
class Psql:
    server: Postgres
    database: str

    def variables(self) -> dict[str, str]:
        return {"FLAME_HUB_DATABASE_URL": self.server.setting(self.database)}

    def tool(self, statements: str, database: str = "") -> str:
        binaries = programs()
        assert binaries is not None
        called = [str(binaries / "psql"), "-h", str(self.server.folder), "-U", "flame", "-d", database or self.database]
        done = subprocess.run(
            [*called, "-v", "ON_ERROR_STOP=1", "-qAt"], input=statements + ";\n", capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def keep(self) -> None:
        self.tool(f"DROP DATABASE IF EXISTS kept;\nCREATE DATABASE kept TEMPLATE {self.database}", "postgres")

    def put_back(self) -> None:
        self.tool(f"DROP DATABASE {self.database};\nCREATE DATABASE {self.database} TEMPLATE kept", "postgres")


@dataclass
class Scene:
    """A federation whose hub is stopped after some work; `store` holds its true log."""

    federation: Federation
    store: Store
    seen: dict[str, tuple[int, str]]
    """Node -> the newest head that it has seen: entries, root."""

    def leaves(self) -> list[Leaf]:
        column = "hex(leaf)" if isinstance(self.store, Sqlite) else "encode(leaf, 'hex')"
        lines = self.store.tool(f"SELECT idx, {column} FROM log_leaves ORDER BY idx").splitlines()
        return [(int(place), bytes.fromhex(text)) for place, text in (line.split("|") for line in lines)]

    def bytes_of(self, content: bytes) -> str:
        return f"x'{content.hex()}'" if isinstance(self.store, Sqlite) else f"'\\x{content.hex()}'"

    def write(self, leaves: list[bytes]) -> None:
        """A whole new log, every hash made to fit: all that somebody can do who has the database and knows the code."""
        statements, edge = ["DELETE FROM log_leaves"], Frontier()
        for place, leaf in enumerate(leaves):
            event = json.loads(json.loads(leaf)["event"])
            nodes = b"".join(edge.grow(leaf_hash(leaf)))
            columns = map(self.bytes_of, (leaf, leaf_hash(leaf), edge.root(), nodes))
            statements.append(
                "INSERT INTO log_leaves(idx, leaf, hash, root, nodes, signer, time, type, subject) VALUES "
                f"({place}, {', '.join(columns)}, '{event['signer']}', 1, '{event['type']}', '{event['subject']}')"
            )
        statements.append(f"UPDATE log_frontier SET state = {self.bytes_of(edge.state())}")
        self.store.tool(";\n".join(statements))

    def admin(self) -> Api:
        return Api.login(self.federation.hub_url, self.federation.admin.username, self.federation.admin.password)

    def happen(self, times: int) -> None:
        """Entries in the log of a running hub."""
        with closing(self.admin()) as api:
            me = api.get("/auth/userinfo")["sub"]
            for number in range(times):
                api.post(f"/auth/users/{me}", {"displayName": f"Admin {time.time_ns()} {number}"})


def settled(federation: Federation, expected: Callable[[dict[str, Any]], bool], what: str) -> dict[str, dict[str, Any]]:
    """Each node's status, once it is as expected at all of them."""
    until = time.monotonic() + PATIENCE
    while True:
        found = {node.name: federation.steward(node.name).status() for node in federation.nodes}
        if all(map(expected, found.values())):
            return found
        assert time.monotonic() < until, f"{what}: {found}"
        time.sleep(0.1)


def heads_of(federation: Federation) -> dict[str, tuple[int, str]]:
    shown = {node.name: federation.steward(node.name).status()["log"] for node in federation.nodes}
    return {name: (log["entries"], log["root"]) for name, log in shown.items()}


@pytest.fixture(scope="module")
def scene(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("scene")
    place, store = folder / "fed", None
    if request.param == "psql":
        server: Postgres = request.getfixturevalue("postgres")
        store = Psql(server, server.fresh())
    store = store or Sqlite(place / "hub")
    federation = Federation.up(place, make_sites(folder / "sites", 1), variables={"hub": store.variables()})
    try:
        federation.approve(submitted(federation, "Before"))
        federation.stop("hub")
        federation.restart("hub", store.variables())  # the nodes' greeting brings them the newest head
        settled(federation, lambda said: bool(said["hub"]["online"]) and said["logEventsWaiting"] == 0, "all is told")
        scene = Scene(federation, store, heads_of(federation))
        federation.stop("hub")
        scene.seen = heads_of(federation)
        store.keep()
        yield scene
    finally:
        federation.down()


def edit(scene: Scene) -> None:
    """One entry speaks of somebody else."""
    (_, leaf) = scene.leaves()[3]
    said = json.loads(leaf)
    other = canonical(said | {"event": canonical(json.loads(said["event"]) | {"subject": "somebody else"}).decode()})
    scene.store.tool(f"UPDATE log_leaves SET leaf = {scene.bytes_of(other)} WHERE idx = 3")


def edit_with_every_hash(scene: Scene) -> None:
    """The same, and the whole tree computed anew."""
    edit(scene)
    scene.write([leaf for _, leaf in scene.leaves()])


def delete(scene: Scene) -> None:
    scene.store.tool("DELETE FROM log_leaves WHERE idx = 4")


def delete_with_every_hash(scene: Scene) -> None:
    scene.write([leaf for place, leaf in scene.leaves() if place != 4])


def cut(scene: Scene) -> None:
    """The last entries never were."""
    scene.write([leaf for _, leaf in scene.leaves()][:-2])


def reorder(scene: Scene) -> None:
    scene.store.tool(
        "UPDATE log_leaves SET idx = 1000000 WHERE idx = 2;\nUPDATE log_leaves SET idx = 2 WHERE idx = 3;\n"
        "UPDATE log_leaves SET idx = 3 WHERE idx = 1000000"
    )


def reorder_with_every_hash(scene: Scene) -> None:
    leaves = [leaf for _, leaf in scene.leaves()]
    scene.write([*leaves[:2], leaves[3], leaves[2], *leaves[4:]])


def empty(scene: Scene) -> None:
    scene.store.tool("DELETE FROM log_leaves;\nDELETE FROM log_frontier")


EVERY_WAY = [edit, edit_with_every_hash, delete, delete_with_every_hash, cut, reorder, reorder_with_every_hash, empty]
WITH_PSQL = [edit, delete_with_every_hash, reorder]


@pytest.mark.parametrize(
    ("scene", "tampering"),
    [*(("sqlite3", way) for way in EVERY_WAY), *(("psql", way) for way in WITH_PSQL)],
    indirect=["scene"],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_an_unchanged_node_refuses_and_names_both_heads(scene: Scene, tampering: Callable[[Scene], None]) -> None:
    tampering(scene)
    scene.federation.restart("hub", scene.store.variables())
    try:
        refused(scene)
    finally:
        restored(scene)


@pytest.mark.parametrize("scene", ["sqlite3", "psql"], indirect=True)
def test_a_fork_is_refused(scene: Scene) -> None:
    """A copy of the database from before is put back, and goes on differently: longer than what the node has seen."""
    federation, before = scene.federation, scene.seen
    federation.restart("hub", scene.store.variables())
    settled(federation, lambda said: bool(said["hub"]["online"]), "the nodes are back")
    scene.happen(3)
    federation.stop("hub")
    federation.restart("hub", scene.store.variables())
    settled(federation, lambda said: said["log"]["entries"] >= max(size for size, _ in before.values()) + 3, "seen")
    federation.stop("hub")
    scene.seen = heads_of(federation)
    scene.store.put_back()
    hidden = {node.name: federation.pid_of(node.name) for node in federation.nodes}
    federation.restart("hub", scene.store.variables())
    scene.happen(7)
    assert hidden == {node.name: federation.pid_of(node.name) for node in federation.nodes}, "the nodes went on running"
    federation.stop("hub")
    federation.restart("hub", scene.store.variables())
    refused(scene)


def refused(scene: Scene) -> None:
    """Every node says why it starts nothing: the head that it has seen, and the one that it is shown now."""
    said = settled(scene.federation, lambda status: "does not continue" in status["log"]["alarm"], "the alarm")
    for name, status in said.items():
        size, root = scene.seen[name]
        words = status["log"]["alarm"]
        assert "does not continue the one that this node has seen" in words, name
        assert f"({size} entries, root {root[:16]}…)" in words, (name, words)
        assert "The log that the hub shows (" in words, (name, words)
        assert "does not continue" in status["hub"]["lastError"], name
        assert "ALARM" in (scene.federation.node(name).directory / "node.log").read_text()


def restored(scene: Scene) -> None:
    """With the true log back, the alarm is over: what the node has seen is there again."""
    scene.federation.stop("hub")
    scene.store.put_back()
    scene.federation.restart("hub", scene.store.variables())
    settled(scene.federation, lambda said: not said["log"]["alarm"] and bool(said["hub"]["online"]), "all is well")
    scene.federation.stop("hub")
    scene.store.keep()
    scene.seen = heads_of(scene.federation)
