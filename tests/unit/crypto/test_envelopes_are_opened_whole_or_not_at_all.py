"""What was sealed is opened by those it was sealed to, whole and unchanged, or refused."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from io import BytesIO

import cbor2
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given, settings
from hypothesis import strategies as st

from flame.crypto import _cbor
from flame.crypto.envelope import (
    CHUNK,
    MAX_HEADER,
    Head,
    Header,
    Opener,
    RecipientKey,
    Sealer,
    check_arrival,
    open_envelope,
    peek_head,
    strip_wraps,
    verify_head,
)
from flame.crypto.keys import HybridKey, IdentityKey
from flame.model.errors import BadSignature, Expired, FlameError, Invalid, Malformed, Refused, Unavailable

from .conftest import ALICE, BOB, RUN, SENDER, Letters

THREE_CHUNKS = os.urandom(2 * CHUNK + 12345)
SEVEN_CHUNKS = os.urandom(6 * CHUNK + 1)


def joined(sealer: Sealer, payload: bytes) -> bytes:
    return b"".join(bytes(piece) for piece in sealer.stream(memoryview(payload)))


def resigned(letters: Letters, raw_head: bytes, data: bytes) -> bytes:
    """The envelope with another head, signed by the true sender: what a hostile but genuine sender can make."""
    header = Header.read(BytesIO(data))
    core = hashlib.sha256(b"FLAME/FE2E/2/head\0" + raw_head).digest()
    signature = letters.sender.sign(b"FLAME/FE2E/2/sig-head\0" + core)
    return replace(header, raw_head=raw_head, signature=signature).encode() + data[header.length :]


# ------------------------------------------------------------------------------------------------------ what holds


@pytest.mark.parametrize("size", [0, 1, 1000, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 7 * CHUNK + 3])
def test_each_recipient_opens_what_was_sealed(letters: Letters, size: int) -> None:
    payload = os.urandom(size)
    sealer = letters.sealer(size)
    envelope = joined(sealer, payload)
    assert len(envelope) == sealer.length
    assert letters.open_as_alice(envelope) == (sealer.head, payload)
    assert letters.open_as_bob(envelope) == (sealer.head, payload)


def test_a_file_and_a_buffer_give_the_same_envelope(letters: Letters) -> None:
    sealer = letters.sealer(len(SEVEN_CHUNKS))
    from_file = b"".join(bytes(piece) for piece in sealer.stream(BytesIO(SEVEN_CHUNKS)))
    assert from_file == joined(sealer, SEVEN_CHUNKS)


def test_a_restored_sealer_gives_the_same_bytes(letters: Letters) -> None:
    sealer = letters.sealer(len(SEVEN_CHUNKS))
    restored = Sealer.restore(letters.sender, sealer.state())
    assert restored.length == sealer.length
    assert joined(restored, SEVEN_CHUNKS) == joined(sealer, SEVEN_CHUNKS)
    assert letters.open_as_bob(joined(restored, SEVEN_CHUNKS))[1] == SEVEN_CHUNKS


def test_a_stored_state_that_does_not_fit_is_refused(letters: Letters) -> None:
    state = letters.sealer(5).state()
    with pytest.raises(Refused, match="another identity"):
        Sealer.restore(IdentityKey.generate(), state)
    changed_secret = state[:5] + bytes([state[5] ^ 1]) + state[6:]
    for wrong in (changed_secret, state[:-1], state[:-1168], state[:40], state[:3], b"", b"\xff" * 5000):
        with pytest.raises(Malformed):
            Sealer.restore(letters.sender, wrong)


def test_a_second_payload_under_the_same_key_is_not_completed(letters: Letters) -> None:
    sealer = letters.sealer(5)
    joined(sealer, b"first")
    assert joined(sealer, b"first")
    with pytest.raises(Refused, match="second payload"):
        joined(sealer, b"other")


def test_no_two_envelopes_share_a_key_or_a_nonce(letters: Letters) -> None:
    one, two = letters.sealer(5), letters.sealer(5)
    assert one.head.commit != two.head.commit
    assert joined(one, b"hello")[-85:-64] != joined(two, b"hello")[-85:-64]


@pytest.mark.parametrize("announced", [4, 6, 3 * CHUNK])
def test_a_source_of_another_length_is_refused(letters: Letters, announced: int) -> None:
    with pytest.raises(Invalid, match="announced"):
        joined(letters.sealer(announced), b"12345")
    if announced > 5:
        with pytest.raises(Invalid, match="ended early"):
            list(letters.sealer(announced).stream(BytesIO(b"12345")))


def test_pieces_cannot_be_written_to(letters: Letters) -> None:
    assert all(piece.readonly for piece in letters.sealer(5).stream(memoryview(b"12345")))


def test_the_hub_reads_a_head_without_keys(letters: Letters) -> None:
    envelope = letters.seal(THREE_CHUNKS)
    head, length = peek_head(envelope[:MAX_HEADER])
    assert (head.run, head.sender, head.msg_id, head.total_len) == (RUN, SENDER, b"M" * 16, len(THREE_CHUNKS))
    assert length + head.body_length == len(envelope)
    header = Header.read(BytesIO(envelope))
    verify_head(header.raw_head, header.signature, letters.sender.public)
    with pytest.raises(BadSignature):
        verify_head(header.raw_head, header.signature, IdentityKey.generate().public)
    with pytest.raises(BadSignature):
        verify_head(header.raw_head + b"\0", header.signature, letters.sender.public)


def test_the_payload_occurs_nowhere_in_the_envelope(letters: Letters) -> None:
    canary = b"canary-of-hospital-A"
    envelope = letters.seal(canary * 10)
    assert canary not in envelope
    assert canary not in letters.sealer(200).state()


# ------------------------------------------------------------------------------------------- one wrap for each, alone


def test_each_recipient_opens_the_envelope_with_its_own_wrap_alone(letters: Letters) -> None:
    envelope = letters.seal(THREE_CHUNKS)
    head, length = peek_head(envelope)
    for_alice = strip_wraps(envelope[:length], head.index_of(ALICE)) + envelope[length:]
    for_bob = strip_wraps(envelope[:length], head.index_of(BOB)) + envelope[length:]
    assert len(for_alice) == len(for_bob) == len(envelope) - 1168
    assert letters.open_as_alice(for_alice)[1] == letters.open_as_bob(for_bob)[1] == THREE_CHUNKS
    with pytest.raises(Refused, match="another recipient's"):
        letters.open_as_bob(for_alice)


def test_another_number_of_wraps_is_malformed(letters: Letters) -> None:
    recipients = [letters.to_alice(), letters.to_bob(), RecipientKey(b"C" * 16, letters.bob.public_bytes, 0)]
    envelope = letters.seal(b"hello", recipients=recipients)
    header = Header.read(BytesIO(envelope))
    body = envelope[header.length :]
    for first, wraps in [(0, header.wraps[:2]), (1, header.wraps[1:]), (3, header.wraps[:1]), (1, header.wraps)]:
        with pytest.raises(Malformed):
            letters.open_as_alice(replace(header, first=first, wraps=wraps).encode() + body)
    for count in (0, 65):
        place = 9 + len(header.raw_head) + 1
        with pytest.raises(Malformed):
            letters.open_as_alice(envelope[:place] + bytes([count]) + envelope[place + 1 :])


def test_only_a_header_is_stripped(letters: Letters) -> None:
    envelope = letters.seal(b"hello")
    _, length = peek_head(envelope)
    for wrong, index in [(envelope, 0), (envelope[: length - 1], 0), (envelope[:length], 2)]:
        with pytest.raises(Malformed):
            strip_wraps(wrong, index)


def test_two_keys_of_one_person_are_two_entries(letters: Letters) -> None:
    second = HybridKey.generate()
    envelope = letters.seal(b"result", recipients=[letters.to_alice(), RecipientKey(ALICE, second.public_bytes, 0)])
    assert letters.open_as_alice(envelope)[1] == b"result"
    opened = open_envelope(envelope, recipient_id=ALICE, hybrid_key=second, expected_sender=letters.sender.public)
    assert opened[1] == b"result"
    with pytest.raises(Malformed, match="twice"):
        letters.seal(b"result", recipients=[letters.to_alice(), letters.to_alice(1)])


# --------------------------------------------------------------------------------------------------- what is refused

SMALL_HEAD_AND_MORE = 1900  # an upper bound of the size of a small envelope


@pytest.fixture(scope="module")
def small(letters: Letters) -> bytes:
    envelope = letters.seal(b"hello", recipients=[letters.to_alice()])
    assert len(envelope) <= SMALL_HEAD_AND_MORE
    return envelope


@pytest.mark.parametrize("start", range(0, SMALL_HEAD_AND_MORE, 50))
def test_a_changed_byte_anywhere_is_refused(letters: Letters, small: bytes, start: int) -> None:
    for place in range(start, min(start + 50, len(small))):
        for flip in (0x01, 0x80):
            changed = small[:place] + bytes([small[place] ^ flip]) + small[place + 1 :]
            with pytest.raises((BadSignature, Malformed, Refused)):
                letters.open_as_alice(changed)


@pytest.mark.parametrize("start", range(0, SMALL_HEAD_AND_MORE, 50))
def test_a_truncated_envelope_is_refused(letters: Letters, small: bytes, start: int) -> None:
    for end in range(start, min(start + 50, len(small))):
        with pytest.raises(Malformed):
            letters.open_as_alice(small[:end])


def test_bytes_after_the_end_are_refused(letters: Letters, small: bytes) -> None:
    with pytest.raises(Malformed, match="longer"):
        letters.open_as_alice(small + b"\0")


def test_a_changed_wrap_harms_its_recipient_alone(letters: Letters) -> None:
    envelope = letters.seal(b"hello")
    header = Header.read(BytesIO(envelope))
    spoiled = replace(header, wraps=(header.wraps[0], bytes(1168))).encode() + envelope[header.length :]
    assert letters.open_as_alice(spoiled)[1] == b"hello"
    with pytest.raises(Refused):
        letters.open_as_bob(spoiled)


def test_swapped_recipients_are_refused(letters: Letters) -> None:
    envelope = letters.seal(b"hello")
    header = Header.read(BytesIO(envelope))
    swapped = replace(header, wraps=header.wraps[::-1]).encode() + envelope[header.length :]
    for opening in (letters.open_as_alice, letters.open_as_bob):
        with pytest.raises(Refused):
            opening(swapped)
    head = header.parse_head()
    exchanged = replace(head, recipients=head.recipients[::-1]).encode()
    with pytest.raises(BadSignature):
        letters.open_as_alice(replace(header, raw_head=exchanged).encode() + envelope[header.length :])
    for opening in (letters.open_as_alice, letters.open_as_bob):
        with pytest.raises(Refused):
            opening(
                resigned(letters, exchanged, swapped)
            )  # even signed: wraps are bound to the head they were made for


def test_a_stranger_opens_nothing(letters: Letters, small: bytes) -> None:
    stranger = HybridKey.generate()
    for who, key in [(ALICE, stranger), (BOB, letters.alice), (BOB, letters.bob)]:
        with pytest.raises(Refused, match="not addressed"):
            open_envelope(small, recipient_id=who, hybrid_key=key, expected_sender=letters.sender.public)


def test_an_envelope_of_another_sender_is_refused(letters: Letters) -> None:
    other = letters.with_sender(IdentityKey.generate())
    with pytest.raises(BadSignature):
        letters.open_as_alice(other.seal(b"hello"))


def test_a_head_in_another_senders_name_is_refused(letters: Letters) -> None:
    other = letters.with_sender(IdentityKey.generate())
    envelope = other.seal(b"hello")
    stolen = resigned(letters, Header.read(BytesIO(envelope)).raw_head, envelope)
    with pytest.raises(BadSignature, match="another sender's key"):
        letters.open_as_alice(stolen)


def test_a_wrong_commit_is_refused(letters: Letters) -> None:
    """A sender that seals different keys to different recipients is caught by the commit, before any chunk."""
    envelope = letters.seal(b"hello")
    header = Header.read(BytesIO(envelope))
    raw_head = replace(header.parse_head(), commit=b"\0" * 32).encode()
    core = hashlib.sha256(b"FLAME/FE2E/2/head\0" + raw_head).digest()
    info = b"FLAME/FE2E/2/wrap\0" + core + ALICE + letters.alice.key_id
    wraps = (letters.alice.public.wrap(b"k" * 32, info), header.wraps[1])
    data = replace(header, wraps=wraps).encode() + envelope[header.length :]
    with pytest.raises(Refused, match="commits"):
        letters.open_as_alice(resigned(letters, raw_head, data))


def test_reordered_repeated_and_missing_chunks_are_refused(letters: Letters) -> None:
    envelope = letters.seal(THREE_CHUNKS)
    _, start = peek_head(envelope)
    step = CHUNK + 16
    head, one, two = envelope[:start], envelope[start : start + step], envelope[start + step : start + 2 * step]
    rest = envelope[start + 2 * step :]
    for wrong in (two + one + rest, one + one + rest, two + two + rest):
        with pytest.raises(Refused):
            letters.open_as_alice(head + wrong)
    for wrong in (one + rest, one + two + two + rest):
        with pytest.raises(Malformed):
            letters.open_as_alice(head + wrong)


def test_chunks_of_another_envelope_are_refused(letters: Letters) -> None:
    one, two = letters.seal(b"hello"), letters.seal(b"world")
    _, start = peek_head(one)
    with pytest.raises(Refused):
        letters.open_as_alice(one[:start] + two[start:])


def test_a_truncated_stream_leaves_nothing_behind(letters: Letters) -> None:
    envelope = letters.seal(SEVEN_CHUNKS)
    for cut in (1, 64, 65, CHUNK, 3 * CHUNK):
        stream, out = BytesIO(envelope[:-cut]), bytearray(b"\xaa" * (len(SEVEN_CHUNKS) + 8))
        opener = Opener(ALICE, letters.alice, letters.sender.public)
        opener.read_head(stream)
        with pytest.raises(Malformed):
            opener.open_into(stream, memoryview(out))
        assert not any(out[:-8])
        assert out[-8:] == b"\xaa" * 8  # what was not the payload's is left alone


# ------------------------------------------------------------------- the forgery that a signature over tags would bless


def times(a: int, b: int) -> int:
    """Multiplication in GCM's field, GF(2**128), on blocks read as big-endian integers (NIST SP 800-38D, 6.3)."""
    product = 0
    for bit in range(127, -1, -1):
        if a >> bit & 1:
            product ^= b
        b = b >> 1 ^ (0xE1 << 120 if b & 1 else 0)
    return product


