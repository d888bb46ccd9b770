"""Known answers for what envelopes are made of, and an independent opening of the hybrid wrap.

The second reader below is written from the specifications (X-Wing, RFC 9180) on other primitives than HPKE's own
implementation. It is first checked against published vectors, then opens what FLAME has wrapped.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from flame.crypto.envelope import Header
from flame.crypto.keys import HybridKey, HybridPublicKey

from .conftest import ALICE, Letters

XWING, HKDF_SHA256, AES_256_GCM, CHACHA20 = 0x647A, 1, 2, 3


def blocks(path: Path) -> list[dict[str, str]]:
    """The `name = value` blocks of a NIST or RFC vector file, each begun by its count."""
    found: list[dict[str, str]] = []
    for line in path.read_text().splitlines():
        name, _, value = (part.strip() for part in line.partition("="))
        if name.lower() == "count":
            found.append({})
        if found and name and not name.startswith(("#", "[")):
            found[-1][name] = value
    return found


def extract(salt: bytes, ikm: bytes) -> bytes:
    return hmac.digest(salt or bytes(32), ikm, "sha256")


def expand(key: bytes, info: bytes, length: int) -> bytes:
    done, block, counter = b"", b"", 1
    while len(done) < length:
        block = hmac.digest(key, block + info + bytes([counter]), "sha256")
        done, counter = done + block, counter + 1
    return done[:length]


@dataclass(frozen=True)
class Schedule:
    """HPKE's key schedule in base mode with HKDF-SHA256 (RFC 9180, 5.1)."""

    secret: bytes
    aead: int
    info: bytes

    def derive(self, label: bytes, length: int) -> bytes:
        context = b"\0" + self._extract(b"", b"psk_id_hash", b"") + self._extract(b"", b"info_hash", self.info)
        labelled = length.to_bytes(2, "big") + b"HPKE-v1" + self._suite + label + context
        return expand(self._extract(self.secret, b"secret", b""), labelled, length)

    def _extract(self, salt: bytes, label: bytes, ikm: bytes) -> bytes:
        return extract(salt, b"HPKE-v1" + self._suite + label + ikm)

    @property
    def _suite(self) -> bytes:
        return b"HPKE" + b"".join(n.to_bytes(2, "big") for n in (XWING, HKDF_SHA256, self.aead))


def xwing_shared_secret(private: bytes, enc: bytes) -> bytes:
    """X-Wing's decapsulation: SHA3-256(ML-KEM secret || X25519 secret || X25519 share || X25519 public || label)."""
    mlkem, x25519 = MLKEM768PrivateKey.from_seed_bytes(private[:64]), X25519PrivateKey.from_private_bytes(private[64:])
    share = enc[1088:]
    secrets = mlkem.decapsulate(enc[:1088]) + x25519.exchange(X25519PublicKey.from_public_bytes(share))
    return hashlib.sha3_256(secrets + share + x25519.public_key().public_bytes_raw() + b"\\.//^\\").digest()


def independent_unwrap(private: bytes, wrapped: bytes, info: bytes) -> bytes:
    schedule = Schedule(xwing_shared_secret(private, wrapped[:1120]), AES_256_GCM, info)
    return AESGCM(schedule.derive(b"key", 32)).decrypt(schedule.derive(b"base_nonce", 12), wrapped[1120:], b"")


def hybrid_vector(vectors: Path) -> dict[str, str]:
    cases = json.loads((vectors / "HPKE/hpke-pq-test-vectors.json").read_text())
    (case,) = [c for c in cases if (c["mode"], c["kem_id"], c["kdf_id"], c["aead_id"]) == (0, XWING, 1, CHACHA20)]
    return case  # type: ignore[no-any-return]


def expanded_private(seed: str) -> bytes:
    """X-Wing's 32-byte seed, expanded as its draft says to our 96 bytes."""
    return hashlib.shake_256(bytes.fromhex(seed)).digest(96)


def test_our_hybrid_keys_are_those_of_the_hpke_vectors(vectors: Path) -> None:
    case = hybrid_vector(vectors)
    key = HybridKey.from_private_bytes(expanded_private(case["skRm"]))
    assert key.public_bytes.hex() == case["pkRm"]


