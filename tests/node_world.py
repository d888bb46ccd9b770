"""A manifest to test a node with: three data nodes and an aggregator, and whatever a test wants declared."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from flame.model.manifest import (
    CodeFile,
    DataRequest,
    Environment,
    Manifest,
    Participant,
    Recipient,
    Release,
    Researcher,
    Resources,
)

DATA_NODES = tuple(f"{i:08d}-0000-4000-8000-000000000000" for i in (1, 2, 3))
AGGREGATOR = "00000009-0000-4000-8000-000000000000"
PROJECT = "10000000-0000-4000-8000-000000000000"
ANALYSIS = "20000000-0000-4000-8000-000000000000"
PERSON = "30000000-0000-4000-8000-000000000000"

RELEASES = (
    Release("beta", "sum", 4096, 3, "clear", "auto"),
    Release("*", "object", 1024, 5, "clear", "auto"),
    Release("state", "model", 2048, 5, "clear", "auto"),
    Release("*", "log", 4096, 1000, "clear", "auto"),
    Release("*", "final", 4096, 2, "clear", "hold"),
)


def manifest(releases: Sequence[Release] = RELEASES, code: Mapping[str, bytes] | None = None, **other: Any) -> Manifest:
    files = code or {"main.py": b"print('x')\n"}
    members = [
        Participant(node, node[:8], "default", "org-" + node[:8], hashlib.sha256(node.encode()).hexdigest())
        for node in DATA_NODES
    ]
    members.append(
        Participant(AGGREGATOR, "aggregator", "aggregator", "org-agg", hashlib.sha256(AGGREGATOR.encode()).hexdigest())
    )
    values: dict[str, Any] = {
        "version": 1,
        "analysis": ANALYSIS,
        "project": PROJECT,
        "title": "Survival",
        "purpose": "",
        "created": "2026-11-01T10:00:00Z",
        "expires": "2027-01-01T10:00:00Z",
        "code": tuple(
            CodeFile(path, len(data), hashlib.sha256(data).hexdigest()) for path, data in sorted(files.items())
        ),
        "entrypoint": sorted(files)[0],
        "arguments": (),
        "environment": Environment("python", "sha256:" + "0" * 64),
        "participants": tuple(sorted(members, key=lambda member: member.node)),
        "runs_max": 1,
        "data": (DataRequest("*", "data", "table", (), 0),),
        "parameters": (),
        "releases": tuple(releases),
        "resources": Resources(1, 1 << 30, 1 << 28, 64, 3600),
        "recipients": (Recipient(PERSON, "ada", "a" * 64),),
        "researcher": Researcher(PERSON, "ada", "b" * 64),
    }
    return Manifest(**{**values, **other})