def tag_preserving_forgery(secret: bytes, core: bytes, sealed: bytes, difference: bytes) -> bytes:
    """Change the first block by `difference` and the second so that GHASH, and with it the tag, stays the same."""
    key = HKDF(SHA256(), 32, salt=core, info=b"FLAME/FE2E/2/payload").derive(secret)
    encryptor = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    hash_key = int.from_bytes(encryptor.update(bytes(16)), "big")
    correction = times(int.from_bytes(difference, "big"), hash_key).to_bytes(16, "big")
    changed = bytes(a ^ b for a, b in zip(sealed[:32], difference + correction, strict=True))
    return changed + sealed[32:]


def test_a_co_recipients_tag_preserving_forgery_is_refused(letters: Letters) -> None:
    payload = b"the estimate is 1.00" + bytes(60)
    envelope = letters.seal(payload)
    header = Header.read(BytesIO(envelope))
    head = header.parse_head()
    info = b"FLAME/FE2E/2/wrap\0" + header.core + BOB + letters.bob.key_id
    secret = letters.bob.unwrap(header.wraps[1], info)  # what Bob, a recipient, knows
    sealed = envelope[header.length : -64]
    forged = tag_preserving_forgery(secret, header.core, sealed, b"\x01" + bytes(15))

    key = HKDF(SHA256(), 32, salt=header.core, info=b"FLAME/FE2E/2/payload").derive(secret)
    assert forged[-16:] == sealed[-16:]
    taken = AESGCM(key).decrypt(head.nonce_prefix + bytes(4) + b"\x01", forged, header.core)
    assert taken != payload  # the cipher takes the forgery: same key, same tag, other message

    stream = BytesIO(envelope[: header.length] + forged + envelope[-64:])
    out = bytearray(len(payload))
    opener = Opener(ALICE, letters.alice, letters.sender.public)
    opener.read_head(stream)
    with pytest.raises(BadSignature, match="not what its sender signed"):
        opener.open_into(stream, memoryview(out))
    assert not any(out)


