"""One run that is under way: the shell around ``flame.model.run``. Feeds events, performs instructions, in order."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgspec

from flame.crypto.announce import Announcement, sign_announcement
from flame.crypto.canonical import digest
from flame.crypto.keys import PublicKey
from flame.model import run as life
from flame.model.errors import (
    BadSignature,
    Conflict,
    Expired,
    FlameError,
    Malformed,
    NotFound,
    Refused,
    RunFailed,
    Unavailable,
)
from flame.model.manifest import Manifest
from flame.model.run import EXECUTION_STATUS, Do, Event, Run, RunState
from flame.node.context import Context, log
from flame.node.release import Channel, Parties, Party
from flame.node.supervisor import verification
from flame.node.supervisor.conditions import narrow
from flame.node.supervisor.decisions import Decisions
from flame.node.supervisor.events import Events
from flame.node.supervisor.heads import Heads
from flame.node.supervisor.preparation import Prepared, RunFolder, explain_failure, prepare
from flame.node.supervisor.side import Outlets, Side
from flame.protocol.control import Deliver
from flame.protocol.documents import StartOrder
from flame.protocol.freeze import parse_time
from flame.protocol.payload import Label
from flame.storage.failpoints import declare, reached

if TYPE_CHECKING:
    from flame.node.contract import ContractRun
    from flame.node.contract.local import LocalObjects
    from flame.node.egress.guard import Guard

JOIN_SECONDS = 120.0
FINISH_GRACE = 15.0
PEER_WORD_SECONDS = 5.0
"""How long a hospital whose time was up while it waited leaves the aggregator to say whom the run waited for."""
LAST_WORDS = 30.0
"""Seconds after a program's time is up in which the run may still end in an orderly way."""
PROOF_SECONDS = 60.0
MAX_OUTPUT = 4 << 20

STATE = declare(
    "node.run.after-state", "the run's new state is in the node's database; its instructions were not performed"
)
ACCEPTED = declare("node.run.after-accept", "the run's number is used and its order kept; no keys were made")
ANNOUNCED = declare("node.run.after-announcement", "the own announcement is kept; it was not sent")
RESULT = declare("node.result.after-commit", "a final result is sealed and kept; it was not uploaded")


@dataclass(frozen=True)
class Order:
    """A start order as the hub gave it, with the manifest it is for."""

    id: str
    analysis: str
    manifest: bytes
    manifest_signature: bytes | None
    order: bytes
    order_signature: bytes | None


