"""One WebSocket for control, opened by the node and opened again whenever it breaks; plain HTTP for questions.

A proxy that lets no WebSocket through is met by polls over plain HTTP (`link.polling`). Proxies that the environment
names (HTTPS_PROXY, HTTP_PROXY, NO_PROXY) are used for everything.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from flame import __version__
from flame.crypto.keys import IdentityKey
from flame.model.errors import (
    Exhausted,
    FlameError,
    Incompatible,
    Malformed,
    NotAuthenticated,
    NotFound,
    Refused,
    Unavailable,
)
from flame.node.link.credentials import token_request
from flame.node.link.polling import ACKS_AT_ONCE, Polling
from flame.node.link.proxies import proxy_of
from flame.protocol import control

if TYPE_CHECKING:
    import aiohttp

Delivered = Callable[[control.Deliver], Awaitable[None]]
Noticed = Callable[[control.Changed], Awaitable[None]]
Connected = Callable[[], Awaitable[None]]
Send = Callable[[control.ToHub], Awaitable[None]]

_BACKOFF_FIRST, _BACKOFF_LAST = 0.1, 10.0
ACK_SECONDS = 0.1
MAX_ANSWER = 16 << 20
"""Bytes of one answer of the hub: a manifest and its surroundings have far fewer."""
RETRY_SECONDS = 1.0
RETRY_SECONDS_MOST = 30.0
SOCKET_SECONDS = GREETING_SECONDS = 10.0
"""For a WebSocket to open, and for the hub to greet."""
SOCKET_AGAIN_FIRST, SOCKET_AGAIN_LAST = 5.0, 300.0
"""Between two attempts to open a WebSocket after all."""
MAX_LOG_SIZE = 2**53
_AGAIN = (Unavailable.code, Exhausted.code)
"""A hub whose disk is full is waited for like one that is away; the run's own deadline ends the waiting."""
_KINDS: dict[str, type[FlameError]] = {k.code: k for k in (NotFound, NotAuthenticated)}


_BY_STATUS: dict[int, type[FlameError]] = {k.status: k for k in (Incompatible, NotFound, NotAuthenticated)} | {
    429: Unavailable
}