def test_unverified_chunks_end_in_an_error_when_the_signature_does_not_hold(letters: Letters) -> None:
    envelope = letters.seal(SEVEN_CHUNKS)
    for data, ok in [(envelope, True), (envelope[:-1] + bytes([envelope[-1] ^ 1]), False)]:
        stream, seen = BytesIO(data), hashlib.sha256()
        opener = Opener(BOB, letters.bob, letters.sender.public)
        opener.read_head(stream)
        chunks = opener.unverified_chunks(stream)
        if ok:
            for chunk in chunks:
                seen.update(chunk)
            assert seen.digest() == hashlib.sha256(SEVEN_CHUNKS).digest()
        else:
            with pytest.raises(BadSignature):
                list(chunks)


def test_nothing_is_decrypted_before_the_head_has_verified(letters: Letters, small: bytes) -> None:
    opener = Opener(ALICE, letters.alice, letters.sender.public)
    with pytest.raises(Invalid, match="not been read"):
        opener.open_into(BytesIO(small), memoryview(bytearray(5)))
    opener.read_head(BytesIO(small))
    with pytest.raises(FlameError):
        opener.read_head(BytesIO(small[:-100][:200]))
    with pytest.raises(Invalid, match="not been read"):
        opener.open_into(BytesIO(small), memoryview(bytearray(5)))


