"""A hub whose log was rewritten while it was stopped meets nodes that kept an earlier head: nothing starts there any more."""

from __future__ import annotations

import json
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from acceptance.federations import make_sites, submitted
from flame.crypto.canonical import canonical
from flame.crypto.translog import Frontier, leaf_hash
from flame.lab.federation import Federation

PATIENCE = 120.0


def rewrite(hub: Path) -> None:
    """As somebody with the hub's database could: another subject in an early entry, all hashes made to fit."""
    with closing(sqlite3.connect(hub / "hub.db")) as database:
        leaves = [bytes(row[0]) for row in database.execute("SELECT leaf FROM log_leaves ORDER BY idx")]
        said = json.loads(leaves[1])
        event = json.loads(said["event"]) | {"subject": "somebody else"}
        leaves[1] = canonical(said | {"event": canonical(event).decode()})
        frontier = Frontier()
        for index, leaf in enumerate(leaves):
            frontier.append(leaf_hash(leaf))
            row = (leaf, leaf_hash(leaf), frontier.root(), index)
            database.execute("UPDATE log_leaves SET leaf = ?, hash = ?, root = ? WHERE idx = ?", row)
        database.execute("UPDATE log_frontier SET state = ?", (frontier.state(),))
        database.commit()


def test_an_unchanged_node_notices_and_starts_nothing(tmp_path: Path) -> None:
    federation = Federation.up(tmp_path / "fed", make_sites(tmp_path / "sites"))
    try:
        federation.approve(submitted(federation, "Before"))
        seen = heads_of(federation)
        assert all(size > 1 for size in seen.values())
        federation.stop("hub")
        rewrite(federation.directory / "hub")
        federation.restart("hub")
        words = {node.name: complaint_of(federation, node.name) for node in federation.nodes}
        for name, said in words.items():
            assert "does not continue the one that this node has seen" in said, name
            assert f"{seen[name]} entries" in said, name
    finally:
        federation.down()


def heads_of(federation: Federation) -> dict[str, int]:
    found = {}
    for node in federation.nodes:
        with closing(sqlite3.connect(node.directory / "node.db")) as database:
            (found[node.name],) = database.execute("SELECT max(size) FROM heads").fetchone()
    return found


def complaint_of(federation: Federation, name: str) -> str:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        status = federation.steward(name).status()
        if "does not continue" in status["hub"]["lastError"]:
            return str(status["hub"]["lastError"])
        time.sleep(0.2)
    pytest.fail(f"{name} did not notice: {federation.steward(name).status()}")
