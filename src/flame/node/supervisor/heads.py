"""The tree heads that this node has seen: a hub that edits, shortens or forks its log meets them again.

The newest head is durable. Every other head, the hub's at each connection, one with each receipt, and those that peers
sign into their announcements, must continue it or be continued by it; the hub is asked for the proof. While one does
not, nothing new starts here.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import msgspec

from flame.crypto.canonical import canonical
from flame.crypto.keys import PublicKey
from flame.crypto.signatures import verify_event
from flame.crypto.translog import TreeHead, leaf_hash, verify_consistency, verify_inclusion, verify_tree_head
from flame.model.errors import FlameError, Malformed, NotFound, Refused, Unavailable
from flame.node.context import Context, log, now
from flame.protocol.documents import Event, SignedEvent
from flame.protocol.freeze import format_time

HUB = "the hub"
MAX_PROVEN = 1000
NEXT_STEP = "Entries were changed, removed or shown differently. Compare heads with another hospital by telephone."


@dataclass(frozen=True, slots=True)
class Alarm:
    """Why the hub's log is not believed, and who gave the reason."""

    words: str
    shown_by: str
    kind: str = "head"
    """head, or receipt"""


@dataclass(frozen=True, slots=True)
class _Shown:
    """An entry of the log with its proof, as the hub gives it: signed by the hub, included in the head, both checked."""

    index: int
    event: Event
    head: TreeHead
    seen: int
    joined: list[bytes]

    @classmethod
    def read(cls, answer: object, hub: PublicKey) -> _Shown:
        try:
            given = msgspec.convert(answer, _Answer).data
            text = canonical(given.event)
            signature, seal = bytes.fromhex(given.signature), bytes.fromhex(given.head.signature)
            head = TreeHead(given.head.size, bytes.fromhex(given.head.root), given.head.time)
            path, joined = ([bytes.fromhex(step) for step in steps] for steps in (given.proof, given.consistency))
        except (msgspec.ValidationError, ValueError):
            raise Malformed("The hub's entry for the run's order cannot be read.") from None
        event: Event = Event.decode(text)
        verify_event(hub, signature, event.digest)
        verify_tree_head(hub, seal, head)
        leaf = leaf_hash(SignedEvent(text.decode(), given.signature).leaf())
        verify_inclusion(leaf, given.index, head.size, path, head.root)
        return cls(given.index, event, head, given.seen, joined)


class _HeadWire(msgspec.Struct):
    size: int
    root: str
    time: int
    signature: str


class _StartWire(msgspec.Struct):
    index: int
    event: dict[str, Any]
    signature: str
    head: _HeadWire
    proof: list[str]
    seen: int
    consistency: list[str]


class _Answer(msgspec.Struct):
    data: _StartWire


def _joins(low: int, low_root: bytes, high: int, high_root: bytes, proof: list[bytes] | None) -> bool:
    """Whether a proof that came along shows it; where it does not, the hub is asked."""
    if proof is None:
        return False
    try:
        verify_consistency(low, low_root, high, high_root, proof)
    except FlameError:
        return False
    return True


