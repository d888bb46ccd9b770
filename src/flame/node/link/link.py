"""One WebSocket for control, opened by the node and opened again whenever it breaks; plain HTTP for questions."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from flame import __version__
from flame.crypto.keys import IdentityKey
from flame.model.errors import Exhausted, FlameError, Malformed, NotAuthenticated, NotFound, Refused, Unavailable
from flame.node.link.credentials import token_request
from flame.protocol import control

if TYPE_CHECKING:
    import aiohttp

Delivered = Callable[[control.Deliver], Awaitable[None]]
Noticed = Callable[[control.Changed], Awaitable[None]]
Connected = Callable[[], Awaitable[None]]

_BACKOFF_FIRST, _BACKOFF_LAST = 0.1, 10.0
ACK_SECONDS = 0.1
ACKS_AT_ONCE = 1000
"""Numbers in one frame; the hub hangs up on more."""
MAX_ANSWER = 16 << 20
"""Bytes of one answer of the hub: a manifest and its surroundings have far fewer."""
RETRY_SECONDS = 1.0
MAX_LOG_SIZE = 2**53
_KINDS: dict[str, type[FlameError]] = {k.code: k for k in (Exhausted, NotFound, NotAuthenticated, Unavailable)}


class Link:
    """The node's side of the control channel.

    ``on_deliver``: an item of the mailbox; acknowledge it with ``ack`` once it is durable here.
    ``on_changed``: look again at something. ``on_connected``: after each Welcome; what was missed is asked for here.
    """

    def __init__(
        self,
        hub: str,
        client: str,
        identity: IdentityKey,
        *,
        on_deliver: Delivered,
        on_changed: Noticed,
        on_connected: Connected,
    ) -> None:
        self.hub = hub.rstrip("/")
        self._client = client
        self._identity = identity
        self._on_deliver, self._on_changed, self._on_connected = on_deliver, on_changed, on_connected
        self._session: aiohttp.ClientSession | None = None
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._bearer, self._bearer_until = "", 0.0
        self._bearer_lock = asyncio.Lock()
        self._acks: list[int] = []
        self._sending: set[asyncio.Task[None]] = set()
        self._waiting: dict[bytes, tuple[control.Put, asyncio.Future[None]]] = {}
        self._again: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self.online = asyncio.Event()
        self.last_error = ""
        self.newest_head: tuple[int, bytes] = (0, b"")
        """The newest tree head that has been found to continue all earlier ones (``supervisor.heads``)."""
        self.shown_head: tuple[int, bytes] = (0, b"")
        """The one that the hub greeted with, unchecked."""
        self.bulk = self.hub
        """Where large envelopes go: the hub's address, or another port of the same host."""

    def bulk_unreachable(self) -> None:
        """A proxy may let the hub's address pass and not its port for bulk: until the next greeting all go the one way."""
        self.bulk = self.hub

    # --- control ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep the channel open until cancelled."""
        import aiohttp

        delay = _BACKOFF_FIRST
        while True:
            try:
                await self._converse()
                delay = _BACKOFF_FIRST
            except (aiohttp.ClientError, OSError, FlameError, TimeoutError) as error:
                if getattr(error, "status", None) == 401:
                    self._bearer_until = 0.0  # the hub does not know this token any more
                self.last_error = str(error)
            self.online.clear()
            self._socket = None
            await asyncio.sleep(delay * (0.5 + random.random() / 2))  # noqa: S311 - jitter, not a secret
            delay = min(delay * 2, _BACKOFF_LAST)

    async def put(self, kind: str, run: bytes, msg_id: bytes, body: bytes) -> None:
        """Hand a small item to the hub; returns once it is durable there, over as many connections as it takes.

        Raises Refused when the hub will never take it.
        """
        entry = self._waiting.get(msg_id)
        if entry is None:
            entry = control.Put(kind, msg_id, run, body), self._loop.create_future()
            self._waiting[msg_id] = entry
            await self._send(entry[0])
        await asyncio.shield(entry[1])

    def ack(self, seq: int) -> None:
        """Tell the hub that this is durable here: soon, with others. Until then it may come again, which costs nothing."""
        self._acks.append(seq)
        if len(self._acks) == 1:
            self._loop.call_later(ACK_SECONDS, self._send_acks)

    def _send_acks(self) -> None:
        seqs, self._acks = self._acks, []
        for first in range(0, len(seqs), ACKS_AT_ONCE):
            task = self._loop.create_task(self._send(control.Ack(seqs[first : first + ACKS_AT_ONCE])))
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)

    async def _converse(self) -> None:
        import aiohttp

        bearer = await self.bearer()
        url = self.hub.replace("http", "ws", 1) + control.PATH
        async with (await self._http()).ws_connect(
            url, headers={"Authorization": f"Bearer {bearer}"}, heartbeat=20, max_msg_size=control.MAX_FRAME, compress=0
        ) as socket:
            await socket.send_bytes(control.encode(control.Hello(control.VERSION, __version__)))
            first = await socket.receive(timeout=30)
            welcome = control.decode_to_node(first.data) if first.type is aiohttp.WSMsgType.BINARY else None
            if not isinstance(welcome, control.Welcome):
                raise Unavailable("The hub did not greet as a hub of ours does.")
            if not 0 <= welcome.log_size < MAX_LOG_SIZE or len(welcome.log_root) not in (0, 32):
                raise Malformed("The hub greeted with a tree head that cannot be one.")
            self.shown_head = (welcome.log_size, welcome.log_root)
            self.bulk = _same_host(welcome.bulk, self.hub)
            self._socket, self.last_error = socket, ""
            self.online.set()
            for waiting, _ in list(self._waiting.values()):
                await self._send(waiting)
            listening = asyncio.create_task(self._listen(socket))
            greeting = asyncio.ensure_future(self._on_connected())
            try:  # a greeting that cannot be finished must not outlive its connection
                done, _ = await asyncio.wait({listening, greeting}, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
                await listening
            finally:
                listening.cancel()
                greeting.cancel()
                await asyncio.gather(listening, greeting, return_exceptions=True)

    async def _listen(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        import aiohttp

        async for message in socket:
            if message.type is not aiohttp.WSMsgType.BINARY:
                break
            frame = control.decode_to_node(message.data)
            if isinstance(frame, control.Deliver):
                await self._on_deliver(frame)
            elif isinstance(frame, control.Changed):
                await self._on_changed(frame)
            elif isinstance(frame, control.Stored):
                self._settle(frame.msg_id, None)
            elif isinstance(frame, control.Rejected) and frame.code == Unavailable.code:
                self._loop.call_later(RETRY_SECONDS, self._send_again, frame.msg_id)
            elif isinstance(frame, control.Rejected):
                kind = _KINDS.get(frame.code, Refused)
                self._settle(frame.msg_id, kind(frame.message, next_step=frame.next_step))

    def _settle(self, msg_id: bytes, error: FlameError | None) -> None:
        entry = self._waiting.pop(msg_id, None)
        if entry is None or entry[1].done():
            return
        if error:
            entry[1].set_exception(error)
        else:
            entry[1].set_result(None)

    def _send_again(self, msg_id: bytes) -> None:
        entry = self._waiting.get(msg_id)
        if entry is not None:
            task = asyncio.create_task(self._send(entry[0]))
            self._again.add(task)
            task.add_done_callback(self._again.discard)

    async def _send(self, frame: control.ToHub) -> None:
        """Send if connected; what must arrive is sent again after the next Welcome."""
        if self._socket is None or self._socket.closed:
            return
        try:
            await self._socket.send_bytes(control.encode(frame))
        except (ConnectionError, RuntimeError):
            return

    # --- questions --------------------------------------------------------------------------------------------------

    async def request(self, method: str, path: str, body: Any = None) -> Any:
        """One HTTP call with the node's credential. Raises the error that the hub's answer tells of."""
        import aiohttp

        session = await self._http()
        headers = {"Authorization": f"Bearer {await self.bearer()}"}
        try:
            async with session.request(
                method, self.hub + path, json=body, headers=headers, allow_redirects=False
            ) as response:
                content = await _read_json(response)
                status = response.status
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise Unavailable(
                f"The hub cannot be reached: {error}.", next_step="The node tries again by itself."
            ) from None
        if status >= 300:
            raise self._problem(status, content)
        return content

    async def download(self, path: str, limit: int) -> bytes:
        """A small file of at most ``limit`` bytes."""
        import aiohttp

        headers = {"Authorization": f"Bearer {await self.bearer()}", "Accept-Encoding": "identity"}
        try:
            async with (await self._http()).get(self.hub + path, headers=headers, allow_redirects=False) as response:
                if response.status >= 300:
                    raise self._problem(response.status, await _read_json(response))
                chunks, size = [], 0
                async for chunk in response.content.iter_chunked(1 << 20):
                    size += len(chunk)
                    if size > limit:
                        raise Refused(f"The hub sends more than the {limit} bytes that the manifest names.")
                    chunks.append(chunk)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise Unavailable(f"The hub cannot be reached: {error}.") from None
        return b"".join(chunks)

    async def upload(self, path: str, name: str, content: bytes) -> Any:
        """One file as multipart, as FLAME's storage takes it."""
        import aiohttp

        form = aiohttp.FormData()
        form.add_field("file", content, filename=name, content_type="application/octet-stream")
        headers = {"Authorization": f"Bearer {await self.bearer()}"}
        try:
            async with (await self._http()).post(
                self.hub + path, data=form, headers=headers, allow_redirects=False
            ) as response:
                answer = await _read_json(response)
                if response.status >= 300:
                    raise self._problem(response.status, answer)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise Unavailable(f"The hub cannot be reached: {error}.") from None
        return answer

    async def bearer(self) -> str:
        async with self._bearer_lock:
            if time.monotonic() >= self._bearer_until:
                await self._new_bearer()
            return self._bearer

    def bearer_blocking(self) -> str:
        """For threads."""
        if time.monotonic() < self._bearer_until:
            return self._bearer
        return asyncio.run_coroutine_threadsafe(self.bearer(), self._loop).result(60)

    async def close(self) -> None:
        if self._session:
            await self._session.close()

    async def _new_bearer(self) -> None:
        import aiohttp

        try:
            async with (await self._http()).post(
                self.hub + "/auth/token",
                json=token_request(self._identity, self._client, self.hub),
                allow_redirects=False,
            ) as response:
                answer = await _read_json(response)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise Unavailable(f"The hub cannot be reached: {error}.") from None
        if response.status >= 300:
            raise self._problem(response.status, answer)
        token, lifetime = answer.get("access_token"), answer.get("expires_in")
        if not isinstance(token, str) or not isinstance(lifetime, int | float):
            raise Unavailable("The hub's answer to the request for a token cannot be read.")
        self._bearer = token
        self._bearer_until = time.monotonic() + min(3600.0, max(5.0, lifetime * 0.6))

    def _problem(self, status: int, problem: dict[str, Any]) -> FlameError:
        if status == 401:
            self._bearer_until = 0.0  # the hub does not know this token any more: the next call asks for another one
        kinds: dict[int, type[FlameError]] = {401: NotAuthenticated, 404: NotFound, 507: Exhausted}
        kind = kinds.get(status, Unavailable if status >= 500 else Refused)
        message = str(problem.get("message", f"HTTP {status}"))
        return kind(message, next_step=str(problem.get("nextStep", "")), status=status)

    async def _http(self) -> aiohttp.ClientSession:
        import aiohttp

        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=60, sock_connect=10),
                trust_env=True,
                connector=aiohttp.TCPConnector(limit=8),
            )
        return self._session


