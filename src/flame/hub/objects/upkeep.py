"""How stored files come and go: by content, within their project's limits, and never while somebody needs them.

A file is the object ``files/SHA-256``, however many rows name it. Whoever is about to name one *claims* it first, in
the database; an object goes away only within a write of the database (one at a time, over all hub processes) that has
seen neither row nor claim. So an upload finds its object, or puts it again; it never names one that is just going.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import Connection, delete, func, insert, select

from flame.hub.analyses.tables import analyses, analysis_buckets
from flame.hub.columns import moment, new_id
from flame.hub.objects.tables import bucket_files, object_claims, storage_limits
from flame.model.errors import Exhausted
from flame.storage.mailbox import letters
from flame.storage.objects import Objects

if TYPE_CHECKING:
    from flame.hub.settings import Settings
    from flame.hub.state import HubState

CLAIM_SECONDS: Final = 24 * 3600
HELD: Final = "*"
"""Claimed as a name, it holds everything: a backup is being taken."""
GRACE_SECONDS: Final = 3600.0
"""An object that nothing names may be one whose row is being written by another process."""
AT_ONCE: Final = 50
"""Objects that go within one transaction: the others wait."""
DAY: Final = 24 * 3600


def key_of(name: str) -> str:
    return f"files/{name}"


# ------------------------------------------------------------------------------------------------------ come and go


def claim(connection: Connection, names: Iterable[str]) -> str:
    """Say that these objects are about to be named; returns the claim, for `settle`."""
    mine, until = new_id(), int(time.time()) + CLAIM_SECONDS
    rows = [{"name": name, "claim": mine, "expires": until} for name in set(names)]
    connection.execute(insert(object_claims), rows)
    return mine


def settle(connection: Connection, mine: str) -> None:
    """The claim is over: rows name the objects now, or never will."""
    connection.execute(delete(object_claims).where(object_claims.c.claim == mine))


async def collect(hub: HubState, names: Sequence[str]) -> int:
    """Remove those of these objects that nothing needs any more; returns how many."""
    chosen, gone = sorted(set(names)), 0
    for start in range(0, len(chosen), AT_ONCE):
        part = chosen[start : start + AT_ONCE]
        gone += await hub.database.write(lambda c, part=part: _remove_unneeded(c, hub.objects, part))  # type: ignore[misc]
    return gone


def _remove_unneeded(connection: Connection, objects: Objects, names: Sequence[str]) -> int:
    rows = connection.execute(select(bucket_files.c.hash).where(bucket_files.c.hash.in_(names))).scalars()
    claimed = set(
        connection.execute(select(object_claims.c.name).where(object_claims.c.name.in_([HELD, *names]))).scalars()
    )
    unneeded = set() if HELD in claimed else set(names) - set(rows) - claimed
    for name in unneeded:
        objects.remove_blocking(key_of(name))
    return len(unneeded)


async def sweep(hub: HubState, *, alone: bool) -> int:
    """Remove what nothing names. alone: no other process serves this hub, so nothing is under way at its start."""
    if alone:
        await hub.database.write(lambda c: c.execute(delete(object_claims)))
    else:
        now = int(time.time())
        await hub.database.write(lambda c: c.execute(delete(object_claims).where(object_claims.c.expires < now)))
    old = await _old(hub, float("inf") if alone else time.time() - GRACE_SECONDS)
    if not old:
        return 0
    named = await hub.database.read(_named)
    lost = [key for key in old if key not in named]
    for key in lost:
        if not key.startswith("files/"):
            await hub.objects.remove(key)  # mail: its name is used once
    return await collect(hub, [key.removeprefix("files/") for key in lost if key.startswith("files/")])


async def _old(hub: HubState, before: float) -> list[str]:
    return await asyncio.to_thread(lambda: [one.key for one in hub.objects.kept() if one.modified < before])


def _named(connection: Connection) -> set[str]:
    files = {key_of(name) for name in connection.execute(select(bucket_files.c.hash)).scalars()}
    mail = connection.execute(select(letters.c.blob).where(letters.c.blob.is_not(None))).scalars()
    return files | {str(blob) for blob in mail}


# ------------------------------------------------------------------------------------------------------------- limits


@dataclass(frozen=True, slots=True)
class Limits:
    """What a project may keep: `bytes_max` bytes, results and intermediate files for `keep_days`. None: no limit."""

    bytes_max: int | None
    keep_days: int | None
    bytes_used: int


def project_of(connection: Connection, bucket: str) -> str | None:
    """The project that a bucket counts for."""
    found = select(analyses.c.project_id).join(analysis_buckets, analysis_buckets.c.analysis_id == analyses.c.id)
    return connection.execute(found.where(analysis_buckets.c.bucket_id == bucket)).scalar()


def limits_of(connection: Connection, settings: Settings, project: str) -> Limits:
    row = connection.execute(select(storage_limits).where(storage_limits.c.project_id == project)).first()
    used = (
        select(func.coalesce(func.sum(bucket_files.c.size), 0))
        .join(analysis_buckets, analysis_buckets.c.bucket_id == bucket_files.c.bucket_id)
        .join(analyses, analyses.c.id == analysis_buckets.c.analysis_id)
        .where(analyses.c.project_id == project)
    )
    return Limits(
        row.bytes_max if row is not None and row.bytes_max is not None else settings.project_bytes_max,
        row.keep_days if row is not None and row.keep_days is not None else settings.project_keep_days,
        int(connection.execute(used).scalar_one()),
    )


def set_limits(connection: Connection, project: str, bytes_max: int | None, keep_days: int | None) -> None:
    connection.execute(delete(storage_limits).where(storage_limits.c.project_id == project))
    connection.execute(insert(storage_limits).values(project_id=project, bytes_max=bytes_max, keep_days=keep_days))


def room(connection: Connection, settings: Settings, bucket: str) -> int | None:
    """Bytes that may still come into a bucket; None: as many as the hub has room for."""
    project = project_of(connection, bucket)
    if project is None:
        return None
    limits = limits_of(connection, settings, project)
    return None if limits.bytes_max is None else max(0, limits.bytes_max - limits.bytes_used)


def over_limit(left: int) -> Exhausted:
    return Exhausted(
        f"The project's storage has room for {left} bytes more; this is larger. Nothing was stored.",
        next_step="Delete files that are no longer needed, or ask the hub's operator for a higher limit.",
    )


async def forget_expired(hub: HubState) -> int:
    """Results and intermediate files that their project keeps no longer; programs stay with their analysis."""

    def step(connection: Connection) -> list[str]:
        limits = {row.project_id: row.keep_days for row in connection.execute(select(storage_limits))}
        default, gone = hub.settings.project_keep_days, []
        if default is None and not any(limits.values()):
            return []
        found = (
            select(bucket_files.c.id, bucket_files.c.hash, bucket_files.c.created_at, analyses.c.project_id)
            .join(analysis_buckets, analysis_buckets.c.bucket_id == bucket_files.c.bucket_id)
            .join(analyses, analyses.c.id == analysis_buckets.c.analysis_id)
            .where(analysis_buckets.c.type != "CODE")
        )
        for row in connection.execute(found).all():
            days = limits.get(row.project_id) or default
            if days is not None and row.created_at < moment(time.time() - days * DAY):
                connection.execute(delete(bucket_files).where(bucket_files.c.id == row.id))
                facts = {"deleted": "file", "because": f"kept for {days} days", "project": row.project_id}
                hub.log.tell(connection, "administration", row.id, facts)
                gone.append(str(row.hash))
        return gone

    gone = await hub.database.write(step)
    await collect(hub, gone)
    return len(gone)
