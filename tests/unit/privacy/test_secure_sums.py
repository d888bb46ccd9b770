"""Masked sums: exact, in any order, and each masked vector alone says nothing."""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from flame.model.errors import Invalid, Refused, ReleaseRefused
from flame.privacy import masks, ring

DIGEST = hashlib.sha256(b"x").digest()
FINITE = st.floats(-1e6, 1e6, allow_nan=False)


class Member:
    def __init__(self, number: int) -> None:
        self.id = hashlib.sha256(b"member %d" % number).digest()[:16]
        self.key = X25519PrivateKey.generate()

    @property
    def public(self) -> bytes:
        return self.key.public_key().public_bytes_raw()


def set_up(n: int) -> tuple[list[Member], dict[tuple[bytes, bytes], bytes], bytes]:
    """Members, their pairs' secrets (as the first of the pair derives them), and the session."""
    members = [Member(i) for i in range(n)]
    sid = masks.session_id(b"r" * 32, {m.id: m.public for m in members})
    salts = {frozenset((a.id, b.id)): secrets.token_bytes(32) for a in members for b in members if a is not b}
    pairs = {
        (a.id, b.id): masks.pair_secret(a.key, b.public, salts[frozenset((a.id, b.id))], sid, a.id, b.id)
        for a in members
        for b in members
        if a is not b
    }
    return members, pairs, sid


def context(members: Sequence[Member], sid: bytes, **changed: Any) -> masks.Context:
    values: dict[str, Any] = {
        "sid": sid, "release": "beta", "round": 1, "attempt": 0, "layout": DIGEST, "encoding": DIGEST,
        "members": tuple(m.id for m in members), "recovery": "end",
    }  # fmt: skip
    return masks.Context(**values | changed)


def masked(values: Any, member: Member, pairs: dict[tuple[bytes, bytes], bytes], ctx: masks.Context) -> Any:
    keys = {other: masks.mask_key(pairs[member.id, other], ctx) for other in ctx.members if other != member.id}
    out = values.copy()
    masks.mask(out, member.id, keys)
    return out


# --- the ring -------------------------------------------------------------------------------------------------------


def exact(limbs: Any) -> list[int]:
    found = [int(high) << 64 | int(low) for low, high in limbs]
    return [value - (1 << 128) if value >> 127 else value for value in found]


@given(
    st.lists(FINITE, min_size=1, max_size=20), st.sampled_from([1e6, 3e6, 1e9, 1.0e12, 2.0**40]), st.integers(1, 200)
)
def test_a_real_is_the_nearest_multiple(values: list[float], bound: float, contributors: int) -> None:
    point = ring.FixedPoint(bound, contributors)
    for value, found in zip(values, exact(point.encode(np.array(values))), strict=True):
        assert found == round(Fraction(value) * 2**point.bits)


@given(st.lists(st.integers(-(2**126), 2**126), min_size=1, max_size=20), st.integers(1, 12))
def test_a_sum_is_read_back_to_the_nearest_float(numbers: list[int], contributors: int) -> None:
    limbs = np.array([[n % 2**64, (n >> 64) % 2**64] for n in numbers], dtype="<u8")
    point = ring.FixedPoint(1e3, contributors)
    expected = [float(Fraction(n, 2**point.bits)) for n in numbers]
    assert point.decode(limbs).tolist() == expected


@pytest.mark.parametrize(("bound", "n"), [(1.0, 3), (1e6, 12), (2.0**60, 100), (2.0**118, 3), (0.1, 1), (2.0**125, 2)])
def test_the_largest_sum_fits_and_no_digit_is_given_away(bound: float, n: int) -> None:
    point = ring.FixedPoint(bound, n)
    assert n * Fraction(bound) * 2**point.bits <= 2**126
    assert point.bits == 80 or n * Fraction(bound) * 2 ** (point.bits + 1) > 2**126


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 11.0, -10.000001])
def test_what_lies_beyond_the_bound_is_refused(bad: float) -> None:
    with pytest.raises(ReleaseRefused):
        ring.FixedPoint(10.0, 3).encode(np.array([1.0, bad]))


