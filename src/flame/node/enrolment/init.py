"""``flame node init``: make the node's keys here, present them with the one-time token, show the fingerprint."""

from __future__ import annotations

import http.client
import json
import secrets
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit
from uuid import UUID

from flame.crypto.atrest import StorageKey
from flame.crypto.canonical import digest
from flame.crypto.keys import IdentityKey, PublicKey, fingerprint_hex, fingerprint_words
from flame.model.errors import Conflict, Invalid, Malformed, Refused, Unavailable
from flame.model.manifest import check_text
from flame.node.config import Enrolled, Layout, write_enrolled

ENROL_CONTEXT = b"flame-enrol-v1\0"


def init(directory: Path, hub: str, token: str, name: str | None = None) -> dict[str, Any]:
    """Make a node's directory and enrol it.

    Returns node id, name, fingerprint (hex and words) of the node and of the hub. The hub's administrator compares
    and confirms; until then the node can do nothing. Raises Conflict when the directory is a node already.
    """
    layout = Layout(directory)
    if (directory / "node.toml").exists():
        raise Conflict(
            f"{directory} is a node already.", next_step="Use another directory, or start it with `flame node serve`."
        )
    layout.create()
    identity = _identity(layout)
    enrolled = _enrolled(hub, name, _post(hub, "/core/enrolments", enrolment_request(token, identity)))
    hub_key = PublicKey.from_hex_pem(enrolled.hub_key)
    _write_defaults(layout)
    write_enrolled(layout, enrolled)
    fingerprint = identity.public.fingerprint
    return {
        "directory": str(directory),
        "node": enrolled.node,
        "name": enrolled.name,
        "fingerprint": fingerprint_hex(fingerprint),
        "words": fingerprint_words(fingerprint),
        "hub": {
            "url": enrolled.hub,
            "fingerprint": fingerprint_hex(hub_key.fingerprint),
            "words": fingerprint_words(hub_key.fingerprint),
        },
    }


def _enrolled(hub: str, name: str | None, answer: dict[str, Any]) -> Enrolled:
    """What the hub's answer settles, checked: it is written into a file and shown to people."""
    node = str(answer.get("nodeId"))
    shown = str(answer.get("name") or name or "")
    try:
        if str(UUID(node)) != node:
            raise Malformed("The node's id is not an identifier.")
        for text in (shown, str(answer.get("clientId")), str(answer.get("type") or "default")):
            check_text(text, "a name")
    except (ValueError, Malformed) as error:
        raise Malformed(
            f"The hub's answer to the enrolment cannot be used: {error}",
            next_step="Is this the address of a hub? Ask its administrator for a new one-time token.",
        ) from None
    return Enrolled(
        hub=hub.rstrip("/"),
        hub_key=str(answer.get("hubKey")),
        node=node,
        client=str(answer.get("clientId")),
        name=" ".join(shown.split()),
        role_hint=str(answer.get("type") or "default"),
    )


def enrolment_request(token: str, identity: IdentityKey) -> dict[str, str]:
    """The body that proves possession of the key together with the token."""
    signature = identity.sign(ENROL_CONTEXT + digest(token.encode() + identity.public.raw))
    return {"token": token, "publicKey": identity.public.hex_pem, "signature": signature.hex()}


def _identity(layout: Layout) -> IdentityKey:
    """The node's key; one that an interrupted attempt left is used again."""
    if not layout.identity.exists():
        IdentityKey.generate().save(layout.identity)
    if not layout.storage_key.exists():
        StorageKey.generate().save(layout.storage_key)
    return IdentityKey.load(layout.identity)


def _write_defaults(layout: Layout) -> None:
    if not layout.policy.exists():
        layout.policy.write_text(
            "# What this hospital allows. Every key and its default: docs/reference/policy.md\n", encoding="utf-8"
        )
    if not layout.sources.exists():
        layout.sources.write_text(
            '# [[source]]\n# name = "data"\n# path = "/path/to/patients.csv"\n# projects = ["<project id>"]\n',
            encoding="utf-8",
        )


def _post(hub: str, path: str, body: dict[str, str]) -> dict[str, Any]:
    where, port = _address(hub)
    kind = http.client.HTTPSConnection if where.scheme == "https" else http.client.HTTPConnection
    connection = kind(where.hostname or "", port, timeout=30)
    try:
        connection.request(
            "POST", where.path.rstrip("/") + path, json.dumps(body), {"Content-Type": "application/json"}
        )
        response = connection.getresponse()
        content = response.read(1 << 20)
    except (OSError, http.client.HTTPException) as error:
        raise Unavailable(
            f"The hub at {hub} cannot be reached: {error}.",
            next_step="Check the address, and that the proxy lets it pass.",
        ) from None
    finally:
        connection.close()
    return _answer(response.status, content)


def _address(hub: str) -> tuple[SplitResult, int | None]:
    try:
        where = urlsplit(hub)
        port = where.port
    except ValueError:
        where, port = urlsplit(""), None
    plain = not where.username and not where.query and not where.fragment and hub.isascii() and hub.isprintable()
    if where.scheme not in ("http", "https") or not where.hostname or not plain:
        raise Invalid(f"{hub[:200]!r} is not the address of a hub.", next_step="Give it as https://hub.example.org.")
    return where, port


def _answer(status: int, content: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(content)
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        parsed = {} if status >= 300 else {"data": None}
    if status >= 300:
        raise Refused(
            f"The hub refused the enrolment: {parsed.get('message', f'HTTP {status}')}",
            next_step="Ask the hub's administrator for a new one-time token.",
        )
    data = parsed.get("data", parsed)
    if not isinstance(data, dict):
        raise Malformed("The hub's answer to the enrolment cannot be read.", next_step="Is this the address of a hub?")
    return data


def new_local_token() -> str:
    return secrets.token_urlsafe(32)
