"""A signature given for one purpose is refused for every other, for other content and for other keys."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest

from flame.crypto import signatures as s
from flame.crypto.canonical import document_digest
from flame.crypto.keys import IdentityKey
from flame.model.errors import BadSignature, Malformed

KEY = IdentityKey.generate()
DOCUMENT = {"decision": "approved", "node": "11"}
DIGEST = document_digest(DOCUMENT)
PURPOSES: dict[str, tuple[Callable[..., bytes], Callable[..., None], object]] = {
    "manifest": (s.sign_manifest, s.verify_manifest, DIGEST),
    "approval": (s.sign_approval, s.verify_approval, DOCUMENT),
    "start": (s.sign_start_order, s.verify_start_order, DIGEST),
    "event": (s.sign_event, s.verify_event, DIGEST),
}


@pytest.mark.parametrize("signed", PURPOSES)
@pytest.mark.parametrize("checked", PURPOSES)
def test_a_signature_holds_for_its_own_purpose_alone(signed: str, checked: str) -> None:
    sign, _, content = PURPOSES[signed]
    _, verify, same_content = PURPOSES[checked]
    signature = sign(KEY, content)
    if signed == checked:
        verify(KEY.public, signature, same_content)
    else:
        with pytest.raises(BadSignature):
            verify(KEY.public, signature, same_content)


@pytest.mark.parametrize("purpose", PURPOSES)
def test_the_bytes_are_those_of_the_design(purpose: str) -> None:
    sign, _, content = PURPOSES[purpose]
    KEY.public.verify(sign(KEY, content), f"flame-{purpose}-v1\0".encode() + DIGEST)


@pytest.mark.parametrize("purpose", PURPOSES)
def test_another_key_or_content_is_refused(purpose: str) -> None:
    sign, verify, content = PURPOSES[purpose]
    other = {**DOCUMENT, "decision": "rejected"} if purpose == "approval" else hashlib.sha256(b"other").digest()
    with pytest.raises(BadSignature):
        verify(IdentityKey.generate().public, sign(KEY, content), content)
    with pytest.raises(BadSignature):
        verify(KEY.public, sign(KEY, content), other)


def test_other_documents_are_signed_for_a_named_purpose() -> None:
    signature = s.sign_document(KEY, "rotation", DOCUMENT)
    s.verify_document(KEY.public, signature, "rotation", DOCUMENT)
    for purpose, document in [("enrolment", DOCUMENT), ("rotation", {**DOCUMENT, "node": "12"})]:
        with pytest.raises(BadSignature):
            s.verify_document(KEY.public, signature, purpose, document)
    for name in ("", "Rotation", "a\0b", "x" * 65, "ä"):
        with pytest.raises(Malformed):
            s.sign_document(KEY, name, DOCUMENT)


def test_only_digests_are_signed() -> None:
    with pytest.raises(Malformed):
        s.sign_manifest(KEY, b"the manifest itself")
