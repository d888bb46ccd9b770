"""Manifests, the researcher's signature, and start orders: ``/core/analyses/:id/manifest`` and ``/runs``."""

from __future__ import annotations

import json
import time
from typing import Any

import msgspec
from sqlalchemy import Connection, insert, select, update
from starlette.requests import Request
from starlette.responses import Response

from flame.crypto.canonical import canonical, parse_canonical
from flame.crypto.keys import PublicKey
from flame.crypto.signatures import verify_manifest, verify_start_order
from flame.hub.analyses import commands
from flame.hub.analyses.resources import ANALYSIS
from flame.hub.analyses.tables import LIVE, analyses, analysis_nodes, manifests, runs
from flame.hub.authorisation import Action, Actor, analysis_facts, demand
from flame.hub.columns import now
from flame.hub.described import About, Described
from flame.hub.identity.sessions import authenticate
from flame.hub.identity.tables import user_keys
from flame.hub.projects.ending import require_going
from flame.hub.projects.tables import projects
from flame.hub.resources import path_id, raw_row, read_body, record
from flame.hub.state import hub_of
from flame.model.errors import BadSignature, Conflict, DoesNotMatchApproval, Expired, Invalid, Malformed, Replayed
from flame.model.manifest import Manifest, Parameter
from flame.protocol.documents import StartOrder
from flame.protocol.freeze import parse_time

CLOCK_TOLERANCE = 300


class ShownManifest(msgspec.Struct):
    """What a locked analysis was frozen as; without a manifest, `missing` says why."""

    manifest: str | None
    digest: str | None
    missing: list[str]
    signature: str | None
    signer: str | None


class ShownRun(msgspec.Struct, rename="camel"):
    """A start order as it was signed, and how far its run is."""

    id: str
    number: int
    order: str
    signature: str
    state: str
    manifest: str
    created_at: str


def read_manifest(text: str) -> Manifest:
    return Manifest.from_document(parse_canonical(text.encode()))


async def get_manifest(request: Request) -> Response:
    """What a locked analysis was frozen as: the text that is signed and approved."""
    actor = await authenticate(request)
    key = path_id(request, ANALYSIS)

    def load(connection: Connection) -> ShownManifest:
        row = raw_row(connection, actor, ANALYSIS, key)
        if not row.configuration_locked:
            raise Conflict("The analysis configuration is not locked.", next_step="Lock it; that writes the manifest.")
        found = connection.execute(select(manifests).where(manifests.c.digest == row.manifest_digest)).first()
        missing = json.loads(row.manifest_missing or "[]")
        if found is None:
            return ShownManifest(None, row.manifest_digest, missing, None, None)
        return ShownManifest(found.document, row.manifest_digest, missing, found.signature, found.signer)

    return record(await hub_of(request).database.read(load))


class SignatureBody(msgspec.Struct):
    digest: str
    signature: str


async def sign_manifest(request: Request) -> Response:
    """``PUT …/manifest/signature``: the researcher's signature over the current digest."""
    actor = await authenticate(request)
    key = path_id(request, ANALYSIS)
    body = await read_body(request, SignatureBody)
    hub = hub_of(request)

    def store(connection: Connection) -> tuple[dict[str, Any], tuple[str, ...]]:
        row = raw_row(connection, actor, ANALYSIS, key)
        facts = analysis_facts(connection, key)
        demand(actor, Action.SIGN, facts)
        manifest = _current(connection, row, body.digest)
        public = _researcher_key(connection, actor, manifest)
        verify_manifest(public, _hex(body.signature), bytes.fromhex(body.digest))
        signer = public.fingerprint.hex()
        connection.execute(
            update(manifests).where(manifests.c.digest == body.digest).values(signature=body.signature, signer=signer)
        )
        hub.log.tell(connection, "signature", key, {"manifest": body.digest, "key": signer})
        return {"digest": body.digest, "signature": body.signature, "signer": signer}, tuple(facts.nodes)

    shown, participants = await hub.database.write(store, "audit")
    hub.channels.changed(participants, "analysis", key)
    return record(shown, status=202)


def _current(connection: Connection, row: Any, digest: str) -> Manifest:
    if row.manifest_digest is None or row.manifest_digest != digest:
        raise DoesNotMatchApproval(
            "This is not the digest of the analysis' current manifest.",
            next_step="Fetch the manifest again and compare it with what you have submitted.",
            digest=row.manifest_digest or "",
        )
    return read_manifest(
        connection.execute(select(manifests.c.document).where(manifests.c.digest == digest)).scalar_one()
    )


def _researcher_key(connection: Connection, actor: Actor, manifest: Manifest) -> PublicKey:
    """The registered key that the manifest names for its researcher."""
    mine = (user_keys.c.user_id == actor.id) & (user_keys.c.kind == "sign") & user_keys.c.revoked_at.is_(None)
    row = connection.execute(select(user_keys).where(mine, user_keys.c.member == manifest.researcher.key)).first()
    if row is None:
        raise BadSignature(
            "The key that the manifest names is not registered for you any more.",
            next_step="Unlock and lock the analysis, so that the manifest names your present key.",
        )
    return PublicKey.from_hex_pem(row.public_key)


