"""Sealed envelopes, FE2E version 2: all that travels between nodes, and every result.

    envelope = "FE2E" || 2 || u32 len(head) || head || u8 first || u8 count || wraps || sig_head || chunks || sig_end

The two bytes `first, count` are an addition to the design document, where the wraps follow the head directly. They say
which wraps are present: all of them (0, number of recipients) or, when the hub sends each recipient its own alone
(`strip_wraps`), exactly one (its index, 1). They are unsigned like the wraps themselves: a changed one spoils the
envelope and can do no more, since every wrap is bound to head, recipient and key by its `info`, and CK by `commit`.

What is signed is ciphertext, not tags: whoever holds the GCM key, each recipient of a fan-out, can change a message
and keep its tags. So nothing counts before `sig_end`, over the SHA-256 of all chunks, has been checked.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from typing import Protocol, TypedDict, Unpack

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from flame.crypto import _cbor
from flame.crypto._fields import Fields
from flame.crypto.keys import WRAP_BYTES, HybridKey, HybridPublicKey, IdentityKey, PublicKey
from flame.model.errors import BadSignature, Expired, Invalid, Malformed, Refused, Unavailable

MAGIC = b"FE2E\x02"
SUITE = 1  # HPKE base mode with ML-KEM-768 + X25519, HKDF-SHA256, AES-256-GCM; Ed25519; SHA-256
CHUNK_LOG2 = 20
CHUNK = 1 << CHUNK_LOG2
TAG = 16
SIGNATURE = 64
MAX_HEAD = 1 << 16
MAX_RECIPIENTS = 64
MAX_TOTAL = 1 << 40
MAX_HEADER = len(MAGIC) + 4 + MAX_HEAD + 2 + MAX_RECIPIENTS * WRAP_BYTES + SIGNATURE
TOLERANCE = 300  # seconds by which two honest clocks may differ

_HEAD = b"FLAME/FE2E/2/head\0"
_COMMIT = b"FLAME/FE2E/2/commit"
_WRAP = b"FLAME/FE2E/2/wrap\0"
_PAYLOAD = b"FLAME/FE2E/2/payload"
_SIG_HEAD = b"FLAME/FE2E/2/sig-head\0"
_ROOT = b"FLAME/FE2E/2/root\0"
_SIG_END = b"FLAME/FE2E/2/sig-end\0"
_STATE = b"FE2S\x02"

_BUFFERS = 3  # one is hashed, one is with the reader or the cipher, one is ready
_THREAD_FROM = 4  # chunks: below this a second thread costs more than it saves


class Source(Protocol):
    """Where bytes are read from: a file, a socket's file, a BytesIO."""

    def readinto(self, buffer: bytearray | memoryview, /) -> int | None: ...


# ---------------------------------------------------------------------------------------------------------- the head


@dataclass(frozen=True, slots=True)
class Recipient:
    """One entry of a head: who (16 bytes), which public key (its SHA-256), its number for this recipient."""

    id: bytes
    key: bytes
    n: int


