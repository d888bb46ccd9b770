"""The hub reads no payload: canaries in all that is secret, and every byte that the hub stores, logs or handles is searched.

The search proves itself twice: with sealing switched off by a test hook it finds the canaries of every way out, and
decoys that were handed to the hub openly, encoded in each way, it finds in the sealed federation too.
"""

from __future__ import annotations

import base64
import gzip
import random
import sqlite3
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from acceptance.federations import AUTHOR
from flame.crypto.atrest import StorageKey
from flame.crypto.keys import IdentityKey
from flame.lab.federation import Federation, Outcome, Site
from flame.lab.record import find
from flame.model.errors import FlameError
from flame.researcher.keys import Keys
from flame.researcher.session import Progress

HOSPITALS = 2
LITERAL = "a line of the approved code, and a value {secret}"
PROGRAM = b"""
import time

import numpy as np
import flame

with flame.connect() as fed:
    if not fed.is_aggregator:
        table = fed.data()
        secret, numbers = table["note"][0], table.numbers("value")
        print("printed-" + secret[::-1])
        fed.log("a line of the approved code, and a value {secret}", secret="logged-" + secret[::-1])
        fed.log("written-" + secret[::-1])
        fed.contribute("part", {"part": numbers * 3.0})
        fed.send(fed.aggregator, {"text": "message-" + secret[::-1]}, "small")
        fed.send(fed.aggregator, {"text": ("object-" + secret[::-1] + "\\n") * 20000}, "large")
        told = fed.receive("back").value
        print("heard-" + told["text"])
        time.sleep(1)
    else:
        total, _ = fed.total("part")
        small, large = fed.gather("small"), fed.gather("large")
        secret = sorted(m.value["text"] for m in small.values())[0][len("message-"):]
        fed.broadcast({"text": "model-" + secret}, "back")
        print("aggregator-" + secret)
        time.sleep(1)
        fed.submit("result-" + secret, "named-" + secret + ".txt")
        fed.submit({"total": total["part"].tolist()}, "sum-" + secret + ".json")
"""
FAILS = b"""
import flame

with flame.connect() as fed:
    if not fed.is_aggregator:
        raise ValueError("raised-" + fed.data()["note"][0][::-1])
    fed.total("part")
"""


@dataclass
class World:
    """A federation that was used in every way, with what is secret in it, by where it was put."""

    federation: Federation
    payload: dict[str, list[bytes]]
    """What programs handed to the node to be sealed."""
    kept: dict[str, list[bytes]]
    """What never leaves its owner, sealed or not."""
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def places(self) -> tuple[Path, Path]:
        return self.federation.directory / "hub", self.federation.directory / "record"

    def search(self, canaries: Mapping[str, list[bytes]]) -> dict[str, set[str]]:
        """Kind of canary -> the files of the hub in which one occurs."""
        found: dict[str, set[str]] = {}
        kinds = {canary: kind for kind, several in canaries.items() for canary in several}
        for place in self.places:
            for name, hits in find(place, kinds).items():
                for hit in hits:
                    found.setdefault(kinds[hit], set()).add(f"{place.name}/{name}")
        return found


def token(random_: random.Random) -> str:
    return "".join(random_.choices("bcdfghjkmnpqrstvwxz", k=24))


