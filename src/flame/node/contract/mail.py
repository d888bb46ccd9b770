"""Messages between programs that were written for FLAME: taken at once, sent in order, delivered until acknowledged.

    POST …/messages -> guard -> one queue for each recipient -> channel (sealed, numbered, durable)
    channel -> one thread for each sender -> POST /webhook in the program, until a 2xx or the end of the run

A message's place in its queue (category, recipient, ordinal) names it, not the random id that the SDK writes into it. So
a program that begins anew after a crash of its node sends nothing twice. An acknowledgement carries no payload between
the nodes: the receiver's node says which message it is about, and the sender's node, which has it, writes the rest.
"""

from __future__ import annotations

import queue
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from flame.model.errors import FlameError, Invalid, Malformed, RunFailed, Unavailable
from flame.node.context import log
from flame.protocol.payload import Label
from flame.wire.values import decode, encode

if TYPE_CHECKING:
    from flame.node.contract.program import Program
    from flame.node.egress.guard import Guard
    from flame.node.gateway.port import Cancelled
    from flame.node.release import Channel, Item
    from flame.wire.values import Buffer

MESSAGE: Final = 0
OBJECT: Final = 1
ACKNOWLEDGED: Final = 2
"""What an envelope is, in place of its round: known without fetching a large one."""
DATA: Final = "intermediate_data"
"""The name under which a manifest declares objects, whose message's category the node does not know yet."""

WEBHOOK_SECONDS: Final = 120.0
RETRY_FIRST: Final = 0.1
RETRY_LAST: Final = 2.0
MAX_CATEGORY: Final = 128
_VOLATILE: Final = ("id", "created_at", "arrived_at", "number", "status")
_TIME: Final = "%Y-%m-%d %H:%M:%S.%f"


