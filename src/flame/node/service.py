"""A running node: its parts put together, and the facade that its local interface speaks to."""

from __future__ import annotations

import asyncio
import json
import logging
import logging.handlers
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from flame import __version__
from flame.crypto.atrest import StorageKey
from flame.crypto.keys import IdentityKey, fingerprint_words
from flame.model.errors import Conflict, FlameError, Invalid, Unavailable
from flame.node.config import Layout, read_enrolled
from flame.node.context import Context, log
from flame.node.egress.policy import read_policy
from flame.node.enrolment.rotation import rotate, settle
from flame.node.hooks import UNSEALED, WEAKEN, hook
from flame.node.link import Bulk, Link
from flame.node.release.keys import RunKeyStore
from flame.node.schema import NODE, RUN_KEYS
from flame.node.supervisor import Supervisor
from flame.node.supervisor.decisions import DEFAULT_DAYS, Decisions
from flame.node.supervisor.events import Events
from flame.node.supervisor.heads import Heads
from flame.storage.journal import Journal

if TYPE_CHECKING:
    from flame.runtime.sandbox import Isolation, Sandbox

JOIN_VARIABLE = "FLAME_NODE_JOIN_SECONDS"


class NodeService:
    """What the local interface offers. Implements ``flame.node.local.port``."""

    def __init__(self, context: Context, decisions: Decisions, supervisor: Supervisor, events: Events) -> None:
        self._context, self._decisions, self._supervisor, self._events = context, decisions, supervisor, events

    async def status(self) -> dict[str, Any]:
        context, isolation = self._context, self._context.isolation
        return {
            "node": context.node,
            "name": context.enrolled.name,
            "version": __version__,
            "hub": {
                "url": context.enrolled.hub,
                "online": context.link.online.is_set(),
                "lastError": context.link.last_error,
                "polls": context.link.polls,
            },
            "fingerprint": context.fingerprint,
            "words": fingerprint_words(bytes.fromhex(context.fingerprint)),
            "isolation": {"level": isolation.name, "backend": isolation.backend, "detail": isolation.detail}
            if isolation
            else None,
            "runs": len(self._supervisor.active),
            "analysesWaiting": sum(row["decision"] == "pending" for row in await self._decisions.analyses()),
            "resultsWaiting": sum(row["state"] == "held" for row in await self._supervisor.releases()),
            "logEventsWaiting": await self._events.waiting(),
            "log": self._supervisor.log_seen(),
        }

    async def analyses(self) -> list[dict[str, Any]]:
        """With what was said at the hub and waits to be confirmed here, as far as the hub can be reached."""
        said: dict[str, Any] = {}
        with suppress(FlameError):
            said = await self._decisions.said_at_hub()
        return [{**row, "toConfirm": said.get(row["id"])} for row in await self._decisions.analyses()]

    async def analysis(self, id_: str) -> dict[str, Any]:
        return await self._decisions.analysis(id_)

    async def code(self, id_: str) -> list[dict[str, Any]]:
        return await self._decisions.code(id_)

    async def decide(
        self,
        analysis: str,
        decision: str,
        steward: str,
        comment: str = "",
        days: int | None = None,
        confirm_unsigned: bool = False,
        seen_digest: str = "",
        conditions: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        answer = await self._decisions.decide(
            analysis,
            _decision(decision),
            steward,
            comment,
            days or DEFAULT_DAYS,
            confirm_unsigned,
            seen_digest=seen_digest,
            conditions=conditions,
        )
        if decision == "rejected":
            self._supervisor.stop_all(analysis, self._named(steward))
        await self._tell_hub()
        await self._supervisor.decided(analysis)
        return answer

    async def _tell_hub(self) -> None:
        """Now, so that the steward sees it arrive; without a hub it waits, durable, for the next connection."""
        with suppress(Unavailable):
            await self._decisions.flush()

    async def projects(self) -> list[dict[str, Any]]:
        return await self._decisions.projects()

    async def project(self, id_: str) -> dict[str, Any]:
        return await self._decisions.project(id_)

    async def decide_project(
        self,
        project: str,
        decision: str,
        steward: str,
        comment: str = "",
        seen_digest: str = "",
        days: int | None = None,
    ) -> dict[str, Any]:
        took_part = project in await self._decisions.known_projects()
        answer = await self._decisions.decide_project(
            project, _decision(decision), steward, comment, days or DEFAULT_DAYS, seen_digest
        )
        if decision == "rejected":
            self._supervisor.stop_project(project, self._named(steward))
        await self._tell_hub()
        if decision == "rejected" and took_part:
            answer["deleted"] = await self._supervisor.forget_project(project, "this hospital has left it")
        return answer

    async def comment_project(self, project: str, comment: str) -> dict[str, Any]:
        return await self._decisions.comment_project(project, comment)

    async def members(self) -> list[dict[str, Any]]:
        known = await self._decisions.members()
        own = await self._decisions.roster.own()
        wanted = [(m.fingerprint, m.kind, m.name) for m in known.values()]
        wanted += [p for p in await self._decisions.named_anywhere() if p[0] not in known and p[0] != own.member]
        rows = await self._decisions.roster.named(wanted)
        for row in rows:
            member = known.get(row["fingerprint"])
            row["keys"] = len(member.keys) if member is not None else 0
        return rows

    async def confirm(self, fingerprint: str, kind: str, name: str, steward: str) -> dict[str, Any]:
        if not kind:
            kind = await self._decisions.roster.kind_at_hub(fingerprint)
        return await self._decisions.confirm(fingerprint, kind, name, steward)

    async def revoke(self, member: str, reason: str, steward: str) -> dict[str, Any]:
        answer = await self._decisions.roster.revoke(member, reason, steward)
        await self._supervisor.stop_revoked()
        return answer

    async def keys(self) -> dict[str, Any]:
        own = await self._decisions.roster.own()
        return {
            "member": own.member,
            "fingerprint": self._context.fingerprint,
            "words": fingerprint_words(bytes.fromhex(self._context.fingerprint)),
            "number": len(own.keys),
            "revoked": own.revoked,
        }

    async def rotate_key(self, steward: str) -> dict[str, Any]:
        if self._supervisor.active:
            raise Conflict("A run is under way with the present key.", next_step="Rotate when it has ended.")
        if await self._events.waiting() or not self._context.link.online.is_set():
            raise Conflict(
                "The hub has not got everything yet that the present key has signed.",
                next_step="Repeat it when the node is connected.",
            )
        await rotate(self._context, await self._decisions.roster.own())
        await self._events.add("rotation-done", self._context.member, by=steward, key=self._context.fingerprint)
        return await self.keys()

    async def runs(self) -> list[dict[str, Any]]:
        return await self._supervisor.runs()

    async def run(self, id_: str) -> dict[str, Any]:
        return await self._supervisor.run(id_)

    async def stop(self, run: str, steward: str, reason: str = "") -> dict[str, Any]:
        said = f": {' '.join(reason.split())[:500]}" if reason.strip() else ""
        await self._supervisor.stop(run, f"{self._named(steward)}{said}")
        return {"run": run, "state": "stopping"}

    def _named(self, steward: str) -> str:
        role = f"steward of {self._context.enrolled.name}"
        if steward.casefold() == role.casefold():  # an account that is named after its office
            return f"a {role}"
        return f"{steward}, a {role}"

    async def start(self, analysis: str, steward: str) -> dict[str, Any]:
        await self._supervisor.decided(analysis)
        return {"analysis": analysis}

    async def output(self, id_: str) -> str:
        return await self._supervisor.output(id_)

    async def releases(self) -> list[dict[str, Any]]:
        return await self._supervisor.releases()

    async def release(self, id_: str, decision: str, steward: str) -> dict[str, Any]:
        return await self._supervisor.release(id_, decision, steward)


def _decision(text: str) -> Literal["approved", "rejected"]:
    if text == "approved":
        return "approved"
    if text == "rejected":
        return "rejected"
    raise Invalid(f"'{text}' is no decision.", next_step="Use approved or rejected.")


def serve(directory: Path) -> None:
    """Run the node until SIGTERM or SIGINT. Raises NotFound for a directory that is no node's, Conflict when it runs already."""
    asyncio.run(_serve(Layout(directory.resolve())))


async def _serve(layout: Layout) -> None:
    enrolled = read_enrolled(layout)
    lock = _lock(layout)
    _log_to(layout.log)
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    identity = IdentityKey.load(layout.identity)
    storage_key = StorageKey.load(layout.storage_key)
    journal = Journal(layout.database, NODE)
    keys = Journal(layout.run_keys, RUN_KEYS, secure_delete=True)
    parts: dict[str, Supervisor] = {}
    link = Link(
        enrolled.hub,
        enrolled.client,
        identity,
        on_deliver=lambda frame: parts["supervisor"].deliver(frame),
        on_changed=lambda frame: parts["supervisor"].changed(frame),
        on_connected=lambda: parts["supervisor"].connected(),
    )
    policy = read_policy(layout.policy)
    hook(UNSEALED, public_data=policy.public_data)  # refused before anything is served
    context = Context(
        layout=layout,
        enrolled=enrolled,
        identity=identity,
        storage_key=storage_key,
        journal=journal,
        run_keys=RunKeyStore(keys, storage_key),
        policy=policy,
        link=link,
        bulk=Bulk(lambda: link.bulk, link.bearer_blocking, link.bulk_unreachable),
        sandbox=_sandbox(public_only=policy.public_data),
    )
    heads = Heads(context)
    await heads.load()
    events = Events(context, heads)
    decisions = Decisions(context, events)
    supervisor = parts["supervisor"] = Supervisor(context, decisions, events, heads, _join_seconds())
    service = NodeService(context, decisions, supervisor, events)
    await journal.execute("INSERT INTO starts(time) VALUES(datetime('now'))")
    runner = await _local(layout, service)
    tasks = [
        asyncio.create_task(work)
        for work in (
            link.run(),
            events.run(),
            decisions.run(),
            supervisor.work(),
            supervisor.keep_reporting(),
            supervisor.follow_news(),
            supervisor.keep_in_time(),
            settle(context),
            _probe(context, supervisor),
        )
    ]
    log.info("node %s serves", enrolled.name)
    try:
        done, _ = await asyncio.wait(
            [*tasks[:-1], asyncio.create_task(ended.wait())], return_when=asyncio.FIRST_COMPLETED
        )
        for task in done:
            task.result()
    finally:
        await supervisor.shut_down()
        for task in tasks:
            task.cancel()
        await link.close()
        context.bulk.close()
        await runner.cleanup()
        layout.running.unlink(missing_ok=True)
        journal.close()
        keys.close()
        lock.close()


async def _probe(context: Context, supervisor: Supervisor) -> None:
    """Find the isolation level with a canary, then take up what was under way."""
    context.isolation = await probe_isolation(context)
    log.info("isolation %s %s", context.isolation.name, context.isolation.detail)
    await supervisor.resume()


async def probe_isolation(context: Context) -> Isolation:
    from flame.runtime.environments import load_host_environment
    from flame.runtime.sandbox import Broken, Isolation, Promise

    names = sorted(
        p.parent.relative_to(context.layout.environments.resolve()).as_posix()
        for p in context.layout.environments.resolve().rglob("environment.json")
    )
    if not names:
        return Isolation(
            context.sandbox.name,
            frozenset(),
            (Broken(Promise.OWN_FILES, "no environment is registered here, so nothing could be tried"),),
        )
    try:
        return await context.sandbox.probe(load_host_environment(names[0], context.layout.environments))
    except FlameError as error:
        return Isolation(context.sandbox.name, frozenset(), (Broken(Promise.OWN_FILES, str(error)),))


def _sandbox(*, public_only: bool) -> Sandbox:
    from flame.runtime.backends import choose_backend

    if weakened := hook(WEAKEN, public_data=public_only):
        return _weakened(weakened)
    try:
        return choose_backend()
    except Unavailable:
        if not public_only:
            raise
        log.warning("bubblewrap is missing: runs on public data go without a sandbox")
        return choose_backend("unsandboxed")


def _weakened(promise: str) -> Sandbox:
    """For tests: a sandbox without the one thing that a promise rests on."""
    from flame.runtime.process import ProcessSandbox
    from flame.runtime.sandbox import Promise

    try:
        return ProcessSandbox(weaken=frozenset({Promise(promise)}))
    except ValueError:
        raise Invalid(f"{WEAKEN} names no promise: {promise[:64]!r}.") from None


async def _local(layout: Layout, service: NodeService) -> Any:
    from flame.node.local.server import serve_local
    from flame.node.local.stewards import Accounts

    runner, url = await serve_local(service, Accounts(layout.root / "stewards.json"), 0)
    temporary = layout.running.with_suffix(".new")
    temporary.write_text(json.dumps({"url": url, "pid": os.getpid()}), encoding="utf-8")
    temporary.replace(layout.running)
    return runner


def _lock(layout: Layout) -> Any:
    """One process for a node's directory: two would be a cloned node."""
    import fcntl

    file = (layout.root / ".lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise Conflict(f"The node in {layout.root} is running already.", next_step="See `flame node status`.") from None
    return file


def _log_to(path: Path) -> None:
    target = logging.handlers.RotatingFileHandler(path, maxBytes=16 << 20, backupCount=3, encoding="utf-8")
    target.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    root = logging.getLogger("flame")
    root.setLevel(logging.INFO)
    root.addHandler(target)


def _join_seconds() -> float:
    try:
        return max(1.0, float(os.environ.get(JOIN_VARIABLE, "120")))
    except ValueError:
        raise Invalid(f"{JOIN_VARIABLE} is not a number of seconds.") from None
