"""Passwords and client secrets: argon2id, off the event loop, a few at a time."""

from __future__ import annotations

import asyncio
import secrets
from functools import cache

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

_hasher = PasswordHasher(time_cost=2, memory_cost=19 << 10, parallelism=1)  # OWASP's figures: a login costs about 20 ms
_at_once = asyncio.Semaphore(2)


def hash_secret(secret: str) -> str:
    return _hasher.hash(secret)


async def hash_in_thread(secret: str) -> str:
    async with _at_once:
        return await asyncio.to_thread(_hasher.hash, secret)


def generated_password() -> str:
    return secrets.token_urlsafe(18)


async def matches(stored: str | None, given: str) -> bool:
    """Whether a secret is the stored one; takes as long when there is none, so that time tells no names."""
    async with _at_once:
        return await asyncio.to_thread(_matches, stored, given)


@cache
def _nobody() -> str:
    return _hasher.hash("nobody")


def _matches(stored: str | None, given: str) -> bool:
    try:
        _hasher.verify(stored or _nobody(), given)
    except (VerificationError, InvalidHashError):
        return False
    return stored is not None
