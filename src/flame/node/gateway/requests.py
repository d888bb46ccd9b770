"""Who may ask what: the role and form of every request, checked before its body is read. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Final

from flame.model.errors import FlameError, Invalid, Malformed, NotAllowed, NotFound, ReleaseRefused
from flame.wire.gateway import (
    VERSION,
    Contribute,
    GetData,
    GetTotal,
    Hello,
    Keep,
    Log,
    Progress,
    Receive,
    Request,
    Send,
    Submit,
    Welcome,
)

LEVELS: Final = ("debug", "info", "normal", "notice", "warn", "warning", "error", "crit", "critical", "alert", "emerg")
MAX_TEMPLATE: Final = 4000
MAX_WAIT_SECONDS: Final = 366 * 86400.0

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,127}")
_FILE: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_. -]{0,127}")
_MEDIA: Final = re.compile(r"[a-z]+/[a-z0-9][a-z0-9.+-]{0,80}")
_WITH_BODY: Final = (Contribute, Send, Submit, Keep)
MAX_KEPT: Final = 256 << 20
"""Bytes of one object that stays at the node: nothing of it is released."""


def check_hello(request: Request) -> None:
    """The first frame. Raises Malformed, Invalid."""
    if not isinstance(request, Hello):
        raise Malformed("The first request on a connection is Hello.", next_step="Send Hello, then repeat the request.")
    if request.version != VERSION:
        raise Invalid(
            f"This node speaks version {VERSION} of the gateway's protocol, the program version {request.version}.",
            next_step="Use an environment whose FLAME release fits the node's.",
        )


def check_request(request: Request, body: int, me: Welcome, max_body: int) -> None:
    """Whether a program in this role may ask this, with a body of this many bytes.

    Raises NotAllowed (role), ReleaseRefused (size), Invalid, NotFound; each names what was wrong.
    """
    _check_body(request, body, max_body)
    match request:
        case Hello():
            raise Invalid("Hello was said before on this connection.")
        case GetData(source=source):
            if source not in me.sources:
                raise NotFound(
                    f"This run has no source named {source[:64]!r}.",
                    next_step=f"It has: {', '.join(me.sources) or 'none'}. Sources stand in [[data]] of flame.toml.",
                )
        case Contribute(name=name, round=round):
            _need(me, "default", "contributes to a sum")
            _check_name(name, round)
        case GetTotal(name=name, round=round):
            _need(me, "aggregator", "asks for a total")
            _check_name(name, round)
        case Send(to=to, category=category):
            _check_name(category)
            _check_others("recipient", to, me)
            if not to or len(set(to)) != len(to):
                raise Invalid(
                    "A message names each of its recipients once.", next_step="Name at least one participant."
                )
        case Receive(category=category, senders=senders, timeout=timeout):
            _check_name(category)
            _check_others("sender", senders, me)
            if timeout is not None and not (math.isfinite(timeout) and 0 <= timeout <= MAX_WAIT_SECONDS):
                raise Invalid(
                    "A time-out is a number of seconds that is not negative.",
                    next_step="Use None to wait until the run ends.",
                )
        case Log(level=level, template=template):
            if level not in LEVELS:
                raise Invalid(
                    f"{level[:32]!r} is no level of a log line.", next_step=f"Use one of {', '.join(LEVELS)}."
                )
            if len(template) > MAX_TEMPLATE:
                raise Invalid(f"A log line has at most {MAX_TEMPLATE} characters.", next_step="Write less at once.")
        case Progress(percent=percent):
            if not 0 <= percent <= 100:
                raise Invalid(f"Progress is between 0 and 100, not {percent}.")
        case Submit(name=name, media_type=media_type):
            _need(me, "aggregator", "submits the final result")
            if not _FILE.fullmatch(name) or not _MEDIA.fullmatch(media_type):
                raise Invalid(
                    "The result's file name or media type is not allowed.",
                    next_step="Use a plain name such as 'result.json' and a type such as 'application/json'.",
                )
        case _:
            pass


def role_of(me: Welcome) -> str:
    return "the aggregator" if me.role == "aggregator" else "a data node"


def _check_body(request: Request, body: int, max_body: int) -> None:
    if not isinstance(request, _WITH_BODY):
        if body:
            raise Malformed(
                f"The request {type(request).__name__} has no body, but {body} bytes of one were announced."
            )
    elif isinstance(request, Keep):
        if body > MAX_KEPT:
            raise ReleaseRefused(
                f"An object of {body} bytes is larger than the {MAX_KEPT} that a node keeps.", limit=MAX_KEPT
            )
    elif body > max_body:
        raise ReleaseRefused(
            f"A body of {body} bytes is larger than the {max_body} bytes that any release of this analysis may have.",
            next_step="Send less at once, or declare a higher max_bytes in flame.toml and submit the analysis again.",
            rule="max_bytes",
            limit=max_body,
        )


def _need(me: Welcome, role: str, what: str) -> None:
    if me.role != role:
        who = "the aggregator" if role == "aggregator" else "a data node"
        raise NotAllowed(
            f"Only {who} {what}; this program runs as {role_of(me)}.", next_step="Ask for the role first.", role=me.role
        )


def _check_name(name: str, round: int = 0) -> None:
    if not _NAME.fullmatch(name):
        raise Invalid(
            f"{name[:64]!r} is not allowed as a name.",
            next_step="Use letters, digits, '.', '_' and '-', at most 128 of them, beginning with a letter or '_'.",
        )
    if not 0 <= round < 2**31:
        raise Invalid(f"{round} is no number of a round.", next_step="Count rounds from 0 or 1.")


def _check_others(what: str, names: Sequence[str], me: Welcome) -> None:
    known = {participant.id for participant in me.participants}
    for name in names[: len(known) + 1]:
        error: FlameError | None = None
        if name == me.node:
            error = Invalid(f"A {what} of a message is another participant, not this node itself.", **{what: name})
        elif name not in known:
            error = NotFound(
                f"The {what} {name[:64]!r} takes no part in this run.",
                next_step="Use an id from the list of participants.",
                **{what: name[:64]},
            )
        if error is not None:
            raise error
    if len(names) > len(known):
        raise Invalid(f"A message names at most {len(known)} {what}s.")