def test_the_independent_reader_agrees_with_the_hpke_vectors(vectors: Path) -> None:
    case = hybrid_vector(vectors)
    secret = xwing_shared_secret(expanded_private(case["skRm"]), bytes.fromhex(case["enc"]))
    schedule = Schedule(secret, CHACHA20, bytes.fromhex(case["info"]))
    assert secret.hex() == case["shared_secret"]
    assert schedule.derive(b"key", 32).hex() == case["key"]
    assert schedule.derive(b"base_nonce", 12).hex() == case["base_nonce"]
    sealed: dict[str, str] = case["encryptions"][0]  # type: ignore[assignment]
    opened = ChaCha20Poly1305(bytes.fromhex(case["key"])).decrypt(
        bytes.fromhex(case["base_nonce"]), bytes.fromhex(sealed["ct"]), bytes.fromhex(sealed["aad"])
    )
    assert opened.hex() == sealed["pt"]


def test_the_independent_reader_opens_our_wraps() -> None:
    key = HybridKey.generate()
    wrapped = HybridPublicKey(key.public_bytes).wrap(b"k" * 32, b"bound to this")
    assert independent_unwrap(key.private_bytes, wrapped, b"bound to this") == b"k" * 32


def test_the_independent_reader_opens_a_whole_envelope(letters: Letters) -> None:
    """The design's formulas, written out once more from the bytes on the wire."""
    payload = b"one payload, read by a second implementation"
    data = letters.seal(payload)
    size = int.from_bytes(data[5:9], "big")
    raw_head, body = data[9 : 9 + size], data[9 + size + 2 + 2 * 1168 :]
    core = hashlib.sha256(b"FLAME/FE2E/2/head\0" + raw_head).digest()
    letters.sender.public.verify(body[:64], b"FLAME/FE2E/2/sig-head\0" + core)
    info = b"FLAME/FE2E/2/wrap\0" + core + ALICE + letters.alice.key_id
    wrapped = data[9 + size + 2 : 9 + size + 2 + 1168]
    secret = independent_unwrap(letters.alice.private_bytes, wrapped, info)
    head = Header.read(BytesIO(data)).parse_head()
    assert head.commit == expand(extract(b"", secret), b"FLAME/FE2E/2/commit", 32)
    payload_key = expand(extract(core, secret), b"FLAME/FE2E/2/payload", 32)
    chunk, sig_end = body[64:-64], body[-64:]
    assert AESGCM(payload_key).decrypt(head.nonce_prefix + bytes(4) + b"\x01", chunk, core) == payload
    root = hashlib.sha256(b"FLAME/FE2E/2/root\0" + (1).to_bytes(4, "big") + hashlib.sha256(chunk).digest()).digest()
    letters.sender.public.verify(sig_end, b"FLAME/FE2E/2/sig-end\0" + core + root)


def test_hkdf_known_answers(vectors: Path) -> None:
    cases = blocks(vectors / "KDF/rfc-5869-HKDF-SHA256.txt")
    checked = 0
    for case in (c for c in cases if "OKM" in c):
        ikm, salt, info, okm = (bytes.fromhex(case.get(name, "")) for name in ("IKM", "salt", "info", "OKM"))
        assert HKDF(SHA256(), len(okm), salt=salt or None, info=info).derive(ikm) == okm
        assert expand(extract(salt, ikm), info, len(okm)) == okm
        checked += 1
    assert checked == 3


def test_aes_256_gcm_known_answers(vectors: Path) -> None:
    """Encryption and decryption on given buffers, as envelopes use them, and the vectors that must fail."""
    checked = refused = 0
    for case in blocks(vectors / "ciphers/AES/GCM/gcmDecrypt256.rsp"):
        octets = {name: bytes.fromhex(case.get(name, "")) for name in ("Key", "IV", "CT", "AAD", "Tag", "PT")}
        if len(octets["IV"]) != 12 or len(octets["Tag"]) != 16:
            continue
        cipher, sealed = AESGCM(octets["Key"]), octets["CT"] + octets["Tag"]
        plain = bytearray(len(octets["CT"]))
        if "FAIL" in case:
            with pytest.raises(InvalidTag):
                cipher.decrypt_into(octets["IV"], sealed, octets["AAD"], plain)
            refused += 1
            continue
        cipher.decrypt_into(octets["IV"], sealed, octets["AAD"], plain)
        again = bytearray(len(sealed))
        cipher.encrypt_into(octets["IV"], octets["PT"], octets["AAD"], again)
        assert (bytes(plain), bytes(again)) == (octets["PT"], sealed)
        checked += 1
    assert checked > 100
    assert refused > 100
