"""Chains of keys: nobody but the key before names the next one, and a hub can only withhold."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from flame.crypto.keys import HybridKey, IdentityKey
from flame.model.errors import DoesNotMatchApproval, Malformed, Refused
from flame.protocol.documents import Revocation, Rotation
from flame.protocol.roster import Statement, Voice, fingerprint_of, follow, sign_statement

FIRST, SECOND, THIRD, STRANGER = (IdentityKey.generate() for _ in range(4))
MEMBER = FIRST.public.fingerprint.hex()
TIME = "2026-11-23T10:00:00Z"


def rotation(before: IdentityKey, after: IdentityKey, number: int, **changed: Any) -> Statement:
    values: dict[str, Any] = {
        "member": MEMBER, "kind": "researcher", "number": number, "previous": before.public.fingerprint.hex(),
        "signer": before.public.fingerprint.hex(), "next_key": after.public.hex_pem, "time": TIME,
    }  # fmt: skip
    return sign_statement(before, Rotation(**values | changed))


def revocation(by: IdentityKey, **changed: Any) -> Statement:
    values: dict[str, Any] = {
        "member": MEMBER, "kind": "researcher", "signer": by.public.fingerprint.hex(), "reason": "stolen", "time": TIME,
    }  # fmt: skip
    return sign_statement(by, Revocation(**values | changed))


CHAIN = [rotation(FIRST, SECOND, 1), rotation(SECOND, THIRD, 2)]


def found(statements: list[Statement], **more: Any) -> Any:
    return follow(MEMBER, "researcher", FIRST.public.hex_pem, statements, **more)


def test_each_key_is_named_by_the_one_before_in_whatever_order_they_come() -> None:
    keys = (FIRST.public.hex_pem, SECOND.public.hex_pem, THIRD.public.hex_pem)
    assert found(CHAIN).keys == found(CHAIN[::-1]).keys == keys
    assert found(CHAIN[:1]).key == SECOND.public.hex_pem
    assert found(CHAIN[1:]).key == FIRST.public.hex_pem, "a gap is no chain"


def test_a_first_key_that_is_another_one_is_a_swapped_key() -> None:
    with pytest.raises(DoesNotMatchApproval, match="swapped"):
        follow(MEMBER, "researcher", STRANGER.public.hex_pem, CHAIN)


@pytest.mark.parametrize(
    "forged",
    [
        Statement(CHAIN[0].document, CHAIN[1].signature),
        Statement(CHAIN[0].document.replace(SECOND.public.hex_pem, STRANGER.public.hex_pem), CHAIN[0].signature),
        rotation(STRANGER, STRANGER, 1, previous=MEMBER),
        rotation(STRANGER, STRANGER, 1, previous=MEMBER, signer=MEMBER),
        rotation(FIRST, SECOND, 2),
        rotation(FIRST, SECOND, 1, kind="node"),
        rotation(FIRST, SECOND, 1, member="0" * 64),
        Statement("{}", "00" * 64),
        Statement("not JSON", "zz"),
    ],
)  # fmt: skip
def test_what_is_not_signed_by_the_key_in_use_says_nothing(forged: Statement) -> None:
    assert found([forged]).keys == (FIRST.public.hex_pem,)


def test_a_key_that_names_two_successors_is_held_by_two() -> None:
    with pytest.raises(Refused) as caught:
        found([CHAIN[0], rotation(FIRST, STRANGER, 1)])
    assert caught.value.code == "key_forked"
    assert found([CHAIN[0], rotation(FIRST, SECOND, 1, time="2026-11-24T10:00:00Z")]).key == SECOND.public.hex_pem


def test_a_member_revokes_itself_with_any_key_it_has_had() -> None:
    """Whoever has stolen the key in use cannot keep its owner from ending it with the one before."""
    assert found([*CHAIN, revocation(FIRST)]).revoked == "by itself: stolen"
    assert found([*CHAIN, revocation(THIRD)]).revoked
    assert not found([*CHAIN, revocation(STRANGER)]).revoked
    assert not found([*CHAIN, revocation(FIRST, member="0" * 64)]).revoked


def test_two_others_revoke_and_one_does_not_however_often() -> None:
    one, other, renamed = (IdentityKey.generate() for _ in range(3))
    voices = {
        key.public.fingerprint.hex(): Voice(member, key.public)
        for key, member in ((one, "1" * 64), (other, "2" * 64), (renamed, "1" * 64))
    }
    assert not found([revocation(one)], voices=voices).revoked
    assert not found([revocation(one), revocation(renamed)], voices=voices).revoked, "one member with two keys"
    assert not found([revocation(one), revocation(STRANGER)], voices=voices).revoked
    assert found([revocation(one), revocation(other)], voices=voices).revoked.startswith("by two members")


def test_a_result_key_is_replaced_by_its_owner_and_nobody_else() -> None:
    before, after = HybridKey.generate(), HybridKey.generate()
    texts = [base64.b64encode(key.public_bytes).decode() for key in (before, after)]
    said = {
        "member": before.key_id.hex(), "kind": "result", "previous": before.key_id.hex(), "next_key": texts[1],
    }  # fmt: skip
    statement = rotation(FIRST, SECOND, 1, **said)
    owner = {MEMBER: FIRST.public}
    assert follow(before.key_id.hex(), "result", texts[0], [statement], owner).keys == tuple(texts)
    for others in ({}, {STRANGER.public.fingerprint.hex(): STRANGER.public}):
        assert follow(before.key_id.hex(), "result", texts[0], [statement], others).key == texts[0]


def test_a_fingerprint_is_of_a_key_that_can_be_read() -> None:
    assert fingerprint_of(FIRST.public.hex_pem) == MEMBER
    for text in ("", "abc", "00" * 40, base64.b64encode(b"short").decode()):
        with pytest.raises(Malformed):
            fingerprint_of(text)
