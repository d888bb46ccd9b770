"""Records every byte that the hub receives and sends, so that a test can search them for what the hub must not see.

Files by category: ``sealed`` (what nodes exchange, results, intermediate objects), ``code`` (programs), ``control``
(everything else, with request lines and headers, without ``Authorization``). ``counts.json`` tells how much, while it
runs. A pure ASGI middleware: it sees what the server sees.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import select

if TYPE_CHECKING:
    from flame.hub.state import HubState

Scope = dict[str, Any]
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_SECRET: Final = frozenset({b"authorization", b"cookie"})
_ENVELOPE: Final = b"FE2E\x02"


class Recorder:
    """The middleware. `state` gives the hub, once it has started: to tell a program's bucket from a result's."""

    def __init__(self, app: Any, directory: Path, state: Callable[[], HubState | None]) -> None:
        self._app = app
        self._dir = directory
        self._state = state
        self._lock = threading.Lock()
        self._counts = {"messages": 0, "sealed_bytes": 0, "control_bytes": 0, "code_bytes": 0}
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._write_counts()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        category = await self._category(scope)
        self._note("control", _head(scope))
        if category == "sealed" and scope["method"] == "PUT":
            self._counts["messages"] += 1

        async def heard() -> Message:
            message = await receive()
            self._take(category, message)
            return message

        async def said(message: Message) -> None:
            self._take(category, message)
            await send(message)

        await self._app(scope, heard, said)
        self._write_counts()

    def _take(self, category: str, message: Message) -> None:
        if message["type"] in ("http.request", "http.response.body"):
            self._note(category, bytes(message.get("body", b"")))
        elif message["type"] in ("websocket.receive", "websocket.send"):
            data = message.get("bytes") or (message.get("text") or "").encode()
            sealed = _ENVELOPE in data
            self._note("sealed" if sealed else "control", bytes(data))
            if sealed and message["type"] == "websocket.receive":
                self._counts["messages"] += 1
            self._write_counts()
        elif message["type"] == "http.response.start":
            lines = b"".join(k + b": " + v + b"\n" for k, v in message.get("headers", ()))
            self._note("control", str(message["status"]).encode() + b"\n" + lines)

    def _note(self, category: str, data: bytes) -> None:
        if not data:
            return
        with self._lock, (self._dir / category).open("ab") as file:
            file.write(data)
        self._counts[f"{category}_bytes"] += len(data)

    def _write_counts(self) -> None:
        temporary = self._dir / "counts.json.new"
        temporary.write_text(json.dumps(self._counts))
        temporary.replace(self._dir / "counts.json")

    async def _category(self, scope: Scope) -> str:
        if scope["type"] == "websocket":
            return "control"
        path = scope["path"]
        if (
            path.startswith("/messenger/messages")
            and scope["method"] in ("PUT", "GET")
            and path != "/messenger/messages"
        ):
            return "sealed"
        if scope["method"] == "PUT" and (path == "/messenger/messages" or path.startswith("/messenger/uploads/")):
            return "sealed"
        if path.startswith("/storage/") and path.rpartition("/")[2] in ("upload", "stream"):
            return await self._of_bucket(path.split("/"))
        return "control"

    async def _of_bucket(self, parts: list[str]) -> str:
        from flame.hub.analyses.tables import analysis_buckets
        from flame.hub.objects.tables import bucket_files

        hub = self._state()
        if hub is None or len(parts) < 4:
            return "control"
        bucket: Any = parts[3]
        if parts[2] == "bucket-files":
            bucket = select(bucket_files.c.bucket_id).where(bucket_files.c.id == parts[3]).scalar_subquery()
        kind = select(analysis_buckets.c.type).where(analysis_buckets.c.bucket_id == bucket)
        found = await hub.database.read(lambda c: c.execute(kind).scalar())
        return {"CODE": "code", "RESULT": "sealed", "TEMP": "sealed"}.get(found or "", "control")


def _head(scope: Scope) -> bytes:
    line: bytes = f"{scope.get('method', 'WS')} {scope['path']}?".encode() + scope.get("query_string", b"") + b"\n"
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    return line + b"".join(k + b": " + v + b"\n" for k, v in headers if k not in _SECRET)
