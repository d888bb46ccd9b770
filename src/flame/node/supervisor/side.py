"""The run's side of the gateway: each request of the program, checked by the guard, on its way to the channel."""

from __future__ import annotations

import re
import threading
from collections import Counter as Tally
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from flame.model.errors import FlameError, Invalid, NotFound
from flame.model.manifest import Manifest
from flame.node.egress.text import unfit_data
from flame.node.gateway.port import Cancelled
from flame.node.release import Channel, Item
from flame.protocol.payload import Label
from flame.wire.gateway import VERSION, Fail, Message, Participant, Table, Welcome
from flame.wire.values import Buffer, decode, encode, named_arrays

if TYPE_CHECKING:
    from flame.node.contract.local import LocalObjects
    from flame.node.egress.guard import Guard

_NUMBER = re.compile(rb"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_NUMBER_BYTES = 64


P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Snapshot:
    """A source as it was frozen at the start of the run."""

    rows: int
    columns: tuple[str, ...]
    read: Callable[[], bytes]


@dataclass(frozen=True)
class Outlets:
    """Where the run's words go that are not messages."""

    log: Callable[[str, str], None]
    """Level and the line that may leave."""
    keep: Callable[[str], None]
    """Text that stays at the node."""
    progress: Callable[[int], None]
    submitted: Callable[[str, str, bytes, bool], None]
    """Name, media type, content, and whether it waits for a steward. This one blocks until it is durable."""
    finished: Callable[[], None]
    failed: Callable[[str, str], None]
    """Reason and code, in words that may leave."""


_DIVERGED = "The program was started again and sent something else than before; what has left cannot be taken back."


def _noting(method: Callable[Concatenate[Side, P], T]) -> Callable[Concatenate[Side, P], T]:
    """Remember what the node refused last: its own words may leave when the program dies of them."""

    def noted(self: Side, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(self, *args, **kwargs)
        except FlameError as error:
            self.last_error = error
            self.last_given = tuple(arg for arg in args if isinstance(arg, str))
            raise

    return noted


class Side:
    """Implements ``RunSide`` for one start of the program; a restarted program gets a new one and counts from the beginning."""

    def __init__(
        self,
        *,
        manifest: Manifest,
        run: str,
        node: str,
        parameters: Mapping[str, Any],
        channel: Channel,
        guard: Guard,
        snapshots: Mapping[str, Snapshot],
        outlets: Outlets,
        local: LocalObjects | None = None,
        noise: Callable[[int, float, float, float], float] | None = None,
    ) -> None:
        """local: what the project keeps at this node. noise: of a release's number, value, epsilon and sensitivity."""
        self._manifest, self._run, self._node = manifest, run, node
        self._parameters = dict(parameters)
        self._channel, self._guard = channel, guard
        self._snapshots, self._outlets = snapshots, outlets
        self._local, self._noise = local, noise
        self._finals = 0
        self._ordinals: Tally[str] = Tally()
        self._waits: Tally[str] = Tally()
        self._first = 0  # all items before this place have been taken
        self._taken: set[int] = set()
        self._lock = threading.Lock()
        self.last_error: FlameError | None = None
        """The node's last refusal: when the program dies of it, it is named to the others."""
        self.last_given: tuple[str, ...] = ()
        """The texts with which the program had asked."""

    def welcome(self) -> Welcome:
        own = self._manifest.participant(self._node)
        assert own is not None
        return Welcome(
            version=VERSION,
            analysis=self._manifest.analysis,
            project=self._manifest.project,
            run=self._run,
            node=self._node,
            role=own.role,
            participants=[Participant(p.node, p.role) for p in self._manifest.participants],
            parameters=self._parameters,
            sources=sorted(self._snapshots),
        )

    @_noting
    def table(self, source: str) -> tuple[Table, Sequence[Buffer]]:
        snapshot = self._snapshots.get(source)
        if snapshot is None:
            known = ", ".join(sorted(self._snapshots)) or "none"
            raise NotFound(
                f"This run has no data source '{source[:64]}' (it has: {known}).",
                next_step="Name it under [[data]] in flame.toml.",
            )
        return Table(source, snapshot.rows, list(snapshot.columns)), [snapshot.read()]

    @_noting
    def contribute(self, name: str, round: int, body: bytearray) -> None:
        self._guard.check_sum(name, round, body)
        self._channel.send(f"sum/{name}/{round}", "sum", round, Label(name), [self._manifest.aggregator.node], body)

    @_noting
    def total(self, name: str, round: int, cancelled: Cancelled) -> tuple[int, Sequence[Buffer]]:
        """Adds in the order of node ids, whatever the order of arrival: the same bits after a restart."""
        from flame.privacy.sums import ClearSum

        cancelled.when_set(self._channel.wake)
        total = ClearSum()
        for participant in self._manifest.data_nodes:
            item = self._await(
                self._part(participant.node, name, round),
                None,
                cancelled,
                f"{participant.name}'s part of the sum '{name}', round {round}",
                (participant.node,),
            )
            assert item is not None
            _, body = self._channel.body(item)
            total.add(participant.name, dict(named_arrays(decode(body))))
            del body
        return len(self._manifest.data_nodes), encode(total.result())

    @_noting
    def send(self, to: Sequence[str], category: str, body: bytearray) -> str:
        recipients = sorted(set(to))
        with self._lock:
            where = f"msg/{category}/{','.join(recipients)}"
            key = f"{where}/{self._ordinals[where]}"
            self._ordinals[where] += 1
        self._guard.check_object(category, body)
        return self._channel.send(key, "message", 0, Label(category), recipients, body).hex()

    @_noting
    def receive(
        self, category: str, senders: Sequence[str], timeout: float | None, cancelled: Cancelled
    ) -> tuple[Message, Sequence[Buffer]] | None:
        cancelled.when_set(self._channel.wake)
        wanted_senders = frozenset(senders)
        named = [p.name for p in self._manifest.participants if p.node in wanted_senders]
        item = self._await(
            lambda it: (
                it.type == "message"
                and (not wanted_senders or it.sender in wanted_senders)
                and self._channel.label(it).name == category
            ),
            timeout,
            cancelled,
            f"a message of the category '{category}'" + (f" from {' or '.join(named)}" if named else ""),
            wanted_senders or {p.node for p in self._manifest.participants if p.node != self._node},
        )
        if item is None:
            return None
        _, body = self._channel.body(item)
        return Message(item.msg_id.hex(), item.sender, category), [body]

    def log(self, level: str, template: str, values: Mapping[str, str], *, own: bool = False) -> None:
        """own: a line whose words are those of the platform or of the original SDK, known beforehand."""
        line = self._guard.check_log(level, template, known=own)
        self._outlets.keep(f"[{level}] {_filled(template, values)}")
        if line is not None:
            self._outlets.log(level, line)

    def progress(self, percent: int) -> None:
        step = self._guard.check_progress(percent)
        if step is not None:
            self._outlets.progress(step)

    @_noting
    def submit(self, name: str, media_type: str, body: bytearray, noise: tuple[float, float] | None = None) -> None:
        content = bytes(body) if noise is None else self._noisy(bytes(body), *noise)
        verdict = self._guard.check_final(name, content)
        self._outlets.submitted(name, media_type, content, verdict.hold)
        self._finals += 1

    def _noisy(self, body: bytes, epsilon: float, sensitivity: float) -> bytes:
        """The number with the node's noise: a program asks for noise, and cannot leave it out afterwards."""
        if self._noise is None:
            raise NotFound("This node adds no noise.", next_step="Ask its administrator.")
        if len(body) > _NUMBER_BYTES or not _NUMBER.fullmatch(body.strip()):
            raise Invalid(
                "Noise is added to one finite number.", next_step="Submit a single int or float with local_dp."
            )
        return repr(self._noise(self._finals, float(body), epsilon, sensitivity)).encode()

    @_noting
    def keep(self, label: str, body: bytearray) -> str:
        decode(body)  # what is kept is a value: nobody has to guess on reading
        return self._kept.save("value", label, body)

    @_noting
    def kept(self, id: str) -> Sequence[Buffer]:
        return [self._kept.read(id)]

    @_noting
    def list_kept(self, label: str) -> list[tuple[str, str]]:
        tags = [label] if label else self._kept.tags()
        return [(kept.handle, tag) for tag in tags for kept in self._kept.tagged(tag)]

    @property
    def _kept(self) -> LocalObjects:
        if self._local is None:
            raise NotFound("This node keeps no objects.", next_step="Ask its administrator.")
        return self._local

    def finish(self) -> None:
        self._outlets.finished()

    def fail(self, failure: Fail) -> None:
        self._outlets.keep(failure.text)
        said = self._guard.check_failure(failure)
        known = self.last_error
        if known is not None and failure.code == known.code:
            self._outlets.keep(f"[refused] {known}")
            self._outlets.failed(self._refusal_in_words(known), known.code)
        else:
            self._outlets.failed(_in_words(said or {}), str((said or {}).get("code") or "program_failed"))

    def refuse(self, error: FlameError) -> None:
        """End a program that cannot be told of a refusal in a way that it would act on."""
        self._outlets.keep(f"[refused] {error}")
        self.last_given = (str(error.fields["name"]),) if "name" in error.fields else ()
        said = self._refusal_in_words(error) if error.code != "diverged" else _DIVERGED
        self._outlets.failed(said, error.code)

    def _refusal_in_words(self, error: FlameError) -> str:
        """What may leave of a refusal.

        Its own words repeat what the program asked for, and a program could write a patient's name there. So they leave
        only if each such text stands in the manifest or is a literal of the approved code, and if they are not about a
        body, whose entries have names too.
        """
        declared = {r.name for r in self._manifest.releases} | {d.source for d in self._manifest.data}
        chosen = all(text in declared or self._guard.is_literal(text) for text in self.last_given)
        about_body = isinstance(error, Invalid) or "entry" in error.fields
        if chosen and not about_body:
            return str(error)
        return f"The node refused what the program asked for ({error.code}); the hospital's steward can read why."

    def max_body(self) -> int:
        return self._guard.max_body

    def _part(self, node: str, name: str, round: int) -> Callable[[Item], bool]:
        """The item that is this node's part of a sum; a large one is fetched for its name only when it can be the one."""
        return lambda item: (
            item.sender == node
            and item.type == "sum"
            and item.round == round
            and self._channel.label(item).name == name
        )

    @property
    def waits_for(self) -> str:
        """What the program waits for at this moment, in words; empty: for nothing of others."""
        with self._lock:
            return " and ".join(sorted(self._waits))

    def _await(
        self,
        wanted: Callable[[Item], bool],
        timeout: float | None,
        cancelled: Cancelled,
        explain: str,
        senders: Collection[str],
    ) -> Item | None:
        """The next item that is wanted and not yet taken by this start of the program; now it is."""

        def take(item: Item) -> bool:
            if item.place in self._taken or not wanted(item):
                return False
            with self._lock:
                if item.place in self._taken:
                    return False
                self._taken.add(item.place)
                while self._first in self._taken:
                    self._taken.discard(self._first)
                    self._first += 1
            return True

        with self._lock:
            self._waits[explain] += 1
        try:
            return self._channel.wait_for(take, timeout, cancelled, start=self._first, explain=explain, senders=senders)
        finally:
            with self._lock:
                if not cancelled.is_set():  # else it was ended in the middle, and this is what it waited for
                    self._waits[explain] -= 1
                    self._waits += Tally()  # drops what nobody waits for


def _filled(template: str, values: Mapping[str, str]) -> str:
    for name, value in values.items():
        template = template.replace("{" + name + "}", value)
    return template


def _in_words(said: Mapping[str, Any]) -> str:
    unfit = unfit_data(str(said.get("code") or ""))
    if unfit is not None and said.get("column"):
        return str(unfit(said["column"]))
    frames = said.get("frames") or []
    where = f" in {frames[-1][0]}, line {frames[-1][1]}" if frames else ""
    return (
        f"The program ended with {said.get('type', 'an error')}{where}; the hospital's steward can read the full text."
    )


def explain(error: BaseException) -> str:
    """An error of the platform in the words that may leave the node."""
    if isinstance(error, FlameError):
        return str(error)
    return f"An unexpected {type(error).__name__} at the node; its log says more."


__all__ = ["Outlets", "Side", "Snapshot", "explain"]
