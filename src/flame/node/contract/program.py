"""Speaking to the program inside: over connections that the relay keeps ready, one request each."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import queue
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from flame.model.errors import Unavailable
from flame.node.contract.relay import PROGRAM_SOCKET

MAX_READY: Final = 16
MAX_ANSWER: Final = 16 << 20


class Program:
    """The program's own endpoints. ``open`` before the run is released; methods may be called from any thread."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / PROGRAM_SOCKET
        self._ready: queue.Queue[socket.socket] = queue.Queue(MAX_READY)
        self._listener: socket.socket | None = None
        self._closed = threading.Event()

    def open(self) -> None:
        self._path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        folder = os.open(self._path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            listener.bind(f"/proc/self/fd/{folder}/{self._path.name}")  # an address has room for 108 bytes only
        finally:
            os.close(folder)
        self._path.chmod(0o666)  # its directory, mounted into one sandbox, is the access control
        listener.listen(MAX_READY)
        self._listener = listener
        threading.Thread(target=self._accept, name="contract-accept", daemon=True).start()

    def close(self) -> None:
        if self._closed.is_set():
            return
        self._closed.set()
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._path.unlink(missing_ok=True)
        with contextlib.suppress(queue.Empty):
            while True:
                self._ready.get_nowait().close()

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        seconds: float,
    ) -> tuple[int, str, bytes]:
        """Status, content type and body. Raises ConnectionRefusedError when the program does not listen, Unavailable when
        it does not answer in time or not in HTTP."""
        until = time.monotonic() + seconds
        stream = self._take(until)
        connection = http.client.HTTPConnection("127.0.0.1", timeout=seconds)
        connection.sock = stream
        try:
            stream.settimeout(max(0.1, until - time.monotonic()))
            connection.request(method, path, body, {"Connection": "close", **(headers or {})})
            answer = connection.getresponse()
            content = answer.read(MAX_ANSWER + 1)
            if len(content) > MAX_ANSWER:
                raise Unavailable(f"The program answered with more than {MAX_ANSWER} bytes.")
            return answer.status, answer.getheader("Content-Type", "application/octet-stream"), content
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
            raise ConnectionRefusedError from None
        except (http.client.HTTPException, OSError) as error:
            raise Unavailable(f"The program did not answer: {type(error).__name__}.") from None
        finally:
            connection.close()
            stream.close()

    def post(self, path: str, document: Any, *, seconds: float) -> int:
        body = json.dumps(document).encode()
        return self.request("POST", path, body, {"Content-Type": "application/json"}, seconds=seconds)[0]

    def _take(self, until: float) -> socket.socket:
        """A ready connection that the relay has not given up meanwhile."""
        while not self._closed.is_set():
            try:
                stream = self._ready.get(timeout=max(0.05, min(1.0, until - time.monotonic())))
            except queue.Empty:
                if time.monotonic() >= until:
                    raise Unavailable("The relay in the sandbox is busy or gone.") from None
                continue
            stream.setblocking(False)
            try:
                stream.recv(1, socket.MSG_PEEK)
            except BlockingIOError:
                return stream
            except OSError:
                pass
            stream.close()  # it has ended, or says something before it was asked
        raise Unavailable("The run ends.")

    def _accept(self) -> None:
        assert self._listener is not None
        while True:
            try:
                stream, _ = self._listener.accept()
            except OSError:
                return
            try:
                self._ready.put_nowait(stream)
            except queue.Full:
                stream.close()