@dataclass(frozen=True, slots=True)
class Head:
    """The signed head of an envelope; lengths in bytes, times in seconds since 1970 by the sender's clock."""

    suite: int
    type: str
    run: bytes  # 32: SHA-256 of the start order
    sender: bytes  # 16
    sender_key: bytes  # 32: fingerprint of the sender's identity key
    msg_id: bytes  # 16
    round: int
    created: int
    expires: int
    content_type: str
    total_len: int  # of the plaintext
    chunk_log2: int
    nonce_prefix: bytes  # 7
    commit: bytes  # 32
    log_size: int
    log_root: bytes  # 32: the sender's newest tree head
    recipients: tuple[Recipient, ...]

    @classmethod
    def parse(cls, data: bytes) -> Head:
        """Read a head in its deterministic form; Malformed for anything else."""
        if len(data) > MAX_HEAD:
            raise Malformed(f"The head has {len(data)} bytes; at most {MAX_HEAD} are read.", limit=MAX_HEAD)
        head = Fields.exactly("head", _cbor.decode(data), _HEAD_KEYS)
        log = Fields.exactly("head.log", head.values["log"], {"size", "root"})
        created = head.number("created")
        return cls(
            suite=head.number("suite", least=SUITE, most=SUITE),
            type=head.token("type", most=64),
            run=head.octets("run", 32),
            sender=head.octets("sender", 16),
            sender_key=head.octets("sender_key", 32),
            msg_id=head.octets("msg_id", 16),
            round=head.number("round"),
            created=created,
            expires=head.number("expires", least=created),
            content_type=head.token("content_type", most=128),
            total_len=head.number("total_len", most=MAX_TOTAL),
            chunk_log2=head.number("chunk_log2", least=CHUNK_LOG2, most=CHUNK_LOG2),
            nonce_prefix=head.octets("nonce_prefix", 7),
            commit=head.octets("commit", 32),
            log_size=log.number("size"),
            log_root=log.octets("root", 32),
            recipients=_parse_recipients(head.items("recipients", most=MAX_RECIPIENTS)),
        )

    def encode(self) -> bytes:
        """The deterministic CBOR form; Malformed when a field is out of its range."""
        values = {name: getattr(self, name) for name in _HEAD_KEYS - {"log", "recipients"}}
        values["log"] = {"size": self.log_size, "root": self.log_root}
        values["recipients"] = [{"id": r.id, "key": r.key, "n": r.n} for r in self.recipients]
        encoded = _cbor.encode(values)
        Head.parse(encoded)
        return encoded

    @property
    def chunks(self) -> int:
        """The number of chunks; an empty payload is one empty chunk."""
        return max(1, -(-self.total_len // CHUNK))

    @property
    def body_length(self) -> int:
        """Bytes after the header: chunks with their tags, and the last signature."""
        return self.total_len + TAG * self.chunks + SIGNATURE

    def index_of(self, recipient_id: bytes, key_id: bytes | None = None) -> int:
        """The place of a recipient (and of one key, if it has several); Refused when it is not addressed."""
        for index, entry in enumerate(self.recipients):
            if entry.id == recipient_id and key_id in (None, entry.key):
                return index
        raise Refused(
            "This envelope is not addressed to this recipient and key.",
            next_step="If the key was renewed, the sender has to seal the message again.",
        )


_HEAD_KEYS = frozenset(
    {
        "suite", "type", "run", "sender", "sender_key", "msg_id", "round", "created", "expires", "content_type",
        "total_len", "chunk_log2", "nonce_prefix", "commit", "log", "recipients",
    }
)  # fmt: skip


def _parse_recipients(entries: list[object]) -> tuple[Recipient, ...]:
    found = []
    for entry in entries:
        fields = Fields.exactly("recipient", entry, {"id", "key", "n"})
        found.append(Recipient(fields.octets("id", 16), fields.octets("key", 32), fields.number("n")))
    if len({(r.id, r.key) for r in found}) != len(found):
        raise Malformed("The head names the same recipient and key twice.")
    return tuple(found)


def check_arrival(head: Head, *, run: bytes, sender: bytes, now: int, tolerance: int = TOLERANCE) -> None:
    """Judge a head once, when its envelope is first accepted; `now` is the receiver's own clock.

    Raises Refused for another run or sender, Expired for one too old, Unavailable (seconds in `wait`) for one that
    was made in the future: it waits.
    """
    if head.run != run:
        raise Refused("This envelope belongs to another run.", run=head.run.hex())
    if head.sender != sender:
        raise Refused("This envelope names another sender than the one it came from.", sender=head.sender.hex())
    if head.expires + tolerance < now:
        raise Expired(f"This envelope expired {now - head.expires} s ago.", next_step="Check both nodes' clocks.")
    if head.created > now + tolerance:
        wait = head.created - tolerance - now
        raise Unavailable(f"This envelope was made {head.created - now} s in the future; it waits.", wait=wait)


# -------------------------------------------------------------------------------------------------------- the header


@dataclass(frozen=True, slots=True)
class Header:
    """Everything before the first chunk: the head as received, the wraps present, the head's signature. Unverified."""

    raw_head: bytes
    first: int
    wraps: tuple[bytes, ...]
    signature: bytes

    @classmethod
    def read(cls, stream: Source) -> Header:
        """Read a header from the start of an envelope; Malformed for anything else. Checks no signature."""
        start = bytes(_read_exactly(stream, len(MAGIC) + 4))
        if start[: len(MAGIC)] != MAGIC:
            raise Malformed("These bytes are not an FE2E envelope of version 2.")
        size = int.from_bytes(start[len(MAGIC) :], "big")
        if not 0 < size <= MAX_HEAD:
            raise Malformed(f"The envelope announces a head of {size} bytes; at most {MAX_HEAD} are read.")
        raw_head = bytes(_read_exactly(stream, size))
        first, count = _read_exactly(stream, 2)
        if not 0 < count <= MAX_RECIPIENTS:
            raise Malformed(f"The envelope announces {count} wraps; 1 to {MAX_RECIPIENTS} are possible.")
        wraps = tuple(bytes(_read_exactly(stream, WRAP_BYTES)) for _ in range(count))
        return cls(raw_head, first, wraps, bytes(_read_exactly(stream, SIGNATURE)))

    def parse_head(self) -> Head:
        """The head's fields; Malformed also when the wraps present fit neither all recipients nor exactly one."""
        head = Head.parse(self.raw_head)
        everyone = self.first == 0 and len(self.wraps) == len(head.recipients)
        one = len(self.wraps) == 1 and self.first < len(head.recipients)
        if not (everyone or one):
            raise Malformed("The envelope carries neither every recipient's wrap nor exactly one.")
        return head

    def wrap_for(self, index: int) -> bytes:
        """The wrap of the recipient at this place; Refused when the hub sent somebody else's alone."""
        if not self.first <= index < self.first + len(self.wraps):
            raise Refused("The envelope carries another recipient's key wrap, not the one for this recipient.")
        return self.wraps[index - self.first]

    def only(self, index: int) -> Header:
        """The same header with one recipient's wrap alone."""
        return Header(self.raw_head, index, (self.wrap_for(index),), self.signature)

    def encode(self) -> bytes:
        section = bytes([self.first, len(self.wraps)]) + b"".join(self.wraps)
        return MAGIC + len(self.raw_head).to_bytes(4, "big") + self.raw_head + section + self.signature

    @property
    def core(self) -> bytes:
        """SHA-256 over the head's bytes on the wire, 32 bytes: what everything else is bound to."""
        return hashlib.sha256(_HEAD + self.raw_head).digest()

    @property
    def length(self) -> int:
        return len(MAGIC) + 4 + len(self.raw_head) + 2 + WRAP_BYTES * len(self.wraps) + SIGNATURE


def peek_head(data: bytes) -> tuple[Head, int]:
    """For the hub: (head, length of the header) from the first bytes of an envelope, with no key and no signature
    checked. `data` needs the whole header (at most MAX_HEADER bytes) and may go on."""
    header = Header.read(BytesIO(data[:MAX_HEADER]))
    return header.parse_head(), header.length


def verify_head(head_bytes: bytes, signature: bytes, sender: PublicKey) -> None:
    """Raises BadSignature unless `sender` signed the head with these bytes."""
    core = hashlib.sha256(_HEAD + head_bytes).digest()
    try:
        sender.verify(signature, _SIG_HEAD + core)
    except BadSignature as error:
        raise BadSignature(
            "The envelope's head is not signed by the sender that it was said to come from.",
            sender_key=sender.fingerprint.hex(),
        ) from error


def strip_wraps(header: bytes, index: int) -> bytes:
    """The header (as measured by `peek_head`) with the wrap of recipient `index` alone; the body stays as it is."""
    parsed = Header.read(BytesIO(header))
    if parsed.length != len(header) or index >= len(parsed.parse_head().recipients):
        raise Malformed("This is not exactly an envelope's header, or has no such recipient.")
    return parsed.only(index).encode()


# ----------------------------------------------------------------------------------------------------------- sealing


@dataclass(frozen=True, slots=True)
class RecipientKey:
    """To whom to seal: id (16 bytes), hybrid public key (1216 bytes), the next number for this recipient."""

    id: bytes
    public: bytes
    n: int


class HeadFields(TypedDict):
    """What the sender says in a head; see Head for lengths and units."""

    type: str
    run: bytes
    sender: bytes
    msg_id: bytes
    round: int
    created: int
    expires: int
    content_type: str
    log_size: int
    log_root: bytes
    recipients: Sequence[RecipientKey]


class Sealer:
    """Makes one envelope. Its `state()` restores it after a crash, so that a repeat is the same bytes.

    One Sealer, one plaintext: its key and nonces belong to the payload it was made for. Two different payloads under
    one state would give away both; a caller that restores a state must hold the same plaintext, kept with it.
    """

    def __init__(self, identity: IdentityKey, *, total_len: int, **fields: Unpack[HeadFields]) -> None:
        """Raises Malformed when a field is out of range, Refused when a recipient's key is degenerate."""
        if not 1 <= len(fields["recipients"]) <= MAX_RECIPIENTS:
            raise Malformed(f"An envelope has 1 to {MAX_RECIPIENTS} recipients.", field="recipients")
        secret = os.urandom(32)
        keys = [HybridPublicKey(r.public) for r in fields["recipients"]]
        recipients = tuple(Recipient(r.id, k.key_id, r.n) for r, k in zip(fields["recipients"], keys, strict=True))
        head = Head(
            suite=SUITE,
            type=fields["type"],
            run=fields["run"],
            sender=fields["sender"],
            sender_key=identity.public.fingerprint,
            msg_id=fields["msg_id"],
            round=fields["round"],
            created=fields["created"],
            expires=fields["expires"],
            content_type=fields["content_type"],
            total_len=total_len,
            chunk_log2=CHUNK_LOG2,
            nonce_prefix=os.urandom(7),
            commit=_commit(secret),
            log_size=fields["log_size"],
            log_root=fields["log_root"],
            recipients=recipients,
        )
        raw_head = head.encode()
        core = hashlib.sha256(_HEAD + raw_head).digest()
        wraps = tuple(k.wrap(secret, _wrap_info(core, r)) for k, r in zip(keys, recipients, strict=True))
        self._adopt(identity, secret, raw_head, wraps)

    @classmethod
    def restore(cls, identity: IdentityKey, state: bytes) -> Sealer:
        """The Sealer that `state()` described. Raises Malformed, or Refused when it was another identity's."""
        secret, raw_head, wraps = _parse_state(state)
        head = Head.parse(raw_head)
        if head.sender_key != identity.public.fingerprint:
            raise Refused("This envelope was begun under another identity key.")
        if len(wraps) != len(head.recipients) or not hmac.compare_digest(head.commit, _commit(secret)):
            raise Malformed("The stored state of an envelope does not fit together.")
        sealer = cls.__new__(cls)
        sealer._adopt(identity, secret, raw_head, wraps)
        return sealer

    def _adopt(self, identity: IdentityKey, secret: bytes, raw_head: bytes, wraps: tuple[bytes, ...]) -> None:
        self._identity, self._secret = identity, secret
        self.head = Head.parse(raw_head)
        core = hashlib.sha256(_HEAD + raw_head).digest()
        self.header = Header(raw_head, 0, wraps, identity.sign(_SIG_HEAD + core))
        self.core = core
        self._root: bytes | None = None

    def state(self) -> bytes:
        """All that a repeat needs, CK among it: keep it sealed under the storage key (`atrest`), with the plaintext."""
        size = len(self.header.raw_head).to_bytes(4, "big")
        return _STATE + self._secret + size + self.header.raw_head + b"".join(self.header.wraps)

    @property
    def length(self) -> int:
        """Bytes of the whole envelope."""
        return self.header.length + self.head.body_length

    def stream(self, source: Source | memoryview) -> Iterator[memoryview]:
        """The envelope in pieces, in order. A piece is valid until the next is asked for: its buffer is used again.

        Reads exactly `total_len` bytes; Invalid when the source ends earlier, or a memoryview has another length.
        """
        plain = _plain_chunks(source, self.head)
        yield memoryview(self.header.encode())
        cipher = _ChunkCipher(self._secret, self.core, self.head)
        with _Digests(self.head.chunks) as digests:
            for index, chunk in enumerate(plain):
                sealed = digests.buffer(len(chunk) + TAG)
                cipher.seal(index, chunk, sealed)
                digests.add(sealed)
                yield sealed.toreadonly()
            root = digests.root()
        self._check_same_payload(root)
        yield memoryview(self._identity.sign(_SIG_END + self.core + root))

    def _check_same_payload(self, root: bytes) -> None:
        if self._root not in (None, root):
            raise Refused("A second payload was sealed under the key of the first; the envelope is not completed.")
        self._root = root


def seal(identity: IdentityKey, payload: bytes | memoryview, **fields: Unpack[HeadFields]) -> bytes:
    """One envelope around a small payload, as bytes."""
    sealer = Sealer(identity, total_len=memoryview(payload).nbytes, **fields)
    return b"".join(bytes(piece) for piece in sealer.stream(memoryview(payload)))


def _parse_state(state: bytes) -> tuple[bytes, bytes, tuple[bytes, ...]]:
    start = len(_STATE) + 32 + 4
    if state[: len(_STATE)] != _STATE or len(state) < start:
        raise Malformed("This is not the stored state of an envelope.")
    end = start + int.from_bytes(state[start - 4 : start], "big")
    wraps = state[end:]
    if end > len(state) or len(wraps) % WRAP_BYTES:
        raise Malformed("The stored state of an envelope is cut off.")
    pieces = tuple(wraps[i : i + WRAP_BYTES] for i in range(0, len(wraps), WRAP_BYTES))
    return state[len(_STATE) : start - 4], state[start:end], pieces


def _plain_chunks(source: Source | memoryview, head: Head) -> Iterator[memoryview]:
    if isinstance(source, memoryview):
        whole = _octets(source)
        if len(whole) != head.total_len:
            raise Invalid(f"The payload has {len(whole)} bytes; {head.total_len} were announced.")
        return (whole[i * CHUNK : (i + 1) * CHUNK] for i in range(head.chunks))
    return _read_chunks(source, head)


def _read_chunks(source: Source, head: Head) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(min(CHUNK, head.total_len)))
    for index in range(head.chunks):
        piece = buffer[: min(CHUNK, head.total_len - index * CHUNK)]
        if _fill(source, piece) != len(piece):
            raise Invalid(f"The payload ended early; {head.total_len} bytes were announced.")
        yield piece


# ----------------------------------------------------------------------------------------------------------- opening


class Opener:
    """Opens one envelope for one recipient. First `read_head`, then `open_into` (or `unverified_chunks`)."""

    def __init__(self, recipient_id: bytes, hybrid_key: HybridKey, expected_sender: PublicKey) -> None:
        self._id, self._key, self._sender = recipient_id, hybrid_key, expected_sender
        self._verified: tuple[Head, bytes, bytes] | None = None

    def read_head(self, stream: Source) -> Head:
        """Read the header; return the head once its signature, its wrap for this recipient and its commit hold.

        The signature comes before anything else is done with the bytes. Raises BadSignature, Malformed or Refused.
        Run, role, type, number and time are for the caller to judge (`check_arrival`, `counters`).
        """
        self._verified = None
        header = Header.read(stream)
        verify_head(header.raw_head, header.signature, self._sender)
        head = header.parse_head()
        if head.sender_key != self._sender.fingerprint:
            raise BadSignature("The head names another sender's key than the one that signed it.")
        index = head.index_of(self._id, self._key.key_id)
        info = _wrap_info(header.core, head.recipients[index])
        secret = self._key.unwrap(header.wrap_for(index), info)
        if len(secret) != 32 or not hmac.compare_digest(_commit(secret), head.commit):
            raise Refused("The key in this envelope is not the one that its head commits to.")
        self._verified = (head, header.core, secret)
        return head

    @property
    def core(self) -> bytes:
        """SHA-256 over the verified head's bytes on the wire."""
        return self._secrets()[1]

    def open_into(self, stream: Source, out: memoryview) -> int:
        """Decrypt into `out` (at least `total_len` bytes), straight after the header; returns the length.

        Returns only when the last signature holds; on any failure what was written is wiped, and Malformed, Refused
        or BadSignature raised.
        """
        head, _, _ = self._secrets()
        target = _octets(out)
        if len(target) < head.total_len or target.readonly:
            raise Invalid(f"The buffer for the payload must be writable and have {head.total_len} bytes.")
        try:
            for _ in self._decrypt(stream, lambda start, size: target[start : start + size]):
                pass
        except BaseException:
            _wipe(target[: head.total_len])
            raise
        return head.total_len

    def unverified_chunks(self, stream: Source) -> Iterator[memoryview]:
        """The plaintext in pieces, **before** the last signature is known to hold; the buffer is used again.

        Only for what can be thrown away whole: the caller must discard everything unless the iterator ends without
        an error.
        """
        buffer = memoryview(bytearray(min(CHUNK, self._secrets()[0].total_len)))
        try:
            yield from self._decrypt(stream, lambda _, size: buffer[:size])
        finally:
            _wipe(buffer)

    def _secrets(self) -> tuple[Head, bytes, bytes]:
        """(head, core, CK) of the envelope whose head has been verified."""
        if self._verified is None:
            raise Invalid("The head of the envelope has not been read and verified yet.")
        return self._verified

    def _decrypt(self, stream: Source, target: Callable[[int, int], memoryview]) -> Iterator[memoryview]:
        head, core, secret = self._secrets()
        cipher = _ChunkCipher(secret, core, head)
        with _Digests(head.chunks) as digests:
            for index in range(head.chunks):
                size = min(CHUNK, head.total_len - index * CHUNK)
                sealed = digests.buffer(size + TAG)
                _read_into(stream, sealed)
                digests.add(sealed)
                plain = target(index * CHUNK, size)
                cipher.open(index, sealed, plain)
                yield plain
            root = digests.root()
        self._verify_end(bytes(_read_exactly(stream, SIGNATURE)), core, root)

    def _verify_end(self, signature: bytes, core: bytes, root: bytes) -> None:
        try:
            self._sender.verify(signature, _SIG_END + core + root)
        except BadSignature as error:
            raise BadSignature(
                "The envelope's content is not what its sender signed; nothing of it is used.",
                next_step="Ask for it to be sent again. If it happens again, hub or a co-recipient alters messages.",
            ) from error


def open_envelope(
    data: bytes, *, recipient_id: bytes, hybrid_key: HybridKey, expected_sender: PublicKey
) -> tuple[Head, bytes]:
    """Open a whole envelope held in memory: (head, plaintext). Bytes after its end are Malformed."""
    stream = BytesIO(data)
    opener = Opener(recipient_id, hybrid_key, expected_sender)
    head = opener.read_head(stream)
    if len(data) - stream.tell() != head.body_length:
        raise Malformed("The envelope is cut off, or longer than its head says.")
    plain = bytearray(head.total_len)
    opener.open_into(stream, memoryview(plain))
    return head, bytes(plain)


# ------------------------------------------------------------------------------------------------- keys, chunks, root


def _commit(secret: bytes) -> bytes:
    return HKDF(SHA256(), 32, salt=None, info=_COMMIT).derive(secret)


def _wrap_info(core: bytes, recipient: Recipient) -> bytes:
    return _WRAP + core + recipient.id + recipient.key


class _ChunkCipher:
    """AES-256-GCM over the chunks of one envelope."""

    def __init__(self, secret: bytes, core: bytes, head: Head) -> None:
        self._aead = AESGCM(HKDF(SHA256(), 32, salt=core, info=_PAYLOAD).derive(secret))
        self._core, self._prefix, self._last = core, head.nonce_prefix, head.chunks - 1

    def seal(self, index: int, plain: memoryview, out: memoryview) -> None:
        self._aead.encrypt_into(self._nonce(index), plain, self._core, out)

    def open(self, index: int, sealed: memoryview, out: memoryview) -> None:
        try:
            self._aead.decrypt_into(self._nonce(index), sealed, self._core, out)
        except (InvalidTag, ValueError) as error:
            _wipe(out)  # decrypt_into leaves unverified plaintext behind
            raise Refused(f"Part {index} of the envelope was damaged on the way, or is not in its place.") from error

    def _nonce(self, index: int) -> bytes:
        return self._prefix + index.to_bytes(4, "big") + bytes([index == self._last])


class _Digests:
    """SHA-256 of each chunk, in a second thread for large payloads, over a ring of reused buffers.

    Hashing is the slowest step by far (1.9 GB/s against 20 GB/s of the cipher), so it runs beside everything else.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._pool: ThreadPoolExecutor | None = None
        if count >= _THREAD_FROM:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="envelope-hash")
        self._done: list[bytes] = []
        self._pending: deque[Future[bytes]] = deque()
        self._ring: list[memoryview] = []
        self._turn = 0

    def __enter__(self) -> _Digests:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True)

    def buffer(self, size: int) -> memoryview:
        """A buffer of this size whose former content has been hashed and handed on."""
        while len(self._pending) >= _BUFFERS:
            self._done.append(self._pending.popleft().result())
        turn, self._turn = self._turn % _BUFFERS, self._turn + 1
        if turn == len(self._ring):
            self._ring.append(memoryview(bytearray(size)))
        return self._ring[turn][:size]  # no chunk is longer than the first

    def add(self, sealed: memoryview) -> None:
        if self._pool is None:
            self._done.append(_sha256(sealed))
        else:
            self._pending.append(self._pool.submit(_sha256, sealed))

    def root(self) -> bytes:
        """SHA-256 over the number of chunks and their digests, 32 bytes."""
        self._done.extend(future.result() for future in self._pending)
        self._pending.clear()
        return hashlib.sha256(_ROOT + self._count.to_bytes(4, "big") + b"".join(self._done)).digest()


def _sha256(data: memoryview) -> bytes:
    return hashlib.sha256(data).digest()


# ------------------------------------------------------------------------------------------------------------ reading


def _octets(view: memoryview) -> memoryview:
    if not view.c_contiguous:
        raise Invalid("The payload's buffer must be contiguous.")
    if view.nbytes == 0:  # an empty array of several dimensions cannot be cast
        return memoryview(bytearray())
    return view if view.format == "B" and view.ndim == 1 else view.cast("B")


def _fill(source: Source, view: memoryview) -> int:
    """Read until the view is full or the source ends; returns how much came."""
    filled = 0
    while filled < len(view):
        got = source.readinto(view[filled:])
        if not got:  # 0: the end; None: a non-blocking source without data, which has no place here
            break
        filled += got
    return filled


def _read_into(stream: Source, view: memoryview) -> None:
    if _fill(stream, view) != len(view):
        raise Malformed("The envelope ends early.", next_step="Fetch it again; the hub may have cut it off.")


def _read_exactly(stream: Source, size: int) -> bytearray:
    data = bytearray(size)
    _read_into(stream, memoryview(data))
    return data


def _wipe(view: memoryview) -> None:
    zeros = bytes(min(CHUNK, len(view)))
    for start in range(0, len(view), CHUNK):
        part = view[start : start + CHUNK]
        part[:] = zeros[: len(part)]
