"""``POST /core/projects/:id/end``: what a project's end stops and deletes at the hub. The log keeps that it was there."""

from __future__ import annotations

from typing import Any

from msgspec import UNSET, UnsetType
from sqlalchemy import Connection, delete, select, update
from starlette.requests import Request
from starlette.responses import Response

from flame.crypto.canonical import parse_canonical
from flame.crypto.keys import PublicKey
from flame.crypto.signatures import verify_document
from flame.hub.analyses.tables import analyses, analysis_buckets, runs
from flame.hub.authorisation import Action, demand, project_facts
from flame.hub.columns import now
from flame.hub.identity.sessions import authenticate
from flame.hub.identity.tables import user_keys
from flame.hub.objects.tables import bucket_files
from flame.hub.objects.upkeep import collect
from flame.hub.projects.resources import PROJECT
from flame.hub.projects.tables import project_nodes, projects
from flame.hub.resources import Body, get_row, path_id, raw_row, read_body, record
from flame.hub.state import HubState, hub_of
from flame.model.errors import Conflict, DoesNotMatchApproval, Malformed
from flame.protocol.documents import Ending

GOING = ("waiting", "ordered", "stopping")


class EndBody(Body):
    document: str | UnsetType = UNSET
    """The researcher's signed end (canonical text): with it the hospitals delete what the project has left there."""
    signature: str | UnsetType = UNSET


async def end_project(request: Request) -> Response:
    """Stop what runs, void the approvals, delete programs, results, messages; an ended project does not come back."""
    actor = await authenticate(request)
    key = path_id(request, PROJECT)
    body = await read_body(request, EndBody)
    hub = hub_of(request)

    def store(connection: Connection) -> tuple[dict[str, Any], list[str], tuple[str, ...], list[str]]:
        row = raw_row(connection, actor, PROJECT, key)
        facts = project_facts(connection, key)
        demand(actor, Action.DELETE, facts)
        if row.ended_at:
            raise Conflict("This project has ended already.")
        signed = _signed_end(connection, actor.id, key, body)
        values = {"ended_at": now(), "ending": signed[0], "ending_signature": signed[1], "updated_at": now()}
        connection.execute(update(projects).where(projects.c.id == key).values(**values))
        void_project(connection, key)
        stopped = stop_project(hub, connection, key, actor.id)
        files = _delete_files(connection, key)
        told = {"by": actor.id, "signed": bool(signed[0]), "files": len(files), "runs": len(stopped)}
        hub.log.tell(connection, "project-ended", key, told)
        return get_row(connection, actor, PROJECT, key), files, tuple(facts.asked), stopped

    shown, files, asked, stopped = await hub.database.write(store, "approvals")
    await collect(hub, files)
    hub.channels.changed(asked, "project", key)
    for run in stopped:
        hub.runs.forget(bytes.fromhex(run))
        for blob in await hub.mailbox.purge(bytes.fromhex(run)):
            await hub.objects.remove(blob)
    return record(shown, PROJECT, 202)


def _signed_end(connection: Connection, user: str, key: str, body: EndBody) -> tuple[str | None, str | None]:
    if not body.document or not body.signature:
        return None, None
    ending: Ending = Ending.decode(body.document.encode())
    if ending.project != key:
        raise DoesNotMatchApproval("This is the end of another project.")
    mine = (user_keys.c.user_id == user) & (user_keys.c.kind == "sign") & user_keys.c.revoked_at.is_(None)
    public = connection.execute(
        select(user_keys.c.public_key).where(mine, user_keys.c.member == ending.researcher)
    ).scalar()
    if public is None:
        raise DoesNotMatchApproval("The end names another key than the one registered for you.")
    try:
        signature = bytes.fromhex(body.signature)
    except ValueError:
        raise Malformed("The signature is not hexadecimal.") from None
    verify_document(PublicKey.from_hex_pem(public), signature, "ending-v1", parse_canonical(body.document.encode()))
    return body.document, body.signature


def void_project(connection: Connection, key: str) -> None:
    """What was decided about a project counts no more: it has changed, or ended."""
    nothing: dict[str, Any] = dict.fromkeys(("approval_status", "approval", "approval_signature", "approval_by"))
    of_project = update(project_nodes).where(project_nodes.c.project_id == key)
    connection.execute(of_project.values(**nothing, approval_signed=False, updated_at=now()))


def stop_project(hub: HubState, connection: Connection, key: str, by: str) -> list[str]:
    """The runs of a project that were going on: they are being stopped from now on."""
    part = runs.c.analysis_id.in_(select(analyses.c.id).where(analyses.c.project_id == key))
    found = list(connection.execute(select(runs.c.id).where(part, runs.c.state.in_(GOING))).scalars())
    connection.execute(update(runs).where(part, runs.c.state == "waiting").values(state="ended"))
    connection.execute(update(runs).where(part, runs.c.state == "ordered").values(state="stopping"))
    for run in found:
        hub.log.tell(connection, "stop", run, {"project": key, "by": by})
    return found


def _delete_files(connection: Connection, key: str) -> list[str]:
    """Takes the files of a project's analyses out; the objects that nothing names any more."""
    part = select(analyses.c.id).where(analyses.c.project_id == key)
    held = select(analysis_buckets.c.bucket_id).where(analysis_buckets.c.analysis_id.in_(part))
    ours = bucket_files.c.bucket_id.in_(held)
    names = set(connection.execute(select(bucket_files.c.hash).where(ours)).scalars())
    connection.execute(delete(bucket_files).where(ours))
    kept = set(connection.execute(select(bucket_files.c.hash).where(bucket_files.c.hash.in_(names))).scalars())
    return sorted(names - kept)


def require_going(row: Any) -> None:
    """Raises Conflict for a project that has ended or expired."""
    if row.ended_at:
        raise Conflict("This project has ended.", next_step="Propose a new one.")
    if row.expires and row.expires < now()[:19] + "Z":
        raise Conflict("This project has expired.", next_step="Give it a later end; the hospitals then decide anew.")
