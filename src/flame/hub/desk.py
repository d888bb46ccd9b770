"""The operator's desk: the hub's own API, asked from the hub's own machine without the network.

Whoever can read the hub's directory can act as one of its administrators. What they do here takes the same way as a
request over HTTP, with its checks and its entry in the log, in the name of the first administrator; beside a running hub
as well as without one. The session ends with the command.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlencode

import structlog
from sqlalchemy import Connection, delete, insert, select, update

from flame.hub.app import make_app, open_hub
from flame.hub.columns import new_id, now
from flame.hub.identity.first_start import ADMIN
from flame.hub.identity.passwords import hash_secret
from flame.hub.identity.tables import roles, sessions, user_roles, users
from flame.model.errors import Conflict, FlameError, Invalid, NotAllowed, NotFound, Unavailable

if TYPE_CHECKING:
    from flame.hub.settings import Settings

SECONDS: Final = 120
_ERRORS: Final[dict[int, type[FlameError]]] = {400: Invalid, 403: NotAllowed, 404: NotFound, 409: Conflict}


class Desk:
    """Use as a context manager. Raises NotFound where there is no hub."""

    def __init__(self, settings: Settings) -> None:
        if not (settings.dir / "keys" / "hub.pem").is_file():
            raise NotFound(f"There is no hub in {settings.dir}.", next_step="Make one with `flame hub init`.")
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))  # told by errors
        self._hub, _ = open_hub(settings)
        self._app = make_app(self._hub)
        self._session = new_id()
        user = self._hub.database.write_blocking(self._begin)
        self._token, _ = self._hub.tokens.issue("access", "user", user, self._session)

    def __enter__(self) -> Desk:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hub.database.write_blocking(lambda c: c.execute(delete(sessions).where(sessions.c.id == self._session)))
        self._hub.database.close()

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None, **query: str) -> Any:
        """The answer's data. Raises what the hub refuses with."""
        status, content = asyncio.run(self._call(method, path, body, query))
        found = json.loads(content or b"{}")
        if status < 400:
            return found.get("data", found)
        kind = _ERRORS.get(status, Unavailable if status >= 500 else Invalid)
        raise kind(found.get("message", "The hub refused."), next_step=found.get("nextStep", ""))

    def all(self, path: str, **query: str) -> list[dict[str, Any]]:
        """Every row of a list, page by page."""
        rows: list[dict[str, Any]] = []
        while part := self.ask("GET", path, None, **query, **{"page[limit]": "50", "page[offset]": str(len(rows))}):
            rows += part
        return rows

    def one(self, path: str, what: str, name: str, **query: str) -> dict[str, Any]:
        """The row of this name. Raises NotFound, and Conflict where the name is that of several."""
        found = [row for row in self.all(path, **query) if row["name"] == name]
        if not found:
            raise NotFound(f"There is no {what} called '{name}'.")
        if len(found) > 1:
            raise Conflict(f"There are {len(found)} called '{name}'.", next_step="Say which realm with --realm.")
        return found[0]

    def reset_password(self, user: str, password: str) -> None:
        """Also the administrator's own, without the one until now; every session of the account ends."""
        hashed = hash_secret(password)

        def store(connection: Connection) -> None:
            connection.execute(update(users).where(users.c.id == user).values(password_hash=hashed, updated_at=now()))
            theirs = (sessions.c.subject == user) & (sessions.c.id != self._session)
            connection.execute(update(sessions).where(theirs).values(revoked=True))
            self._hub.log.tell(connection, "administration", user, {"changed": "password", "by": "operator"})

        self._hub.database.write_blocking(store)

    def _begin(self, connection: Connection) -> str:
        held = select(users.c.id).join(user_roles, user_roles.c.user_id == users.c.id)
        held = held.join(roles, roles.c.id == user_roles.c.role_id).where(roles.c.name == ADMIN)
        user = connection.execute(held.order_by(users.c.active.desc(), users.c.created_at).limit(1)).scalar()
        if user is None:
            raise NotFound("The hub has no administrator.", next_step="Restore a backup.")
        row = {
            "id": self._session,
            "kind": "user",
            "subject": user,
            "expires": int(time.time()) + SECONDS,
            "revoked": False,
        }
        connection.execute(insert(sessions).values(**row))
        return str(user)

    async def _call(self, method: str, path: str, body: Any, query: dict[str, str]) -> tuple[int, bytes]:
        content = json.dumps(body).encode() if body is not None else b""
        headers = [(b"authorization", f"Bearer {self._token}".encode()), (b"content-type", b"application/json")]
        headers += [(b"host", b"localhost"), (b"content-length", str(len(content)).encode())]
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
            "path": path, "raw_path": quote(path).encode(), "root_path": "", "query_string": urlencode(query).encode(),
            "headers": headers, "client": ("127.0.0.1", 0), "server": ("localhost", 80),
        }  # fmt: skip
        status, pieces = 500, []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": content, "more_body": False}

        async def send(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            else:
                pieces.append(message.get("body", b""))

        await self._app(scope, receive, send)
        await self._hub.settle()
        return status, b"".join(pieces)
