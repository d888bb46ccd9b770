"""The gateway: one unix socket per run, the only way in and out of a sandbox.

A thread for each connection, blocking sockets, bounds on everything; a run has a Gateway of its own and can use up
nothing of another's. Bytes are read with ``recv`` only, so descriptors sent along are dropped by the kernel.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import stat
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from flame.model.errors import Conflict, FlameError, Malformed, Unavailable
from flame.node.gateway.http import (
    HEAD_SECONDS,
    Head,
    HeadError,
    Inbox,
    Response,
    is_bulky,
    not_served,
    problem,
    read_body,
    read_head,
    refused,
)
from flame.node.gateway.port import Cancelled, PlainSide, RunSide
from flame.node.gateway.requests import check_hello, check_request
from flame.wire.gateway import (
    MAX_HEAD,
    UPGRADED,
    Connection,
    Contribute,
    Done,
    Fail,
    Failed,
    Finish,
    GetData,
    GetKept,
    GetTotal,
    Keep,
    Kept,
    ListKept,
    Log,
    Progress,
    Receive,
    Reply,
    Request,
    Send,
    Sent,
    Submit,
    TimedOut,
    Total,
    Welcome,
    failed,
)
from flame.wire.values import Buffer

SOCKET: Final = "gateway.sock"
MAX_CONNECTIONS: Final = 32
MAX_REQUESTS: Final = 16
MAX_BULKY: Final = 2
"""Plain requests with a large body that are in memory at once; further ones wait."""
MAX_DISCARD: Final = 4 << 30
"""A refused body up to this size is read and forgotten, so that the program gets the reason; beyond, we hang up."""

_PREFIX: Final = struct.Struct(">IQ")
_JOIN_SECONDS: Final = 5.0
_SPARE_FROM: Final = 1 << 20
_SPARE_TO: Final = 128 << 20
_log = logging.getLogger(__name__)
_decode = msgspec.msgpack.Decoder(Request).decode

_Answer = tuple[Reply, Sequence[Buffer]]


class Gateway:
    """Serves one run at ``directory``/gateway.sock until it is closed."""

    def __init__(self, directory: Path, side: RunSide, plain: PlainSide | None = None) -> None:
        """plain: what answers programs that speak HTTP, where the run's environment is one for such programs."""
        self._path = directory / SOCKET
        self._side = side
        self._plain = plain
        self._listener: socket.socket | None = None
        self._acceptor: threading.Thread | None = None
        self._lock = threading.Lock()
        self._sessions: set[_Session] = set()
        self._threads: set[threading.Thread] = set()
        self._closed = False
        self._slots = threading.BoundedSemaphore(MAX_REQUESTS)
        self._hangups = _Hangups()
        self._spare = _Spare()
        self._bulky = threading.BoundedSemaphore(MAX_BULKY)

    @property
    def path(self) -> Path:
        return self._path

    def open(self) -> None:
        """Bind the socket and begin to serve. Raises Conflict when something else lies at its place."""
        _remove_stale(self._path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            _bind(listener, self._path)
            self._path.chmod(0o666)  # the directory is the access control: one per run, mounted into one sandbox
            listener.listen(MAX_CONNECTIONS * 2)
        except BaseException:
            listener.close()
            raise
        self._listener = listener
        self._hangups.start()
        self._acceptor = self._start(self._accept, "gateway-accept")

    def close(self) -> None:
        """End all connections, wake all who wait, remove the socket. Safe to call twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._stop_accepting()
        with self._lock:  # nothing is added any more
            sessions, threads = list(self._sessions), list(self._threads)
        for session in sessions:
            session.end()
        self._hangups.stop()
        deadline = time.monotonic() + _JOIN_SECONDS
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))

    def _stop_accepting(self) -> None:
        if self._listener is None:
            return
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        if self._acceptor is not None:
            self._acceptor.join(_JOIN_SECONDS)
        self._listener.close()
        self._path.unlink(missing_ok=True)

    def _accept(self) -> None:
        assert self._listener is not None
        while True:
            try:
                stream, _ = self._listener.accept()
            except OSError:
                if self._closed:
                    return
                time.sleep(0.05)  # out of descriptors: the ones in use will be given back
                continue
            if not self._take(stream):
                _turn_away(stream)

    def _take(self, stream: socket.socket) -> bool:
        with self._lock:
            if self._closed or len(self._sessions) >= MAX_CONNECTIONS:
                return False
            session = _Session(stream, self._side, self._plain, self._slots, self._bulky, self._hangups, self._spare)
            self._sessions.add(session)
        self._start(lambda: self._serve(session), "gateway-run")
        return True

    def _serve(self, session: _Session) -> None:
        try:
            session.serve()
        except (EOFError, OSError):
            pass  # the program went away, or the gateway closes
        except Exception:  # noqa: BLE001 - the last place of this thread; the log is told
            _log.exception("A connection to the gateway ended unexpectedly.")
        finally:
            session.end()
            session.release()
            with self._lock:
                self._sessions.discard(session)

    def _start(self, work: Callable[[], None], name: str) -> threading.Thread:
        def run() -> None:
            try:
                work()
            finally:
                with self._lock:
                    self._threads.discard(threading.current_thread())

        thread = threading.Thread(target=run, name=name, daemon=True)
        with self._lock:
            self._threads.add(thread)
        thread.start()
        return thread


class _Session:
    """One connection of the program."""

    def __init__(
        self,
        stream: socket.socket,
        side: RunSide,
        plain: PlainSide | None,
        slots: threading.Semaphore,
        bulky: threading.Semaphore,
        hangups: _Hangups,
        spare: _Spare,
    ) -> None:
        self._stream = stream
        self._inbox = Inbox(stream)
        self._connection = Connection(stream)
        self._side = side
        self._plain = plain
        self._slots = slots
        self._bulky = bulky
        self._hangups = hangups
        self._spare = spare
        self._cancelled = Cancelled()

    def end(self) -> None:
        """Wake the thread that serves this connection, wherever it waits."""
        self._cancelled.set()
        with contextlib.suppress(OSError):
            self._stream.shutdown(socket.SHUT_RDWR)

    def release(self) -> None:
        self._stream.close()

    def serve(self) -> None:
        try:
            head = read_head(self._inbox)
        except HeadError as error:
            self._write(problem(error.status, "bad_request", error.message, "Send a plain HTTP/1.1 request."))
            return
        if not head.asks_for_frames:
            if self._plain is None:
                self._write(not_served(head))
            else:
                self._requests(head, self._plain)
            return
        self._write(UPGRADED)
        try:
            self._frames()
        except (Malformed, TimeoutError) as error:
            cause = (
                error
                if isinstance(error, Malformed)
                else Malformed(f"A request's head took longer than {HEAD_SECONDS:.0f} seconds.")
            )
            self._reply(failed(cause), ())

    def _frames(self) -> None:
        me = self._hello()
        while True:
            self._inbox.wait()
            if not self._slots.acquire(blocking=False):
                _, size = self._read_head()
                self._refuse(
                    size,
                    Unavailable(
                        f"{MAX_REQUESTS} requests of this program are being served.", next_step="Wait for one of them."
                    ),
                )
                continue
            try:
                reply, body = self._one(me)
                self._reply(reply, body)
                del body  # a table or a total is not kept while the program computes
            finally:
                self._slots.release()

    def _requests(self, head: Head, plain: PlainSide) -> None:
        """Plain requests, one after the other, until one says that it is the last."""
        try:
            while True:
                close = "close" in head.headers.get("connection", "").lower()
                if head.headers.get("expect", "").lower() == "100-continue":
                    self._write(b"HTTP/1.1 100 Continue\r\n\r\n")
                with self._bulky if is_bulky(head) else contextlib.nullcontext():
                    body = read_body(self._inbox, head, plain.max_body(head))
                    response = self._answer(head, body, plain)
                    del body
                self._respond(response, close=close)
                if close:
                    return
                self._inbox.wait()
                head = read_head(self._inbox)
        except HeadError as error:
            self._write(problem(error.status, "bad_request", error.message, "Correct the request."))

    def _answer(self, head: Head, body: bytearray, plain: PlainSide) -> Response:
        try:
            with self._waiting():
                return plain.answer(head, body, self._cancelled)
        except FlameError as error:
            return refused(error)
        except Exception:  # noqa: BLE001 - as in ``_answered``
            _log.exception("The node failed on a plain request of a program.")
            return refused(FlameError("The node could not do this because of an error of its own."))

    def _respond(self, response: Response, *, close: bool) -> None:
        self._stream.settimeout(None)
        self._stream.sendall(response.head(close=close))
        for piece in response.pieces if response.pieces is not None else (response.body,):
            self._stream.sendall(piece)

    def _hello(self) -> Welcome:
        request, size = self._read_head()
        if size:
            raise Malformed("Hello has no body.")
        try:
            check_hello(request)
        except Malformed:
            raise
        except FlameError as error:
            self._reply(failed(error), ())
            raise EOFError from None
        reply, _ = self._answered(lambda: (self._side.welcome(), ()))
        self._reply(reply, ())
        if not isinstance(reply, Welcome):
            raise EOFError
        return reply

    def _read_head(self) -> tuple[Request, int]:
        """A frame's request and the size of the body that follows it. Raises Malformed."""
        deadline = time.monotonic() + HEAD_SECONDS
        head_size, body_size = _PREFIX.unpack(self._inbox.exactly(_PREFIX.size, deadline))
        if head_size > MAX_HEAD:
            raise Malformed(f"A frame's head of {head_size} bytes is longer than {MAX_HEAD}.")
        try:
            return _decode(self._inbox.exactly(head_size, deadline)), body_size
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise Malformed(f"The request cannot be read: {error}") from None

    def _one(self, me: Welcome) -> _Answer:
        request, size = self._read_head()
        try:
            check_request(request, size, me, self._side.max_body())
        except FlameError as error:
            self._discard(size, error)
            return failed(error), ()
        body = self._inbox.body(size, self._spare.take(size))
        answer = self._answered(self._ask, request, body)
        if sys.getrefcount(body) == 2:  # this name and the call's own: the side kept nothing of it
            self._spare.give(body)
        return answer

    def _refuse(self, size: int, error: FlameError) -> None:
        self._discard(size, error)
        self._reply(failed(error), ())

    def _discard(self, size: int, error: FlameError) -> None:
        """Read on past a refused body; the connection stays usable. Raises Malformed when there is too much of it."""
        if size > MAX_DISCARD:
            raise Malformed(error.message, next_step=error.next_step)
        self._inbox.discard(size)

    def _answered(self, ask: Callable[..., _Answer], *arguments: Any) -> _Answer:
        """The side's answer; an error of the family is a reply, any other is told to the node's log alone."""
        try:
            return ask(*arguments)
        except FlameError as error:
            return failed(error), ()
        except Exception:  # noqa: BLE001 - a program must not learn what went wrong inside the node
            _log.exception("The node failed on a request of a program.")
            return Failed(
                "internal",
                "The node could not do this because of an error of its own.",
                "Ask the node's administrator to look into the node's log.",
            ), ()

    def _ask(self, request: Request, body: bytearray) -> _Answer:
        match request:
            case GetData(source=source):
                return self._side.table(source)
            case GetTotal(name=name, round=round):
                with self._waiting():
                    contributors, parts = self._side.total(name, round, self._cancelled)
                return Total(contributors), parts
            case Receive(category=category, senders=senders, timeout=timeout):
                with self._waiting():
                    found = self._side.receive(category, senders, timeout, self._cancelled)
                return found if found is not None else (TimedOut(), ())
            case Send(to=to, category=category):
                return Sent(self._side.send(to, category, body)), ()
            case Contribute(name=name, round=round):
                self._side.contribute(name, round, body)
            case Log(level=level, template=template, values=values):
                self._side.log(level, template, values)
            case Progress(percent=percent):
                self._side.progress(percent)
            case Submit(name=name, media_type=media_type, noise=noise):
                self._side.submit(name, media_type, body, noise)
            case Keep(label=label):
                return Sent(self._side.keep(label, body)), ()
            case GetKept(id=id_):
                return Kept([(id_, "")]), self._side.kept(id_)
            case ListKept(label=label):
                return Kept(self._side.list_kept(label)), ()
            case Finish():
                self._side.finish()
            case Fail():
                self._side.fail(request)
            case _:
                raise Malformed(f"{type(request).__name__} cannot be asked here.")
        return Done(), ()

    @contextlib.contextmanager
    def _waiting(self) -> Iterator[None]:
        """While the side waits: a program that hangs up cancels it, so that no message is taken for nobody."""
        self._hangups.watch(self._stream, self._cancelled)
        try:
            yield
        finally:
            self._hangups.forget(self._stream)

    def _reply(self, reply: Reply, body: Sequence[Buffer]) -> None:
        self._stream.settimeout(None)
        self._connection.send(reply, body)

    def _write(self, data: bytes) -> None:
        self._stream.settimeout(HEAD_SECONDS)
        self._stream.sendall(data)


class _Spare:
    """One large buffer kept between requests: fresh memory costs more than the bytes that are put into it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._buffer: bytearray | None = None

    def take(self, size: int) -> bytearray | None:
        with self._lock:
            if self._buffer is None or len(self._buffer) != size:
                return None
            buffer, self._buffer = self._buffer, None
        return buffer

    def give(self, buffer: bytearray) -> None:
        if _SPARE_FROM <= len(buffer) <= _SPARE_TO:
            with self._lock:
                self._buffer = buffer


class _Hangups:
    """One thread that sees when a program hangs up while the node is still looking for its answer."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watched: dict[int, Cancelled] = {}
        self._wake_in, self._wake_out = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._thread: threading.Thread | None = None
        self._stopped = False

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="gateway-hangups", daemon=True)
        self._thread.start()

    def watch(self, stream: socket.socket, cancelled: Cancelled) -> None:
        self._change(lambda: self._watched.__setitem__(stream.fileno(), cancelled))

    def forget(self, stream: socket.socket) -> None:
        self._change(lambda: self._watched.pop(stream.fileno(), None))

    def stop(self) -> None:
        self._change(lambda: setattr(self, "_stopped", True))
        if self._thread is not None:
            self._thread.join()
        with self._lock:
            os.close(self._wake_in)
            os.close(self._wake_out)
            self._wake_in = self._wake_out = -1

    def _change(self, change: Callable[[], object]) -> None:
        with self._lock:
            change()
            if self._wake_out >= 0:
                with contextlib.suppress(BlockingIOError):
                    os.write(self._wake_out, b"x")

    def _run(self) -> None:
        while not self._stopped:
            with self._lock:
                watched = dict(self._watched)
            poll = select.poll()
            poll.register(self._wake_in, select.POLLIN)
            for descriptor in watched:
                poll.register(descriptor, select.POLLRDHUP)
            for descriptor, _ in poll.poll():
                if descriptor == self._wake_in:
                    os.read(self._wake_in, 4096)
                else:
                    self._hung_up(descriptor, watched[descriptor])

    def _hung_up(self, descriptor: int, cancelled: Cancelled) -> None:
        with self._lock:
            if self._watched.get(descriptor) is not cancelled:
                return  # the number belongs to another connection by now
            del self._watched[descriptor]
        cancelled.set()


def _remove_stale(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise Conflict(
            f"{path.name} in the run's directory is not a socket.", next_step="Look who put it there, then remove it."
        )
    path.unlink()


def _bind(listener: socket.socket, path: Path) -> None:
    """Bind by way of the directory's descriptor: a socket's address has room for 108 bytes only."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        listener.bind(f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.close(folder)


def _turn_away(stream: socket.socket) -> None:
    with contextlib.suppress(OSError), stream:
        stream.setblocking(False)
        stream.send(
            problem(503, "unavailable", f"This program has {MAX_CONNECTIONS} connections open.", "Close one of them.")
        )
