"""A gateway for the SDK's tests: a real socket that keeps the promises of ``flame.wire.gateway`` in memory."""

from __future__ import annotations

import socket
import threading
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from flame.model.errors import FlameError, Invalid, NotFound, ReleaseRefused
from flame.wire import gateway, values

AGGREGATOR = "node-c"


class Run:
    """What the gateways of one run share: sums, mailboxes, results; all waiting is on one condition."""

    def __init__(self, tables: dict[str, dict[str, Any]], parameters: dict[str, Any]) -> None:
        self.tables = tables
        self.parameters = parameters
        self.changed = threading.Condition()
        self.parts: dict[tuple[str, int], dict[str, dict[str, np.ndarray]]] = defaultdict(dict)
        self.mail: dict[str, list[tuple[gateway.Message, bytes]]] = defaultdict(list)
        self.results: dict[str, tuple[str, bytes]] = {}
        self.noise: dict[str, tuple[float, float]] = {}
        self.kept: dict[str, list[tuple[str, str, bytes]]] = defaultdict(list)
        self.logs: list[tuple[str, gateway.Log]] = []
        self.requests: Counter[tuple[str, str]] = Counter()
        self.finished: set[str] = set()
        self.failures: dict[str, gateway.Fail] = {}
        self.over = False

    @property
    def sites(self) -> list[str]:
        return list(self.tables)

    def end(self) -> None:
        with self.changed:
            self.over = True
            self.changed.notify_all()

    def wait(self, ready: Any, timeout: float | None = None, gone: threading.Event | None = None) -> bool:
        """With ``changed`` held; EOFError when the run is over or the program has hung up."""

        def hung_up() -> bool:
            return gone is not None and gone.is_set()

        if not self.changed.wait_for(lambda: self.over or hung_up() or ready(), timeout):
            return False
        if self.over or (hung_up() and not ready()):
            raise EOFError
        return True


class Gateway:
    """One node's socket."""

    def __init__(self, run: Run, node: str, path: Path) -> None:
        self.run, self.node = run, node
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(str(path))
        self.listener.listen(32)
        self.streams: list[socket.socket] = []
        self.threads = [threading.Thread(target=self._accept, daemon=True)]
        self.threads[0].start()

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for stream in self.streams:
            gateway.Connection(stream).close()

    def _accept(self) -> None:
        while True:
            try:
                stream, _ = self.listener.accept()
            except OSError:
                return
            self.streams.append(stream)
            threading.Thread(target=self._serve, args=(stream,), daemon=True).start()

    def _serve(self, stream: socket.socket) -> None:
        connection = gateway.Connection(stream)
        try:
            opening = b""
            while not opening.endswith(b"\r\n\r\n"):
                opening += stream.recv(1)
            assert opening == gateway.UPGRADE
            stream.sendall(gateway.UPGRADED)
            while True:
                request, body = connection.receive_request()
                with self.run.changed:
                    self.run.requests[self.node, type(request).__name__] += 1
                    self.run.changed.notify_all()
                try:
                    reply, answer = self._answer(request, bytes(body), stream)
                except FlameError as error:
                    reply, answer = gateway.failed(error), b""
                connection.send(reply, [answer])
        except (EOFError, OSError):
            connection.close()

    def _answer(self, request: gateway.Request, body: bytes, stream: socket.socket) -> tuple[gateway.Reply, bytes]:
        run = self.run
        match request:
            case gateway.Hello():
                return self._welcome(), b""
            case gateway.GetData(source=source):
                if source != "data":
                    raise NotFound(f"There is no source '{source}'.")
                columns = run.tables[self.node]
                return gateway.Table(source, len(next(iter(columns.values()))), list(columns)), values.encode_bytes(
                    columns
                )
            case gateway.Contribute(name=name, round=number):
                if name == "forbidden":
                    raise ReleaseRefused("The sum 'forbidden' is not in the manifest.", next_step="Declare it.")
                with run.changed:
                    assert self.node not in run.parts[name, number]
                    run.parts[name, number][self.node] = dict(values.named_arrays(values.decode(body)))
                    run.changed.notify_all()
                return gateway.Done(), b""
            case gateway.GetTotal(name=name, round=number):
                with run.changed:
                    run.wait(lambda: len(run.parts[name, number]) == len(run.tables))
                    parts = list(run.parts[name, number].values())
                total = {key: np.sum([part[key] for part in parts], axis=0) for key in parts[0]}
                return gateway.Total(len(parts)), values.encode_bytes(
                    {key: np.asarray(value) for key, value in total.items()}
                )
            case gateway.Send(to=to, category=category):
                with run.changed:
                    number = f"m{sum(map(len, run.mail.values()))}-{run.requests[self.node, 'Send']}"
                    for receiver in to:
                        run.mail[receiver].append((gateway.Message(number, self.node, category), body))
                    run.changed.notify_all()
                return gateway.Sent(number), b""
            case gateway.Receive():
                return self._receive(request, self._hangup(stream))
            case gateway.Log():
                run.logs.append((self.node, request))
            case gateway.Keep(label=label):
                kept = run.kept[self.node]
                kept.append((f"k{len(kept)}", label, body))
                return gateway.Sent(kept[-1][0]), b""
            case gateway.GetKept(id=id_):
                return gateway.Kept([(id_, "")]), next(content for i, _, content in run.kept[self.node] if i == id_)
            case gateway.ListKept(label=label):
                found = [(i, tag) for i, tag, _ in run.kept[self.node] if tag == label or (tag and not label)]
                return gateway.Kept(found), b""
            case gateway.Submit(name=name, media_type=media, noise=noise):
                if self.node != AGGREGATOR:
                    raise Invalid("Only the aggregator hands in results.")
                if noise is not None:
                    run.noise[name] = noise
                run.results[name] = (media, body)
            case gateway.Finish():
                run.finished.add(self.node)
            case gateway.Fail():
                run.failures[self.node] = request
        return gateway.Done(), b""

    def _hangup(self, stream: socket.socket) -> threading.Event:
        """Set when the program hangs up, even half; ends with the next request at the latest."""
        gone = threading.Event()

        def watch() -> None:
            try:
                if stream.recv(1, socket.MSG_PEEK):
                    return
            except OSError:
                pass
            gone.set()
            with self.run.changed:
                self.run.changed.notify_all()

        threading.Thread(target=watch, daemon=True).start()
        return gone

    def _receive(self, request: gateway.Receive, gone: threading.Event) -> tuple[gateway.Reply, bytes]:
        mail = self.run.mail[self.node]

        def fitting() -> int | None:
            for i, (message, _) in enumerate(mail):
                if message.category == request.category and message.sender in (request.senders or [message.sender]):
                    return i
            return None

        with self.run.changed:
            if not self.run.wait(lambda: fitting() is not None, request.timeout, gone):
                return gateway.TimedOut(), b""
            return mail.pop(fitting())

    def _welcome(self) -> gateway.Welcome:
        people = [gateway.Participant(site, "default") for site in self.run.sites]
        role = "aggregator" if self.node == AGGREGATOR else "default"
        return gateway.Welcome(
            version=gateway.VERSION,
            analysis="analysis-1",
            project="project-1",
            run="run-1",
            node=self.node,
            role=role,
            participants=[*people, gateway.Participant(AGGREGATOR, "aggregator")],
            parameters=self.run.parameters,
            sources=[] if role == "aggregator" else ["data"],
        )