class Mail:
    """The messages of one start of the program at one node. Methods may be called from any thread."""

    def __init__(
        self,
        node: str,
        others: list[str],
        *,
        channel: Channel,
        guard: Guard,
        program: Program,
        failed: Callable[[FlameError], None],
        cancelled: Cancelled,
    ) -> None:
        self._node, self._others = node, others
        self._channel, self._guard, self._program = channel, guard, program
        self._failed, self._cancelled = failed, cancelled
        self._webhook: str | None = None
        self._subscribed = threading.Condition()
        self._lock = threading.Lock()
        self._ordinals: Counter[str] = Counter()
        self._queues: dict[str, queue.SimpleQueue[Callable[[], None]]] = {o: queue.SimpleQueue() for o in others}
        self._sent: dict[tuple[str, str], dict[str, Any]] = {}  # (recipient, message's id on the way) -> as it was sent
        self._acknowledged_early: dict[tuple[str, str], str] = {}
        self._delivered: dict[
            tuple[str, str], tuple[str, dict[str, Any]]
        ] = {}  # (sender, meta.id) -> id on the way, payload
        self._acks: deque[dict[str, Any]] = deque()
        self._acks_wait = threading.Condition()
        self.busy = 0
        """Webhooks that are being delivered at this moment."""

    def open(self) -> None:
        cancelled = self._cancelled
        cancelled.when_set(self._wake)
        for other in self._others:
            self._thread(lambda other=other: self._send_all(self._queues[other]), "contract-send")  # type: ignore[misc]
            self._thread(lambda other=other: self._deliver_all(other), "contract-deliver")  # type: ignore[misc]
        self._thread(self._deliver_acks, "contract-acks")

    def subscribe(self, path: str) -> None:
        with self._subscribed:
            self._webhook = path
            self._subscribed.notify_all()

    # --- out --------------------------------------------------------------------------------------------------------

    def post(self, recipients: list[str], message: dict[str, Any]) -> None:
        """Take over a message. Raises Invalid, Malformed, ReleaseRefused; otherwise it is on its way."""
        meta = message.get("meta")
        if not isinstance(meta, dict) or not isinstance(meta.get("id"), str):
            raise Malformed("A message has an object 'meta' with an id.", next_step="Send messages with the SDK.")
        if not recipients or len(set(recipients)) != len(recipients) or not set(recipients) <= set(self._others):
            raise Invalid(
                "The recipients of a message are other participants of the analysis, each named once.",
                next_step="Use ids from the list of participants.",
            )
        if meta.get("akn_id") is not None:
            self._acknowledge(recipients, message, meta)
            return
        category = meta.get("category")
        if not isinstance(category, str) or not 0 < len(category) <= MAX_CATEGORY:
            raise Malformed(f"A message has a category of at most {MAX_CATEGORY} characters.")
        message = {**message, "meta": {**meta, "sender": self._node}}
        body = _packed(msgspec.json.encode(message))
        self._guard.check_object(category, body)
        same_as = msgspec.json.encode(_lasting(message), order="sorted")
        for recipient in recipients:
            self._enqueue(recipient, category, message, body, same_as)

    def _enqueue(self, recipient: str, category: str, message: dict[str, Any], body: bytes, same_as: bytes) -> None:
        with self._lock:
            where = f"flame/{category}/{recipient}"
            key = f"{where}/{self._ordinals[where]}"
            self._ordinals[where] += 1
            way = self._channel.id_of(key).hex()
            self._sent[recipient, way] = message
            arrived = self._acknowledged_early.pop((recipient, way), None)

        def send() -> None:
            self._channel.send(key, "message", MESSAGE, Label(category), [recipient], body, same_as=same_as)

        self._queues[recipient].put(send)
        if arrived is not None:
            self._tell_acknowledged(recipient, way, arrived)

    def _acknowledge(self, recipients: list[str], message: dict[str, Any], meta: dict[str, Any]) -> None:
        known = self._delivered.get((recipients[0], meta["id"])) if len(recipients) == 1 else None
        if known is None or meta["akn_id"] != self._node or _payload(message) != known[1]:
            raise Invalid(
                "This acknowledges no message that this node has received.",
                next_step="Acknowledge a message to its sender, unchanged.",
            )
        (sender,), (way, _) = recipients, known
        body = _packed(msgspec.json.encode({"message": way, "arrived_at": datetime.now(UTC).strftime(_TIME)}))

        def send() -> None:
            same_as = way.encode()
            self._channel.send(
                f"flame.ack/{sender}/{way}", "message", ACKNOWLEDGED, Label("ack"), [sender], body, same_as=same_as
            )

        self._queues[sender].put(send)

    def put_object(self, recipient: str, content: memoryview) -> str:
        """Hand an object over for one recipient; its id once it is durable. Raises ReleaseRefused, Invalid."""
        if recipient not in self._others:
            raise Invalid("An intermediate object is for another participant.", field="remote_node_id")
        body = encode(np.frombuffer(content, "u1"))
        whole = b"".join(body)
        self._guard.check_object(DATA, whole)
        with self._lock:
            where = f"flame.object/{recipient}"
            key = f"{where}/{self._ordinals[where]}"
            self._ordinals[where] += 1
        return self._channel.send(key, "message", OBJECT, Label(DATA), [recipient], whole).hex()

    def get_object(self, sender: str, way: str, seconds: float, cancelled: Cancelled) -> memoryview | None:
        """An object that a participant has sent to this node; None when there is none within the time."""
        cancelled.when_set(self._channel.wake)
        item = self._channel.wait_for(
            lambda it: it.sender == sender and it.type == "message" and it.round == OBJECT and it.msg_id.hex() == way,
            seconds,
            cancelled,
            explain="an intermediate object",
        )
        return None if item is None else _unpacked(self._channel.body(item)[1])

    def _send_all(self, waiting: queue.SimpleQueue[Callable[[], None]]) -> None:
        while not self._cancelled.is_set():
            try:
                send = waiting.get(timeout=1.0)
            except queue.Empty:
                continue
            try:
                send()
            except FlameError as error:
                if not self._cancelled.is_set() and error.code != "closed":
                    self._failed(error)
                return

    # --- in ---------------------------------------------------------------------------------------------------------

    def _deliver_all(self, sender: str) -> None:
        place = 0
        try:
            while not self._cancelled.is_set():
                item = self._channel.wait_for(
                    lambda it: it.sender == sender and it.type == "message" and it.round != OBJECT,
                    None,
                    self._cancelled,
                    start=place,
                    explain="a message",
                )
                if item is None:
                    return
                place = item.place + 1
                self._take(sender, item)
        except RunFailed:
            return  # the run ends: nobody waits for messages any more
        except FlameError as error:
            if not self._cancelled.is_set():
                self._failed(error)

    def _take(self, sender: str, item: Item) -> None:
        content = msgspec.json.decode(_unpacked(self._channel.body(item)[1]))
        if item.round == ACKNOWLEDGED:
            self._tell_acknowledged(sender, str(content["message"]), str(content["arrived_at"]))
            return
        message = dict(content)
        message["meta"] = {**dict(message["meta"]), "sender": sender}
        with self._lock:
            self._delivered[sender, str(message["meta"]["id"])] = (item.msg_id.hex(), _payload(message))
        self._deliver(message)

    def _tell_acknowledged(self, receiver: str, way: str, arrived: str) -> None:
        """To the program, its own message as the receiver would have sent it back; once it has sent it, that is."""
        with self._lock:
            sent = self._sent.get((receiver, way))
            if sent is None:
                self._acknowledged_early[receiver, way] = arrived
                return
        meta = {**sent["meta"], "type": "incoming", "akn_id": receiver, "arrived_at": arrived}
        with self._acks_wait:
            self._acks.append({**sent, "meta": meta})
            self._acks_wait.notify()

    def _deliver_acks(self) -> None:
        while not self._cancelled.is_set():
            with self._acks_wait:
                while not self._acks and not self._cancelled.is_set():
                    self._acks_wait.wait(1.0)
                if not self._acks:
                    return
                message = self._acks.popleft()
            self._deliver(message)

    def _deliver(self, message: Mapping[str, Any]) -> None:
        """Until the program takes it, or the run ends."""
        pause = RETRY_FIRST
        while not self._cancelled.is_set():
            path = self._path()
            if path is None:
                return
            try:
                with self._lock:
                    self.busy += 1
                try:
                    status = self._program.post(path, message, seconds=WEBHOOK_SECONDS)
                finally:
                    with self._lock:
                        self.busy -= 1
                if 200 <= status < 300:
                    return
                log.warning("a webhook was answered with %d; it is tried again", status)
            except (ConnectionRefusedError, Unavailable):
                pass  # the program is not listening yet, or is busy
            self._cancelled.wait(pause)
            pause = min(2 * pause, RETRY_LAST)

    def _path(self) -> str | None:
        with self._subscribed:
            while self._webhook is None and not self._cancelled.is_set():
                self._subscribed.wait(1.0)
            return self._webhook

    def _wake(self) -> None:
        self._channel.wake()
        with self._subscribed:
            self._subscribed.notify_all()
        with self._acks_wait:
            self._acks_wait.notify_all()

    def _thread(self, work: Callable[[], None], name: str) -> None:
        threading.Thread(target=self._told, args=(work,), name=name, daemon=True).start()

    def _told(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - a thread of the node that dies must end the run, not hang it
            log.exception("messages of a program could not be passed on")
            self._failed(RunFailed(f"An unexpected {type(error).__name__} at the node; its log says more."))


def _payload(message: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in message.items() if name != "meta"}


def _lasting(message: Mapping[str, Any]) -> dict[str, Any]:
    """What a program that begins anew sends again: all but ids and times."""
    return {**message, "meta": {name: value for name, value in message["meta"].items() if name not in _VOLATILE}}


def _packed(content: bytes) -> bytes:
    """As a wire value: the guard lets nothing else pass."""
    return b"".join(encode(np.frombuffer(content, "u1")))


def _unpacked(body: Buffer) -> memoryview:
    value = decode(body)
    if not isinstance(value, np.ndarray) or value.dtype != np.uint8 or value.ndim != 1:
        raise Malformed("What a participant sent is not what FLAME's contract sends.")
    return memoryview(value.data)
