"""What may stand between a node and its hub: a proxy in a process of its own, which a test tells how to behave.

It forwards to one address, or, as a forward proxy, to where a request says (CONNECT and absolute URLs). ``mode``:

* ``pass``: everything.
* ``no-upgrade``: a request to upgrade is answered 403, as a firewall does.
* ``strip``: the request goes through without its Upgrade header.
* ``swallow``: a request to upgrade is never answered.
* ``cut BYTES``: each connection breaks once so many bytes have gone through it, both ways together.
* ``dead``: new connections are closed at once.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import time
from pathlib import Path


class LineProxy:
    """The test's side."""

    def __init__(self, directory: Path, target: str = "", mode: str = "pass") -> None:
        self._dir = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.set(mode)
        self.aim(target)
        self.process = subprocess.Popen([sys.executable, __file__, str(directory)])
        place = directory / "port"
        until = time.monotonic() + 20
        while not place.exists():
            assert time.monotonic() < until and self.process.poll() is None
            time.sleep(0.01)
        self.url = f"http://127.0.0.1:{place.read_text()}"

    def set(self, mode: str) -> None:
        _write(self._dir / "mode", mode)

    def aim(self, target: str) -> None:
        """Where to from now on: ``host:port``, several of them separated by spaces (the first that answers)."""
        _write(self._dir / "target", target)

    def seen(self) -> list[str]:
        """The first lines of all requests that began a connection or asked for an upgrade."""
        path = self._dir / "seen"
        return path.read_text().splitlines() if path.exists() else []

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(10)


def _write(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


class _Proxy:
    def __init__(self, directory: Path) -> None:
        self._dir = directory

    def mode(self) -> str:
        return (self._dir / "mode").read_text()

    def note(self, line: str) -> None:
        with (self._dir / "seen").open("a") as file:
            file.write(line + "\n")

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self.mode() != "dead":
                await self._forward(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        first = head.split(b"\r\n")[0].decode()
        self.note(first)
        method, where, _ = first.split(" ")
        if method == "CONNECT":
            target, head = where, b""
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        elif found := re.match(r"http://([^/]+)", where):
            target, head = found[1], head.replace(found[0].encode(), b"", 1)
        else:
            target = ""
        there, back = await self._dial(target)
        mode = self.mode()
        left = [int(mode.split()[1])] if mode.startswith("cut") else [1 << 62]
        try:
            if head and not await self._pass(head, writer, back):
                return
            ways = [self._pump(reader, back, left, writer), self._pump(there, writer, left, None)]
            tasks = [asyncio.create_task(way) for way in ways]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            back.close()

    async def _dial(self, target: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        choices = [target] if target else (self._dir / "target").read_text().split()
        for choice in choices:
            host, _, port = choice.rpartition(":")
            try:
                return await asyncio.open_connection(host, int(port))
            except OSError:
                continue
        raise ConnectionRefusedError

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        left: list[int],
        caller: asyncio.StreamWriter | None,
    ) -> None:
        while piece := await reader.read(1 << 16):
            piece = piece[: left[0]]
            left[0] -= len(piece)
            if caller is None:
                writer.write(piece)
            elif not await self._pass(piece, caller, writer):
                return
            await writer.drain()
            if not left[0]:
                return

    async def _pass(self, piece: bytes, caller: asyncio.StreamWriter, back: asyncio.StreamWriter) -> bool:
        """One piece from the caller; False when its connection has to end."""
        mode = self.mode()
        if b"upgrade: websocket" in piece.lower():
            self.note(piece.split(b"\r\n")[0].decode() + " (upgrade)")
            if mode == "no-upgrade":
                caller.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                await caller.drain()
                return False
            if mode == "swallow":
                await asyncio.sleep(3600)
            if mode == "strip":
                piece = re.sub(rb"(?im)^(upgrade|connection): .*\r\n", b"", piece)
        back.write(piece)
        return True


async def _main(directory: Path) -> None:
    server = await asyncio.start_server(_Proxy(directory).serve, "127.0.0.1", 0)
    _write(directory / "port", str(server.sockets[0].getsockname()[1]))
    parent = os.getppid()
    while os.getppid() == parent:
        await asyncio.sleep(0.5)


if __name__ == "__main__":
    asyncio.run(_main(Path(sys.argv[1])))