class ActiveRun:
    """One run. ``drive`` ends when the run has ended; every wait in it has a limit."""

    def __init__(
        self,
        context: Context,
        decisions: Decisions,
        events: Events,
        heads: Heads,
        order: Order,
        state: Run,
        join_seconds: float = JOIN_SECONDS,
    ) -> None:
        self._context, self._decisions, self._events, self._heads = context, decisions, events, heads
        self.order, self.run = order, state
        self.folder = RunFolder(context.layout.runs / order.id)
        self.progress = 0
        self._join_seconds = join_seconds
        self._queue: asyncio.Queue[Event] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()
        self._before_release: set[asyncio.Task[None]] = set()
        self._log_lacks_it_since: float | None = None
        self._loop = asyncio.get_running_loop()
        self._ended_senders: set[str] = set()
        self._early: list[Deliver] = []
        self._report = asyncio.Event()
        self._reporting = asyncio.Lock()
        self._reported: RunState | None = None
        self._manifest: Manifest | None = None
        self._start: StartOrder | None = None
        self._channel: Channel | None = None
        self._prepared: Prepared | None = None
        self._side: Side | None = None
        self._running: Any = None
        self._gateway: Any = None
        self._contract: ContractRun | None = None
        self._finished = asyncio.Event()
        self._failure: tuple[str, str] | None = None
        self._results = 0
        self.done = asyncio.Event()

    # --- from outside -----------------------------------------------------------------------------------------------

    def feed(self, event: Event) -> None:
        self._queue.put_nowait(event)

    def deliver(self, frame: Deliver) -> None:
        if self._channel is None:
            if len(self._early) < 1024:
                self._early.append(frame)
        elif frame.kind == "announce":
            self._spawn(self._take_announcement(frame))
        else:
            self._channel.deliver(frame)

    async def drive(self, *, resumed: bool) -> None:
        """Bring the run from where it is to its end."""
        reporter = asyncio.create_task(self._report_always())
        try:
            if self.run.state.is_terminal:
                await self._end_again()
            elif resumed:
                self._spawn(self._resume())
            else:
                self._spawn(self._verify(feed=life.Accepted()))
            while not self.run.state.is_terminal:
                event = await self._queue.get()
                await self._advance(event)
            await self._last_report()
        finally:
            reporter.cancel()
            await self._cancel_all()
            self.done.set()

    async def _cancel_all(self) -> None:
        """Also a sandbox whose start was under way when the run ended is taken down."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._context.sandbox.cleanup(self.order.id[:32])

    async def _resume(self) -> None:
        """Nothing is believed because it was believed before the restart: the order is verified again."""
        if self.run.state is RunState.QUEUED:
            self.feed(life.NodeRestarted())
        else:
            await self._verify(feed=life.NodeRestarted())

    async def _end_again(self) -> None:
        """The node died between this run's end and its last word: what belongs to the end is done now, once."""
        for do in life.at_the_end(self.run.state):
            await self._attempt(do)

    async def abandon(self) -> None:
        """The node ends: the sandbox too, the run's state stays."""
        if self._channel is not None:
            self._channel.close("The node is being stopped; the run goes on when it is back.")
        await self._kill()

    # --- the machine ------------------------------------------------------------------------------------------------

    async def _advance(self, event: Event) -> None:
        try:
            after, todo = life.advance(self.run, event)
        except Conflict as error:
            log.warning("run %s: %s", self.order.id[:12], error)
            return
        changed = after != self.run
        self.run = after
        if changed:
            await self._persist()
            reached(STATE)
            log.info("run %s is %s %s", self.order.id[:12], after.state, after.reason)
        for do in todo:
            await self._attempt(do)

    async def _attempt(self, do: Do) -> None:
        try:
            await self._perform(do)
        except FlameError as error:
            self.feed(life.ProgramFailed(str(error), error.code))
        except Exception as error:  # noqa: BLE001 - a fault of ours must end the run truthfully, not hang it
            log.exception("run %s: %s", self.order.id[:12], do.name)
            self.feed(life.ProgramFailed(*explain_failure(error)))

    async def _perform(self, do: Do) -> None:
        match do:
            case Do.VERIFY:
                self._spawn(self._verify(feed=life.Accepted()))
            case Do.MAKE_KEYS:
                await self._make_keys()
            case Do.PREPARE:
                self._before_release.add(self._spawn(self._prepare()))
            case Do.START_SANDBOX:
                self._before_release.add(self._spawn(self._start_sandbox()))
            case Do.OPEN:
                await self._open()
            case Do.KILL:
                await self._kill()
            case Do.REPORT:
                self._report.set()
            case Do.TELL_PEERS:
                await self._tell_peers()
            case Do.LOG_START:
                facts = self._prepared.facts if self._prepared else {}
                await self._events.add(
                    "run-started", self.order.id, manifest=digest(self.order.manifest).hex(), **facts
                )
            case Do.LOG_END:
                left = await self._context.journal.read(lambda c: c.execute(_LEFT, (self.order.id,)).fetchall())
                facts = {"state": self.run.state.value, "code": self.run.code, "left": [list(row) for row in left]}
                await self._events.add_once("run-ended", self.order.id, **facts)
            case Do.LOG_REFUSAL:
                await self._events.add_once(
                    "refusal", self.order.id, manifest=digest(self.order.manifest).hex(), code=self.run.code
                )
            case Do.CLEAN_UP:
                await self._clean_up()

    async def _persist(self) -> None:
        state, ended = self.run, time.time() if self.run.state.is_terminal else None
        await self._context.journal.execute(
            "UPDATE runs SET state = ?, reason = ?, code = ?, ended = ? WHERE id = ?",
            state.state.value,
            state.reason,
            state.code,
            ended,
            self.order.id,
        )

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(self._guarded(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except FlameError as error:
            self.feed(life.ProgramFailed(str(error), error.code))
        except Exception as error:  # noqa: BLE001 - as above
            log.exception("run %s", self.order.id[:12])
            self.feed(life.ProgramFailed(*explain_failure(error)))

    def _from_thread(self, call: Callable[[], object]) -> None:
        self._loop.call_soon_threadsafe(call)

    # --- verify and join --------------------------------------------------------------------------------------------

    async def _verify(self, *, feed: Event) -> None:
        """Check the order; then ``feed``, or the denial. Waits for the hub where a key has still to be fetched."""
        why = ""
        while True:
            try:
                await self._check_order()
            except Unavailable as error:
                if str(error) != why:
                    why = str(error)
                    log.warning("run %s waits: %s", self.order.id[:12], why)
                await self._hub_again()
                continue
            except FlameError as error:
                self.feed(life.Denied(str(error), error.code))
                return
            reached(ACCEPTED)
            self.feed(feed)
            return

    async def _hub_again(self) -> None:
        await asyncio.sleep(0.5)
        await self._context.link.online.wait()

    async def _check_order(self) -> None:
        order = self.order
        self._manifest = manifest = verification.read_manifest(order.manifest)
        hex_ = digest(order.manifest).hex()
        if manifest.analysis != order.analysis:
            raise Refused("The hub shows this manifest under another analysis than its own.")
        await self._decisions.learn_keys(manifest)
        situation = await self._decisions.situation(order.analysis, hex_)
        verification.verify_participants(manifest, situation)
        verification.verify_recipients(manifest, situation)
        verification.verify_signature(manifest, order.manifest, order.manifest_signature, situation)
        approval = verification.verify_own_approval(bytes.fromhex(hex_), situation)
        self._manifest = manifest = narrow(manifest, approval.conditions)
        await self._decisions.require_project(manifest.project)
        self._start = verification.verify_order(
            manifest,
            bytes.fromhex(hex_),
            order.order,
            order.order_signature,
            situation,
            accepted=self.run.state is not RunState.QUEUED,
        )
        await self._use_number(hex_, self._start.number)
        await self._see_start(hex_)

    async def _see_start(self, manifest: str) -> None:
        """The order stands in the log that this node announces; asked for once, also across restarts."""
        ((known,),) = await self._context.journal.rows("SELECT start_leaf FROM runs WHERE id = ?", self.order.id)
        if known is None:
            try:
                known = await self._heads.start_of(self.order.id, manifest)
            except NotFound:
                self._log_lacks_it_since = self._log_lacks_it_since or time.monotonic()
                if time.monotonic() - self._log_lacks_it_since < PROOF_SECONDS:
                    raise Unavailable("The hub does not show the run's order in its log.") from None
                raise Refused(
                    f"For {PROOF_SECONDS:.0f} s the hub's log has held no entry of this start order.",
                    next_step="Nothing has run. Ask the hub's operator; then start the analysis again.",
                    code="start_not_logged",
                ) from None
            await self._context.journal.execute("UPDATE runs SET start_leaf = ? WHERE id = ?", known, self.order.id)

    async def _use_number(self, hex_: str, number: int) -> None:
        def write(connection: Any) -> str:
            connection.execute("INSERT OR IGNORE INTO run_numbers VALUES(?, ?, ?)", (hex_, number, self.order.id))
            return str(
                connection.execute(
                    "SELECT run FROM run_numbers WHERE manifest = ? AND number = ?", (hex_, number)
                ).fetchone()[0]
            )

        verification.check_number(await self._context.journal.write(write), self.order.id)

    async def _make_keys(self) -> None:
        assert self._manifest is not None and self._start is not None
        context = self._context
        keys = await context.run_keys.obtain(self.order.id)
        members = await self._decisions.members()
        parties = Parties(
            bytes.fromhex(self.order.id),
            digest(self.order.manifest),
            [
                Party(
                    p,
                    context.identity.public
                    if p.node == context.node
                    else PublicKey.from_hex_pem(members[p.member].public),
                )
                for p in self._manifest.participants
            ],
        )
        channel = Channel(
            self.order.id,
            context.node,
            identity=context.identity,
            keys=keys,
            storage_key=context.storage_key,
            parties=parties,
            journal=context.journal,
            link=context.link,
            bulk=context.bulk,
            expires=self._ends_at(),
            seconds=self._manifest.resources.runtime_seconds + LAST_WORDS,
            on_refused=lambda error: self._from_thread(lambda: self.feed(life.ProgramFailed(str(error), error.code))),
            on_control=self._on_control,
            public_data=context.policy.public_data,
        )
        ((start_leaf,),) = await context.journal.rows("SELECT start_leaf FROM runs WHERE id = ?", self.order.id)
        if start_leaf is not None:  # a run from before an upgrade has none, and goes on as it began
            parties.start_logged_at(start_leaf)
        announcement = await self._own_announcement(keys)
        rows = await context.journal.rows("SELECT node, body FROM announcements WHERE run = ?", self.order.id)
        for node, body in rows:
            parties.restore(node, bytes(body))
        await channel.load()
        for sender in self._ended_senders:
            channel.sender_ended(sender)
        self._channel = channel
        self._spawn(channel.work())
        self._spawn(self._send_announcement(announcement))
        self._spawn(self._deadlines())
        early, self._early = self._early, []
        for frame in early:
            self.deliver(frame)

    def _ends_at(self) -> int:
        assert self._manifest is not None and self._start is not None
        return int(parse_time(self._start.created).timestamp()) + self._manifest.resources.runtime_seconds + 300

    async def _own_announcement(self, keys: Any) -> bytes:
        """The same bytes after a restart, so that the hub and the peers see one announcement."""
        assert self._manifest is not None
        context = self._context
        own = self._manifest.participant(context.node)
        assert own is not None
        size, root = context.link.newest_head
        moment = int(time.time())
        body = sign_announcement(
            context.identity,
            Announcement(
                run=bytes.fromhex(self.order.id),
                manifest=digest(self.order.manifest),
                node=UUID(context.node).bytes,
                role=own.role,
                run_key=keys.run_key.public_bytes,
                mask_key=keys.mask_public,
                log_size=size,
                log_root=root or bytes(32),
                created=moment,
                expires=moment + 24 * 3600,
            ),
        )

        def write(connection: Any) -> bytes:
            connection.execute(
                "INSERT OR IGNORE INTO announcements VALUES(?, ?, ?)", (self.order.id, context.node, body)
            )
            return bytes(
                connection.execute(
                    "SELECT body FROM announcements WHERE run = ? AND node = ?", (self.order.id, context.node)
                ).fetchone()[0]
            )

        return await context.journal.write(write)

    async def _send_announcement(self, body: bytes) -> None:
        reached(ANNOUNCED)
        msg_id = hashlib.sha256(body).digest()[:16]
        await self._context.link.put("announce", bytes.fromhex(self.order.id), msg_id, body)

    async def _take_announcement(self, frame: Deliver) -> None:
        """What is not signed by the member, or is stale, is dropped; two different ones of one member end the run."""
        assert self._channel is not None
        try:
            said = self._channel.parties.verify(frame.sender, frame.body, int(time.time()))
        except Refused as error:
            if not isinstance(error, BadSignature | Expired) and error.code != "stranger":
                raise
            self._drop(frame, error)
        except Malformed as error:
            self._drop(frame, error)
        else:
            await self._compare_heads(frame.sender, said)  # first: nothing is sealed for who has seen another log
            self._channel.parties.join(frame.sender, said)
            await self._context.journal.execute(
                "INSERT OR REPLACE INTO announcements VALUES(?, ?, ?)", self.order.id, frame.sender, frame.body
            )
            self._context.link.ack(frame.seq)

    async def _compare_heads(self, sender: str, said: Announcement) -> None:
        """The log as a peer has seen it must be the one seen here; without a proof within a minute the run does not go on."""
        assert self._manifest is not None
        peer = self._manifest.participant(sender)
        until = time.monotonic() + PROOF_SECONDS
        while True:
            try:
                await self._heads.take(said.log_size, said.log_root, peer.name if peer else sender)
                return
            except Unavailable:
                if time.monotonic() > until:
                    raise RunFailed(
                        f"The hub gave no proof within {PROOF_SECONDS:.0f} s that its log is the same for everyone.",
                        next_step="Ask the hub's operator; then start the analysis again.",
                        code="no_log_proof",
                    ) from None
                await self._hub_again()

    def _drop(self, frame: Deliver, error: FlameError) -> None:
        log.warning("run %s: an announcement from %s is dropped: %s", self.order.id[:12], frame.sender, error)

    async def _deadlines(self) -> None:
        assert self._channel is not None
        joined_by = time.monotonic() + self._join_seconds
        while missing := self._channel.parties.missing():
            if time.monotonic() > joined_by:
                names = " and ".join(missing)
                self.feed(
                    life.DeadlinePassed(
                        f"{names} did not join the run within {self._join_seconds:.0f} s. Ask whether the node is running, has approved the analysis and reaches the hub."
                    )
                )
                return
            await asyncio.to_thread(self._channel.parties.wait_changed, min(5.0, self._join_seconds))
        await asyncio.sleep(max(0.0, self._channel.deadline - time.monotonic()))
        self.feed(
            life.DeadlinePassed(
                "The run has used up the time that its manifest allows. Ask for more under [resources] in flame.toml."
            )
        )

    # --- prepare and run --------------------------------------------------------------------------------------------

    async def _over_already(self) -> life.PeerEnded | None:
        """Another participant has ended this run without success before this node came: nobody waits for it any more.

        Who ended told those who had joined by then, so the others hear of it from the hub. A hub that lies here stops a
        run, which it can do anyway.
        """
        assert self._manifest is not None
        path = f"/core/analysis-nodes?filter[analysisId]={self.order.analysis}&page[limit]=50"
        for row in (await self._context.link.request("GET", path))["data"]:
            peer = self._manifest.participant(str(row.get("nodeId")))
            if peer is None or peer.node == self._context.node or row.get("executionRun") != self.order.id:
                continue
            if row.get("executionStatus") in ("failed", "stopped"):
                return life.PeerEnded(peer.name, str(row.get("executionReason") or "")[:2000])
        return None

    async def _prepare(self) -> None:
        assert self._manifest is not None
        try:
            while True:
                try:
                    if (over := await self._over_already()) is not None:
                        self.feed(over)
                        return
                    self._prepared = await prepare(self._context, self._manifest, self.folder)
                    break
                except Unavailable as error:
                    log.warning("run %s waits: %s", self.order.id[:12], error)
                    await self._hub_again()
        except FlameError as error:
            self.feed(life.Denied(str(error), error.code))
            return
        self.feed(life.Ready())

    async def _start_sandbox(self) -> None:
        from flame.node.egress.guard import Guard
        from flame.node.egress.text import read_code
        from flame.node.gateway.server import Gateway
        from flame.runtime.sandbox import GATEWAY, Limits, RunSpec

        manifest, start, prepared, channel = self._manifest, self._start, self._prepared, self._channel
        assert manifest is not None and start is not None and prepared is not None and channel is not None
        guard = Guard(
            manifest,
            self._context.node,
            self._context.policy,
            code=await asyncio.to_thread(read_code, prepared.code, manifest),
        )
        outlets = self._outlets()
        self._side = Side(
            manifest=manifest,
            run=self.order.id,
            node=self._context.node,
            parameters=verification.resolve_parameters(manifest, start.parameters),
            channel=channel,
            guard=guard,
            snapshots=prepared.snapshots,
            outlets=outlets,
            local=(local := self._local_objects(manifest)),
            noise=self._noisy,
        )
        command: tuple[str, ...] = ("-u", f"/code/{manifest.entrypoint}", *manifest.arguments)
        variables = {"FLAME_GATEWAY": f"{GATEWAY}/gateway.sock"}
        if not prepared.environment.has_own_sdk:
            self._contract = self._speak_contract(manifest, prepared, channel, guard, self._side, local)
            command, variables = self._contract.command(GATEWAY, command), self._contract.variables()
        self._gateway = Gateway(self.folder.gateway, self._side, self._contract.routes if self._contract else None)
        limits = manifest.resources
        spec = RunSpec(
            run=self.order.id[:32],
            environment=prepared.environment,
            code=prepared.code,
            gateway=self.folder.gateway,
            command=command,
            work=self.folder.work,
            variables=variables,
            limits=Limits(
                memory_bytes=limits.memory_bytes,
                cpus=limits.cpu,
                processes=limits.processes + (self._contract is not None),  # the relay's
                disk_bytes=limits.disk_bytes,
                seconds=limits.runtime_seconds,
            ),
        )
        self._running = await self._context.sandbox.start(spec)
        broken = await self._running.verify()
        if broken:
            self.feed(life.PromiseBroken(str(broken[0].promise), broken[0].detail))
            return
        self.feed(life.SandboxVerified())

    def _speak_contract(
        self,
        manifest: Manifest,
        prepared: Prepared,
        channel: Channel,
        guard: Guard,
        side: Side,
        local: LocalObjects,
    ) -> ContractRun:
        """The environment holds no SDK of ours: its programs speak FLAME's own contract, if any."""
        from flame.node.contract import ContractRun

        return ContractRun(
            self._context,
            manifest,
            self.order.id,
            side=side,
            channel=channel,
            guard=guard,
            folder=self.folder.gateway,
            local=local,
            tables=prepared.snapshots,
            folders=prepared.folders,
        )

    def _local_objects(self, manifest: Manifest) -> LocalObjects:
        from flame.node.contract.local import SOURCE, LocalObjects

        return LocalObjects(
            self._context.journal,
            self._context.storage_key,
            project=manifest.project,
            analysis=manifest.analysis,
            run=self.order.id,
            earlier=any(request.source == SOURCE for request in manifest.sources_of(self._context.node)),
        )

    def _noisy(self, number: int, value: float, epsilon: float, sensitivity: float) -> float:
        """The same noise for the same release after a restart: nobody learns more by making the node begin anew."""
        from flame.privacy.laplace import add_laplace

        what = f"{self.order.id}/{number}/{epsilon!r}/{sensitivity!r}".encode()
        seed = self._context.storage_key.mark(what, b"local dp\0" + bytes.fromhex(self.order.id))
        return add_laplace(value, epsilon, sensitivity, seed)

    async def _open(self) -> None:
        if self._contract is not None:
            self._contract.open()
            self._spawn(self._watch_contract(self._contract))
        self._gateway.open()
        await self._running.release()
        self._spawn(self._watch())

    async def _watch_contract(self, contract: ContractRun) -> None:
        """A program of FLAME's contract says by its health that it has ended; its process never does."""
        end = await contract.watch(lambda: contract.shows_error(self._running.tail(MAX_OUTPUT)))
        if not end.failure:
            self._finished.set()
            return
        self._keep(end.failure)
        await asyncio.to_thread(self._tell_crash, contract)

    def _tell_crash(self, contract: ContractRun) -> None:
        assert self._side is not None
        self._side.fail(contract.failure_in(self._running.tail(MAX_OUTPUT)))

    async def _watch(self) -> None:
        """The program's end, however it comes; a program that has finished may not linger."""
        ended = asyncio.create_task(self._running.wait())
        finished = asyncio.create_task(self._finished.wait())
        await asyncio.wait({ended, finished}, return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            if self._contract is None:
                await asyncio.wait({ended}, timeout=FINISH_GRACE)
            if not ended.done():
                await self._running.stop(1)
        finished.cancel()
        end = await ended
        waited = self._side.waits_for if self._side else ""
        self._keep_output()
        if self._contract is not None and end.reason == "exited" and end.exit_code and self._failure is None:
            await asyncio.to_thread(self._tell_crash, self._contract)
            await self._finished.wait()
        if self._failure is not None:
            self.feed(life.ProgramFailed(*self._failure))
        elif self._finished.is_set() or (end.exit_code == 0 and end.reason == "exited"):
            await self._ended_well()
        else:
            if end.reason == "time" and waited and not self._is_aggregator:
                await asyncio.sleep(PEER_WORD_SECONDS)
            self.feed(life.ProgramFailed(_why(end, waited), "program_failed"))

    async def _ended_well(self) -> None:
        assert self._manifest is not None and self._channel is not None
        if self._is_aggregator and self._results == 0:
            self.feed(
                life.ProgramFailed("The program at the aggregator ended without submitting a result.", "no_result")
            )
            return
        try:
            async with asyncio.timeout(max(1.0, self._channel.deadline - time.monotonic())):
                await self._upload_results()
        except TimeoutError:
            self.feed(life.DeadlinePassed("The hub did not take the result in time. Ask its operator, then run again."))
            return
        left = max(1.0, self._channel.deadline - time.monotonic())
        if not await self._channel.flushed(left):
            self.feed(life.DeadlinePassed("The hub did not take the run's last messages in time."))
            return
        self.feed(life.ProgramEnded())

    @property
    def _is_aggregator(self) -> bool:
        return self._manifest is not None and self._context.node == self._manifest.aggregator.node

    def _keep_output(self) -> None:
        with self.folder.output.open("ab") as file:
            file.write(self._running.tail(MAX_OUTPUT))

    def _outlets(self) -> Outlets:
        return Outlets(
            log=lambda level, line: self._from_thread(lambda: self._spawn(self._tell_log(level, line))),
            keep=self._keep,
            progress=lambda percent: self._from_thread(lambda: self._set_progress(percent)),
            submitted=self._submitted,
            finished=lambda: self._from_thread(self._finished.set),
            failed=lambda reason, code: self._from_thread(lambda: self._set_failure(reason, code)),
        )

    def _keep(self, text: str) -> None:
        with self.folder.output.open("a", encoding="utf-8") as file:
            if file.tell() < MAX_OUTPUT:
                file.write(text[:65536] + "\n")

    def _set_progress(self, percent: int) -> None:
        self.progress = max(self.progress, percent)
        self._report.set()

    def _set_failure(self, reason: str, code: str) -> None:
        self._failure = (reason, code)
        self._finished.set()

    async def _tell_log(self, level: str, line: str) -> None:
        from contextlib import suppress

        body = {
            "analysisId": self.order.analysis,
            "nodeId": self._context.node,
            "level": level,
            "message": line.ljust(3),
            "code": self.order.id[:32],
        }
        with suppress(Unavailable, Refused):
            await self._context.link.request("POST", "/core/analysis-node-logs", body)

    # --- results ----------------------------------------------------------------------------------------------------

    def _submitted(self, name: str, media_type: str, content: bytes, hold: bool) -> None:
        """From a gateway thread: seal to the recipients, keep, and only then say so to the program."""
        assert self._manifest is not None and self._channel is not None
        ordinal = self._results
        keys = asyncio.run_coroutine_threadsafe(self._recipient_keys(), self._loop).result(60)
        self._channel.send_to_people(f"final/{ordinal}", Label(name, media_type), keys, content)
        row = (
            self.order.id,
            ordinal,
            name,
            len(content),
            hashlib.sha256(content).digest(),
            "held" if hold else "released",
        )
        self._context.journal.write_blocking(
            lambda c: c.execute(
                "INSERT OR IGNORE INTO results(run, ordinal, name, bytes, digest, state) VALUES(?,?,?,?,?,?)", row
            )
        )
        reached(RESULT)
        self._results += 1

    async def _recipient_keys(self) -> dict[str, bytes]:
        import base64

        assert self._manifest is not None
        members = await self._decisions.members()
        return {r.id: base64.b64decode(members[r.result_key].public) for r in self._manifest.recipients}

    async def _upload_results(self) -> None:
        while True:
            try:
                return await upload_released(self._context, self._events, self.order.id, self.order.analysis)
            except Unavailable as error:
                log.warning("run %s: the result waits: %s", self.order.id[:12], error)
                await self._hub_again()

    # --- the end ----------------------------------------------------------------------------------------------------

    async def _kill(self) -> None:
        for task in self._before_release:  # a sandbox that is being started works in the folder that is removed next
            task.cancel()
        await asyncio.gather(*self._before_release, return_exceptions=True)
        if self._contract is not None:
            self._contract.close()
        if self._gateway is not None:
            await asyncio.to_thread(self._gateway.close)
        if self._running is not None:
            await self._running.stop(0)
            await self._context.sandbox.cleanup(self.order.id[:32])

    async def _tell_peers(self) -> None:
        """A short sealed word to everyone who has announced; who has not will not wait for this node's messages."""
        if self._channel is None and not await self._open_for_the_end():
            return
        assert self._channel is not None and self._manifest is not None
        missing = set(self._channel.parties.missing())
        peers = [p.node for p in self._manifest.participants if p.node != self._context.node and p.name not in missing]
        if not peers:
            return
        body = msgspec.msgpack.encode({"state": self.run.state.value, "reason": self.run.reason[:2000]})
        try:
            await asyncio.to_thread(self._channel.send, "control/ended", "control", 0, Label("ended"), peers, body)
            await self._channel.flushed(5)
        except FlameError as error:
            log.warning("run %s: the peers could not be told: %s", self.order.id[:12], error)

    async def _open_for_the_end(self) -> bool:
        """After a restart: whether this node had announced itself; then the others wait for its word."""
        own = "SELECT 1 FROM announcements WHERE run = ? AND node = ?"
        if not await self._context.journal.rows(own, self.order.id, self._context.node):
            return False
        self._manifest = verification.read_manifest(self.order.manifest)
        self._start = StartOrder.decode(self.order.order)
        await self._make_keys()
        return True

    def _on_control(self, sender: str, name: str, body: bytes) -> None:
        if name != "ended" or self._manifest is None:
            return
        try:
            said = msgspec.msgpack.decode(body, type=dict[str, str])
        except msgspec.DecodeError:
            return
        participant = self._manifest.participant(sender)
        if said.get("state") == RunState.ENDED.value:
            if self._channel is not None:
                self._channel.sender_ended(sender)
            else:  # while the channel is being loaded after a restart
                self._ended_senders.add(sender)
            if self._contract is not None:
                self._contract.partner_ended(sender)
            return
        self.feed(life.PeerEnded(participant.name if participant else sender, said.get("reason", "")[:2000]))

    async def _clean_up(self) -> None:
        if self._channel is not None:
            self._channel.close(self.run.reason or "The run has ended.")
        await asyncio.to_thread(self.folder.remove)
        await self._context.run_keys.delete(self.order.id)
        await self._context.journal.write(lambda c: _forget(c, self.order.id))

    # --- telling the hub --------------------------------------------------------------------------------------------

    async def _report_always(self) -> None:
        while True:
            await self._report.wait()
            self._report.clear()
            await self._report_once()

    async def _last_report(self) -> None:
        await self._report_once()

    async def _report_once(self) -> None:
        """One after the other: a word that was late would otherwise take the place of a newer one at the hub."""
        try:
            async with self._reporting:
                await report(self._context, self.order, self.run, self.progress)
        except FlameError as error:
            log.warning("run %s: its state could not be reported: %s", self.order.id[:12], error)


async def report(context: Context, order: Order, run: Run, progress: int) -> None:
    """Tell the hub the state; what could not be told is told after the next Welcome."""
    rows = (
        await context.link.request(
            "GET", f"/core/analysis-nodes?filter[analysisId]={order.analysis}&filter[nodeId]={context.node}"
        )
    )["data"]
    if not rows:
        return
    status = EXECUTION_STATUS[run.state]
    body = {
        "executionStatus": status,
        "executionProgress": 100 if status == "executed" else progress,
        "executionRun": order.id,
        "executionReason": run.reason[:2000],
    }
    await context.link.request("POST", f"/core/analysis-nodes/{rows[0]['id']}", body)
    await context.journal.execute("UPDATE runs SET reported = ? WHERE id = ?", run.state.value, order.id)


_LEFT = "SELECT kind, count(*), sum(bytes), max(round) FROM releases WHERE run = ? GROUP BY kind ORDER BY kind"
"""What a run let out, summed up for the log: how often, how many bytes, up to which round. Names stay: a program may have
written them, and the hub reads the log."""


async def upload_released(context: Context, events: Events, run: str, analysis: str) -> None:
    """Upload what has been released and is not at the hub yet. The same file twice is no error.

    The log gets the digest of the sealed file, which tells nothing about its content and binds it.
    """
    rows = await context.journal.rows(
        "SELECT ordinal FROM results WHERE run = ? AND state = 'released' ORDER BY ordinal", run
    )
    if not rows:
        return
    buckets = (
        await context.link.request("GET", f"/core/analysis-buckets?filter[analysisId]={analysis}&filter[type]=RESULT")
    )["data"]
    if not buckets:
        raise Unavailable(
            "The hub has no bucket for the result.", next_step="Ask the hub's operator to run storageCheck."
        )
    for (ordinal,) in rows:
        ((sealed,),) = await context.journal.rows(
            "SELECT sealed FROM outbox WHERE run = ? AND key = ?", run, f"final/{ordinal}"
        )
        content = context.storage_key.open(bytes(sealed), b"outbox\0" + bytes.fromhex(run))
        await _upload_once(context, str(buckets[0]["bucketId"]), f"{run[:12]}-{ordinal + 1}.flame", content)
        sealed_digest = hashlib.sha256(content).hexdigest()
        await events.add("result", run, ordinal=ordinal, bytes=len(content), sha256=sealed_digest)
        await context.journal.execute(
            "UPDATE results SET state = 'uploaded' WHERE run = ? AND ordinal = ?", run, ordinal
        )


async def _upload_once(context: Context, bucket: str, name: str, content: bytes) -> None:
    while True:
        try:
            await context.link.upload(f"/storage/buckets/{bucket}/upload", name, content)
            return
        except Unavailable:
            await asyncio.sleep(0.5)
            await context.link.online.wait()
        except Refused as error:
            files = await context.link.request(
                "GET", f"/storage/bucket-files?filter[bucketId]={bucket}&filter[name]={name}"
            )
            if files["data"] and int(files["data"][0].get("size") or -1) == len(content):
                return
            raise RunFailed(f"The hub does not take the result: {error}") from None


def _forget(connection: Any, run: str) -> None:
    """What the run's messages left behind. Digests and rows that prove what left stay; results stay for re-sealing."""
    connection.execute("UPDATE runs SET closed = 1 WHERE id = ?", (run,))
    connection.execute("DELETE FROM inbox WHERE run = ?", (run,))
    connection.execute("DELETE FROM outbox WHERE run = ? AND key NOT LIKE 'final/%'", (run,))


def _why(end: Any, waited_for: str = "") -> str:
    if end.reason == "time" and waited_for:
        return f"The program used up its time while it waited for {waited_for}. Ask whether that node still runs."
    reasons = {
        "time": "The program used up its time. Ask for more under [resources] in flame.toml.",
        "memory": "The program used more memory than its manifest allows. Ask for more under [resources] in flame.toml.",
        "output": "The program wrote more output than is allowed.",
    }
    return reasons.get(
        str(end.reason),
        f"The program ended with exit code {end.exit_code}; the hospital's steward can read its output.",
    )