def test_a_buffer_that_does_not_fit_is_refused(letters: Letters, small: bytes) -> None:
    opener = Opener(ALICE, letters.alice, letters.sender.public)
    stream = BytesIO(small)
    opener.read_head(stream)
    for wrong in (memoryview(bytearray(4)), memoryview(bytes(5))):
        with pytest.raises(Invalid):
            opener.open_into(stream, wrong)
    out = bytearray(5)
    assert opener.open_into(stream, memoryview(out)) == 5
    assert out == b"hello"


# ----------------------------------------------------------------------------------------- stale and foreign envelopes


def test_a_head_of_a_foreign_run_or_sender_is_refused(letters: Letters) -> None:
    head = letters.sealer(0).head
    check_arrival(head, run=RUN, sender=SENDER, now=1_000_000)
    with pytest.raises(Refused, match="another run"):
        check_arrival(head, run=b"r" * 32, sender=SENDER, now=1_000_000)
    with pytest.raises(Refused, match="another sender"):
        check_arrival(head, run=RUN, sender=BOB, now=1_000_000)


def test_a_stale_head_is_refused_and_an_early_one_waits(letters: Letters) -> None:
    head = letters.sealer(0).head
    for now in (1_000_000 - 300, 1_003_600 + 300):
        check_arrival(head, run=RUN, sender=SENDER, now=now)
    with pytest.raises(Expired):
        check_arrival(head, run=RUN, sender=SENDER, now=1_003_600 + 301)
    with pytest.raises(Unavailable) as caught:
        check_arrival(head, run=RUN, sender=SENDER, now=1_000_000 - 301)
    assert caught.value.fields["wait"] == 1


