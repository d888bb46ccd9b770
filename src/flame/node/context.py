"""What the parts of a running node share."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from flame.node.config import Enrolled, Layout

if TYPE_CHECKING:
    from flame.crypto.atrest import StorageKey
    from flame.crypto.keys import IdentityKey
    from flame.node.egress.policy import Policy
    from flame.node.link import Bulk, Link
    from flame.node.release.keys import RunKeyStore
    from flame.runtime.sandbox import Isolation, Sandbox
    from flame.storage.journal import Journal

log = logging.getLogger("flame.node")


@dataclass
class Context:
    layout: Layout
    enrolled: Enrolled
    identity: IdentityKey
    storage_key: StorageKey
    journal: Journal
    run_keys: RunKeyStore
    policy: Policy
    link: Link
    bulk: Bulk
    sandbox: Sandbox
    isolation: Isolation | None = None

    @property
    def node(self) -> str:
        return self.enrolled.node

    @property
    def fingerprint(self) -> str:
        """Of the key in use."""
        return self.identity.public.fingerprint.hex()

    @property
    def first_key(self) -> str:
        """The first public key (hex of its PEM text): its fingerprint names the node, whatever key is in use."""
        path = self.layout.first_key
        return path.read_text().strip() if path.exists() else self.identity.public.hex_pem

    @property
    def member(self) -> str:
        from flame.protocol.roster import fingerprint_of

        return fingerprint_of(self.first_key)


def now() -> datetime:
    """The node's own clock, never the hub's."""
    return datetime.now(UTC)
