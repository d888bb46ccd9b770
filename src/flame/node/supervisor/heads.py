"""The tree heads that this node has seen: a hub that edits, shortens or forks its log meets them again.

The newest head is durable. Every other head, the hub's at each connection, one with each receipt, and those that peers
sign into their announcements, must continue it or be continued by it; the hub is asked for the proof.
"""

from __future__ import annotations

import asyncio

from flame.crypto.translog import verify_consistency
from flame.model.errors import FlameError, Malformed, Refused, Unavailable
from flame.node.context import Context, log, now
from flame.protocol.freeze import format_time

HUB = "the hub"


class Heads:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._lock = asyncio.Lock()
        self.broken = ""
        """Why the hub's log is not believed any more; empty while it is. Nothing new starts then."""

    async def load(self) -> None:
        rows = await self._context.journal.rows("SELECT size, root FROM heads ORDER BY size DESC LIMIT 1")
        if rows:
            self._context.link.newest_head = (rows[0][0], bytes(rows[0][1]))

    async def take(self, size: int, root: bytes, shown_by: str) -> None:
        """A head that somebody shows. Raises Refused (``log_forked``) when it and the newest do not fit together,
        Unavailable when the hub cannot be asked now."""
        async with self._lock:
            own_size, own_root = self._context.link.newest_head
            if size == 0 or (size, root) == (own_size, own_root):
                return
            if own_size:
                await self._compare(size, root, own_size, own_root, shown_by)
            if size > own_size:
                await self._keep(size, root, shown_by)

    async def _compare(self, size: int, root: bytes, own_size: int, own_root: bytes, shown_by: str) -> None:
        try:
            if size == own_size:
                raise Refused(f"it has the root {root.hex()[:16]}… at the same number of entries")
            # an earlier head is no fault: a receipt may be overtaken by what a peer has seen since; a proof joins them
            (low, low_root), (high, high_root) = sorted([(size, root), (own_size, own_root)])
            proof = await self._proof(low, high)
            verify_consistency(low, low_root, high, high_root, proof)
        except Unavailable:
            raise
        except FlameError as error:
            self.broken = (
                f"The log that {shown_by} shows does not continue the one that this node has seen "
                f"({own_size} entries, root {own_root.hex()[:16]}…): {error.message}"
            )
            log.error("ALARM: %s", self.broken)
            raise Refused(
                self.broken,
                next_step="Entries were changed, removed or shown differently. Compare heads with another hospital by telephone.",
                code="log_forked",
            ) from None

    async def _proof(self, low: int, high: int) -> list[bytes]:
        try:
            answer = await self._context.link.request("GET", f"/core/audit/consistency?old={low}&new={high}")
        except (
            FlameError
        ) as error:  # no proof is not a wrong proof: one may come later, and until then nothing is believed
            raise Unavailable(f"The hub gives no proof that its log continues: {error.message}") from None
        try:
            return [bytes.fromhex(step) for step in answer["data"]["proof"]]
        except (KeyError, TypeError, ValueError):
            raise Malformed("the hub's proof cannot be read") from None

    async def _keep(self, size: int, root: bytes, shown_by: str) -> None:
        await self._context.journal.execute(
            "INSERT OR IGNORE INTO heads VALUES(?, ?, ?, ?)", size, root, shown_by, format_time(now())
        )
        self._context.link.newest_head = (size, root)