# ------------------------------------------------------------------------------------------------------ strict heads


def test_a_head_is_read_in_its_deterministic_form_alone(letters: Letters) -> None:
    raw = letters.sealer(5).header.raw_head
    value = cbor2.loads(raw)
    assert cbor2.dumps(value, canonical=True) == raw
    backwards = cbor2.dumps(dict(reversed(list(value.items()))))
    indefinite = b"\xbf" + raw[1:] + b"\xff"
    longer_count = b"\xb8\x10" + raw[1:]
    for same_value in (backwards, indefinite, longer_count):
        assert cbor2.loads(same_value) == value  # a lenient reader would take it
        with pytest.raises(Malformed):
            Head.parse(same_value)
    for wrong in (raw + b"\0", raw[:-1], b"\xd9\xd9\xf7" + raw, raw * 2, b""):
        with pytest.raises(Malformed):
            Head.parse(wrong)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("suite", 0), ("suite", 2), ("suite", True), ("type", ""), ("type", "x" * 65), ("type", "a\n"), ("type", "é"),
        ("type", b"object"), ("run", b"r" * 31), ("run", "r" * 32), ("sender", b""), ("sender_key", b"k" * 33),
        ("msg_id", b"m" * 15), ("round", -1), ("round", 1.0), ("round", 2**53), ("round", None), ("created", 2**53),
        ("expires", 999_999), ("content_type", "x" * 129), ("total_len", 2**40 + 1), ("chunk_log2", 19),
        ("chunk_log2", 21), ("nonce_prefix", bytes(8)), ("commit", bytes(31)), ("log", {"size": 1}),
        ("log", {"size": 1, "root": bytes(32), "more": 1}), ("log", []), ("recipients", []), ("recipients", [1]),
        ("recipients", [{"id": bytes(16), "key": bytes(32)}]), ("recipients", {"id": 1}), ("extra", 1),
        ("recipients", [{"id": bytes(16), "key": bytes(32), "n": -1}]),
        ("recipients", [{"id": bytes([i]) * 16, "key": bytes(32), "n": 0} for i in range(65)]),
    ],
)  # fmt: skip
def test_a_field_out_of_type_or_range_is_malformed(letters: Letters, name: str, value: object) -> None:
    fields = cbor2.loads(letters.sealer(5).header.raw_head)
    fields[name] = value
    with pytest.raises(Malformed):
        Head.parse(cbor2.dumps(fields, canonical=True))


