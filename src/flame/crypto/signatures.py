"""Signatures with a purpose: the same digest signed for one purpose is worthless for every other.

Each is Ed25519 over `purpose || 0 || 32-byte digest`.
"""

from __future__ import annotations

import re

from flame.crypto.canonical import document_digest
from flame.crypto.keys import IdentityKey, PublicKey
from flame.model.errors import Malformed

_MANIFEST = b"flame-manifest-v1\0"
_APPROVAL = b"flame-approval-v1\0"
_START = b"flame-start-v1\0"
_EVENT = b"flame-event-v1\0"
_DOCUMENT = b"flame-document-v1\0"
_PURPOSE_NAME = re.compile(r"[a-z][a-z0-9-]{0,63}")


def sign_manifest(key: IdentityKey, digest: bytes) -> bytes:
    """The researcher's signature (64 bytes) on a manifest's digest (32 bytes)."""
    return _sign(key, _MANIFEST, digest)


def verify_manifest(public: PublicKey, signature: bytes, digest: bytes) -> None:
    """Raises BadSignature unless `public` signed this digest as a manifest."""
    _verify(public, signature, _MANIFEST, digest)


def sign_approval(key: IdentityKey, approval: object) -> bytes:
    """A node's signature on an approval: `approval` is the JSON document, hashed in its canonical form."""
    return _sign(key, _APPROVAL, document_digest(approval))


def verify_approval(public: PublicKey, signature: bytes, approval: object) -> None:
    """Raises BadSignature unless `public` signed this document as an approval."""
    _verify(public, signature, _APPROVAL, document_digest(approval))


def sign_start_order(key: IdentityKey, digest: bytes) -> bytes:
    """The researcher's signature on a start order; `digest`, SHA-256 of its canonical form, is the run's name."""
    return _sign(key, _START, digest)


def verify_start_order(public: PublicKey, signature: bytes, digest: bytes) -> None:
    """Raises BadSignature unless `public` signed this digest as a start order."""
    _verify(public, signature, _START, digest)


def sign_event(key: IdentityKey, digest: bytes) -> bytes:
    """The signature of whoever submits an event (a leaf of the transparency log)."""
    return _sign(key, _EVENT, digest)


def verify_event(public: PublicKey, signature: bytes, digest: bytes) -> None:
    """Raises BadSignature unless `public` signed this digest as an event of the log."""
    _verify(public, signature, _EVENT, digest)


def sign_document(key: IdentityKey, purpose: str, document: object) -> bytes:
    """A signature on any other JSON document (enrolment, rotation, receipt …).

    `purpose` names what it is for (lower-case letters, digits, hyphens); a signature holds for its own purpose alone.
    """
    return _sign(key, _named(purpose), document_digest(document))


def verify_document(public: PublicKey, signature: bytes, purpose: str, document: object) -> None:
    """Raises BadSignature unless `public` signed this document for this purpose."""
    _verify(public, signature, _named(purpose), document_digest(document))


def _named(purpose: str) -> bytes:
    if not _PURPOSE_NAME.fullmatch(purpose):
        raise Malformed("The purpose of a signature is named with 1 to 64 lower-case letters, digits and hyphens.")
    return _DOCUMENT + purpose.encode("ascii") + b"\0"


def _sign(key: IdentityKey, purpose: bytes, digest: bytes) -> bytes:
    return key.sign(_message(purpose, digest))


def _verify(public: PublicKey, signature: bytes, purpose: bytes, digest: bytes) -> None:
    public.verify(signature, _message(purpose, digest))


def _message(purpose: bytes, digest: bytes) -> bytes:
    if len(digest) != 32:
        raise Malformed("A digest is 32 bytes of SHA-256; what was given to the signature is not one.")
    return purpose + digest
