"""The receiver's rule for `n`, the number of an envelope within (run, sender, recipient). Pure.

A counter, not a window: the first envelope has n = 0, the next n = 1, and so on. So a repeated delivery is told apart
from a replay with other content, and an envelope that the hub keeps back leaves a gap that can be named.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from flame.model.errors import Malformed, Replayed


class Arrival(Enum):
    """What to do with an envelope that has arrived."""

    ACCEPT = "accept"  # the next one: store, count, acknowledge, deliver
    DUPLICATE = "duplicate"  # the hub delivered again: acknowledge again, drop
    EQUIVOCATION = "equivocation"  # the same number with other content: refuse, log both heads
    GAP = "gap"  # earlier ones are missing: keep it, wait


@dataclass(frozen=True, slots=True)
class Counter:
    """What a receiver has stored: the number it expects, and the core (32 bytes) of every number it has seen.

    `cores` holds all n < next_n, and those beyond that wait behind a gap.
    """

    next_n: int = 0
    cores: Mapping[int, bytes] = field(default_factory=dict)

    def missing(self) -> list[int]:
        """The numbers below the highest one seen that have not come: what the hub withholds."""
        highest = max(self.cores, default=-1)
        return [n for n in range(self.next_n, highest) if n not in self.cores]


def judge(counter: Counter, n: int, core: bytes) -> Arrival:
    """The rule for an arriving (n, core). Raises Malformed when the stored state has lost an earlier core."""
    if n < 0 or len(core) != 32:
        raise Malformed("An envelope's number is not negative and its core is 32 bytes.")
    known = counter.cores.get(n)
    if known is not None and known != core:
        return Arrival.EQUIVOCATION
    if n > counter.next_n:
        return Arrival.GAP
    if n == counter.next_n:
        return Arrival.ACCEPT
    if known is None:
        raise Malformed(f"The stored counter has no core for envelope {n}, although it has counted past it.", n=n)
    return Arrival.DUPLICATE


def accept(counter: Counter, n: int, core: bytes) -> Counter:
    """The counter after envelope n was stored; raises Replayed unless n is the next."""
    arrival = judge(counter, n, core)
    if arrival is not Arrival.ACCEPT:
        raise Replayed(f"Envelope {n} cannot be counted: {arrival.value}; {counter.next_n} is next.", n=n)
    return Counter(n + 1, {**counter.cores, n: core})


def keep_waiting(counter: Counter, n: int, core: bytes) -> Counter:
    """The counter after envelope n was kept behind a gap; raises Replayed unless it is one."""
    arrival = judge(counter, n, core)
    if arrival is not Arrival.GAP:
        raise Replayed(f"Envelope {n} does not wait behind a gap: {arrival.value}.", n=n)
    return Counter(counter.next_n, {**counter.cores, n: core})
