"""Rate limits on what needs no login."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING, Final
from uuid import uuid4

from sqlalchemy import Connection, delete, func, insert, select

from flame.hub.identity.tables import login_failures, login_sources
from flame.model.errors import Unavailable
from flame.storage.upsert import upsert

if TYPE_CHECKING:
    from starlette.requests import HTTPConnection

WINDOW: Final = 60.0
MAX_NAMES: Final = 10_000


class Attempts:
    """At most `limit` failures per minute and name (an address, an account)."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._failures: dict[str, deque[float]] = {}

    def check(self, name: str) -> None:
        """Raises Unavailable (429) when this name has failed too often."""
        recent = self._recent(name)
        if len(recent) >= self._limit:
            wait = max(1, int(WINDOW - (time.monotonic() - recent[0])) + 1)
            raise Unavailable("Too many failed attempts.", next_step=f"Wait {wait} seconds.", retryAfter=wait)

    def failed(self, name: str) -> None:
        if len(self._failures) >= MAX_NAMES:
            self._failures = {n: d for n, d in self._failures.items() if self._recent(n)}
        self._failures.setdefault(name, deque(maxlen=self._limit)).append(time.monotonic())

    def _recent(self, name: str) -> deque[float]:
        known = self._failures.get(name, deque())
        while known and known[0] < time.monotonic() - WINDOW:
            known.popleft()
        return known


# ----------------------------------------------------------------------------------------------------- failed log-ins

PER_PAIR: Final = 10
"""Failures for one account from one source, in `PERIOD`."""
PER_SOURCE: Final = 50
PER_ACCOUNT: Final = 100
PERIOD: Final = 300
FAMILIAR: Final = 90 * 24 * 3600
"""How long a source stays familiar to an account after a log-in from there."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """Somebody says to be an account, from a source: three marks (keyed hashes), so that no address is stored."""

    pair: str
    source: str
    account: str


class LoginLimits:
    """Failed log-ins, counted in the database: a restart forgets none of them.

    An account is slowed down for one source at a time. A source from which the account has logged in before answers to
    the pair alone, so nobody can lock out others by failing elsewhere; limits over all sources hold for unfamiliar ones.
    """

    def __init__(self) -> None:
        self._flying: Counter[str] = Counter()

    @contextmanager
    def watch(self, attempt: Attempt) -> Iterator[None]:
        """Counts what is being tried at this moment. Raises Unavailable (429) for too much of it at once."""
        if self._flying[attempt.pair] >= 2 * PER_PAIR:
            raise _too_often(1)
        self._flying[attempt.pair] += 1
        try:
            yield
        finally:
            self._flying[attempt.pair] -= 1
            if not self._flying[attempt.pair]:
                del self._flying[attempt.pair]

    def check(self, connection: Connection, attempt: Attempt) -> bool:
        """Whether the source is familiar. Raises Unavailable (429) when there have been too many failures."""
        now = int(time.time())
        keys = (attempt.pair, attempt.source, attempt.account)
        counted = (
            select(login_failures.c.key, func.count(), func.min(login_failures.c.at))
            .where(login_failures.c.key.in_(keys), login_failures.c.at > now - PERIOD)
            .group_by(login_failures.c.key)
        )
        found = {key: (count, oldest) for key, count, oldest in connection.execute(counted)}
        known = select(login_sources.c.at).where(
            login_sources.c.key == attempt.pair, login_sources.c.at > now - FAMILIAR
        )
        familiar = bool(found) and connection.execute(known).first() is not None
        limits = [(attempt.pair, PER_PAIR)]
        if not familiar:
            limits += [(attempt.source, PER_SOURCE), (attempt.account, PER_ACCOUNT)]
        for key, limit in limits:
            count, oldest = found.get(key, (0, now))
            if count >= limit:
                raise _too_often(max(1, oldest + PERIOD - now))
        return familiar

    def failed(self, connection: Connection, attempt: Attempt) -> tuple[str, ...]:
        """Count a failure; the limits that it has just reached, by name."""
        now = int(time.time())
        connection.execute(delete(login_failures).where(login_failures.c.at <= now - PERIOD))
        rows = [{"id": str(uuid4()), "key": key, "at": now} for key in (attempt.pair, attempt.source, attempt.account)]
        connection.execute(insert(login_failures), rows)
        limits = {"pair": PER_PAIR, "source": PER_SOURCE, "account": PER_ACCOUNT}
        count = select(login_failures.c.key, func.count()).group_by(login_failures.c.key)
        keys = {getattr(attempt, name): name for name in limits}
        found = connection.execute(count.where(login_failures.c.key.in_(keys)))
        return tuple(sorted(keys[key] for key, failures in found if failures == limits[keys[key]]))

    def succeeded(self, connection: Connection, attempt: Attempt) -> None:
        """The pair starts anew, and the source is familiar from now on."""
        now = int(time.time())
        connection.execute(delete(login_failures).where(login_failures.c.key == attempt.pair))
        connection.execute(delete(login_sources).where(login_sources.c.at <= now - FAMILIAR))
        statement = upsert(login_sources).values(key=attempt.pair, at=now)
        connection.execute(statement.on_conflict_do_update(index_elements=["key"], set_={"at": now}))


def source_of(request: HTTPConnection) -> str:
    """Where a request comes from: an address, or the network of an IPv6 address, which one machine has all of."""
    host = request.client.host if request.client else "unknown"
    try:
        address = ip_address(host)
    except ValueError:
        return host
    if not isinstance(address, IPv6Address):
        return str(address)
    return str(address.ipv4_mapped or ip_network((address, 64), strict=False))


def _too_often(wait: int) -> Unavailable:
    return Unavailable("Too many failed attempts.", next_step=f"Wait {wait} seconds.", retryAfter=wait)
