"""A program's part in a run: read data, add to sums, send and receive, submit the result.

import flame

with flame.connect() as fed:
    if not fed.is_aggregator:
        ages = fed.data().numbers("age")
        fed.contribute("ages", {"n": len(ages), "sum": ages.sum()})
    else:
        total, hospitals = fed.total("ages")
        fed.submit({"mean": total["sum"] / total["n"], "hospitals": hospitals})
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from types import TracebackType
from typing import Any

from flame.model.errors import FlameError, Invalid, Malformed, Unavailable
from flame.sdk.calls import Calls
from flame.sdk.failures import failure
from flame.sdk.results import result_file
from flame.sdk.table import Table
from flame.wire import gateway, values

LEVELS = ("debug", "info", "warning", "error")
_MAX_TEMPLATE = 2000
_MAX_LOGGED = 1000
_MAX_VALUES = 16

Summary = Mapping[str, Any]
"""Named arrays and numbers, the same names and shapes at every data node."""


class NoMessage(Unavailable):
    """Nothing of this category came in the time given."""

    code = "no_message"


@dataclass(frozen=True)
class Message:
    id: str
    sender: str
    category: str
    value: Any


def connect(socket: str | None = None, *, patience: float = 30.0) -> Federation:
    """Join the run that this program is part of.

    The gateway's socket is named by ``$FLAME_GATEWAY`` (a node sets it). Waits up to ``patience`` seconds for it to
    appear, then raises Unavailable. From here until ``close()`` an uncaught error of the program is told to the node.
    """
    return Federation(Calls(socket, patience=patience))


class Federation:
    """Made by ``connect()``; a context manager. Thread-safe: each call has a connection of its own while it waits."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._lock = threading.Lock()
        self._rounds: Counter[tuple[str, str]] = Counter()
        self._submitted: Counter[str] = Counter()
        self._finished = False
        self._program = _program_directory()
        self._former_hook = sys.excepthook
        self._hook = self._tell_failure  # one bound method, so that close() recognises it
        sys.excepthook = self._hook
        welcome = calls.welcome
        self.id: str = welcome.node
        self.role: str = welcome.role
        self.analysis: str = welcome.analysis
        self.project: str = welcome.project
        self.run: str = welcome.run
        self.participants: tuple[gateway.Participant, ...] = tuple(welcome.participants)
        self.parameters: Mapping[str, Any] = welcome.parameters
        self.sources: tuple[str, ...] = tuple(welcome.sources)

    # --- who takes part ---------------------------------------------------------------------------------------------

    @property
    def is_aggregator(self) -> bool:
        return self.role == "aggregator"

    @property
    def aggregator(self) -> str:
        """The aggregator's id. Raises Invalid when the run has none."""
        for participant in self.participants:
            if participant.role == "aggregator":
                return participant.id
        raise Invalid("This run has no aggregator.")

    @property
    def data_nodes(self) -> tuple[str, ...]:
        """The ids of the nodes with data, in the order of the manifest."""
        return tuple(p.id for p in self.participants if p.role != "aggregator")

    @property
    def others(self) -> tuple[str, ...]:
        """Everyone but this node, in the order of the manifest."""
        return tuple(p.id for p in self.participants if p.id != self.id)

    # --- data -------------------------------------------------------------------------------------------------------

    def data(self, source: str = "data") -> Table:
        """A source that the hospital granted to this run. Raises NotFound or Refused as the node decides."""
        head, body = self._calls.call(gateway.Table, gateway.GetData(source))
        columns = values.decode(body)
        if not isinstance(columns, dict):
            raise Malformed("The node's table is not a set of columns.")
        # A value keeps the order of its names; the head's list is the source's own order.
        return Table({name: columns[name] for name in head.columns if name in columns})

    # --- sums -------------------------------------------------------------------------------------------------------

    def contribute(self, name: str, summary: Summary, round: int | None = None) -> None:
        """Add this data node's part to the sum ``name``.

        summary: arrays and numbers by name; names and shapes are the same at every data node. ``round`` counts from 1
        by itself for each name unless given. Raises ReleaseRefused when the hospital's rules hold it back.
        """
        flat = dict(values.named_arrays(summary))
        body = values.encode(flat)
        self._calls.call(gateway.Done, gateway.Contribute(name, self._round("contribute", name, round)), body)

    def total(self, name: str, round: int | None = None) -> tuple[dict[str, Any], int]:
        """The aggregator waits for the sum over all data nodes: (the sum, how many contributed).

        Numbers come back as numbers, arrays as read-only arrays.
        """
        request = gateway.GetTotal(name, self._round("total", name, round))
        reply, body = self._calls.call(gateway.Total, request)
        return _numbers_as_numbers(values.decode(body)), reply.contributors

    def sum(self, summary: Summary | None = None, name: str = "sum") -> dict[str, Any]:
        """The sum over all data nodes, at every node.

        A data node gives its summary and waits for the total; the aggregator gives nothing (or None). One message up
        and one down per hospital. Raises Invalid when a data node has no summary or the aggregator has one.
        """
        if self.is_aggregator:
            if summary is not None:
                raise Invalid("The aggregator has no part of its own in a sum.", next_step="Call sum(name=…) there.")
            total, _ = self.total(name)
            self.send(self.data_nodes, {"round": self._rounds["total", name], "total": total}, f"total.{name}")
            return total
        if summary is None:
            raise Invalid("A data node needs a summary to add to the sum.", next_step="Call sum({...}).")
        self.contribute(name, summary)
        answer = self.receive(f"total.{name}", senders=[self.aggregator]).value
        mine = self._rounds["contribute", name]
        if answer["round"] != mine:
            raise Invalid(f"The total of round {answer['round']} of '{name}' came in round {mine}.")
        return dict(answer["total"])

    # --- messages ---------------------------------------------------------------------------------------------------

    def send(self, to: str | Iterable[str], value: Any, category: str) -> str:
        """Send a value to participants; returns the message's id once the node has taken it over.

        A value is None, numbers, text, bytes, lists, dictionaries with text keys and NumPy arrays of numbers; anything
        else raises Invalid, naming where it stands.
        """
        receivers = [to] if isinstance(to, str) else list(to)
        reply, _ = self._calls.call(gateway.Sent, gateway.Send(receivers, category), values.encode(value))
        return reply.id

    def broadcast(self, value: Any, category: str) -> str:
        """The same to all other participants."""
        return self.send(self.others, value, category)

    def receive(
        self,
        category: str,
        senders: Iterable[str] | None = None,
        timeout: float | None = None,
        *,
        until: str | None = None,
    ) -> Message:
        """The next message of a category, from anyone or from these senders.

        Waits ``timeout`` seconds (None: until the run ends) and then raises NoMessage. ``until``: a category whose
        message ends the waiting: it is then returned instead.
        """
        request = gateway.Receive(category, list(senders or ()), timeout)
        if until is None:
            reply, body = self._calls.ask(request)
        else:
            reply, body = self._calls.ask_until(request, gateway.Receive(until))
        if isinstance(reply, gateway.TimedOut):
            raise NoMessage(f"No message of category '{category}' came within {timeout} seconds.")
        if not isinstance(reply, gateway.Message):
            raise Malformed(f"The gateway answered Receive with {type(reply).__name__}.")
        return Message(reply.id, reply.sender, reply.category, values.decode(body))

    def gather(
        self, category: str, senders: Iterable[str] | None = None, timeout: float | None = None
    ) -> dict[str, Message]:
        """One message from each of the senders (all others by default), by sender, in the order asked for.

        ``timeout`` is for each message; raises NoMessage when one is missing.
        """
        wanted = list(senders) if senders is not None else list(self.others)
        missing = list(wanted)
        found: dict[str, Message] = {}
        while missing:
            message = self.receive(category, missing, timeout)
            found[message.sender] = message
            missing.remove(message.sender)
        return {sender: found[sender] for sender in wanted}

    # --- what people see --------------------------------------------------------------------------------------------

    def log(self, template: str, /, level: str = "info", **fields: object) -> None:
        """A log line, as ``log("fitted {n} rows", n=120)``.

        The template leaves the hospital when it stands literally in the approved code; the values stay at the node.
        """
        if level not in LEVELS:
            raise Invalid(f"'{level}' is not a level of the log.", next_step=f"Use one of {', '.join(LEVELS)}.")
        _check_template(template, fields)
        texts = {name: _short(value) for name, value in fields.items()}
        self._calls.call(gateway.Done, gateway.Log(level, template, texts))

    def progress(self, percent: float) -> None:
        """How far the program is, 0 to 100."""
        if not 0 <= percent <= 100:
            raise Invalid(f"Progress is a number from 0 to 100, not {percent}.")
        self._calls.call(gateway.Done, gateway.Progress(int(percent)))

    def submit(
        self,
        result: object,
        filename: str | None = None,
        *,
        suffix: str = "",
        noise: tuple[float, float] | None = None,
    ) -> str:
        """Hand in a result file (aggregator only); returns its name. Call again for further files.

        Bytes become ``result.bin``, text ``result.txt``, everything else ``result.json`` (deterministic; NaN and
        infinities as null); ``suffix`` (as ".csv") replaces that ending. ``noise``: epsilon and sensitivity; the result is
        then one number as text, and the node adds Laplace noise to it before it leaves. Raises Invalid for a value without a form as
        JSON or a name that is not allowed.
        """
        file = result_file(result, filename, suffix=suffix)
        name = file.name if filename else self._numbered(file.name)
        self._calls.call(gateway.Done, gateway.Submit(name, file.media_type, noise), [file.data])
        return name

    # --- what stays at the node -------------------------------------------------------------------------------------

    def keep(self, value: Any, tag: str = "") -> str:
        """Keep a value at this node, for this project; returns its id. It never leaves the hospital.

        ``tag``: up to 32 lower-case letters, digits and '-', to find it by. Later analyses of the project find it where
        their manifest asks for the source ``local``.
        """
        reply, _ = self._calls.call(gateway.Sent, gateway.Keep(tag), values.encode(value))
        return reply.id

    def kept(self, id: str) -> Any:
        """A value that was kept, by its id. Raises NotFound."""
        _, body = self._calls.call(gateway.Kept, gateway.GetKept(id))
        return values.decode(body)

    def kept_tags(self) -> list[str]:
        """The tags under which something is kept, in the order of their first use."""
        reply, _ = self._calls.call(gateway.Kept, gateway.ListKept())
        return list(dict.fromkeys(tag for _, tag in reply.objects))

    def kept_under(self, tag: str) -> list[str]:
        """The ids of what is kept under a tag, oldest first."""
        reply, _ = self._calls.call(gateway.Kept, gateway.ListKept(tag))
        return [id_ for id_, _ in reply.objects]

    # --- the end ----------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """This program has done its part. Said once; leaving the ``with`` block says it too."""
        with self._lock:
            if self._finished:
                return
            self._finished = True
        self._calls.call(gateway.Done, gateway.Finish())

    def close(self) -> None:
        """Close the connection and give the interpreter its own way of reporting errors back."""
        if sys.excepthook is self._hook:
            sys.excepthook = self._former_hook
        self._calls.close()

    def __enter__(self) -> Federation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None or error is None:
                self.finish()
            else:
                self._send_failure(kind, error, trace)
        finally:
            self.close()

    def _tell_failure(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        self._send_failure(kind, error, trace)
        self._former_hook(kind, error, trace)

    def _send_failure(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        with self._lock:
            if self._finished or (isinstance(error, SystemExit) and error.code in (None, 0)):
                return
            self._finished = True
        try:
            self._calls.call_now(gateway.Done, failure(kind, error, trace, self._program))
        except FlameError:
            pass  # the node is gone, or ended the run first; the interpreter still prints the error and exits with 1

    def _round(self, what: str, name: str, given: int | None) -> int:
        with self._lock:
            self._rounds[what, name] = self._rounds[what, name] + 1 if given is None else given
            return self._rounds[what, name]

    def _numbered(self, name: str) -> str:
        with self._lock:
            self._submitted[name] += 1
            count = self._submitted[name]
        stem, _, suffix = name.rpartition(".")
        return name if count == 1 else f"{stem}-{count}.{suffix}"


def _program_directory() -> Path:
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    return Path(main or ".").absolute().parent if main else Path.cwd()


def _numbers_as_numbers(total: Any) -> dict[str, Any]:
    if not isinstance(total, dict):
        raise Malformed("The node's total is not a set of named numbers.")
    return {name: item.item() if getattr(item, "shape", None) == () else item for name, item in total.items()}


def _check_template(template: str, fields: Mapping[str, object]) -> None:
    if len(template) > _MAX_TEMPLATE or len(fields) > _MAX_VALUES:
        raise Invalid(f"A log line has at most {_MAX_TEMPLATE} characters and {_MAX_VALUES} values.")
    try:
        parsed = list(Formatter().parse(template))
    except ValueError as error:
        raise Invalid(f"The log template cannot be read: {error}.", next_step="Write '{{' for a brace.") from None
    for _, name, spec, conversion in parsed:
        if name is None:
            continue
        if not name.isidentifier() or spec or conversion:
            raise Invalid(
                f"'{{{name}}}' is not a plain field of a log template.",
                next_step="Name a value, as in '{n}', and give it already formatted.",
            )
        if name not in fields:
            raise Invalid(f"The log template names '{name}', but no such value was given.")


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= _MAX_LOGGED else text[: _MAX_LOGGED - 1] + "…"