@pytest.mark.parametrize("bound", [0.0, -1.0, math.nan, math.inf, 2.0**127])
def test_a_bound_that_is_none_is_refused(bound: float) -> None:
    with pytest.raises(Invalid):
        ring.FixedPoint(bound, 3)


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=10))
def test_whole_numbers_are_exact(numbers: list[int]) -> None:
    limbs = ring.encode_whole(np.array(numbers, dtype=np.int64))
    assert exact(limbs) == numbers
    assert ring.decode_whole(limbs).tolist() == numbers


def test_a_sum_of_whole_numbers_beyond_64_bits_is_refused() -> None:
    limbs = ring.encode_whole(np.array([2**63 - 1], dtype=np.int64))
    ring.add(limbs, limbs.copy())
    with pytest.raises(ReleaseRefused):
        ring.decode_whole(limbs)


def test_rounding_of_updates_has_no_direction() -> None:
    clipped = ring.Clipped(4.0, 10)
    value = 1.0 + 0.3 * 2.0**-22
    found = clipped.decode(clipped.encode(np.full(400_000, value), secrets.token_bytes(1_600_000))).astype(np.float64)
    # float32 has 23 digits: both neighbours are multiples of 2^-22 and exact
    mean, spread = (found - value).mean() * 2.0**22, math.sqrt(0.3 * 0.7 / 400_000)
    assert abs(mean) < 6 * spread


def test_updates_that_would_leave_the_ring_are_refused_with_the_bound_that_fits() -> None:
    with pytest.raises(Invalid, match="do not fit") as said:
        ring.Clipped(100.0, 10)
    fits = float(said.value.next_step.split()[2])
    ring.Clipped(fits * 0.999, 10)
    assert ring.Clipped(1.0, 3).decode(ring.Clipped(1.0, 3).encode(np.array([9.0, -9.0]), bytes(8))).tolist() == [1, -1]


# --- masks ----------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(st.data(), st.integers(3, 9), st.integers(1, 7))
def test_the_sum_is_exact_in_any_order(data: st.DataObject, n: int, size: int) -> None:
    members, pairs, sid = set_up(n)
    ctx = context(members, sid)
    point = ring.FixedPoint(1e6, n)
    values = [np.array(data.draw(st.lists(FINITE, min_size=size, max_size=size))) for _ in members]
    sent = [masked(point.encode(v), m, pairs, ctx) for m, v in zip(members, values, strict=True)]
    order = data.draw(st.permutations(sent))
    # the oracle: plain integers
    expected = [sum(round(Fraction(v[i]) * 2**point.bits) for v in values) for i in range(size)]
    assert exact(masks.total(order)) == expected
    assert point.decode(masks.total(order)).tolist() == [float(Fraction(e, 2**point.bits)) for e in expected]


