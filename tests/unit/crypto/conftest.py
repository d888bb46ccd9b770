"""Two nodes and the keys they need to write to each other; the vectors of `cryptography_vectors`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import cryptography_vectors
import pytest

from flame.crypto.envelope import Head, HeadFields, RecipientKey, Sealer, open_envelope, seal
from flame.crypto.keys import HybridKey, IdentityKey

RUN = b"R" * 32
SENDER = b"S" * 16
ALICE = b"A" * 16
BOB = b"B" * 16


@dataclass(frozen=True)
class Letters:
    """A sender with an identity, two possible recipients, and how to seal and open between them."""

    sender: IdentityKey = field(default_factory=IdentityKey.generate)
    alice: HybridKey = field(default_factory=HybridKey.generate)
    bob: HybridKey = field(default_factory=HybridKey.generate)

    def to_alice(self, n: int = 0) -> RecipientKey:
        return RecipientKey(ALICE, self.alice.public_bytes, n)

    def to_bob(self, n: int = 0) -> RecipientKey:
        return RecipientKey(BOB, self.bob.public_bytes, n)

    def fields(self, **changed: object) -> HeadFields:
        fields = {
            "type": "object",
            "run": RUN,
            "sender": SENDER,
            "msg_id": b"M" * 16,
            "round": 3,
            "created": 1_000_000,
            "expires": 1_003_600,
            "content_type": "application/octet-stream",
            "log_size": 7,
            "log_root": b"L" * 32,
            "recipients": [self.to_alice(), self.to_bob()],
        }
        return fields | changed  # type: ignore[return-value]

    def seal(self, payload: bytes, **changed: object) -> bytes:
        return seal(self.sender, payload, **self.fields(**changed))

    def sealer(self, total_len: int, **changed: object) -> Sealer:
        return Sealer(self.sender, total_len=total_len, **self.fields(**changed))

    def open_as_alice(self, envelope: bytes) -> tuple[Head, bytes]:
        return open_envelope(envelope, recipient_id=ALICE, hybrid_key=self.alice, expected_sender=self.sender.public)

    def open_as_bob(self, envelope: bytes) -> tuple[Head, bytes]:
        return open_envelope(envelope, recipient_id=BOB, hybrid_key=self.bob, expected_sender=self.sender.public)

    def with_sender(self, sender: IdentityKey) -> Letters:
        return replace(self, sender=sender)


@pytest.fixture(scope="session")
def letters() -> Letters:
    return Letters()


@pytest.fixture(scope="session")
def vectors() -> Iterator[Path]:
    yield Path(cryptography_vectors.__file__).parent