def _hello() -> control.Hello:
    return control.Hello(control.VERSION, __version__, control.OLDEST_READABLE)


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
        self._way: Send | None = None
        self._bearer, self._bearer_until = "", 0.0
        self._bearer_lock = asyncio.Lock()
        self._acks: list[int] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting: dict[bytes, tuple[control.Put, asyncio.Future[None]]] = {}
        self._loop = asyncio.get_running_loop()
        self.online = asyncio.Event()
        self.polls = False
        """Whether the conversation is held by polls: something on the way lets no WebSocket through."""
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
        """Keep the channel open until cancelled: by a WebSocket, or by polls while something on the way lets none through."""
        import aiohttp

        delay = _BACKOFF_FIRST
        while True:
            try:
                await self._converse()
                delay = _BACKOFF_FIRST
            except (aiohttp.ClientError, OSError, FlameError, TimeoutError) as error:
                if getattr(error, "status", None) == 401:
                    self._bearer_until = 0.0  # the hub does not know this token any more
                self.last_error = str(error) or type(error).__name__
            self.online.clear()
            self._way = None
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
            self._in_background(self._send(control.Ack(seqs[first : first + ACKS_AT_ONCE])))

    async def _converse(self) -> None:
        import aiohttp

        try:
            socket = await self._open_socket()
        except (aiohttp.ClientConnectorError, FlameError):
            raise  # there is no hub to be reached, or it has said what it has against us
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            if isinstance(error, aiohttp.WSServerHandshakeError) and error.status == 401:
                raise
            socket = await self._poll_until_socket(error)
        await self._converse_by(socket)

    async def _open_socket(self) -> aiohttp.ClientWebSocketResponse:
        """A WebSocket on which both sides have greeted."""
        import aiohttp

        bearer = await self.bearer()
        url = self.hub.replace("http", "ws", 1) + control.PATH
        async with asyncio.timeout(SOCKET_SECONDS):
            socket = await (await self._http()).ws_connect(
                url,
                headers={"Authorization": f"Bearer {bearer}"},
                heartbeat=20,
                max_msg_size=control.MAX_FRAME,
                compress=0,
                proxy=proxy_of(self.hub),
            )
        try:
            await socket.send_bytes(control.encode(_hello()))
            first = await socket.receive(timeout=GREETING_SECONDS)
            if first.type is not aiohttp.WSMsgType.BINARY:
                raise ConnectionResetError("The line ended before the hub had greeted.")
            self._take_welcome(control.decode_to_node(first.data))
        except BaseException:
            await socket.close()
            raise
        return socket

    def _take_welcome(self, welcome: control.ToNode) -> None:
        """Raises Incompatible, Unavailable, Malformed."""
        if isinstance(welcome, control.Unwelcome):
            raise Incompatible(welcome.message, next_step=welcome.next_step, code=welcome.code)
        if not isinstance(welcome, control.Welcome):
            raise Unavailable("The hub did not greet as a hub of ours does.")
        control.check_settled(welcome, __version__)
        if not 0 <= welcome.log_size < MAX_LOG_SIZE or len(welcome.log_root) not in (0, 32):
            raise Malformed("The hub greeted with a tree head that cannot be one.")
        self.shown_head = (welcome.log_size, welcome.log_root)
        self.bulk = _same_host(welcome.bulk, self.hub)

    async def _converse_by(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        async def send(frame: control.ToHub) -> None:
            if not socket.closed:
                with suppress(ConnectionError, RuntimeError):
                    await socket.send_bytes(control.encode(frame))

        async with socket:
            await self._serve(send, self._listen(socket))

    async def _poll_until_socket(self, why: Exception) -> aiohttp.ClientWebSocketResponse:
        """Something on the way lets no WebSocket through: converse by polls, and try again now and then.

        Raises ``why`` when the hub does not answer plain requests either.
        """
        polling = Polling(self.request, self._take)
        try:
            self._take_welcome(await polling.greet(_hello()))
        except Incompatible:
            raise
        except FlameError:
            raise why from None
        self.polls = True

        async def send(frame: control.ToHub) -> None:
            polling.hand(frame)

        serving = asyncio.create_task(self._serve(send, polling.converse()))
        trying = asyncio.create_task(self._socket_again())
        try:
            await asyncio.wait({serving, trying}, return_when=asyncio.FIRST_COMPLETED)
            if not trying.done():
                serving.result()
                raise Unavailable("The hub's polls have ended.")
            return trying.result()
        finally:
            self.polls = False
            serving.cancel()
            if not trying.done():
                trying.cancel()
            await asyncio.gather(serving, trying, return_exceptions=True)

    async def _socket_again(self) -> aiohttp.ClientWebSocketResponse:
        import aiohttp

        wait = SOCKET_AGAIN_FIRST
        while True:
            await asyncio.sleep(wait)
            wait = min(2 * wait, SOCKET_AGAIN_LAST)
            with suppress(aiohttp.ClientError, OSError, TimeoutError, FlameError):
                return await self._open_socket()

    async def _serve(self, send: Send, listening: Coroutine[Any, Any, None]) -> None:
        """One conversation, by whichever way, until it ends. What is not settled yet is handed in again first."""
        self._way, self.last_error = send, ""
        self.online.set()
        listener = asyncio.create_task(listening)
        greeting = None
        try:  # a greeting that cannot be finished must not outlive its connection
            for waiting, _ in list(self._waiting.values()):
                await self._send(waiting)
            greeting = asyncio.ensure_future(self._on_connected())
            done, _ = await asyncio.wait({listener, greeting}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            await listener
        finally:
            tasks = [listener] if greeting is None else [listener, greeting]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _listen(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        import aiohttp

        async for message in socket:
            if message.type is not aiohttp.WSMsgType.BINARY:
                break
            await self._take(control.decode_to_node(message.data))

    async def _take(self, frame: control.ToNode) -> None:
        if isinstance(frame, control.Deliver):
            await self._on_deliver(frame)
        elif isinstance(frame, control.Changed) and frame.what == "everything":
            self._in_background(self._look_at_everything())
        elif isinstance(frame, control.Changed):
            await self._on_changed(frame)
        elif isinstance(frame, control.Stored):
            self._settle(frame.msg_id, None)
        elif isinstance(frame, control.Rejected) and frame.code in _AGAIN:
            wait = min(max(RETRY_SECONDS, frame.retry_after), RETRY_SECONDS_MOST)
            self._loop.call_later(wait, self._send_again, frame.msg_id)
        elif isinstance(frame, control.Rejected):
            kind = _KINDS.get(frame.code, Refused)
            self._settle(frame.msg_id, kind(frame.message, next_step=frame.next_step))

    async def _look_at_everything(self) -> None:
        with suppress(FlameError):  # the next connection asks again
            await self._on_connected()

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
            self._in_background(self._send(entry[0]))

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _send(self, frame: control.ToHub) -> None:
        """Send if connected; what must arrive is sent again after the next Welcome."""
        if self._way is not None:
            await self._way(frame)

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

    def use(self, identity: IdentityKey) -> None:
        """Another key from now on; the token that there is stays good."""
        self._identity = identity

    async def try_key(self, identity: IdentityKey) -> None:
        """Whether the hub knows this key as the node's. Raises NotAuthenticated, Unavailable."""
        present, self._identity = self._identity, identity
        try:
            async with self._bearer_lock:
                await self._new_bearer()
        except FlameError:
            self._identity = present
            raise

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
        kind = _BY_STATUS.get(status, Unavailable if status >= 500 else Refused)
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