@pytest.mark.parametrize("name", ["suite", "run", "recipients", "log", "commit", "expires"])
def test_a_missing_field_is_malformed(letters: Letters, name: str) -> None:
    fields = cbor2.loads(letters.sealer(5).header.raw_head)
    del fields[name]
    with pytest.raises(Malformed):
        Head.parse(cbor2.dumps(fields, canonical=True))


def test_an_oversized_head_is_refused_before_it_is_read(letters: Letters) -> None:
    with pytest.raises(Malformed, match="at most"):
        Head.parse(bytes(65537))
    for size in (65537, 2**32 - 1, 0):
        stream = BytesIO(b"FE2E\x02" + size.to_bytes(4, "big") + bytes(70000))
        with pytest.raises(Malformed, match="announces a head"):
            Opener(ALICE, letters.alice, letters.sender.public).read_head(stream)
        assert stream.tell() == 9


@pytest.mark.parametrize("start", [b"FE2E\x01", b"FE2E\x03", b"fe2e\x02", b"\0" * 5])
def test_another_magic_or_version_is_malformed(letters: Letters, small: bytes, start: bytes) -> None:
    with pytest.raises(Malformed, match="version 2"):
        letters.open_as_alice(start + small[5:])


@pytest.mark.parametrize("recipients", [0, 65])
def test_the_number_of_recipients_is_bounded(letters: Letters, recipients: int) -> None:
    many = [RecipientKey(bytes([i]) * 16, letters.alice.public_bytes, 0) for i in range(recipients)]
    with pytest.raises(Malformed, match="1 to 64"):
        letters.sealer(5, recipients=many)


def test_sixty_four_recipients_fit(letters: Letters) -> None:
    many = [RecipientKey(bytes([i]) * 16, letters.alice.public_bytes, 0) for i in range(63)]
    envelope = letters.seal(b"hello", recipients=[*many, RecipientKey(ALICE, letters.alice.public_bytes, 2**53 - 1)])
    assert letters.open_as_alice(envelope)[1] == b"hello"
    _, length = peek_head(envelope[:MAX_HEADER])
    assert length < MAX_HEADER


def test_nothing_is_sealed_to_a_degenerate_key(letters: Letters) -> None:
    degenerate = letters.alice.public_bytes[:1184] + bytes(32)
    with pytest.raises(Refused, match="degenerate"):
        letters.sealer(5, recipients=[RecipientKey(ALICE, degenerate, 0)])


values = st.recursive(
    st.integers(0, 2**64 - 1) | st.binary(max_size=300) | st.text(st.characters(codec="utf-8"), max_size=30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abcz", max_size=30), inner, max_size=4),
    max_leaves=8,
)


def depth(value: object) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(depth, inner), default=-1)


@given(values.filter(lambda v: depth(v) <= 4))
def test_the_strict_reader_reads_what_cbor2_writes(value: object) -> None:
    assert _cbor.decode(_cbor.encode(value)) == value


@given(st.binary(max_size=80))
@settings(max_examples=400)
def test_any_bytes_are_one_value_in_one_form_or_malformed(data: bytes) -> None:
    try:
        value = _cbor.decode(data)
    except Malformed:
        return
    assert _cbor.encode(value) == data


@given(st.binary(max_size=300))
def test_any_bytes_at_all_are_refused_with_an_error_of_ours(letters: Letters, data: bytes) -> None:
    for attempt in (data, b"FE2E\x02" + data, b"FE2E\x02\0\0\0\x10" + data):
        with pytest.raises((Malformed, BadSignature, Refused)):
            letters.open_as_alice(attempt)
        with pytest.raises(Malformed):
            peek_head(attempt)
