"""Authorization codes with PKCE (RFC 7636, S256 alone) and device requests (RFC 8628): what a person has allowed a program.

Stored are keyed hashes. A code counts once; one that comes again ends the session that it opened.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, delete, func, insert, select, update

from flame.hub.identity.tables import authorization_codes, device_requests, sessions, users
from flame.model.errors import Unavailable

CODE_SECONDS: Final = 60
DEVICE_SECONDS: Final = 600
INTERVAL: Final = 5
MAX_WAITING: Final = 1000
_ALPHABET: Final = "BCDFGHJKLMNPQRSTVWXZ"
"""No vowels, so no words; nothing that looks like a digit. Eight of them are 34 bits, for ten minutes."""
_VERIFIER: Final = re.compile(r"[A-Za-z0-9._~-]{43,128}")
CHALLENGE: Final = re.compile(r"[A-Za-z0-9_-]{43}")

Mark = Callable[..., str]


@dataclass(frozen=True, slots=True)
class Granted:
    """What a person has allowed."""

    user: str
    realm: str
    scope: str
    nonce: str | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """OAuth's word for why not."""

    error: str
    message: str
    next_step: str = ""


# --------------------------------------------------------------------------------------------------------------- codes


@dataclass(frozen=True, slots=True)
class Asked:
    """What a page of a client asks for, and for whom it was allowed."""

    client: str
    redirect_uri: str
    challenge: str
    scope: str
    nonce: str | None


def store_code(connection: Connection, mark: Mark, user: str, asked: Asked) -> str:
    """A new code, valid for a minute."""
    code, moment = secrets.token_urlsafe(32), int(time.time())
    connection.execute(delete(authorization_codes).where(authorization_codes.c.expires < moment - 600))
    values = {
        "code_hash": mark("code", code), "client_id": asked.client, "user_id": user, "scope": asked.scope,
        "redirect_uri": asked.redirect_uri, "challenge": asked.challenge, "nonce": asked.nonce,
        "expires": moment + CODE_SECONDS,
    }  # fmt: skip
    connection.execute(insert(authorization_codes).values(**values))
    return code


def redeem(
    connection: Connection, code_hash: str, client: str, redirect_uri: str, verifier: str, session: str
) -> Granted | Refusal:
    """Spend a code for a session. A wrong verifier spends it too, and one that was spent ends what it opened."""
    here = authorization_codes.c.code_hash == code_hash
    row = connection.execute(select(authorization_codes).where(here).with_for_update()).first()
    refused = Refusal("invalid_grant", "The code is not valid.")
    if row is None or row.client_id != client:
        return refused
    if row.session is not None:
        connection.execute(update(sessions).where(sessions.c.id == row.session).values(revoked=True))
        connection.execute(update(authorization_codes).where(here).values(session="void"))
        return refused
    connection.execute(update(authorization_codes).where(here).values(session=session))
    if row.expires < time.time() or row.redirect_uri != redirect_uri or not verifies(row.challenge, verifier):
        return refused
    return Granted(row.user_id, _realm_of(connection, row.user_id), row.scope, row.nonce)


def is_spent_for(connection: Connection, code_hash: str, session: str) -> bool:
    """Whether a code still stands for the session it was spent for: nobody has come with it again."""
    here = authorization_codes.c.code_hash == code_hash
    return connection.execute(select(authorization_codes.c.session).where(here)).scalar() == session


def verifies(challenge: str, verifier: str) -> bool:
    """Whether a verifier is the one behind an S256 challenge."""
    if not _VERIFIER.fullmatch(verifier):
        return False
    digest = hashlib.sha256(verifier.encode("ascii")).digest()
    made = base64.urlsafe_b64encode(digest).rstrip(b"=").decode("ascii")
    return hmac.compare_digest(made, challenge)


def _realm_of(connection: Connection, user: str) -> str:
    return str(connection.execute(select(users.c.realm_id).where(users.c.id == user)).scalar_one())


# ------------------------------------------------------------------------------------------------------------- devices


def ask_for_device(connection: Connection, mark: Mark, client: str, scope: str) -> tuple[str, str]:
    """A new request: the code that the program keeps, and the one that the person types."""
    moment = int(time.time())
    connection.execute(delete(device_requests).where(device_requests.c.expires < moment - DEVICE_SECONDS))
    waiting = select(func.count()).select_from(device_requests).where(device_requests.c.state == "waiting")
    if connection.execute(waiting).scalar_one() >= MAX_WAITING:
        raise Unavailable("Too many devices wait for a log-in.", next_step="Try again in a few minutes.")
    device = secrets.token_urlsafe(32)
    letters = "".join(secrets.choice(_ALPHABET) for _ in range(8))
    values = {
        "device_hash": mark("device", device), "user_code_hash": mark("user-code", letters), "client_id": client,
        "state": "waiting", "scope": scope, "interval": INTERVAL, "polled": 0, "expires": moment + DEVICE_SECONDS,
    }  # fmt: skip
    connection.execute(insert(device_requests).values(**values))
    return device, f"{letters[:4]}-{letters[4:]}"


def typed(code: str) -> str:
    """A code as a person types it, in one form."""
    return re.sub(r"[^A-Z]", "", code.upper()[:32])


def waiting_device(connection: Connection, mark: Mark, code: str) -> Any:
    """The request that waits under a typed code; None without one."""
    here = device_requests.c.user_code_hash == mark("user-code", typed(code))
    alive = (device_requests.c.state == "waiting") & (device_requests.c.expires >= int(time.time()))
    return connection.execute(select(device_requests).where(here, alive)).first()


def decide_device(connection: Connection, device_hash: str, user: str, *, allowed: bool) -> bool:
    """Whether it was still to be decided."""
    here = (device_requests.c.device_hash == device_hash) & (device_requests.c.state == "waiting")
    values = {"state": "allowed" if allowed else "denied", "user_id": user}
    return bool(connection.execute(update(device_requests).where(here).values(**values)).rowcount)


def poll(connection: Connection, device_hash: str, client: str, moment: int) -> Granted | Refusal:
    """What the program hears that asks whether somebody has allowed it. Yes is said once."""
    here = device_requests.c.device_hash == device_hash
    row = connection.execute(select(device_requests).where(here).with_for_update()).first()
    if row is None or row.client_id != client:
        return Refusal("invalid_grant", "The device code is not valid.", "Start again.")
    if row.expires < moment:
        connection.execute(delete(device_requests).where(here))
        return Refusal("expired_token", "The code has expired; nobody entered it in time.", "Start again.")
    if row.state == "waiting":
        return _wait(connection, row, moment)
    connection.execute(delete(device_requests).where(here))
    if row.state == "denied":
        return Refusal("access_denied", "The person has said no.")
    return Granted(row.user_id, _realm_of(connection, row.user_id), row.scope)


def _wait(connection: Connection, row: Any, moment: int) -> Refusal:
    """Not yet; who asks sooner than agreed waits five seconds longer from now on."""
    early = moment - row.polled < row.interval
    interval = min(60, row.interval + 5) if early else row.interval
    here = device_requests.c.device_hash == row.device_hash
    connection.execute(update(device_requests).where(here).values(polled=moment, interval=interval))
    if early:
        return Refusal("slow_down", f"Ask every {interval} seconds.", f"Wait {interval} seconds.")
    return Refusal("authorization_pending", "Nobody has allowed it yet.", f"Ask again in {interval} seconds.")
