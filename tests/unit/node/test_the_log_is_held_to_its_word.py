"""What a node does with a hub that promises an entry and leaves it out, or shows a peer another log."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import msgspec
import pytest

import node_world
from flame.crypto.announce import Announcement, sign_announcement
from flame.crypto.keys import HybridKey, IdentityKey
from flame.crypto.signatures import sign_event
from flame.crypto.translog import (
    TreeHead,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    root_of,
    sign_tree_head,
)
from flame.model.errors import BadSignature, Refused, RunFailed, Unavailable
from flame.node.release.party import Parties, Party
from flame.node.schema import NODE
from flame.node.supervisor.events import Events
from flame.node.supervisor.heads import HUB, Heads
from flame.protocol.documents import Event, SignedEvent
from flame.storage.journal import Journal


class Hub:
    """A log with its key; `forgets`: gives receipts and writes nothing; `away`: answers nothing."""

    def __init__(self, entries: int = 5) -> None:
        self.key = IdentityKey.generate()
        self.hashes = [leaf_hash(str(number).encode()) for number in range(entries)]
        self.forgets = self.away = False
        self.signs_orders = self.key
        self.order: dict[str, str] = {}

    def grow(self, *words: str) -> None:
        self.hashes += [leaf_hash(word.encode()) for word in words]

    @property
    def head(self) -> tuple[int, bytes]:
        return len(self.hashes), root_of(self.hashes)

    async def request(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        if self.away:
            raise Unavailable("The hub cannot be reached.")
        if path == "/core/audit/events":
            return {"data": self._receipt(leaf_hash(SignedEvent(**body).leaf()))}
        if path.startswith("/core/audit/starts/"):
            return {"data": self._start(int(path.rpartition("=")[2]))}
        values = [int(part.partition("=")[2]) for part in path.partition("?")[2].split("&")]
        if max(values) > len(self.hashes):
            raise Refused(f"There is no step to {max(values)} entries in a log of {len(self.hashes)}.", status=400)
        prove = consistency_proof if "consistency" in path else inclusion_proof
        return {"data": {"proof": [step.hex() for step in prove(self.hashes, *values)]}}

    def _start(self, seen: int) -> dict[str, Any]:
        facts = {"run": "a run", "manifest": "a digest", "number": 1} | self.order
        event = Event("start", "00" * 32, "an analysis", "2026-01-01T00:00:00Z", facts, "00" * 16)
        signature = sign_event(self.signs_orders, event.digest).hex()
        if not self.forgets:
            self.hashes.append(leaf_hash(SignedEvent(event.encoded().decode(), signature).leaf()))
        size, root = self.head
        head = {"size": size, "root": root.hex(), "time": 1}
        head["signature"] = sign_tree_head(self.key, TreeHead(size, root, 1)).hex()
        return {
            "index": size - 1, "event": msgspec.to_builtins(event), "signature": signature, "head": head, "seen": seen,
            "proof": [step.hex() for step in inclusion_proof(self.hashes, size - 1, size)],
            "consistency": [step.hex() for step in consistency_proof(self.hashes, seen, size)],
        }  # fmt: skip

    def _receipt(self, leaf: bytes) -> dict[str, Any]:
        if not self.forgets:
            self.hashes.append(leaf)
        head = TreeHead(*self.head, 1)
        signed = {"size": head.size, "root": head.root.hex(), "time": 1}
        signed["signature"] = sign_tree_head(self.key, head).hex()
        return {"index": head.size - 1, "leafHash": leaf.hex(), "head": signed}


class Node:
    def __init__(self, journal: Journal, hub: Hub) -> None:
        self.journal, self.hub = journal, hub
        identity = IdentityKey.generate()
        online = asyncio.Event()
        online.set()
        link = SimpleNamespace(newest_head=(0, b""), request=hub.request, online=online)
        self.context = SimpleNamespace(
            journal=journal,
            link=link,
            identity=identity,
            fingerprint=identity.public.fingerprint.hex(),
            enrolled=SimpleNamespace(hub_key=hub.key.public.hex_pem),
        )
        self.heads = Heads(cast("Any", self.context))
        self.events = Events(cast("Any", self.context), self.heads)

    async def tell(self, what: str = "run-started") -> None:
        await self.events.add(what, "a run")
        await self.events._send_all()


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path / "node.db", NODE)
    yield journal
    journal.close()


def test_a_receipt_is_checked_once_and_for_all(journal: Journal) -> None:
    async def scene() -> None:
        node = Node(journal, Hub())
        await node.tell()
        node.hub.grow("by others")
        await node.heads.take(*node.hub.head, HUB)
        assert await node.events.check_receipts() is False
        assert await journal.rows("SELECT included FROM events") == [(7,)]
        node.hub.away = True
        assert await node.events.check_receipts() is False, "nothing is asked again"
        node.heads.demand()

    asyncio.run(scene())


def test_an_entry_left_out_is_an_alarm_and_nothing_starts(journal: Journal, caplog: pytest.LogCaptureFixture) -> None:
    """The receipt is signed and for this event, the head is the true one: only the proof is missing."""

    async def scene() -> Node:
        node = Node(journal, Hub())
        await node.heads.take(*node.hub.head, HUB)
        node.hub.forgets = True
        await node.tell("release")
        with pytest.raises(Refused):
            await node.events.check_receipts()
        with pytest.raises(Refused) as caught:
            node.heads.demand()
        assert caught.value.code == "log_forked"
        size, root = node.hub.head
        for words in (
            "signed a receipt for the entry 4",
            "release of a run",
            f"{size} entries, root {root.hex()[:16]}",
        ):
            assert words in node.heads.broken, node.heads.broken
        return node

    with caplog.at_level(logging.ERROR, "flame.node"):
        node = asyncio.run(scene())
    assert "ALARM: The hub has signed a receipt" in caplog.text

    async def later() -> None:
        """A restart forgets nothing: the receipt is still owed."""
        again = Node(journal, node.hub)
        await again.heads.load()
        again.heads.demand()
        with pytest.raises(Refused):
            await again.events.check_receipts()
        with pytest.raises(Refused):
            again.heads.demand()

    asyncio.run(later())


def test_a_hub_that_is_away_is_no_liar(journal: Journal) -> None:
    async def scene() -> None:
        node = Node(journal, Hub())
        await node.tell()
        node.hub.away = True
        with pytest.raises(Unavailable):
            await node.events.check_receipts()
        node.heads.demand()
        node.hub.away = False
        assert await node.events.check_receipts() is False

    asyncio.run(scene())


def test_a_split_view_is_noticed_by_the_peers_head(journal: Journal) -> None:
    """The hub shows another hospital another log: the first announcement that arrives brings its head along."""

    async def scene() -> None:
        node, other = Node(journal, Hub()), Hub()
        await node.heads.take(*node.hub.head, HUB)
        other.grow("shown to Bonn alone", "and this")
        node.hub.grow("shown here", "and that")
        own = node.context.link.newest_head
        with pytest.raises(Refused) as caught:
            await node.heads.take(*other.head, "Bonn")
        assert caught.value.code == "log_forked"
        words = str(caught.value)
        assert "The log that Bonn shows" in words and "telephone" in words
        for size, root in (own, other.head):
            assert f"({size} entries, root {root.hex()[:16]}…)" in words
        with pytest.raises(Refused):
            node.heads.demand()
        await node.heads.take(*node.hub.head, HUB)
        with pytest.raises(Refused):
            node.heads.demand()  # the hub's own word is no proof against what Bonn has seen

    asyncio.run(scene())


def test_a_peer_that_is_ahead_or_behind_is_believed_by_proof(journal: Journal) -> None:
    async def scene() -> None:
        node = Node(journal, Hub())
        early = node.hub.head
        node.hub.grow("one")
        await node.heads.take(*node.hub.head, HUB)
        await node.heads.take(*early, "Bonn")
        node.hub.grow("two")
        await node.heads.take(*node.hub.head, "Cologne")
        assert node.context.link.newest_head == node.hub.head
        node.heads.demand()

    asyncio.run(scene())


def test_nothing_starts_while_a_proof_is_owed(journal: Journal) -> None:
    async def scene() -> None:
        node = Node(journal, Hub())
        await node.heads.take(*node.hub.head, HUB)
        node.hub.grow("one")
        node.hub.away = True
        with pytest.raises(Unavailable, match="No proof joins"):
            await node.heads.take(*node.hub.head, HUB)
        with pytest.raises(Unavailable):
            node.heads.demand()
        node.hub.away = False
        await node.heads.take(*node.hub.head, HUB)
        node.heads.demand()

    asyncio.run(scene())


def test_a_log_that_went_back_to_a_head_of_before_is_refused(journal: Journal) -> None:
    """The old head was once proven; that the newer entries are gone is what counts."""

    async def scene() -> None:
        node = Node(journal, Hub())
        await node.heads.take(*node.hub.head, HUB)
        node.hub.grow("one", "two")
        await node.heads.take(*node.hub.head, HUB)
        del node.hub.hashes[-2:]
        with pytest.raises(Refused, match="does not continue"):
            await node.heads.take(*node.hub.head, HUB)

    asyncio.run(scene())


@pytest.mark.parametrize("left", [0, 3])
def test_a_log_that_was_emptied_or_cut_is_refused(journal: Journal, left: int) -> None:
    async def scene() -> None:
        node = Node(journal, Hub())
        await node.heads.take(*node.hub.head, HUB)
        true, node.hub.hashes = node.hub.hashes, node.hub.hashes[:left]
        with pytest.raises(Refused, match="does not continue the one that this node has seen"):
            await node.heads.take(*node.hub.head, HUB)
        with pytest.raises(Refused):
            node.heads.demand()
        node.hub.hashes = true
        await node.heads.take(*node.hub.head, HUB)
        node.heads.demand()

    asyncio.run(scene())


# --- the order of a run -----------------------------------------------------------------------------------------------


def test_an_order_is_believed_from_the_log_alone(journal: Journal) -> None:
    async def scene() -> None:
        node = Node(journal, Hub())
        await node.heads.take(*node.hub.head, HUB)
        place = await node.heads.start_of("a run", "a digest")
        assert place == 5
        assert node.context.link.newest_head == node.hub.head, "and what this node announces includes it"

    asyncio.run(scene())


@pytest.mark.parametrize("how", ["another run", "another manifest", "signed by another", "not in the log", "away"])
def test_an_order_that_the_log_does_not_hold_starts_nothing(journal: Journal, how: str) -> None:
    async def scene() -> None:
        node = Node(journal, Hub())
        await node.heads.take(*node.hub.head, HUB)
        expected: type[Exception] = Refused
        match how:
            case "another run":
                node.hub.order = {"run": "yesterday's"}
            case "another manifest":
                node.hub.order = {"manifest": "not the approved one"}
            case "signed by another":
                node.hub.signs_orders, expected = IdentityKey.generate(), BadSignature
            case "not in the log":
                node.hub.forgets = True
            case "away":
                node.hub.away, expected = True, Unavailable
        with pytest.raises(expected):
            await node.heads.start_of("a run", "a digest")

    asyncio.run(scene())


def announced(parties: Parties, keys: dict[str, IdentityKey], sizes: list[int], *, join: bool = True) -> list[str]:
    """Each participant announces itself with a head of so many entries."""
    moment, nodes = int(time.time()), list(keys)
    for node, size in zip(nodes, sizes, strict=True):
        said = Announcement(
            run=bytes(32), manifest=bytes(32), node=UUID(node).bytes, role=parties[node].participant.role,
            run_key=HybridKey.generate().public_bytes, mask_key=b"\x09" + bytes(31), log_size=size, log_root=bytes(32),
            created=moment, expires=moment + 60,
        )  # fmt: skip
        (parties.take if join else parties.verify)(node, sign_announcement(keys[node], said), moment)
    return nodes


def test_nothing_is_sealed_for_who_is_only_verified() -> None:
    """A peer's announcement counts after its head has been compared, not before."""
    participants = list(node_world.manifest().participants)[:2]
    keys = {p.node: IdentityKey.generate() for p in participants}
    parties = Parties(bytes(32), bytes(32), [Party(p, keys[p.node].public) for p in participants])
    nodes = announced(parties, keys, [1, 1], join=False)
    with pytest.raises(RunFailed, match="has not joined"):
        parties.key_of(nodes[1], time.monotonic())


@pytest.mark.parametrize(
    ("sizes", "witnessed"), [([8, 8, 8], True), ([8, 8, 7], True), ([8, 7, 7], False), ([0, 0, 0], False)]
)
def test_nothing_is_sealed_before_two_organisations_have_seen_the_order(sizes: list[int], witnessed: bool) -> None:
    participants = list(node_world.manifest().participants)[:3]
    assert len({p.organisation for p in participants}) == 3
    keys = {p.node: IdentityKey.generate() for p in participants}
    parties = Parties(bytes(32), bytes(32), [Party(p, keys[p.node].public) for p in participants])
    parties.start_logged_at(7)
    nodes = announced(parties, keys, sizes)
    if witnessed:
        assert len(parties.key_of(nodes[1], time.monotonic())) == 1216
    else:
        with pytest.raises(RunFailed) as caught:
            parties.key_of(nodes[1], time.monotonic())
        assert caught.value.code == "start_not_witnessed"
