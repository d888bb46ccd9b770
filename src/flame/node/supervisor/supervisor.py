"""All runs of a node: what the hub shows, which orders are new, which runs are under way."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
import time
from itertools import chain
from typing import Any

from flame.model import run as life
from flame.model.errors import FlameError, NotFound, Refused, Unavailable
from flame.model.run import Run, RunState
from flame.node.context import Context, log, now
from flame.node.supervisor.active import ActiveRun, Order, report, upload_released
from flame.node.supervisor.decisions import Decisions
from flame.node.supervisor.events import RETRY_SECONDS, Events
from flame.node.supervisor.heads import HUB, Heads
from flame.node.supervisor.roster import people_of
from flame.node.supervisor.verification import read_manifest
from flame.protocol.control import Changed, Deliver
from flame.protocol.freeze import format_time

MAX_EARLY_BYTES = 32 << 20
EXPIRY_SECONDS = 5.0
"""How often it is looked whether something under way has expired."""


class Supervisor:
    def __init__(
        self, context: Context, decisions: Decisions, events: Events, heads: Heads, join_seconds: float
    ) -> None:
        self._context, self._decisions, self._events, self._heads = context, decisions, events, heads
        self._join_seconds = join_seconds
        self.active: dict[str, ActiveRun] = {}
        self._early: dict[str, list[Deliver]] = {}
        self._look_again: asyncio.Queue[str] = asyncio.Queue()
        self._news: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self._unreported = asyncio.Event()
        self._drives: set[asyncio.Task[None]] = set()

    async def resume(self) -> None:
        """After a start of the node: runs that had not ended go on, from their frozen data and their mailbox."""
        for row in await self._context.journal.read(_unfinished):
            order, state = _order(row), Run(row["id"], RunState(row["state"]), row["reason"], row["code"])
            self._begin(order, state, resumed=True)
            self._look_again.put_nowait(order.analysis)  # it may have been stopped meanwhile

    async def work(self) -> None:
        """Look again at analyses that changed, one after the other, until cancelled."""
        while True:
            analysis = await self._look_again.get()
            try:
                await self._look(analysis)
            except Unavailable:
                asyncio.get_running_loop().call_later(RETRY_SECONDS, self._look_again.put_nowait, analysis)
            except FlameError as error:
                log.warning("analysis %s: %s", analysis, error)
            except Exception:  # noqa: BLE001 - a hub that answers nonsense must not end the node's work
                log.exception("analysis %s", analysis)

    async def follow_news(self) -> None:
        """Projects that changed or ended, keys that were rotated or revoked: what must not go on is stopped."""
        while True:
            what, key = await self._news.get()
            try:
                await (self._look_at_project(key) if what == "project" else self._look_at_members(key))
            except Unavailable:
                asyncio.get_running_loop().call_later(RETRY_SECONDS, self._news.put_nowait, (what, key))
            except FlameError as error:
                log.warning("%s %s: %s", what, key, error)
            except Exception:  # noqa: BLE001 - as above
                log.exception("%s %s", what, key)

    async def _look_at_project(self, project: str) -> None:
        news = await self._decisions.look_at_project(project)
        if news.what == "ended":
            self.stop_project(project, "the researcher, who has ended the project")
            if news.by_researcher:
                await self.forget_project(project, "its researcher has ended it")
        elif news.what == "changed":
            self.stop_project(project, "a changed proposal, which this hospital has not approved")

    async def _look_at_members(self, member: str) -> None:
        roster = self._decisions.roster
        everyone = await self._decisions.members()
        await roster.refresh({*everyone, member} - {""})
        await self.stop_revoked()

    async def stop_revoked(self) -> None:
        """What runs with a member that was revoked does not go on."""
        members = await self._decisions.members()
        for active in list(self.active.values()):
            for fingerprint, _, name in people_of(read_manifest(active.order.manifest)):
                if (member := members.get(fingerprint)) is not None and member.revoked:
                    active.feed(life.StopAsked(f"the revocation of the key of {name} ({member.revoked})"))
                    break

    async def keep_in_time(self) -> None:
        """What may no longer run, because an approval, a project or a manifest has expired, is stopped; until cancelled."""
        while True:
            await asyncio.sleep(EXPIRY_SECONDS)
            for active in list(self.active.values()):
                try:
                    await self._decisions.require_live(active.order.analysis, read_manifest(active.order.manifest))
                except FlameError as error:
                    active.feed(life.StopAsked(f"the node: {error.message.rstrip('.')}"))
            for project in await self._decisions.expired_projects():
                await self.forget_project(project, "it has expired")

    async def forget_project(self, project: str, why: str) -> dict[str, int]:
        """Delete what a project has left here: run folders, keys, messages and sealed results; a leaf is the proof.

        Waits for runs that are being stopped. What was decided, and that something ran, stays on record.
        """
        for active in [a for a in self.active.values() if read_manifest(a.order.manifest).project == project]:
            await active.done.wait()
        rows = await self._context.journal.rows(
            "SELECT r.id FROM runs r JOIN analyses a ON a.id = r.analysis WHERE a.project = ?", project
        )
        runs = [str(row[0]) for row in rows]
        for run in runs:
            await asyncio.to_thread(shutil.rmtree, self._context.layout.runs / run, True)
            await self._context.run_keys.delete(run)
        found = await self._context.journal.write(lambda c: _forget_runs(c, runs))
        await self._context.journal.execute("UPDATE projects SET ended = ? WHERE id = ?", format_time(now()), project)
        await self._events.add_once("project-deleted", project, why=why, runs=len(runs), **found)
        log.info("project %s: what it had left here was deleted, because %s", project, why)
        return {"runs": len(runs), **found}

    async def keep_reporting(self) -> None:
        """Tell the hub how runs ended, and hand over what was released, until it has taken it; until cancelled."""
        while True:
            await self._unreported.wait()
            self._unreported.clear()
            if not await self._report_again():
                await asyncio.sleep(RETRY_SECONDS)
                await self._context.link.online.wait()
                self._unreported.set()

    # --- from the link ----------------------------------------------------------------------------------------------

    async def connected(self) -> None:
        """After each Welcome: everything that may have changed meanwhile."""
        try:
            await self._heads.take(*self._context.link.shown_head, HUB)
        except Refused as error:
            for active in self.active.values():
                active.feed(life.ProgramFailed(str(error), error.code))
            raise
        self._events.kick()
        self._decisions.kick()
        self._news.put_nowait(("member", ""))
        for project in await self._decisions.known_projects():
            self._news.put_nowait(("project", project))
        self._unreported.set()
        offset = 0
        while True:
            answer = await self._context.link.request(
                "GET",
                f"/core/analysis-nodes?filter[nodeId]={self._context.node}&page[limit]=50&page[offset]={offset}&sort=-updatedAt",
            )
            for row in answer["data"]:
                if row.get("executionStatus") not in ("executed", "failed", "stopped"):
                    self._look_again.put_nowait(str(row["analysisId"]))
            offset += len(answer["data"])
            if not answer["data"] or offset >= int(answer["meta"]["total"]):
                break

    async def changed(self, frame: Changed) -> None:
        if frame.what in ("analysis", "run"):
            self._look_again.put_nowait(frame.id)
        elif frame.what in ("project", "member"):
            self._news.put_nowait((frame.what, frame.id))

    async def deliver(self, frame: Deliver) -> None:
        run = frame.run.hex()
        if run not in self.active and await self._has_ended(run):
            self._context.link.ack(frame.seq)
        elif run in self.active:  # perhaps only since a moment ago, while the database was asked
            self.active[run].deliver(frame)
        elif sum(len(kept.body) for kept in chain(*self._early.values())) + len(frame.body) <= MAX_EARLY_BYTES:
            self._early.setdefault(run, []).append(frame)
        # else: not acknowledged; the hub delivers it again at the next connection

    # --- from the steward -------------------------------------------------------------------------------------------

    def log_seen(self) -> dict[str, object]:
        """The newest head of the hub's log that is believed here, and why it is not believed any more."""
        return self._heads.shown()

    async def decided(self, analysis: str) -> None:
        self._look_again.put_nowait(analysis)

    async def stop(self, run: str, by: str) -> None:
        active = self.active.get(run)
        if active is None:
            raise NotFound(f"No run {run} is under way here.", next_step="See `flame node runs`.")
        active.feed(life.StopAsked(by))

    def stop_all(self, analysis: str, by: str) -> None:
        """A withdrawn approval stops what runs."""
        for active in self.active.values():
            if active.order.analysis == analysis:
                active.feed(life.StopAsked(f"{by}, who withdrew the approval"))

    def stop_project(self, project: str, by: str) -> None:
        """A hospital that leaves a project leaves its runs."""
        for active in self.active.values():
            if read_manifest(active.order.manifest).project == project:
                active.feed(life.StopAsked(by))

    async def runs(self) -> list[dict[str, Any]]:
        rows = await self._context.journal.read(
            lambda c: _dicts(
                c, "SELECT id, analysis, state, reason, code, created, ended FROM runs ORDER BY created DESC LIMIT 200"
            )
        )
        for row in rows:
            active = self.active.get(row["id"])
            row["progress"] = active.progress if active else 100 if row["state"] == "ended" else 0
        return rows

    async def run(self, id_: str) -> dict[str, Any]:
        rows = await self._context.journal.read(
            lambda c: _dicts(c, "SELECT id, analysis, state, reason, code, created, ended FROM runs WHERE id = ?", id_)
        )
        if not rows:
            raise NotFound(f"This node knows no run {id_}.", next_step="See `flame node runs`.")
        released = await self._context.journal.read(
            lambda c: _dicts(c, "SELECT kind, name, round, bytes FROM releases WHERE run = ?", id_)
        )
        return {**rows[0], "releases": released}

    async def output(self, id_: str) -> str:
        from flame.node.supervisor.preparation import RunFolder

        await self.run(id_)
        path = RunFolder(self._context.layout.runs / id_).output
        return path.read_text("utf-8", errors="replace") if path.exists() else ""

    async def releases(self) -> list[dict[str, Any]]:
        return await self._context.journal.read(
            lambda c: _dicts(
                c,
                "SELECT r.run || '-' || r.ordinal AS id, r.run, r.ordinal, r.name, r.bytes, r.state, u.analysis FROM results r JOIN runs u ON u.id = r.run ORDER BY u.created DESC",
            )
        )

    async def release(self, id_: str, decision: str, steward: str) -> dict[str, Any]:
        """The airlock's simplest form: a held result is released, or rejected."""
        rows = [row for row in await self.releases() if row["id"] == id_]
        if not rows:
            raise NotFound(f"Nothing waits here under {id_}.", next_step="See `flame node releases`.")
        row = rows[0]
        if row["state"] != "held":
            raise Refused(f"This result is {row['state']} already.")
        state = "released" if decision == "released" else "rejected"
        await self._context.journal.execute(
            "UPDATE results SET state = ?, decided_by = ? WHERE run = ? AND ordinal = ? AND state = 'held'",
            state,
            steward,
            row["run"],
            row["ordinal"],
        )
        await self._events.add("release", row["run"], decision=state, ordinal=row["ordinal"])
        if state == "released":
            await upload_released(self._context, self._events, row["run"], row["analysis"])
        return {**row, "state": state}

    # --- looking ----------------------------------------------------------------------------------------------------

    async def _look(self, analysis: str) -> None:
        link = self._context.link
        answer = (await link.request("GET", f"/core/analyses/{analysis}/manifest"))["data"]
        if not answer.get("manifest"):
            await self._decisions.manifest_withdrawn(analysis)
            return
        content = str(answer["manifest"]).encode()
        manifest = read_manifest(content)
        if manifest.analysis != analysis:
            raise Refused("The hub shows the manifest of another analysis.")
        signature = str(answer["signature"]) if answer.get("signature") else None
        await self._decisions.take_manifest(analysis, manifest.project, manifest.title, content, signature)
        await self._decisions.confirm_by_policy(analysis)
        at_hub = await self._decisions.to_confirm(analysis)
        if at_hub is not None and at_hub["decision"] == "rejected":  # a no takes effect at once, a yes runs nothing
            self.stop_all(analysis, f"{at_hub['by'] or 'somebody'}, at the hub")
            return
        for row in (await link.request("GET", f"/core/analyses/{analysis}/runs"))["data"]:
            await self._consider(analysis, content, signature, row)

    async def _consider(self, analysis: str, manifest: bytes, signature: str | None, row: dict[str, Any]) -> None:
        from flame.crypto.canonical import digest

        order_text = str(row["order"]).encode()
        run = digest(order_text).hex()
        stopping = row.get("state") == "stopping"
        if stopping and run in self.active:
            self.active[run].feed(life.StopAsked("the researcher"))
            return
        if run in self.active or row.get("state") not in ("ordered", "stopping") or await self._known(run):
            return
        self._heads.demand()
        if not self._context.policy.autostart:
            log.info("run %s waits for `flame node start`", run[:12])
            return
        order = Order(
            run,
            analysis,
            manifest,
            bytes.fromhex(signature) if signature else None,
            order_text,
            bytes.fromhex(row["signature"]) if row.get("signature") else None,
        )
        await self._context.journal.write(lambda c: _insert(c, order))
        self._begin(order, Run(run), resumed=False)
        if stopping:
            self.active[run].feed(life.StopAsked("the researcher"))

    def _begin(self, order: Order, state: Run, *, resumed: bool) -> None:
        if order.id in self.active:
            return  # the start of the node and the hub's push may both have found it
        active = ActiveRun(self._context, self._decisions, self._events, self._heads, order, state, self._join_seconds)
        self.active[order.id] = active
        task = asyncio.create_task(self._drive(active, resumed=resumed))
        self._drives.add(task)
        task.add_done_callback(self._drives.discard)
        for frame in self._early.pop(order.id, []):
            active.deliver(frame)

    async def _drive(self, active: ActiveRun, *, resumed: bool) -> None:
        try:
            await active.drive(resumed=resumed)
        except Exception:  # noqa: BLE001 - the node goes on; this run is picked up again at its next start
            log.exception("run %s", active.order.id[:12])
        finally:
            self.active.pop(active.order.id, None)
            self._unreported.set()

    async def shut_down(self) -> None:
        """The node ends; its sandboxes end with it. Runs stay as they are and go on at the next start."""
        for active in list(self.active.values()):
            await active.abandon()
        for task in list(self._drives):
            task.cancel()

    async def _report_again(self) -> bool:
        """False: something is left that may be taken later. What the hub refuses is tried again after a Welcome."""
        done = True
        for row in await self._context.journal.read(_unreported):
            if row["id"] in self.active:
                continue
            state = Run(row["id"], RunState(row["state"]), row["reason"], row["code"])
            try:
                await report(self._context, _order(row), state, 0)
                if state.state is RunState.ENDED:
                    await upload_released(self._context, self._events, row["id"], row["analysis"])
            except Unavailable:
                done = False
            except FlameError as error:
                log.warning("run %s: %s", row["id"][:12], error)
        return done

    async def _known(self, run: str) -> bool:
        return bool(
            await self._context.journal.read(lambda c: c.execute("SELECT 1 FROM runs WHERE id = ?", (run,)).fetchone())
        )

    async def _has_ended(self, run: str) -> bool:
        row = await self._context.journal.read(
            lambda c: c.execute("SELECT state FROM runs WHERE id = ?", (run,)).fetchone()
        )
        return row is not None and RunState(row[0]).is_terminal


