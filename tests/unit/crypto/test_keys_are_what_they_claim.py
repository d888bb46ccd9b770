"""Identity keys, their forms, their fingerprints and their files."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from flame.crypto._words import WORDS
from flame.crypto.keys import (
    HybridKey,
    HybridPublicKey,
    IdentityKey,
    PublicKey,
    fingerprint_hex,
    fingerprint_words,
    parse_fingerprint,
)
from flame.model.errors import BadSignature, Conflict, Malformed, NotFound, Refused


def test_ed25519_known_answers(vectors: Path) -> None:
    lines = (vectors / "asymmetric/Ed25519/sign.input").read_text().splitlines()
    assert len(lines) > 1000
    for line in lines[::16]:
        seed_and_public, public, message_hex, signed, *_ = line.split(":")
        key, message = IdentityKey.from_private_bytes(bytes.fromhex(seed_and_public)[:32]), bytes.fromhex(message_hex)
        signature = bytes.fromhex(signed)[:64]
        assert key.public.raw.hex() == public
        assert key.sign(message) == signature
        PublicKey.from_bytes(bytes.fromhex(public)).verify(signature, message)
        with pytest.raises(BadSignature):
            key.public.verify(signature, message + b"\0")


@pytest.mark.parametrize("length", [0, 63, 65])
def test_a_signature_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(BadSignature):
        IdentityKey.generate().public.verify(bytes(length), b"")


def test_a_public_key_survives_each_of_its_forms() -> None:
    public = IdentityKey.generate().public
    assert PublicKey.from_bytes(public.raw) == public
    assert PublicKey.from_pem(public.pem) == public
    assert PublicKey.from_hex_pem(public.hex_pem) == public
    assert PublicKey.from_hex_pem(public.hex_pem.upper()) == public
    assert bytes.fromhex(public.hex_pem).decode().startswith("-----BEGIN PUBLIC KEY-----")
    assert public.fingerprint == hashlib.sha256(public.raw).digest()


def _elliptic_pem() -> str:
    public = generate_private_key(SECP256R1()).public_key()
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


@pytest.mark.parametrize(
    "text", ["", "nonsense", "-----BEGIN PUBLIC KEY-----\n\n-----END PUBLIC KEY-----", "ü", "x" * 5000]
)
def test_what_is_no_key_is_refused_in_pem_and_in_hex(text: str) -> None:
    with pytest.raises(Malformed):
        PublicKey.from_pem(text)
    with pytest.raises(Malformed):
        PublicKey.from_hex_pem(text.encode().hex())


def test_a_key_of_another_kind_is_refused() -> None:
    pem = _elliptic_pem()
    with pytest.raises(Malformed, match="not an Ed25519"):
        PublicKey.from_pem(pem)
    with pytest.raises(Malformed):
        PublicKey.from_hex_pem("zz")
    with pytest.raises(Malformed):
        PublicKey.from_bytes(bytes(31))


@pytest.mark.parametrize("sign_bit", [0, 0x80])
def test_a_key_for_which_anybody_can_sign_is_refused(sign_bit: int) -> None:
    neutral = b"\x01" + bytes(30) + bytes([sign_bit])
    forged = b"\x01" + bytes(63)  # R = the neutral point, S = 0
    Ed25519PublicKey.from_public_bytes(neutral).verify(forged, b"whatever one likes")  # the library takes it
    with pytest.raises(Malformed, match="anybody"):
        PublicKey.from_bytes(neutral)


def test_a_saved_key_is_loaded_again(tmp_path: Path) -> None:
    key, path = IdentityKey.generate(), tmp_path / "identity.pem"
    previous = os.umask(0)
    try:
        key.save(path)
    finally:
        os.umask(previous)
    assert path.stat().st_mode & 0o777 == 0o600
    assert IdentityKey.load(path).private_bytes == key.private_bytes


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "identity.pem"
    IdentityKey.generate().save(path)
    before = path.read_bytes()
    with pytest.raises(Conflict):
        IdentityKey.generate().save(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o602, 0o610])
def test_a_key_file_that_others_can_reach_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "identity.pem"
    IdentityKey.generate().save(path)
    path.chmod(mode)
    with pytest.raises(Refused, match="others"):
        IdentityKey.load(path)


def test_what_is_no_key_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        IdentityKey.load(tmp_path / "nothing")
    path = tmp_path / "wrong"
    path.write_bytes(b"hello")
    path.chmod(0o600)
    with pytest.raises(Malformed):
        IdentityKey.load(path)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo, 0o600)
    with pytest.raises(Refused, match="regular"):
        IdentityKey.load(fifo)


def test_no_private_key_in_what_is_printed() -> None:
    identity, hybrid = IdentityKey.generate(), HybridKey.generate()
    assert identity.private_bytes.hex() not in repr(identity)
    assert hybrid.private_bytes.hex()[:32] not in repr(hybrid)


def test_the_words_are_distinct_and_short() -> None:
    assert len(set(WORDS)) == len(WORDS) == 256
    assert all(word.isascii() and word.islower() and 3 <= len(word) <= 8 for word in WORDS)


@given(st.binary(min_size=32, max_size=32))
def test_fingerprints_are_read_back_and_told_apart_by_ear(fingerprint: bytes) -> None:
    assert parse_fingerprint(fingerprint_hex(fingerprint)) == fingerprint
    assert parse_fingerprint(":".join(f"{byte:02X}" for byte in fingerprint)) == fingerprint
    words = fingerprint_words(fingerprint).split()
    assert bytes(WORDS.index(word) for word in words) == fingerprint[:8]


@pytest.mark.parametrize("text", ["", "00", "zz" * 32, "00" * 33, "0" * 63, "acid " * 8, "é" * 64])
def test_other_texts_are_no_fingerprints(text: str) -> None:
    with pytest.raises(Malformed):
        parse_fingerprint(text)


def test_a_hybrid_key_survives_as_bytes() -> None:
    key = HybridKey.generate()
    again = HybridKey.from_private_bytes(key.private_bytes)
    assert (len(key.private_bytes), len(key.public_bytes)) == (96, 1216)
    assert again.public_bytes == key.public_bytes
    assert key.key_id == hashlib.sha256(key.public_bytes).digest()
    wrapped = HybridPublicKey(key.public_bytes).wrap(b"k" * 32, b"info")
    assert len(wrapped) == 1168
    assert again.unwrap(wrapped, b"info") == b"k" * 32


@pytest.mark.parametrize("place", [0, 1087, 1088, 1119, 1120, 1167])
def test_a_changed_wrap_is_one_error_of_ours(place: int) -> None:
    key = HybridKey.generate()
    wrapped = bytearray(key.public.wrap(b"k" * 32, b"info"))
    wrapped[place] ^= 1
    with pytest.raises(Refused):
        key.unwrap(bytes(wrapped), b"info")


def test_wrong_info_length_or_share_is_one_error_of_ours() -> None:
    key = HybridKey.generate()
    wrapped = key.public.wrap(b"k" * 32, b"info")
    degenerate_share = wrapped[:1088] + bytes(32) + wrapped[1120:]
    for attempt, info in [(wrapped, b"other"), (wrapped[:-1], b"info"), (b"", b"info"), (degenerate_share, b"info")]:
        with pytest.raises(Refused):
            key.unwrap(attempt, info)


def test_a_degenerate_hybrid_key_is_refused() -> None:
    good = HybridKey.generate().public_bytes
    with pytest.raises(Refused, match="degenerate"):
        HybridPublicKey(good[:1184] + bytes(32)).try_once()
    for wrong in (b"\xff" * 1216, good[:-1], b""):
        with pytest.raises(Malformed):
            HybridPublicKey(wrong)
    for private in (b"", bytes(95)):
        with pytest.raises(Malformed):
            HybridKey.from_private_bytes(private)
