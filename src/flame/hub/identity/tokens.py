"""Tokens: EdDSA JWTs of the hub, and the assertions with which nodes authenticate by their own key."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from dataclasses import dataclass
from typing import Any, Final, Literal
from urllib.parse import urlsplit
from uuid import uuid4

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import OKPKey

from flame.crypto.keys import IdentityKey, PublicKey
from flame.model.errors import Invalid, NotAuthenticated

ALGORITHMS: Final = ["Ed25519", "EdDSA"]
ASSERTION_SECONDS: Final = 300
LEEWAY: Final = 30
AUDIENCE: Final = "flame-hub"
_MAX_TOKEN: Final = 8192


@dataclass(frozen=True, slots=True)
class Claims:
    subject: str
    kind: Literal["user", "client"]
    session: str
    id: str
    expires: int


class Tokens:
    """Issues and reads the hub's own tokens."""

    def __init__(self, key: IdentityKey, access_seconds: int, refresh_seconds: int) -> None:
        self._private = _jwk(key.public.raw, key.private_bytes)
        self._public = _jwk(key.public.raw)
        self._pepper = hashlib.sha256(b"flame-hub-pepper-v1\0" + key.private_bytes).digest()
        self._kid = key.public.fingerprint.hex()[:16]
        self.access_seconds = access_seconds
        self.refresh_seconds = refresh_seconds

    def issue(self, use: Literal["access", "refresh"], kind: str, subject: str, session: str) -> tuple[str, str]:
        """A token and its own id."""
        now = int(time.time())
        token_id = str(uuid4())
        life = self.access_seconds if use == "access" else self.refresh_seconds
        claims: dict[str, Any] = {"sub": subject, "sub_kind": kind, "sid": session, "use": use, "jti": token_id}
        claims |= {"iat": now, "exp": now + life, "aud": AUDIENCE}
        return self._signed(claims), token_id

    def issue_id(self, issuer: str, client: str, subject: str, **more: str) -> str:
        """An OpenID Connect id token: who somebody is, for one client. It opens nothing here."""
        now = int(time.time())
        claims = {"iss": issuer, "sub": subject, "aud": client, "iat": now, "exp": now + ASSERTION_SECONDS, "use": "id"}
        return self._signed(claims | more)

    def _signed(self, claims: dict[str, Any]) -> str:
        return jwt.encode({"alg": "Ed25519", "kid": self._kid}, claims, self._private, algorithms=ALGORITHMS)

    @property
    def jwks(self) -> dict[str, Any]:
        """The public key, for clients that check id tokens."""
        public: dict[str, Any] = {**self._public.as_dict(private=False)}
        return {"keys": [public | {"kid": self._kid, "use": "sig", "alg": "Ed25519"}]}

    def mark(self, *parts: str) -> str:
        """A keyed hash: what the hub recognises again, and nobody who has its database reads or makes."""
        message = b"".join(len(raw).to_bytes(4, "big") + raw for raw in (part.encode() for part in parts))
        return hmac.new(self._pepper, message, hashlib.sha256).hexdigest()

    def read(self, token: str, use: Literal["access", "refresh"]) -> Claims:
        """Raises Invalid ("The JWT is invalid.") for what is none of ours, NotAuthenticated for an expired one."""
        claims = _decode(token, self._public)
        ours = claims is not None and claims.get("use") == use and claims.get("aud") == AUDIENCE
        if claims is None or not ours or claims.get("sub_kind") not in ("user", "client"):
            raise Invalid("The JWT is invalid.", next_step="Log in again.")
        if not isinstance(claims.get("exp"), int) or claims["exp"] < time.time():
            raise NotAuthenticated("The token has expired.", next_step="Log in again, or use the refresh token.")
        return Claims(str(claims["sub"]), claims["sub_kind"], str(claims["sid"]), str(claims["jti"]), claims["exp"])


@dataclass(frozen=True, slots=True)
class Assertion:
    """A verified client assertion: its own id, and until when it could be repeated."""

    id: str
    expires: int


def peek_subject(assertion: str) -> str | None:
    """Who an assertion says it is from, unverified: to find the key."""
    try:
        payload = assertion.split(".")[1]
        claims = _json(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (IndexError, ValueError):
        return None
    subject = claims.get("sub") if isinstance(claims, dict) else None
    return subject if isinstance(subject, str) else None


def verify_assertion(assertion: str, client_id: str, public: PublicKey, token_path: str) -> Assertion | None:
    """Judge a ``private_key_jwt``: signed by this key, about this client, for this endpoint, for five minutes at most.

    The origin of ``aud`` is free (a hub is reached under several names); its path is not. None: not acceptable.
    """
    claims = _decode(assertion, _jwk(public.raw))
    if claims is None or claims.get("iss") != client_id or claims.get("sub") != client_id:
        return None
    audience, expires, token_id = claims.get("aud"), claims.get("exp"), claims.get("jti")
    now = time.time()
    if not isinstance(audience, str) or urlsplit(audience).path.replace("//", "/") != token_path:
        return None
    if not isinstance(expires, int) or not now - LEEWAY <= expires <= now + ASSERTION_SECONDS + LEEWAY:
        return None
    if not isinstance(token_id, str) or not 8 <= len(token_id) <= 128:
        return None
    return Assertion(token_id, expires)


def _decode(token: str, key: OKPKey) -> dict[str, Any] | None:
    if len(token) > _MAX_TOKEN:
        return None
    try:
        claims: object = jwt.decode(token, key, algorithms=ALGORITHMS).claims
    except (JoseError, ValueError, TypeError, KeyError):
        return None
    return claims if isinstance(claims, dict) else None


def _json(data: bytes) -> Any:
    import json

    return json.loads(data)


def _jwk(public: bytes, private: bytes | None = None) -> OKPKey:
    values = {"kty": "OKP", "crv": "Ed25519", "x": _b64(public)}
    if private is not None:
        values["d"] = _b64(private)
    return OKPKey.import_key(values)  # type: ignore[arg-type]


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")