def _forget_runs(connection: sqlite3.Connection, runs: list[str]) -> dict[str, int]:
    """How much was deleted, by what it was."""
    counted = {"results": 0, "messages": 0}
    for run in runs:
        counted["results"] += connection.execute("DELETE FROM results WHERE run = ?", (run,)).rowcount
        for table in ("inbox", "outbox"):
            counted["messages"] += connection.execute(f"DELETE FROM {table} WHERE run = ?", (run,)).rowcount  # noqa: S608 - constants
        connection.execute("DELETE FROM announcements WHERE run = ?", (run,))
    return counted


def _insert(connection: sqlite3.Connection, order: Order) -> None:
    kept = {
        "manifest_signature": order.manifest_signature.hex() if order.manifest_signature else None,
        "order": order.order.decode(),
        "order_signature": order.order_signature.hex() if order.order_signature else None,
    }
    connection.execute(
        "INSERT OR IGNORE INTO runs(id, analysis, manifest, start_order, state, created) VALUES(?, ?, ?, ?, ?, ?)",
        (order.id, order.analysis, order.manifest, json.dumps(kept).encode(), RunState.QUEUED.value, time.time()),
    )


def _order(row: dict[str, Any]) -> Order:
    kept = json.loads(row["start_order"])
    return Order(
        row["id"],
        row["analysis"],
        bytes(row["manifest"]),
        bytes.fromhex(kept["manifest_signature"]) if kept["manifest_signature"] else None,
        kept["order"].encode(),
        bytes.fromhex(kept["order_signature"]) if kept["order_signature"] else None,
    )


_ENDED = "('ended', 'stopped', 'refused', 'failed')"
_UNFINISHED = f"SELECT * FROM runs WHERE state NOT IN {_ENDED} OR closed = 0 ORDER BY created"  # noqa: S608 - a constant
_WAITING = "state = 'ended' AND id IN (SELECT run FROM results WHERE state = 'released')"
_UNREPORTED = f"SELECT * FROM runs WHERE state IN {_ENDED} AND reported != state OR {_WAITING}"  # noqa: S608 - constants


def _unfinished(connection: sqlite3.Connection) -> list[dict[str, Any]]:
    return _dicts(connection, _UNFINISHED)


def _unreported(connection: sqlite3.Connection) -> list[dict[str, Any]]:
    return _dicts(connection, _UNREPORTED)


def _dicts(connection: sqlite3.Connection, sql: str, *values: Any) -> list[dict[str, Any]]:
    cursor = connection.execute(sql, values)
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
