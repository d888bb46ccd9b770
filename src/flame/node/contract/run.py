"""One start of a program that was written for FLAME: what it is given, and how its life is watched over.

Such a program never ends by itself: the node asks its ``/healthz`` and takes ``executed`` for the end.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from flame.model.errors import FlameError, Unavailable
from flame.node.context import log
from flame.node.contract import relay
from flame.node.contract.mail import Mail
from flame.node.contract.program import Program
from flame.node.contract.routes import Routes
from flame.node.contract.sources import Sources
from flame.node.contract.tokens import RENEW_BELOW, Tokens
from flame.node.gateway.port import Cancelled
from flame.wire.gateway import Fail

if TYPE_CHECKING:
    from flame.model.manifest import Manifest
    from flame.node.context import Context
    from flame.node.contract.local import LocalObjects
    from flame.node.data.folder import FolderSnapshot
    from flame.node.egress.guard import Guard
    from flame.node.release import Channel
    from flame.node.supervisor.side import Side, Snapshot

LOOK_SECONDS: Final = 1.0
ANSWER_SECONDS: Final = 10.0
SILENT_SECONDS: Final = 30.0
"""How long a program that has answered before may refuse connections."""
STUCK_SECONDS: Final = 60.0
QUIET_SECONDS: Final = 0.5
LAST_WORDS_SECONDS: Final = 15.0
PARTNERS_SECONDS: Final = 10.0

_FRAME: Final = re.compile(r'File \\?"/code/([^"\\]{1,300})\\?", line (\d{1,7})')
_ERROR: Final = re.compile(
    r"(?:^|\\n|\n)([A-Za-z_][\w.]{0,200}?(?:Error|Exception|Exit|Interrupt|Warning|Iteration))(?=:|\\n|\n|\"|$)"
)


@dataclass(frozen=True)
class End:
    """How a program of this contract has ended, by its own account; ``failure`` is empty where it was executed."""

    failure: str


class ContractRun:
    """``variables`` and ``command`` start it; ``open`` before the release; ``watch`` returns at its end."""

    def __init__(
        self,
        context: Context,
        manifest: Manifest,
        run: str,
        *,
        side: Side,
        channel: Channel,
        guard: Guard,
        folder: Path,
        local: LocalObjects,
        tables: Mapping[str, Snapshot],
        folders: Mapping[str, FolderSnapshot],
    ) -> None:
        self._manifest, self._run, self._node = manifest, run, context.node
        self._side = side
        self._deployment = f"analysis-{manifest.analysis}-0"
        host = f"nginx-{self._deployment}"
        self._tokens = Tokens(manifest.analysis)
        self._cancelled = Cancelled()
        self._ended_partners: set[str] = set()
        self._look = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self.program = Program(folder)
        others = [p.node for p in manifest.participants if p.node != context.node]
        self._others = others
        self._mail = Mail(
            context.node,
            others,
            channel=channel,
            guard=guard,
            program=self.program,
            failed=self._break,
            cancelled=self._cancelled,
        )
        self.routes = Routes(
            side.welcome(),
            side=side,
            mail=self._mail,
            local=local,
            sources=Sources(tables, folders, host),
            program=self.program,
            host=host,
            look=self._look_now,
            broke=self._break,
        )

    def variables(self) -> dict[str, str]:
        proxy = f"http://127.0.0.1:{relay.PROXY_PORT}"
        has_data = self._manifest.participant(self._node)
        return {
            "ANALYSIS_ID": self._manifest.analysis,
            "PROJECT_ID": self._manifest.project,
            "KEYCLOAK_TOKEN": self._tokens.mint(),
            "DATA_SOURCE_TOKEN": "none_needed" if has_data and has_data.role == "aggregator" else self._tokens.mint(),
            "DEPLOYMENT_NAME": self._deployment,
            "HTTP_PROXY": proxy,
            "http_proxy": proxy,
        }

    def command(self, gateway: str, program: Sequence[str]) -> tuple[str, ...]:
        return relay.command(gateway, program)

    def open(self) -> None:
        self.program.open()
        self._mail.open()

    def close(self) -> None:
        self._cancelled.set()
        self.program.close()

    def _look_now(self) -> None:
        self._loop.call_soon_threadsafe(self._look.set)

    def partner_ended(self, node: str) -> None:
        self._ended_partners.add(node)

    # --- its life -------------------------------------------------------------------------------------------------------

    async def watch(self, crashed: Callable[[], bool]) -> End:
        """Until the program says that it is executed, or has failed. Start-up may take as long as the run may.

        The SDK calls itself failed as soon as the main thread has ended, also where it has ended well and the others have
        not: then it is waited on. ``crashed``: whether the program's output shows an error of its own.
        """
        answered = stuck_since = refused_since = told = 0.0
        while True:
            self._look.clear()
            try:
                health = await asyncio.to_thread(self._health)
            except ConnectionRefusedError:
                refused_since = refused_since or time.monotonic()
                if answered and time.monotonic() - refused_since > SILENT_SECONDS:
                    return End("The program does not answer /healthz any more.")
            except Unavailable:
                pass  # it is busy
            else:
                answered, refused_since = time.monotonic(), 0.0
                status = health.get("status")
                if status == "stopped" or (status == "failed" and (self.routes.said_failed or crashed())):
                    await asyncio.sleep(QUIET_SECONDS)  # for what it still prints
                    return End(f"The program says that it has {status}.")
                if status == "executed":
                    await self._last_words()
                    return End("")
                stuck_since = (stuck_since or answered) if status == "stuck" else 0.0
                if stuck_since and answered - stuck_since > STUCK_SECONDS:
                    return End("The program says that it is stuck.")
                await asyncio.to_thread(self._renew, health)
                if self._ended_partners and answered - told > PARTNERS_SECONDS:
                    told = answered
                    await asyncio.to_thread(self._tell_partners)
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._look.wait()
            except TimeoutError:
                pass

    @staticmethod
    def failure_in(output: bytes) -> Fail:
        """What a traceback in the program's output says: the guard decides what of it may leave."""
        text = output[-16384:].decode("utf-8", "replace")
        frames = [(file, int(line)) for file, line in _FRAME.findall(text)]
        errors = _ERROR.findall(text)
        return Fail(errors[-1] if errors else "Exception", frames[-10:], text)

    @staticmethod
    def shows_error(output: bytes) -> bool:
        """Whether a traceback through the program's own files stands in the output."""
        return _FRAME.search(output[-65536:].decode("utf-8", "replace")) is not None

    def _health(self) -> dict[str, Any]:
        status, _, body = self.program.request("GET", "/healthz", seconds=ANSWER_SECONDS)
        try:
            document = json.loads(body) if status == 200 else {}
        except ValueError:
            document = {}
        return document if isinstance(document, dict) else {}

    async def _last_words(self) -> None:
        """Acknowledgements, log lines and what else is under way, so that nobody waits for them in vain."""
        until = time.monotonic() + LAST_WORDS_SECONDS
        quiet_since = time.monotonic()
        while time.monotonic() < until and time.monotonic() - quiet_since < QUIET_SECONDS:
            if self._mail.busy or self.routes.requests:
                quiet_since = time.monotonic()
            await asyncio.sleep(0.05)

    def _renew(self, health: Mapping[str, Any]) -> None:
        left = health.get("token_remaining_time")
        if isinstance(left, int | float) and left < RENEW_BELOW:
            self._tell("/token_refresh", {"token": self._tokens.mint()})

    def _tell_partners(self) -> None:
        states = {o: "executed" if o in self._ended_partners else "executing" for o in self._others}
        self._tell("/partner_status", {"partner_status": states})

    def _tell(self, path: str, document: Any) -> None:
        try:
            self.program.post(path, document, seconds=ANSWER_SECONDS)
        except (ConnectionRefusedError, Unavailable):
            log.info("run %s: the program did not take %s", self._run[:12], path)

    # --- inside ---------------------------------------------------------------------------------------------------------

    def _break(self, error: FlameError) -> None:
        if not self._cancelled.is_set():
            self._side.refuse(error)


__all__ = ["ContractRun", "End"]