def build(folder: Path, unsealed: bool) -> World:
    random_ = random.Random(f"{folder}")
    notes = [token(random_) for _ in range(HOSPITALS)]
    tables = [[round(random_.uniform(1, 90), 9) for _ in range(8)] for _ in range(HOSPITALS)]
    sites, rows = [], []
    for number, (note, table) in enumerate(zip(notes, tables, strict=True)):
        lines = [f"{value!r},{note}" for value in table]
        path = folder / f"hospital-{number}.csv"
        path.write_text("value,note\n" + "\n".join(lines) + "\n")
        sites.append(Site(f"hospital-{number}", path))
        rows += [line.encode() for line in lines]
    hooks = {"FLAME_TEST_HOOKS": "1", "FLAME_TEST_UNSEALED": "1"} if unsealed else {}
    names = [*(site.name for site in sites), "aggregator"]
    federation = Federation.up(folder / "fed", sites, record=True, variables=dict.fromkeys(names, hooks))
    turned = [note[::-1].encode() for note in notes]
    chosen = min(turned)
    sums = [a * 3.0 + b * 3.0 for a, b in zip(*tables, strict=True)]
    payload = {
        "sums": [struct.pack("<d", value * 3.0) for table in tables for value in table],
        "messages": [b"message-" + word for word in turned],
        "intermediate objects": [b"object-" + word for word in turned],
        "the model": [b"model-" + chosen],
        "results": [b"result-" + chosen, *(repr(value).encode() for value in sums)],
        "names of result files": [b"named-" + chosen, b"sum-" + chosen],
    }
    kept = {
        "rows": rows,
        "numbers of rows": [struct.pack("<d", value) for table in tables for value in table],
        "text of rows": [note.encode() for note in notes],
        "values of log lines": [b"logged-" + word for word in turned],
        "log lines that are no literals": [b"written-" + word for word in turned],
        "output": [b"printed-" + word for word in turned] + [b"heard-model-" + chosen, b"aggregator-" + chosen],
        "texts of errors": [b"raised-" + word for word in turned],
        **private_keys(federation),
    }
    return World(federation, payload, kept)


def private_keys(federation: Federation) -> dict[str, list[bytes]]:
    keys = Keys.load(federation.directory / "researcher")
    nodes = [node.directory / "keys" for node in federation.nodes]
    pems = [(folder / "identity.pem").read_bytes() for folder in nodes]
    return {
        "identity keys": [IdentityKey.load(folder / "identity.pem").private_bytes for folder in nodes]
        + [line for pem in pems for line in pem.splitlines() if b"-----" not in line],
        "storage keys": [(folder / "storage.key").read_bytes() for folder in nodes],
        "researcher's keys": [keys.sign.private_bytes, keys.result.private_bytes[:64], keys.result.private_bytes[64:]],
        "stewards' tokens": [node.steward_token.encode() for node in federation.nodes],
        "run keys": [],
    }


def use(world: World) -> None:
    """One run that uses every way out, one that dies with a text, and decoys given to the hub openly."""
    seen: dict[str, bytes] = {}

    def watch(step: Progress) -> None:
        if step.stage == "run":
            for node in world.federation.nodes:
                with suppress(sqlite3.Error, FlameError):
                    seen.update(run_keys(node.directory))

    submit = world.federation.submit
    author = {"flame.toml": AUTHOR, **decoys()}
    world.outcomes.append(
        submit({"main.py": PROGRAM, **author}, entrypoint="main.py", title="All ways", progress=watch)
    )
    world.outcomes.append(submit({"main.py": FAILS, "flame.toml": AUTHOR}, entrypoint="main.py", title="Dies"))
    world.kept["run keys"] = [part for raw in seen.values() for part in (raw[:64], raw[64:96], raw[96:])]


def run_keys(node: Path) -> dict[str, bytes]:
    storage = StorageKey.load(node / "keys" / "storage.key")
    with closing(sqlite3.connect(f"file:{node / 'keys' / 'runs.db'}?mode=ro", uri=True)) as database:
        rows = database.execute("SELECT run, sealed FROM run_keys").fetchall()
    return {f"{node.name}/{run}": storage.open(sealed, b"run-keys\0" + run.encode()) for run, sealed in rows}