def test_large_vectors_cross_tiles_in_both_rings() -> None:
    members, pairs, sid = set_up(3)
    ctx = context(members, sid)
    rng = np.random.default_rng(5)
    whole = [rng.integers(-(2**40), 2**40, masks.TILE // 16 * 2 + 3) for _ in members]
    sent = [masked(ring.encode_whole(v), m, pairs, ctx) for m, v in zip(members, whole, strict=True)]
    assert ring.decode_whole(masks.total(sent)).tolist() == sum(whole).tolist()
    words = [rng.integers(0, 2**32, masks.TILE // 4 + 7, dtype=np.uint32) for _ in members]
    covered = [masked(v, m, pairs, ctx) for m, v in zip(members, words, strict=True)]
    assert np.array_equal(covered[0] + covered[1] + covered[2], words[0] + words[1] + words[2])


def test_a_masked_constant_is_uniform() -> None:
    members, pairs, sid = set_up(3)
    sent = masked(ring.encode_whole(np.zeros(4096, dtype=np.int64)), members[0], pairs, context(members, sid))
    counts = np.bincount(sent.view(np.uint8).reshape(-1), minlength=256)
    expected = sent.nbytes / 256
    statistic = float(((counts - expected) ** 2 / expected).sum())
    assert statistic < 255 + 6 * math.sqrt(2 * 255)
    assert not np.any(np.all(sent == 0, axis=1))


def test_both_of_a_pair_derive_the_same_and_a_third_does_not() -> None:
    members, pairs, _ = set_up(3)
    a, b, c = members
    assert pairs[a.id, b.id] == pairs[b.id, a.id]
    assert len({pairs[a.id, b.id], pairs[a.id, c.id], pairs[b.id, c.id]}) == 3


CHANGES: dict[str, dict[str, Any]] = {
    "release": {"release": "gamma"},
    "round": {"round": 2},
    "attempt": {"attempt": 1},
    "layout": {"layout": hashlib.sha256(b"y").digest()},
    "encoding": {"encoding": hashlib.sha256(b"y").digest()},
    "recovery": {"recovery": "tolerate"},
    "session": {"sid": hashlib.sha256(b"y").digest()},
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_view_of_the_sum_gives_noise(change: str) -> None:
    members, pairs, sid = set_up(3)
    zero = ring.encode_whole(np.zeros(64, dtype=np.int64))
    views = [context(members, sid), context(members, sid), context(members, sid)]
    views[2] = context(members, **{"sid": sid, **CHANGES[change]})
    sent = [masked(zero, m, pairs, view) for m, view in zip(members, views, strict=True)]
    assert len({view.digest for view in views}) == 2
    assert not np.any(np.all(masks.total(sent) == 0, axis=1))


def test_another_set_of_members_is_another_sum() -> None:
    members, _, sid = set_up(5)
    assert len({context(members[:n], sid).digest for n in (3, 4, 5)}) == 3
    assert context(members, sid).digest == context(members[::-1], sid).digest


@pytest.mark.parametrize("n", [1, 2])
def test_two_hospitals_are_too_few(n: int) -> None:
    members, _, sid = set_up(3)
    with pytest.raises(Refused, match="would show each of them"):
        context(members[:n], sid)


def test_a_member_that_is_there_twice_is_refused() -> None:
    members, _, sid = set_up(3)
    with pytest.raises(Invalid):
        context([*members, members[0]], sid)


@pytest.mark.parametrize("point", [bytes(32), b"\x01" + bytes(31), b"short"])
def test_a_degenerate_key_is_refused(point: bytes) -> None:
    a, b = Member(1), Member(2)
    with pytest.raises(Refused, match="is not a key"):
        masks.pair_secret(a.key, point, bytes(32), DIGEST, a.id, b.id)


def test_the_keystream_is_aes_in_counter_mode() -> None:
    key = secrets.token_bytes(32)
    stream = masks.Keystream(key)
    tiles = [bytes(stream.tile(i)) for i in (0, 1, 300)]
    for number, tile in zip((0, 1, 300), tiles, strict=True):
        start = number.to_bytes(12, "big") + (2).to_bytes(4, "big")
        assert Cipher(algorithms.AES(key), modes.CTR(start)).encryptor().update(bytes(masks.TILE)) == tile
    assert all(a != b for a, b in pairwise(tiles))


def test_what_a_member_added_can_be_taken_away_when_it_has_left() -> None:
    """The arithmetic of recovery: with the keys that a drop-out shares with those who stay, their sum is exact."""
    members, pairs, sid = set_up(4)
    ctx = context(members, sid)
    values = [np.arange(5) + 10 * i for i in range(4)]
    sent = [masked(ring.encode_whole(v), m, pairs, ctx) for m, v in zip(members, values, strict=True)][:3]
    found, gone = masks.total(sent), members[3]
    for member in members[:3]:
        masks.unmask(found, masks.mask_key(pairs[member.id, gone.id], ctx), added=member.id < gone.id)
    assert ring.decode_whole(found).tolist() == sum(values[:3]).tolist()
