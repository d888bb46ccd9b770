"""The participants of a run as this node knows them: pinned identity keys, and what each has announced."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from uuid import UUID

from flame.crypto.announce import Announcement, check_same_keys, verify_announcement
from flame.crypto.keys import PublicKey
from flame.model.errors import Refused, RunFailed
from flame.model.manifest import Participant

SIGNATURE_BYTES = 64


@dataclass(frozen=True)
class Party:
    participant: Participant
    public: PublicKey
    """The key that the member's pin leads to; never one that the hub merely named."""

    @property
    def id(self) -> bytes:
        return UUID(self.participant.node).bytes


class Parties:
    """All participants and their verified announcements. Threads wait here until somebody has announced."""

    def __init__(self, run: bytes, manifest: bytes, parties: Iterable[Party]) -> None:
        self._run, self._manifest = run, manifest
        self._parties = {party.participant.node: party for party in parties}
        self._announced: dict[str, Announcement] = {}
        self._changed = threading.Condition()
        self._closed = ""
        self._start_leaf = -1

    def start_logged_at(self, place: int) -> None:
        """Where the run's order stands in the hub's log. Nothing is sealed for anybody before members of two organisations
        (of one, where there are no two) have signed a head of the log that includes it: no hub can keep a run from the log.
        """
        self._start_leaf = place

    def _witnessed(self) -> bool:
        organisations = {party.participant.organisation for party in self._parties.values()}
        witnesses = {
            self._parties[node].participant.organisation
            for node, said in self._announced.items()
            if said.log_size > self._start_leaf
        }
        return len(witnesses) >= min(2, len(organisations))

    def __getitem__(self, node: str) -> Party:
        party = self._parties.get(node)
        if party is None:
            raise Refused(f"{node} takes no part in this run.", code="stranger")
        return party

    def nodes(self) -> list[str]:
        return list(self._parties)

    def take(self, node: str, body: bytes, now: int) -> Announcement:
        """`verify` and `join` in one."""
        announcement = self.verify(node, body, now)
        self.join(node, announcement)
        return announcement

    def verify(self, node: str, body: bytes, now: int) -> Announcement:
        """An announcement as it came; nothing is sealed for it yet. Raises Refused, BadSignature, Expired, Malformed."""
        party = self[node]
        announcement = verify_announcement(body, party.public, run=self._run, node=party.id, now=now)
        if announcement.role != party.participant.role or announcement.manifest != self._manifest:
            raise Refused(f"{party.participant.name} announced another role or manifest than the one approved here.")
        known = self._announced.get(node)
        if known is not None:
            check_same_keys(known, announcement)
        return announcement

    def join(self, node: str, announcement: Announcement) -> None:
        """A verified announcement counts: what is sent from now on may be sealed for it. Raises Refused for other keys."""
        with self._changed:
            known = self._announced.get(node)
            if known is not None:
                check_same_keys(known, announcement)
            self._announced[node] = announcement
            self._changed.notify_all()

    def restore(self, node: str, body: bytes) -> Announcement:
        """After a restart: an announcement that was taken before. Its time was judged when it came, once."""
        return self.take(node, body, Announcement.parse(body[:-SIGNATURE_BYTES]).created)

    def missing(self) -> list[str]:
        return [p.participant.name for node, p in self._parties.items() if node not in self._announced]

    def key_of(self, node: str, deadline: float) -> bytes:
        """The run key that a participant announced; waits for it. Raises RunFailed at the deadline (monotonic)."""
        party = self[node]
        with self._changed:
            while node not in self._announced or not self._witnessed():
                if self._closed:
                    raise RunFailed(self._closed, code="closed")
                if not self._changed.wait(max(0.0, deadline - time.monotonic())) and time.monotonic() >= deadline:
                    if node in self._announced:
                        raise RunFailed(
                            "Too few participants have seen the order of this run in the hub's log.",
                            next_step="Ask the hub's operator whether its log is the same for everybody.",
                            code="start_not_witnessed",
                        )
                    raise RunFailed(
                        f"{party.participant.name} has not joined the run.",
                        next_step="Ask whether that node is running, has approved the analysis and reaches the hub.",
                    )
            return self._announced[node].run_key

    def wait_changed(self, seconds: float) -> None:
        """Until somebody announces, or the time is over."""
        with self._changed:
            if not self._closed and self.missing():
                self._changed.wait(seconds)

    def close(self, why: str) -> None:
        with self._changed:
            self._closed = why
            self._changed.notify_all()