def decoys() -> dict[str, bytes]:
    """Files of the program, which the hub may read: each holds a decoy in one of the forms that are searched."""
    padding = b"about the program, as an archive of its author's notes " * 3
    return {
        "plain.txt": b"xx decoy-in-clear-text yy",
        "hex.txt": b"xx " + b"decoy-in-hexadecimal".hex().encode(),
        "base64.txt": base64.b64encode(b"x decoy-in-base64-text y"),
        "gzip.bin": gzip.compress(padding + b"decoy-in-a-gzip-stream" + padding),
        "zlib.bin": b"head" + zlib.compress(padding + b"decoy-in-a-zlib-stream" + padding),
    }


DECOYS = {
    name: [f"decoy-in-{name}".encode()]
    for name in ("clear-text", "hexadecimal", "base64-text", "a-gzip-stream", "a-zlib-stream")
}


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    yield from used(tmp_path_factory.mktemp("sealed"), unsealed=False)


@pytest.fixture(scope="module")
def unsealed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    yield from used(tmp_path_factory.mktemp("unsealed"), unsealed=True)


def used(folder: Path, *, unsealed: bool) -> Iterator[World]:
    world = build(folder, unsealed)
    try:
        use(world)
        yield world
    finally:
        world.federation.down(keep_files=True)


def test_every_way_out_was_used(sealed: World) -> None:
    """Otherwise that nothing is found would say nothing: what was sealed arrived, and what was kept is at its owner's."""
    done, died = sealed.outcomes
    assert (done.status, died.status) == ("executed", "failed"), (done.reason, died.reason)
    names = " ".join(result.name for result in done.results).encode()
    content = b"".join(result.content for result in done.results)
    assert all(canary in names for canary in sealed.payload["names of result files"])
    assert all(canary in content for canary in sealed.payload["results"])
    said = "".join(
        sealed.federation.steward(node.name).api.get(f"/api/runs/{outcome.run}/output")["output"]
        for node in sealed.federation.nodes
        for outcome in sealed.outcomes
    ).encode()
    for kind in ("output", "values of log lines", "log lines that are no literals"):
        assert all(canary in said for canary in sealed.kept[kind]), kind
    assert any(canary in said for canary in sealed.kept["texts of errors"]), "the first that dies ends the other"
    assert len(sealed.kept["run keys"]) == 3 * len(sealed.federation.nodes), "each node's key of the first run was seen"


def test_the_hub_reads_nothing(sealed: World) -> None:
    assert sealed.search({**sealed.payload, **sealed.kept}) == {}


def test_the_search_covers_all_that_the_hub_handles(sealed: World) -> None:
    """Decoys are found in the hub's objects and in what went through it; the redacted line and its template, too."""
    found = sealed.search({**DECOYS, "template": [LITERAL.encode()]})
    assert set(found) == {*DECOYS, "template"}
    for kind in DECOYS:
        assert any(name.startswith("hub/objects/") for name in found[kind]), kind
        assert "record/code" in found[kind], kind
    assert "record/control" in found["template"]
    assert any(name.startswith("hub/hub.db") for name in found["template"])
    counts = sealed.federation.hub_counts()
    assert counts["payload_readable"] == 0
    assert counts["messages"] > 10
    assert counts["sealed_bytes"] > 2 * 20000 * 30, "the large objects went through the hub"


def test_without_sealing_the_same_search_finds_the_payload_of_every_way_out(unsealed: World) -> None:
    assert unsealed.outcomes[0].status == "executed", unsealed.outcomes[0].reason
    found = unsealed.search(unsealed.payload)
    assert set(found) == set(unsealed.payload)
    for kind, names in found.items():
        assert "record/sealed" in names, kind
    assert any(name.startswith("hub/") for names in found.values() for name in names), "in what it stores, too"


def test_without_sealing_what_never_leaves_its_owner_still_does_not(unsealed: World) -> None:
    assert unsealed.search(unsealed.kept) == {}


def test_the_hook_is_an_alarm_in_the_nodes_log(sealed: World, unsealed: World) -> None:
    for world, alarmed in ((sealed, False), (unsealed, True)):
        for node in world.federation.nodes:
            assert ("ALARM" in (node.directory / "node.log").read_text()) is alarmed
