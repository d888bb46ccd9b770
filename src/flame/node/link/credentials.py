"""A key-bound credential: the node signs a short-lived assertion with its identity key and gets a bearer token."""

from __future__ import annotations

import base64
import json
import secrets
import time
from urllib.parse import urlsplit

from flame.crypto.keys import IdentityKey

ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"


def token_request(identity: IdentityKey, client: str, hub: str) -> dict[str, str]:
    """Body of ``POST /auth/token``: client credentials by ``private_key_jwt`` (RFC 7523), EdDSA (RFC 8037)."""
    return {
        "grant_type": "client_credentials",
        "client_id": client,
        "client_assertion_type": ASSERTION_TYPE,
        "client_assertion": _assertion(identity, client, f"{hub}/auth/token"),
    }


def _assertion(identity: IdentityKey, client: str, audience: str) -> str:
    now = int(time.time())
    claims = {"iss": client, "sub": client, "aud": audience, "iat": now, "exp": now + 60, "jti": secrets.token_hex(16)}
    signed = f"{_segment({'alg': 'EdDSA', 'typ': 'JWT'})}.{_segment(claims)}"
    return f"{signed}.{_base64(identity.sign(signed.encode()))}"


def _segment(value: dict[str, object]) -> str:
    return _base64(json.dumps(value, separators=(",", ":")).encode())


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def is_loopback(url: str) -> bool:
    return urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")
