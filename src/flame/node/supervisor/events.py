"""Leaves for the transparency log: signed here, durable here, handed to the hub until it has given a receipt.

A receipt is a promise. Some time later the hub is asked for the proof that the log of everybody holds the entry; one
that it cannot give is an alarm, and nothing new starts here.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import sqlite3
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from flame.crypto.keys import PublicKey
from flame.crypto.signatures import sign_event
from flame.crypto.translog import TreeHead, leaf_hash, verify_inclusion, verify_tree_head
from flame.model.errors import BadSignature, FlameError, Malformed, Refused, Unavailable
from flame.node.context import Context, log, now
from flame.node.supervisor.heads import HUB, Heads
from flame.protocol.documents import Event, SignedEvent
from flame.protocol.freeze import format_time

RETRY_SECONDS = 2.0
"""Between attempts at a hub that is there and cannot do it now."""
CHECK_SECONDS = 5.0
"""After which a receipt is checked: not while a run waits for its start."""
RECEIPT = "receipt"


class Events:
    """Call ``kick`` when the hub can be reached; ``run`` sends what waits, in order."""

    def __init__(self, context: Context, heads: Heads | None = None) -> None:
        self._context, self._heads = context, heads
        self._wake = asyncio.Event()

    async def add(self, type_: str, subject: str, **facts: Any) -> None:
        """Sign and keep an event. It is durable when this returns. Facts are hashes, identifiers, numbers; no patient data."""
        event = Event(type_, self._context.fingerprint, subject, format_time(now()), facts, secrets.token_hex(16))
        signature = sign_event(self._context.identity, event.digest).hex()
        row = (event.encoded().decode(), signature)
        await self._context.journal.execute("INSERT INTO events(event, signature) VALUES(?, ?)", *row)
        self.kick()

    async def add_once(self, type_: str, subject: str, **facts: Any) -> None:
        """As ``add``, unless there is an event of this type about this subject already."""
        rows = await self._context.journal.rows("SELECT event FROM events WHERE instr(event, ?)", subject)
        known = (msgspec.json.decode(event) for (event,) in rows)
        if not any(event["type"] == type_ and event["subject"] == subject for event in known):
            await self.add(type_, subject, **facts)

    def kick(self) -> None:
        self._wake.set()

    async def run(self) -> None:
        """Hand over what waits, and check the receipts for it a little later, until cancelled."""
        owed = True  # receipts from before this start
        while True:
            try:
                async with asyncio.timeout(CHECK_SECONDS if owed else None):
                    await self._wake.wait()
            except TimeoutError:
                owed = await self._attempt(self.check_receipts)
                continue
            self._wake.clear()
            await self._attempt(self._send_all)
            owed = True

    async def _attempt(self, work: Callable[[], Awaitable[bool]]) -> bool:
        """Whether something is left to be checked."""
        try:
            return await work()
        except Unavailable:
            await asyncio.sleep(RETRY_SECONDS)
            await self._context.link.online.wait()
            self._wake.set()
        except Refused as error:
            log.error("log events: %s", error)
        except Exception:  # noqa: BLE001 - a hub that answers nonsense must not end the node
            log.exception("log events could not be sent or checked")
        return True

    async def check_receipts(self) -> bool:
        """Ask for the proof that each entry with a receipt stands in the newest log; whether some could not be asked yet.

        Raises Refused and lets nothing new start when one does not.
        """
        size, root = self._context.link.newest_head
        left = False
        for id_, event, signature, receipt in await self._context.journal.read(_unchecked):
            index, leaf = int(json.loads(receipt)["index"]), leaf_hash(SignedEvent(event, signature).leaf())
            if index >= size:  # the head that it came with is not believed yet
                left = True
                continue
            try:
                verify_inclusion(leaf, index, size, await self._inclusion(index, size), root)
            except Refused as error:
                self._missing(event, index, size, root, error)
                raise
            await self._context.journal.execute("UPDATE events SET included = ? WHERE id = ?", size, id_)
        if self._heads is not None:
            self._heads.over(HUB, RECEIPT)
        return left

    async def _inclusion(self, index: int, size: int) -> list[bytes]:
        try:
            answer = await self._context.link.request("GET", f"/core/audit/inclusion?index={index}&size={size}")
        except FlameError as error:
            if error.fields.get("status") == 400:  # the hub itself says that there is no such entry
                raise Refused(f"the hub says: {error.message}") from None
            raise Unavailable(f"The hub gives no proof for a receipt of its own: {error.message}") from None
        try:
            return [bytes.fromhex(step) for step in answer["data"]["proof"]]
        except (KeyError, TypeError, ValueError):
            raise Refused("the hub's proof cannot be read") from None

    def _missing(self, event: str, index: int, size: int, root: bytes, error: FlameError) -> None:
        said = msgspec.json.decode(event)
        words = (
            f"The hub has signed a receipt for the entry {index} of its log ({said['type']} of {said['subject']}), and the log "
            f"that it shows now ({size} entries, root {root.hex()[:16]}…) does not hold it: {error.message}"
        )
        if self._heads is not None:
            self._heads.alarm(words, HUB, RECEIPT)

    async def waiting(self) -> int:
        return int(
            (
                await self._context.journal.read(
                    lambda c: c.execute("SELECT count(*) FROM events WHERE receipt IS NULL").fetchone()
                )
            )[0]
        )

    async def _send_all(self) -> bool:
        rows = await self._context.journal.read(_unsent)
        head: TreeHead | None = None
        for id_, event, signature in rows:
            try:
                answer = await self._context.link.request(
                    "POST", "/core/audit/events", {"event": event, "signature": signature}
                )
            except Unavailable:
                raise
            except FlameError as error:  # one that the hub refuses stays; those after it must not wait for it
                log.error("the hub does not take a log event: %s", error)
                continue
            receipt = answer.get("data", answer)
            head = self._checked(receipt, SignedEvent(event, signature))
            await self._context.journal.execute("UPDATE events SET receipt = ? WHERE id = ?", json.dumps(receipt), id_)
        if head is not None and self._heads is not None:
            await self._heads.take(head.size, head.root, HUB)
        return True

    def _checked(self, receipt: Any, sent: SignedEvent) -> TreeHead:
        """The tree head of a receipt, when it is for this event and signed by the hub's key. Raises BadSignature, Malformed."""
        try:
            shown = receipt["head"]
            head = TreeHead(int(shown["size"]), bytes.fromhex(shown["root"]), int(shown["time"]))
            signature, leaf = bytes.fromhex(shown["signature"]), bytes.fromhex(receipt["leafHash"])
        except (KeyError, TypeError, ValueError):
            raise Malformed("The hub's receipt for a log event cannot be read.") from None
        verify_tree_head(PublicKey.from_hex_pem(self._context.enrolled.hub_key), signature, head)
        if leaf != leaf_hash(sent.leaf()):
            raise BadSignature("The hub's receipt is for another event than the one that was sent.")
        return head


def _unsent(connection: sqlite3.Connection) -> list[tuple[int, str, str]]:
    return connection.execute("SELECT id, event, signature FROM events WHERE receipt IS NULL ORDER BY id").fetchall()


def _unchecked(connection: sqlite3.Connection) -> list[tuple[int, str, str, str]]:
    return connection.execute(
        "SELECT id, event, signature, receipt FROM events WHERE receipt IS NOT NULL AND included = 0 ORDER BY id LIMIT 200"
    ).fetchall()
