"""Leaves for the transparency log: signed here, durable here, handed to the hub until it has given a receipt."""

from __future__ import annotations

import asyncio
import json
import secrets
import sqlite3
from typing import Any

import msgspec

from flame.crypto.keys import PublicKey
from flame.crypto.signatures import sign_event
from flame.crypto.translog import TreeHead, leaf_hash, verify_tree_head
from flame.model.errors import BadSignature, FlameError, Malformed, Unavailable
from flame.node.context import Context, log, now
from flame.node.supervisor.heads import HUB, Heads
from flame.protocol.documents import Event, SignedEvent
from flame.protocol.freeze import format_time

RETRY_SECONDS = 2.0
"""Between attempts at a hub that is there and cannot do it now."""


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
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self._send_all()
            except Unavailable:
                await asyncio.sleep(RETRY_SECONDS)
                await self._context.link.online.wait()
                self._wake.set()
            except Exception:  # noqa: BLE001 - a hub that answers nonsense must not end the node
                log.exception("log events could not be sent")

    async def waiting(self) -> int:
        return int(
            (
                await self._context.journal.read(
                    lambda c: c.execute("SELECT count(*) FROM events WHERE receipt IS NULL").fetchone()
                )
            )[0]
        )

    async def _send_all(self) -> None:
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
