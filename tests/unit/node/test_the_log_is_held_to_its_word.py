"""What a node does with a hub that promises an entry and leaves it out, or shows a peer another log."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from flame.crypto.keys import IdentityKey
from flame.crypto.translog import (
    TreeHead,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    root_of,
    sign_tree_head,
)
from flame.model.errors import Refused, Unavailable
from flame.node.schema import NODE
from flame.node.supervisor.events import Events
from flame.node.supervisor.heads import HUB, Heads
from flame.protocol.documents import SignedEvent
from flame.storage.journal import Journal


class Hub:
    """A log with its key; `forgets`: gives receipts and writes nothing; `away`: answers nothing."""

    def __init__(self, entries: int = 5) -> None:
        self.key = IdentityKey.generate()
        self.hashes = [leaf_hash(str(number).encode()) for number in range(entries)]
        self.forgets = self.away = False

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
        values = [int(part.partition("=")[2]) for part in path.partition("?")[2].split("&")]
        if max(values) > len(self.hashes):
            raise Refused(f"There is no step to {max(values)} entries in a log of {len(self.hashes)}.", status=400)
        prove = consistency_proof if "consistency" in path else inclusion_proof
        return {"data": {"proof": [step.hex() for step in prove(self.hashes, *values)]}}

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
