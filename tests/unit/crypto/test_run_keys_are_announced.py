"""Nothing is sealed to a node before its announcement has verified; other keys for the same run are an alarm."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from flame.crypto.announce import Announcement, check_same_keys, sign_announcement, verify_announcement
from flame.crypto.keys import HybridKey, IdentityKey
from flame.model.errors import BadSignature, Expired, Malformed, Refused

NOW = 2_000_000
RUN, NODE = b"R" * 32, b"N" * 16
IDENTITY = IdentityKey.generate()


def a_mask_key() -> bytes:
    return X25519PrivateKey.generate().public_key().public_bytes_raw()


ANNOUNCEMENT = Announcement(
    run=RUN,
    manifest=b"M" * 32,
    node=NODE,
    role="default",
    run_key=HybridKey.generate().public_bytes,
    mask_key=a_mask_key(),
    log_size=5,
    log_root=b"L" * 32,
    created=NOW,
    expires=NOW + 24 * 3600,
)


def verify(data: bytes, *, now: int = NOW, run: bytes = RUN, node: bytes = NODE) -> Announcement:
    return verify_announcement(data, IDENTITY.public, run=run, node=node, now=now)


def test_an_announcement_arrives_as_it_was_made() -> None:
    assert verify(sign_announcement(IDENTITY, ANNOUNCEMENT)) == ANNOUNCEMENT


def test_each_changed_byte_is_refused() -> None:
    data = sign_announcement(IDENTITY, ANNOUNCEMENT)
    for place in range(0, len(data), 17):
        changed = bytearray(data)
        changed[place] ^= 1
        with pytest.raises(BadSignature):
            verify(bytes(changed))


@pytest.mark.parametrize("cut", [0, 1, 63, 64, 65, 700])
def test_a_cut_off_announcement_is_refused(cut: int) -> None:
    with pytest.raises((BadSignature, Malformed)):
        verify(sign_announcement(IDENTITY, ANNOUNCEMENT)[:cut])


def test_another_identity_is_refused() -> None:
    with pytest.raises(BadSignature):
        verify(sign_announcement(IdentityKey.generate(), ANNOUNCEMENT))


def test_an_announcement_of_a_foreign_run_or_node_is_refused() -> None:
    data = sign_announcement(IDENTITY, ANNOUNCEMENT)
    with pytest.raises(Refused, match="another run"):
        verify(data, run=b"r" * 32)
    with pytest.raises(Refused, match="another run"):
        verify(data, node=b"n" * 16)


@pytest.mark.parametrize("shift", [-301, 24 * 3600 + 301])
def test_outside_its_time_an_announcement_is_refused(shift: int) -> None:
    with pytest.raises(Expired):
        verify(sign_announcement(IDENTITY, ANNOUNCEMENT), now=NOW + shift)


@pytest.mark.parametrize("shift", [-300, 24 * 3600 + 300])
def test_five_minutes_are_tolerated(shift: int) -> None:
    assert verify(sign_announcement(IDENTITY, ANNOUNCEMENT), now=NOW + shift) == ANNOUNCEMENT


@pytest.mark.parametrize(
    "changes",
    [
        {"expires": NOW + 24 * 3600 + 1},
        {"expires": NOW - 1},
        {"run": b"short"},
        {"run_key": b"x" * 1215},
        {"mask_key": b""},
        {"role": ""},
        {"role": "a\nb"},
        {"log_size": -1},
        {"log_size": 2**53},
    ],
)
def test_a_field_out_of_its_range_is_not_signed(changes: dict[str, Any]) -> None:
    with pytest.raises(Malformed):
        sign_announcement(IDENTITY, replace(ANNOUNCEMENT, **changes))


@pytest.mark.parametrize(
    "changes",
    [{"mask_key": bytes(32)}, {"run_key": ANNOUNCEMENT.run_key[:1184] + bytes(32)}, {"run_key": b"\xff" * 1216}],
)
def test_keys_to_which_nothing_can_be_sealed_are_refused_on_arrival(changes: dict[str, Any]) -> None:
    with pytest.raises((Refused, Malformed)):
        verify(sign_announcement(IDENTITY, replace(ANNOUNCEMENT, **changes)))


def test_a_renewal_with_the_same_keys_is_no_alarm() -> None:
    check_same_keys(ANNOUNCEMENT, replace(ANNOUNCEMENT, created=NOW + 60, expires=NOW + 3600, log_size=9))


@pytest.mark.parametrize("name", ["run_key", "mask_key", "role", "manifest"])
def test_substituted_keys_are_an_alarm(name: str) -> None:
    other: dict[str, Any] = {
        "run_key": HybridKey.generate().public_bytes,
        "mask_key": a_mask_key(),
        "role": "aggregator",
        "manifest": b"m" * 32,
    }
    with pytest.raises(Refused, match="ALARM") as caught:
        check_same_keys(ANNOUNCEMENT, replace(ANNOUNCEMENT, **{name: other[name]}))
    assert caught.value.fields["substituted"] == (name,)


def test_announcements_of_different_runs_are_not_compared() -> None:
    with pytest.raises(Refused, match="not of the same"):
        check_same_keys(ANNOUNCEMENT, replace(ANNOUNCEMENT, run=b"r" * 32))