async def _read_json(response: aiohttp.ClientResponse) -> dict[str, Any]:
    """An answer's object, of bounded size; of an empty body an empty one. Raises Unavailable for anything else."""
    pieces, size = [], 0
    async for piece in response.content.iter_chunked(1 << 16):
        size += len(piece)
        if size > MAX_ANSWER:
            raise Unavailable(f"The hub's answer is longer than {MAX_ANSWER} bytes.")
        pieces.append(piece)
    try:
        content = json.loads(b"".join(pieces) or b"{}")
    except (ValueError, RecursionError):
        content = {} if response.status >= 300 else None  # a proxy's error page: its status says enough
    if not isinstance(content, dict):
        raise Unavailable("The hub's answer cannot be read.", next_step="Is this the address of a hub?")
    return content


def _same_host(shown: str, hub: str) -> str:
    """The hub's port for bulk; anything that is not this hub's own host by the same scheme is not believed."""
    try:
        there, here = urlsplit(shown), urlsplit(hub)
        port = there.port
    except ValueError:
        return hub
    host = there.hostname
    if not host or not port or "@" in there.netloc or (there.scheme, host) != (here.scheme, here.hostname):
        return hub
    return f"{there.scheme}://[{host}]:{port}" if ":" in host else f"{there.scheme}://{host}:{port}"
