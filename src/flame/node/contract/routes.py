"""The requests of a program that was written for FLAME, one by one. Who asks is known from the socket alone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import msgspec

from flame.model.errors import FlameError, Invalid, Malformed, NotAllowed, NotFound, Unavailable
from flame.node.contract.forms import Form, read_form
from flame.node.contract.lines import is_own_line
from flame.node.gateway.http import Head, Response
from flame.node.gateway.requests import LEVELS, MAX_TEMPLATE

if TYPE_CHECKING:
    from flame.node.contract.local import LocalObjects
    from flame.node.contract.mail import Mail
    from flame.node.contract.program import Program
    from flame.node.contract.sources import Sources
    from flame.node.gateway.port import Cancelled
    from flame.node.supervisor.side import Side
    from flame.wire.gateway import Welcome

SMALL: Final = 8 << 20
LOCAL: Final = 256 << 20
FORM_OVERHEAD: Final = 64 << 10
NO_ENDPOINT: Final = "no_such_endpoint"
OBJECT_SECONDS: Final = 120.0
"""How long an object is waited for that a message has named: it left before its message."""
FORWARD_SECONDS: Final = 300.0
_AUTO_NAME: Final = re.compile(r"result_[0-9a-f]{4}_\d{12}(\.[a-z]{3})")
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9_. -]")
_NUMBER: Final = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")


class _Log(msgspec.Struct):
    log: str = ""
    log_type: str = "info"
    analysis_id: str = ""
    status: str = ""
    progress: float = 0


class _Post(msgspec.Struct):
    recipients: list[str]
    message: dict[str, Any]


class Routes:
    """``PlainSide`` for one start of a program."""

    def __init__(
        self,
        me: Welcome,
        *,
        side: Side,
        mail: Mail,
        local: LocalObjects,
        sources: Sources,
        program: Program,
        host: str,
        look: Callable[[], None],
        broke: Callable[[FlameError], None],
    ) -> None:
        """look: the program's state may have changed. broke: the node refuses what the original SDK cannot be refused."""
        self._me, self._side, self._mail, self._local = me, side, mail, local
        self._sources, self._program, self._host = sources, program, host
        self._look, self._broke = look, broke
        self._finals = 0
        self.requests = 0
        """Requests that are being answered at this moment."""
        self.said_failed = False
        """Whether the SDK has logged an error, after which it does nothing more."""

    def max_body(self, head: Head) -> int:
        if head.path.startswith("/storage/local"):
            return LOCAL
        return self._side.max_body() + FORM_OVERHEAD if head.path.startswith("/storage/") else SMALL

    def answer(self, head: Head, body: bytearray, cancelled: Cancelled) -> Response:
        path, _, query = head.path.partition("?")
        self.requests += 1
        try:
            return self._route(head, path, query, body, cancelled)
        except FlameError as error:
            if not isinstance(error, Unavailable) and error.code != NO_ENDPOINT:
                self._broke(error)  # the SDK would now sleep for a thousand seconds: the run ends and says why
            raise
        finally:
            self.requests -= 1

    def _route(self, head: Head, path: str, query: str, body: bytearray, cancelled: Cancelled) -> Response:
        parts = path.strip("/").split("/")
        match (head.method, *parts):
            case ("GET", "healthz"):
                return Response(200, b"healthy\n", "text/plain")
            case (_, "message-broker", "analyses", analysis, *rest):
                self._need(analysis, self._me.analysis)
                return self._broker(head.method, rest, body)
            case ("POST", "po", "stream_logs"):
                return self._log(_decoded(body, _Log))
            case ("GET", "hub-adapter", "kong", "datastore", project):
                self._need(project, self._me.project)
                return _json({"data": self._sources.listed()})
            case ("GET", "kong", name, *rest):
                return self._sources.answer(name, "/".join(rest), query)
            case ("PUT", "storage", "final"):
                return self._final(read_form(head.headers.get("content-type", ""), body), None)
            case ("PUT", "storage", "final", "localdp"):
                form = read_form(head.headers.get("content-type", ""), body)
                return self._final(form, (form.fields.get("epsilon", ""), form.fields.get("sensitivity", "")))
            case ("PUT", "storage", "intermediate"):
                return self._put_intermediate(read_form(head.headers.get("content-type", ""), body))
            case ("GET", "storage", "intermediate", handle):
                return self._get_intermediate(handle, query, cancelled)
            case ("PUT", "storage", "local"):
                return self._put_local(read_form(head.headers.get("content-type", ""), body))
            case ("GET", "storage", "local", "tags"):
                return _json(
                    {
                        "tags": [
                            {"name": tag, "url": self._url(f"storage/local/tags/{tag}")} for tag in self._local.tags()
                        ]
                    }
                )
            case ("GET", "storage", "local", "tags", tag):
                found = [
                    {"filename": kept.name, "url": self._url(f"storage/local/{kept.handle}")}
                    for kept in self._local.tagged(tag)
                ]
                return _json({"results": found})
            case ("GET", "storage", "local", handle):
                return Response(200, self._local.read(handle), "application/octet-stream")
            case (_, "analysis", *_):
                return self._forward(head, path.removeprefix("/analysis") + (f"?{query}" if query else ""), body)
        raise _no_endpoint()

    # --- participants, messages ---------------------------------------------------------------------------------------

    def _broker(self, method: str, rest: list[str], body: bytearray) -> Response:
        match (method, *rest):
            case ("GET", "participants", "self"):
                return _json({"nodeId": self._me.node, "nodeType": self._me.role})
            case ("GET", "participants"):
                return _json([{"nodeId": p.id, "nodeType": p.role} for p in self._me.participants])
            case ("POST", "messages", "subscriptions"):
                asked = _decoded(body, dict[str, Any]).get("webhookUrl")
                if not isinstance(asked, str) or not (
                    found := re.fullmatch(r"http://[^/]+/analysis(/[!-~]{1,200})", asked)
                ):
                    raise Invalid("A subscription is for a webhook of the program itself.", field="webhookUrl")
                self._mail.subscribe(found.group(1))
                return _json({"analysisId": self._me.analysis, "webhookUrl": asked}, 201)
            case ("POST", "messages"):
                post = _decoded(body, _Post)
                self._mail.post(post.recipients, post.message)
                return Response(202, b"{}")
        raise _no_endpoint()

    def _log(self, line: _Log) -> Response:
        level = line.log_type if line.log_type in LEVELS else "info"
        text = line.log[:MAX_TEMPLATE]
        self._side.log(level, text, {}, own=is_own_line(text, [p.id for p in self._me.participants]))
        if line.progress == line.progress:
            self._side.progress(int(min(max(line.progress, 0), 100)))
        self.said_failed = self.said_failed or line.status == "failed" or level == "error"
        if line.status in ("executed", "failed", "stopped"):
            self._look()
        return _json({"status": "logged"})

    # --- storage ------------------------------------------------------------------------------------------------------

    def _final(self, form: Form, noise: tuple[str, str] | None) -> Response:
        if self._me.role != "aggregator":
            raise NotAllowed("Only the aggregator submits a final result.")
        number, self._finals = self._finals, self._finals + 1
        content = form.content
        wanted = None if noise is None else (_float(noise[0], "epsilon"), _float(noise[1], "sensitivity"))
        self._side.submit(_file_name(form.filename, number), form.media_type, bytearray(content), wanted)
        return Response(204)

    def _put_intermediate(self, form: Form) -> Response:
        way = self._mail.put_object(form.fields.get("remote_node_id", ""), form.content)
        handle = str(UUID(hex=way))
        return _json(
            {"url": self._url(f"storage/intermediate/{handle}?remote_node_id={self._me.node}"), "object_id": handle}
        )

    def _get_intermediate(self, handle: str, query: str, cancelled: Cancelled) -> Response:
        sender = re.fullmatch(r"remote_node_id=([0-9a-f-]{36})", query)
        try:
            way = UUID(handle).hex
        except ValueError:
            raise NotFound("There is no such object.") from None
        if sender is None or sender.group(1) == self._me.node:
            raise NotFound("An intermediate object is fetched with the id of the node that sent it.")
        found = self._mail.get_object(sender.group(1), way, OBJECT_SECONDS, cancelled)
        if found is None:
            raise NotFound("That participant has sent no such object to this node.")
        return Response(200, found, "application/octet-stream")

    def _put_local(self, form: Form) -> Response:
        handle = self._local.save(form.filename[:200], form.fields.get("tag", ""), form.content)
        return _json({"url": self._url(f"storage/local/{handle}"), "object_id": handle})

    # --- the program's own endpoints ----------------------------------------------------------------------------------

    def _forward(self, head: Head, path: str, body: bytearray) -> Response:
        """To the program itself: some programs serve endpoints of their own and call them by the gateway's name."""
        media = {"Content-Type": head.headers["content-type"]} if "content-type" in head.headers else {}
        try:
            status, kind, content = self._program.request(
                head.method, path or "/", bytes(body) or None, media, seconds=FORWARD_SECONDS
            )
        except ConnectionRefusedError:
            raise Unavailable(
                "The program does not listen on port 8000.", next_step="Start its server first."
            ) from None
        return Response(status, content, kind if kind.isprintable() else "application/octet-stream")

    def _url(self, path: str) -> str:
        return f"http://{self._host}/{path}"

    def _need(self, asked: str, mine: str) -> None:
        if asked != mine:
            raise NotAllowed(
                "A run speaks for its own analysis and project alone.", next_step="Use ANALYSIS_ID and PROJECT_ID."
            )


def _file_name(name: str, number: int) -> str:
    """A name that was made of random and time becomes the result's number: the same after a restart."""
    if automatic := _AUTO_NAME.fullmatch(name):
        return f"result{f'-{number + 1}' if number else ''}{automatic.group(1)}"
    return _UNSAFE.sub("_", name).lstrip(" .-")[:128] or f"result-{number + 1}.bin"


def _no_endpoint() -> NotFound:
    return NotFound("FLAME's contract has no such endpoint.", next_step="Use the SDK's methods.", code=NO_ENDPOINT)


def _float(text: str, name: str) -> float:
    if not _NUMBER.fullmatch(text.strip()):
        raise Invalid(f"With local_dp, {name} is one number.", next_step="Submit a single int or float.", field=name)
    return float(text)


def _decoded(body: bytearray, kind: Any) -> Any:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.DecodeError as error:
        raise Malformed(f"The request's JSON cannot be read: {error}") from None


def _json(document: Any, status: int = 200) -> Response:
    return Response(status, json.dumps(document).encode())