def _hex(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise Malformed("The signature is not hexadecimal.") from None


class OrderBody(msgspec.Struct):
    order: str
    """Canonical text."""
    signature: str


async def order_run(request: Request) -> Response:
    """``POST …/runs``: the researcher's signed order to run the approved manifest once."""
    actor = await authenticate(request)
    key = path_id(request, ANALYSIS)
    body = await read_body(request, OrderBody)
    order: StartOrder = StartOrder.decode(body.order.encode())
    run = order.digest.hex()
    hub = hub_of(request)

    def store(connection: Connection) -> tuple[ShownRun, tuple[str, ...]]:
        row = raw_row(connection, actor, ANALYSIS, key)
        demand(actor, Action.SIGN, analysis_facts(connection, key))
        manifest = _current(connection, row, order.manifest)
        public = _researcher_key(connection, actor, manifest)
        verify_start_order(public, _hex(body.signature), order.digest)
        known = connection.execute(select(runs).where(runs.c.id == run)).first()
        if known is not None:
            return _shown(known), ()
        require_going(connection.execute(select(projects).where(projects.c.id == row.project_id)).one())
        _check_order(connection, key, order, manifest)
        ready = row.build_status == "executed" and row.distribution_status == "executed"
        values = {
            "id": run, "analysis_id": key, "manifest_digest": order.manifest, "number": order.number,
            "order": body.order, "signature": body.signature, "state": "ordered" if ready else "waiting",
            "expires": int(parse_time(order.expires).timestamp()), "created_at": now(),
        }  # fmt: skip
        connection.execute(insert(runs).values(**values))
        nothing = {"execution_status": None, "execution_progress": None}
        of_node = nothing | {"execution_run": None, "execution_reason": None}
        connection.execute(update(analysis_nodes).where(analysis_nodes.c.analysis_id == key).values(**of_node))
        connection.execute(update(analyses).where(analyses.c.id == key).values(**nothing, updated_at=now()))
        facts = {"manifest": order.manifest, "run": run, "number": order.number}
        hub.log.tell(connection, "start", key, facts)
        return _shown(connection.execute(select(runs).where(runs.c.id == run)).one()), tuple(order.participants)

    shown, participants = await hub.database.write(store, "runs")
    hub.channels.changed(participants, "run", key)
    hub.in_background(commands.go_on(hub, key))
    return record(shown, status=201)


def _check_order(connection: Connection, key: str, order: StartOrder, manifest: Manifest) -> None:
    if order.participants != [p.node for p in manifest.participants]:
        raise Invalid("A start order names exactly the manifest's participants, sorted.")
    if unknown := sorted(set(order.parameters) - {p.name for p in manifest.parameters}):
        raise Invalid(f"The manifest has no parameter '{unknown[0][:64]}'.")
    for parameter in manifest.parameters:
        _check_value(parameter, order.parameters.get(parameter.name, parameter.default))
    if not 1 <= order.number <= manifest.runs_max:
        raise Conflict(f"Run {order.number} is not covered: the manifest allows {manifest.runs_max} runs.")
    created, expires = parse_time(order.created).timestamp(), parse_time(order.expires).timestamp()
    if expires < time.time() or created > time.time() + CLOCK_TOLERANCE or expires < created:
        raise Expired("The start order has expired, or is dated in the future.", next_step="Make a new one.")
    if parse_time(manifest.expires).timestamp() < time.time():
        raise Expired("The manifest has expired.", next_step="Unlock and lock the analysis, and ask for new approvals.")
    used = select(runs.c.id).where(runs.c.manifest_digest == order.manifest, runs.c.number == order.number)
    if connection.execute(used).first():
        raise Replayed(f"Run number {order.number} was used already.", next_step="Count on.")
    going = runs.c.state.in_((*LIVE, "waiting"))
    if connection.execute(select(runs.c.id).where(runs.c.analysis_id == key, going)).first():
        raise Conflict("A run of this analysis is going on or waits.", next_step="Wait for its end, or stop it.")


def _check_value(parameter: Parameter, value: Any) -> None:
    """So that a mistake is told at once; the nodes decide."""
    approved = {canonical(known) for known in (parameter.default, *parameter.options)}
    if canonical(value) not in approved and not parameter.in_range(value):
        raise Conflict(
            f"The parameter '{parameter.name}' has a value that the hospitals were not asked for.",
            next_step="Use one of the manifest's options, or a value in its range.",
        )


def _shown(row: Any) -> ShownRun:
    return ShownRun(
        row.id, row.number, row.order, row.signature, row.state, row.manifest_digest, created_at=row.created_at
    )


async def list_runs(request: Request) -> Response:
    """The start orders of an analysis, and how far their runs are."""
    actor = await authenticate(request)
    key = path_id(request, ANALYSIS)

    def load(connection: Connection) -> list[ShownRun]:
        raw_row(connection, actor, ANALYSIS, key)
        found = connection.execute(select(runs).where(runs.c.analysis_id == key).order_by(runs.c.created_at)).all()
        return [_shown(row) for row in found]

    return record(await hub_of(request).database.read(load))


ROUTES = [
    Described("GET", "/core/analyses/{id}/manifest", get_manifest, About(ShownManifest, errors=(409,))),
    Described("PUT", "/core/analyses/{id}/manifest/signature", sign_manifest, About(status=202, body=SignatureBody)),
    Described("POST", "/core/analyses/{id}/runs", order_run, About(ShownRun, status=201, body=OrderBody)),
    Described("GET", "/core/analyses/{id}/runs", list_runs, About()),
]
