"""A repeated delivery is acknowledged, a replay with other content is refused, a withheld envelope is named."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flame.crypto.counters import Arrival, Counter, accept, judge, keep_waiting
from flame.model.errors import Malformed, Replayed


def core(n: int, variant: str = "") -> bytes:
    return hashlib.sha256(f"{n}{variant}".encode()).digest()


def counted(upto: int) -> Counter:
    counter = Counter()
    for n in range(upto):
        counter = accept(counter, n, core(n))
    return counter


def test_the_four_verdicts() -> None:
    counter = counted(3)
    assert judge(counter, 3, core(3)) is Arrival.ACCEPT
    assert judge(counter, 1, core(1)) is Arrival.DUPLICATE
    assert judge(counter, 1, core(1, "other")) is Arrival.EQUIVOCATION
    assert judge(counter, 4, core(4)) is Arrival.GAP


def test_what_waits_is_compared_too() -> None:
    counter = keep_waiting(counted(1), 3, core(3))
    assert judge(counter, 3, core(3)) is Arrival.GAP
    assert judge(counter, 3, core(3, "other")) is Arrival.EQUIVOCATION
    assert counter.missing() == [1, 2]
    for n in (1, 2, 3):
        counter = accept(counter, n, core(n))
    assert (counter.next_n, counter.missing()) == (4, [])


def test_an_equivocation_never_counts() -> None:
    with pytest.raises(Replayed):
        accept(counted(2), 1, core(1, "other"))
    with pytest.raises(Replayed):
        accept(counted(2), 1, core(1))
    with pytest.raises(Replayed):
        keep_waiting(counted(2), 2, core(2))


def test_a_state_that_lost_its_cores_is_refused() -> None:
    with pytest.raises(Malformed):
        judge(Counter(next_n=3), 1, core(1))
    with pytest.raises(Malformed):
        judge(Counter(), -1, core(1))


@given(st.lists(st.integers(0, 8), max_size=60))
def test_any_order_of_delivery_ends_in_the_same_count(order: list[int]) -> None:
    counter, accepted = Counter(), []
    for n in order + list(range(9)):
        match judge(counter, n, core(n)):
            case Arrival.ACCEPT:
                counter = accept(counter, n, core(n))
                accepted.append(n)
            case Arrival.GAP:
                counter = keep_waiting(counter, n, core(n))
            case verdict:
                assert verdict is Arrival.DUPLICATE
    assert accepted == list(range(9))
    assert counter.next_n == 9
