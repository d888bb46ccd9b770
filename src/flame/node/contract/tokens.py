"""Tokens for programs that need one. A run is known by its socket: whoever copies a token has gained nothing."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import time
from typing import Final

LIFE_SECONDS: Final = 900
RENEW_BELOW: Final = LIFE_SECONDS * 2 // 3
"""Renewed at a third of their life, so that a program that is busy for minutes never holds an expired one."""
_HEAD: Final = {"alg": "HS256", "typ": "JWT"}


class Tokens:
    """Mints the tokens of one run."""

    def __init__(self, analysis: str, life: int = LIFE_SECONDS) -> None:
        self._analysis, self._life = analysis, life
        self._key = secrets.token_bytes(32)

    def mint(self) -> str:
        """Three parts; the middle one has neither '-' nor '_' and needs no padding, for readers with plain base64.

        Base64 has its last two letters only for bytes that JSON of identifiers and numbers does not hold.
        """
        now = int(time.time())
        claims = {
            "iss": "flame-node",
            "sub": self._analysis,
            "client_id": self._analysis,
            "azp": self._analysis,
            "iat": now,
            "exp": now + self._life,
            "jti": secrets.token_hex(8),
        }
        text = json.dumps(claims, separators=(",", ":"))
        signed = f"{_encoded(json.dumps(_HEAD).encode())}.{_encoded((text + ' ' * (-len(text) % 3)).encode())}"
        return f"{signed}.{_encoded(hmac.new(self._key, signed.encode(), hashlib.sha256).digest())}"


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
