"""A node's control channel, as a test speaks it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from world import Node, World

from flame.protocol.control import PATH, VERSION, Ack, Changed, Deliver, Hello, Put, Welcome, decode_to_node, encode


class Wire:
    """One open channel. `next` gives the next frame of a kind; others are kept."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.kept: list[Any] = []

    async def send(self, frame: Any) -> None:
        await self.socket.send(encode(frame))

    async def next(self, *kinds: type, seconds: float = 10) -> Any:
        for frame in self.kept:
            if isinstance(frame, kinds):
                self.kept.remove(frame)
                return frame
        while True:
            frame = decode_to_node(await asyncio.wait_for(self.socket.recv(), seconds))
            if isinstance(frame, kinds):
                return frame
            self.kept.append(frame)

    async def quiet(self, kind: type, seconds: float = 0.3) -> bool:
        """Whether no frame of a kind comes for a while."""
        try:
            await self.next(kind, seconds=seconds)
        except TimeoutError:
            return True
        return False

    async def put(self, msg_id: bytes, run: bytes, body: bytes, kind: str = "envelope") -> None:
        await self.send(Put(kind, msg_id, run, body))

    async def ack(self, *seqs: int) -> None:
        await self.send(Ack(list(seqs)))


@asynccontextmanager
async def channel(world: World, node: Node) -> AsyncIterator[Wire]:
    url = world.hub.url.replace("http", "ws", 1) + PATH
    headers = {"authorization": node.http.headers["authorization"]}
    async with connect(url, additional_headers=headers, max_size=1 << 20, proxy=None, compression=None) as socket:
        wire = Wire(socket)
        await wire.send(Hello(VERSION, "test"))
        assert isinstance(await wire.next(Welcome), Welcome)
        yield wire


__all__ = ["Changed", "Deliver", "Wire", "channel"]
