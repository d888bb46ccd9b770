"""What the relay has to know of a run: whether it is live, and who takes part. Kept in memory, read once per run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import Connection, select

from flame.hub.analyses.runs import read_manifest
from flame.hub.analyses.tables import LIVE, manifests, runs
from flame.model.errors import Refused

if TYPE_CHECKING:
    from flame.storage.engine import Database

KEEP_SECONDS: Final = 5.0
"""Where other processes may end a run: they tell (`relay.wakeups`), and nothing older than this is believed anyway."""


@dataclass(frozen=True, slots=True)
class RunFacts:
    """A live run: analysis, participants (node id -> role), end of its start order (seconds since 1970)."""

    analysis: str
    participants: dict[str, str]
    expires: int


class Runs:
    """Live runs by id. `forget` when something about a run has changed; an ended run stays refused."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._keep_seconds = KEEP_SECONDS if database.url else math.inf
        self._known: dict[bytes, RunFacts] = {}
        self._read_at: dict[bytes, float] = {}
        self.ended: list[Callable[[bytes], None]] = []
        """Who else wants to hear of a run that goes on no more."""

    async def live(self, run: bytes) -> RunFacts:
        """Raises Refused for a run that is unknown or has ended."""
        facts = self._known.get(run)
        if facts is None or time.monotonic() - self._read_at[run] > self._keep_seconds:
            facts = await self._database.read(lambda c: _load(c, run.hex()))
            if facts is None:
                raise Refused(
                    "This run is not known here, or has ended.", next_step="Look at the analysis' runs.", run=run.hex()
                )
            self._known[run], self._read_at[run] = facts, time.monotonic()
        if facts.expires < time.time():
            raise Refused("This run's start order has expired.", run=run.hex())
        return facts

    def forget(self, run: bytes) -> None:
        self.forget_here(run)
        for tell in self.ended:
            tell(run)

    def forget_here(self, run: bytes) -> None:
        self._known.pop(run, None)

    def forget_everything(self) -> None:
        self._known.clear()


def _load(connection: Connection, run: str) -> RunFacts | None:
    statement = select(runs, manifests.c.document).join(manifests, manifests.c.digest == runs.c.manifest_digest)
    row = connection.execute(statement.where(runs.c.id == run, runs.c.state.in_(LIVE))).first()
    if row is None:
        return None
    manifest = read_manifest(row.document)
    return RunFacts(row.analysis_id, {p.node: p.role for p in manifest.participants}, row.expires)
