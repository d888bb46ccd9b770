"""Accounts of the local interface: a name, a role and the hash of a token. The token itself is shown once.

A token has 256 random bits, so its SHA-256 needs no salt and no slow hash: there is nothing to guess.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

from flame.model.errors import Conflict, Invalid, NotFound

FILE: Final = "stewards.json"
LOCAL_TOKEN: Final = "local-token"  # noqa: S105 - the name of a file
TOKEN_PREFIX: Final = "flame-node-"  # noqa: S105 - so that secret scanners find a token that was lost

Role = Literal["steward", "admin"]
ROLES: Final = ("steward", "admin")
_NAME: Final = re.compile(r"[^\W_][\w .@-]{0,63}")


@dataclass(frozen=True, slots=True)
class Account:
    name: str
    role: Role
    """A steward decides about data; an administrator sees, starts and stops."""
    sha256: str
    created: str


class Accounts:
    """The accounts in one file. What another process adds or removes is seen at the next question."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self._known: tuple[Account, ...] = ()

    def all(self) -> tuple[Account, ...]:
        """Raises Invalid when the file cannot be read: then nobody gets in."""
        try:
            status = self._path.stat()
        except FileNotFoundError:
            return ()
        stamp = (status.st_ino, status.st_size, status.st_mtime_ns)
        if stamp != self._seen:
            self._known, self._seen = _read(self._path), stamp
        return self._known

    def add(self, name: str, role: Role = "steward") -> str:
        """Make an account and return its token, which is kept nowhere. Raises Conflict, Invalid."""
        if not _NAME.fullmatch(name) or role not in ROLES:
            raise Invalid(
                f"{name[:64]!r} as {role!r} cannot be an account.",
                next_step="Use a plain name and one of: steward, admin.",
            )
        token = TOKEN_PREFIX + secrets.token_urlsafe(32)
        with self._changing() as accounts:
            if any(account.name.casefold() == name.casefold() for account in accounts):
                raise Conflict(
                    f"There is an account named '{name}'.",
                    next_step="Choose another name, or remove the account first.",
                )
            accounts.append(Account(name, role, _hash(token), datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")))
        return token

    def remove(self, name: str) -> None:
        """Its token is worth nothing from now on. Raises NotFound."""
        with self._changing() as accounts:
            kept = [account for account in accounts if account.name != name]
            if len(kept) == len(accounts):
                raise NotFound(f"There is no account named '{name[:64]}'.", next_step="See `flame node steward list`.")
            accounts[:] = kept

    def find(self, token: str) -> Account | None:
        """The account of a token; None for any other text. Takes the same time for each account."""
        wanted = _hash(token)
        found = None
        for account in self.all():
            if hmac.compare_digest(account.sha256, wanted):
                found = account
        return found

    @contextmanager
    def _changing(self) -> Iterator[list[Account]]:
        lock = os.open(self._path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            accounts = list(self.all())
            yield accounts
            write_private(
                self._path, json.dumps([asdict(account) for account in accounts], indent=1, ensure_ascii=False) + "\n"
            )
        finally:
            os.close(lock)


def write_local_token(directory: Path, accounts: Accounts, name: str) -> Path:
    """Make an account for whoever may read the node's directory, so that the commands on this machine work.

    The token goes into DIR/local-token, mode 0600. Raises Conflict when the account exists.
    """
    path = directory / LOCAL_TOKEN
    write_private(path, accounts.add(name) + "\n")
    return path


def write_private(path: Path, text: str) -> None:
    """Replace a file that its owner alone may read; at once or not at all."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def _read(path: Path) -> tuple[Account, ...]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        accounts = tuple(Account(**row) for row in rows)
    except (OSError, ValueError, TypeError):
        raise Invalid(
            f"{path.name} cannot be read.", next_step="Restore it, or remove it and add the stewards again."
        ) from None
    for account in accounts:
        texts = (account.name, account.role, account.sha256, account.created)
        if not all(isinstance(text, str) for text in texts) or account.role not in ROLES or len(account.sha256) != 64:
            raise Invalid(f"{path.name} holds an account that cannot be read.", next_step="Restore the file.")
    return accounts
