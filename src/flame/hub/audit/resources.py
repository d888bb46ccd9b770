"""The log's entries as a collection that can be asked."""

from __future__ import annotations

import json

from flame.hub.audit.tables import leaves
from flame.hub.authorisation import readable_log
from flame.hub.resources import Resource, Row


def _readable(row: Row) -> Row:
    """Hashes in hex; the leaf as what it is, an event and its signature."""
    if "leaf" in row:
        said = json.loads(row.pop("leaf"))
        row |= {"event": json.loads(said["event"]), "signature": said["signature"]}
    if "hash" in row:
        row["hash"] = bytes(row["hash"]).hex()
    return row


ENTRY = Resource(
    "log entry",
    leaves,
    readable_log,
    filters=frozenset({"index", "type", "subject", "signer", "projectId", "time"}),
    sorts=frozenset({"index"}),
    default_sort="-index",
    computed={"index": leaves.c.idx},
    secret=frozenset({"idx", "root", "nodes"}),
    finish=_readable,
    key="idx",
)