class Heads:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._lock = asyncio.Lock()
        self._alarms: dict[tuple[str, str], Alarm] = {}
        self._proven: dict[int, bytes] = {}
        """Heads that were joined to the newest: what several peers show is proven once."""
        self._unproven = ""

    @property
    def broken(self) -> str:
        """Why the hub's log is not believed any more; empty while it is. Nothing new starts then."""
        alarms = sorted(self._alarms.values(), key=lambda alarm: alarm.kind != "head")
        return " ".join(alarm.words for alarm in alarms)

    def demand(self) -> None:
        """Raises Refused (``log_forked``) while the log is not believed, Unavailable while a proof is still owed."""
        if self.broken:
            raise Refused(f"Nothing starts here: {self.broken}", next_step=NEXT_STEP, code="log_forked")
        if self._unproven:
            raise Unavailable(self._unproven)

    async def load(self) -> None:
        rows = await self._context.journal.rows("SELECT size, root FROM heads ORDER BY size DESC LIMIT 1")
        if rows:
            self._context.link.newest_head = (rows[0][0], bytes(rows[0][1]))

    def shown(self) -> dict[str, object]:
        """For the node's status: the newest head, and what is wrong."""
        size, root = self._context.link.newest_head
        return {"entries": size, "root": root.hex(), "alarm": self.broken}

    async def start_of(self, run: str, manifest: str) -> int:
        """The place of a run's order in the hub's log, once the newest head here includes it.

        Raises Refused for an entry that is not the hub's, not about this run, or not in the log; NotFound while the hub
        shows none, Unavailable while it does not answer.
        """
        seen = self._context.link.newest_head[0]
        try:
            answer = await self._context.link.request("GET", f"/core/audit/starts/{run}?seen={seen}")
        except NotFound:
            raise
        except FlameError as error:
            raise Unavailable(f"The hub does not show the run's order in its log: {error.message}") from None
        shown = _Shown.read(answer, PublicKey.from_hex_pem(self._context.enrolled.hub_key))
        facts = shown.event.facts
        if shown.event.type != "start" or (facts.get("run"), facts.get("manifest")) != (run, manifest):
            raise Refused("The hub shows another entry of its log than the order of this run.", code="start_not_logged")
        await self.take(shown.head.size, shown.head.root, HUB, shown.joined if shown.seen == seen else None)
        return shown.index

    async def take(self, size: int, root: bytes, shown_by: str, proof: list[bytes] | None = None) -> None:
        """A head that somebody shows; `proof`: what came along with it, from the newest head known here.

        Raises Refused (``log_forked``) when it and the newest do not fit together, Unavailable when the hub cannot be
        asked now.
        """
        async with self._lock:
            own_size, own_root = self._context.link.newest_head
            # an old head is fine from a peer, and from the hub itself it may be a log that went back: ask
            known = (size, root) == (own_size, own_root) or (shown_by != HUB and self._proven.get(size) == root)
            if own_size and not known and not _joins(own_size, own_root, size, root, proof):
                await self._compare(size, root, own_size, own_root, shown_by)
            if len(self._proven) >= MAX_PROVEN:
                self._proven.clear()
            self._proven[size] = root
            if shown_by == HUB:
                self._unproven = ""
            self.over(shown_by)
            if size > own_size:
                await self._keep(size, root, shown_by)

    def alarm(self, words: str, shown_by: str, kind: str = "head") -> None:
        """Remember, and tell the node's log, why the hub's log is not believed."""
        if self._alarms.get((shown_by, kind)) != (told := Alarm(words, shown_by, kind)):
            log.error("ALARM: %s", words)
        self._alarms[shown_by, kind] = told

    def over(self, shown_by: str, kind: str = "head") -> None:
        """Proof from whoever was the reason ends an alarm: what this node has seen stands in the log that is shown now."""
        if self._alarms.pop((shown_by, kind), None):
            log.warning("The log that %s shows holds what this node has seen: that alarm is over.", shown_by)

    async def _compare(self, size: int, root: bytes, own_size: int, own_root: bytes, shown_by: str) -> None:
        other = f"{size} entries, root {root.hex()[:16]}…" if size else "no entries"
        seen = f"{own_size} entries, root {own_root.hex()[:16]}…"
        try:
            if size == own_size:
                raise Refused("two different roots over the same number of entries.")
            if size == 0:  # an empty log continues into every other: from the hub itself it is a log that was emptied
                if shown_by != HUB:
                    return
                raise Refused("what was there is gone.")
            # an earlier head is no fault: a receipt may be overtaken by what a peer has seen since; a proof joins them
            (low, low_root), (high, high_root) = sorted([(size, root), (own_size, own_root)])
            proof = await self._proof(low, high)
            verify_consistency(low, low_root, high, high_root, proof)
        except Unavailable as error:
            words = (
                f"No proof joins the log that {shown_by} shows ({other}) to the one that this node has seen ({seen})"
            )
            if shown_by == HUB:
                self._unproven = f"{words}: {error.message}"
            raise Unavailable(f"{words}: {error.message}") from None
        except FlameError as error:
            words = (
                f"The log that {shown_by} shows ({other}) does not continue the one that this node has seen "
                f"({seen}): {error.message}"
            )
            self.alarm(words, shown_by)
            raise Refused(words, next_step=NEXT_STEP, code="log_forked") from None

    async def _proof(self, low: int, high: int) -> list[bytes]:
        try:
            answer = await self._context.link.request("GET", f"/core/audit/consistency?old={low}&new={high}")
        except FlameError as error:
            if error.fields.get("status") == 400:  # the hub itself says that it has no such entries any more
                raise Refused(f"the hub says: {error.message}") from None
            # no proof is not a wrong proof: one may come later, and until then nothing is believed
            raise Unavailable(f"the hub gives none: {error.message}") from None
        try:
            return [bytes.fromhex(step) for step in answer["data"]["proof"]]
        except (KeyError, TypeError, ValueError):
            raise Malformed("the hub's proof cannot be read") from None

    async def _keep(self, size: int, root: bytes, shown_by: str) -> None:
        await self._context.journal.execute(
            "INSERT OR IGNORE INTO heads VALUES(?, ?, ?, ?)", size, root, shown_by, format_time(now())
        )
        self._context.link.newest_head = (size, root)
