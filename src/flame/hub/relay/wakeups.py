"""Several hub processes on one PostgreSQL: what one does, the others hear of at once (LISTEN/NOTIFY).

Of a letter they are told within the transaction that stores it, so that one is never there without the other. The rest
are hints that look again at what the database says: a change that a node should hear of, an analysis that somebody
watches, a run that has ended. A process that dies between its commit and its hint loses a hint; so when one is gone
(its advisory lock is), and when this one has been without its line, everything is looked at again.

One connection listens, one tells; both are opened anew when they break.
"""

from __future__ import annotations

import asyncio
import queue
import secrets
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

import msgspec
import structlog
from sqlalchemy import Connection, text

from flame.hub.relay.presence import clear_online, show_here
from flame.storage import postgresql

if TYPE_CHECKING:
    from sqlalchemy import URL

    from flame.hub.state import HubState

CHANNEL: Final = "flame_hub"
ALIVE: Final = 0x464C414D
"""The class of the advisory locks that processes hold while they live; the number is the process'."""
LOOK_SECONDS: Final = 2.0
"""Between two looks at who is alive."""
RETRY_SECONDS: Final = 1.0
MAX_NAMES: Final = 64
"""Recipients in one notice: a notice has at most 8000 bytes."""
_LIVING: Final = (
    "SELECT objid::bigint FROM pg_locks WHERE locktype = 'advisory' AND granted AND classid = %s "
    "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)
_NOTIFY: Final = text(f"SELECT pg_notify('{CHANNEL}', :payload)")


class Notice(msgspec.Struct, omit_defaults=True):
    """What one process tells the others; `sender` is the process."""

    sender: int
    letters_for: list[str] = []
    changed: tuple[list[str], str, str] | None = None
    stirred: str = ""
    run_ended: str = ""
    show: bool = False
    """Everybody shows which nodes are online there: somebody has marked them as offline."""


class PostgresWakeups:
    """Tells the other processes, and hears from them, from `start` to `stop`."""

    def __init__(self, hub: HubState, url: URL) -> None:
        self._hub, self._url = hub, url
        self.number = secrets.randbits(31)
        self._loop = asyncio.get_running_loop()
        self._out: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._heard_before = False
        self._living: set[int] = set()
        self._threads = [
            threading.Thread(target=self._keep(work), name=name, daemon=True)
            for name, work in (("wakeups-listen", self._listen), ("wakeups-tell", self._tell))
        ]

    def start(self) -> None:
        self._hub.mailbox.tell = self.letters
        self._hub.channels.elsewhere = self
        self._hub.runs.ended.append(self.run_ended)
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._out.put(None)
        for thread in self._threads:
            thread.join(2 * LOOK_SECONDS)

    # --- telling ----------------------------------------------------------------------------------------------------

    def letters(self, connection: Connection, recipients: Iterable[str]) -> None:
        """Within the transaction that stores a letter."""
        names = list(recipients)
        for first in range(0, len(names), MAX_NAMES):
            self.within(connection, Notice(self.number, letters_for=names[first : first + MAX_NAMES]))

    def within(self, connection: Connection, notice: Notice) -> None:
        """With the commit of what this transaction does."""
        connection.execute(_NOTIFY, {"payload": _encode(notice)})

    def ask_to_show(self, connection: Connection) -> None:
        self.within(connection, Notice(self.number, show=True))

    def changed(self, nodes: frozenset[str], what: str, key: str) -> None:
        names = sorted(nodes)
        for first in range(0, len(names), MAX_NAMES):
            self._put(Notice(self.number, changed=(names[first : first + MAX_NAMES], what, key)))

    def stirred(self, key: str) -> None:
        self._put(Notice(self.number, stirred=key))

    def run_ended(self, run: bytes) -> None:
        self._put(Notice(self.number, run_ended=run.hex()))

    def _put(self, notice: Notice) -> None:
        self._out.put(_encode(notice))

    def _tell(self) -> None:
        with postgresql.connect(self._url) as connection:
            while not self._stopped.is_set():
                payload = self._out.get()
                if payload is not None:
                    try:
                        connection.execute("SELECT pg_notify(%s, %s)", (CHANNEL, payload))
                    except Exception:
                        self._out.put(payload)  # later than others, perhaps: all of them are hints
                        raise

    # --- hearing ----------------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        with postgresql.connect(self._url) as connection:
            connection.execute(f"LISTEN {CHANNEL}")
            connection.execute("SELECT pg_advisory_lock(%s, %s)", (ALIVE, self.number))
            self._living = self._who(connection)
            self._in_loop(self._look_at_everything if self._heard_before else self._begin)
            self._heard_before = True
            while not self._stopped.is_set():
                for heard in connection.notifies(timeout=LOOK_SECONDS, stop_after=1):
                    self._in_loop(self._take, heard.payload)
                self._look_who_is_gone(connection)

    def _look_who_is_gone(self, connection: Any) -> None:
        living = self._who(connection)
        if self._living - living:
            self._in_loop(self._somebody_is_gone)
        self._living = living

    def _who(self, connection: Any) -> set[int]:
        return {number for (number,) in connection.execute(_LIVING, (ALIVE,)).fetchall()}

    def _keep(self, work: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            while not self._stopped.is_set():
                try:
                    work()
                except Exception as error:  # noqa: BLE001 - whatever broke the line: another one is opened
                    if not self._stopped.is_set():
                        structlog.get_logger("flame.hub").warning("wakeups_line_broke", error=type(error).__name__)
                        self._stopped.wait(RETRY_SECONDS)

        return run

    def _in_loop(self, work: Callable[..., None], *arguments: object) -> None:
        if not self._stopped.is_set():
            self._loop.call_soon_threadsafe(work, *arguments)

    def _take(self, payload: str) -> None:
        try:
            notice = msgspec.json.decode(payload, type=Notice)
        except msgspec.DecodeError:
            return  # whoever may write to the database may write nonsense here; it is not more than a hint
        channels = self._hub.channels
        if notice.show:
            self._hub.in_background(show_here(self._hub))
        if notice.sender == self.number:
            return
        channels.look(notice.letters_for)
        if notice.changed is not None:
            nodes, what, key = notice.changed
            channels.changed_here(frozenset(nodes), what, key)
        if notice.stirred:
            channels.stir_here(notice.stirred)
        if notice.run_ended:
            run = bytes.fromhex(notice.run_ended)
            self._hub.runs.forget_here(run)
            self._hub.arrivals.run_ended(run)

    def _begin(self) -> None:
        """A process that has just started: nodes that a dead one has left as online are shown again by who has them."""
        self._hub.in_background(clear_online(self._hub, self))

    def _somebody_is_gone(self) -> None:
        self._look_at_everything()
        self._hub.in_background(clear_online(self._hub, self))

    def _look_at_everything(self) -> None:
        """Hints may have been lost."""
        self._hub.runs.forget_everything()
        self._hub.channels.look_at_everything()
        self._hub.in_background(show_here(self._hub))


def _encode(notice: Notice) -> str:
    return msgspec.json.encode(notice).decode()
