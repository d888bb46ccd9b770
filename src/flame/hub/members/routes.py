"""``/core/roster`` and ``/core/key-statements``: what nodes need to follow a member's keys from the first one.

The hub refuses what it can see to be wrong, so that nobody's mistake spreads; nodes check everything themselves.
"""

from __future__ import annotations

import re
from typing import Any, Final

from sqlalchemy import Connection, insert, select, update
from starlette.requests import Request
from starlette.responses import Response

from flame.crypto.keys import PublicKey
from flame.hub.authorisation import Actor
from flame.hub.columns import fresh, now
from flame.hub.described import About, Described, in_query
from flame.hub.identity.sessions import authenticate
from flame.hub.identity.tables import user_keys
from flame.hub.members.tables import endorsements, key_statements, members
from flame.hub.nodes.tables import nodes
from flame.hub.problems import wrong
from flame.hub.resources import Body, answer, read_body, record
from flame.hub.state import HubState, hub_of
from flame.model.errors import BadSignature, Conflict, NotAllowed, NotFound
from flame.protocol.documents import MemberKind, Revocation, Rotation
from flame.protocol.roster import Standing, Statement, Voice, fingerprint_of, follow

MAX_ASKED: Final = 200
_FINGERPRINT: Final = re.compile(r"[0-9a-f]{64}")
_WIRE: Final = {"researcher": "sign", "result": "result"}


def register_member(
    connection: Connection, kind: MemberKind, public: str, *, user: str | None = None, node: str | None = None
) -> str:
    """A first key; the fingerprint that names the member from now on. A key that is known stays what it is.

    Raises Conflict for a key of another member's chain, or of somebody else.
    """
    fingerprint = fingerprint_of(public)
    known = connection.execute(select(members).where(members.c.fingerprint == fingerprint)).first()
    if known is not None:
        if (known.kind, known.user_id, known.node_id) != (kind, user, node):
            raise Conflict("This key belongs to another member already.", next_step="Make a key of your own.")
        if known.revoked_at:
            raise Conflict("This key was revoked.", next_step="Make new keys; each hospital confirms them anew.")
        return fingerprint
    values = {"fingerprint": fingerprint, "kind": kind, "public_key": public, "user_id": user, "node_id": node}
    connection.execute(insert(members).values(**values, created_at=now()))
    return fingerprint


def standing(connection: Connection, row: Any) -> Standing:
    """What a member is, as the hub sees it."""
    owner: dict[str, PublicKey] = {}
    if row.kind == "result" and row.user_id:
        theirs = (members.c.user_id == row.user_id) & (members.c.kind == "researcher")
        for other in connection.execute(select(members).where(theirs)).all():
            chain = follow(
                other.fingerprint, "researcher", other.public_key, _statements(connection, other.fingerprint)
            )
            owner |= {fingerprint_of(key): PublicKey.from_hex_pem(key) for key in chain.keys}
    statements = _statements(connection, row.fingerprint)
    return follow(row.fingerprint, row.kind, row.public_key, statements, owner, _voices(connection, statements))


def _voices(connection: Connection, statements: list[Statement]) -> dict[str, Voice]:
    """The enrolled nodes among the signers of revocations."""
    signers = {said.read().signer for said in statements if isinstance(said.read(), Revocation)}
    if not signers:
        return {}
    rows = connection.execute(select(nodes.c.public_key, nodes.c.member).where(nodes.c.enrolled.is_(True))).all()
    keys = [(PublicKey.from_hex_pem(row.public_key), row.member) for row in rows]
    return {
        key.fingerprint.hex(): Voice(member or key.fingerprint.hex(), key)
        for key, member in keys
        if key.fingerprint.hex() in signers
    }


def _statements(connection: Connection, member: str) -> list[Statement]:
    wanted = select(key_statements).where(key_statements.c.member == member).order_by(key_statements.c.created_at)
    return [Statement(row.document, row.signature) for row in connection.execute(wanted)]


class StatementBody(Body):
    document: str
    signature: str


async def take_statement(request: Request) -> Response:
    """``POST /core/key-statements``: a rotation of one's own key; a revocation of one's own, or a node's voice for one."""
    actor = await authenticate(request)
    body = await read_body(request, StatementBody)
    if len(body.document) > 16 << 10 or len(body.signature) != 128:
        raise wrong("document", "A key statement is short, and its signature is 128 hexadecimal digits.")
    statement = Statement(body.document, body.signature)
    said = statement.read()
    hub = hub_of(request)

    def store(connection: Connection) -> tuple[dict[str, Any], list[str]]:
        row = connection.execute(select(members).where(members.c.fingerprint == said.member)).first()
        if row is None or row.kind != said.kind:
            raise NotFound("There is no such member.", next_step="Register the first key before its successor.")
        if isinstance(said, Rotation):
            _rotate(hub, connection, actor, row, said, statement)
        else:
            _revoke(hub, connection, actor, row, said, statement)
        everyone = connection.execute(select(nodes.c.id).where(nodes.c.public_key.is_not(None))).scalars().all()
        return _shown(connection, said.member), list(everyone)

    shown, everyone = await hub.database.write(store, "audit")
    hub.channels.changed(everyone, "member", said.member)
    return record(shown, status=201)


def _own(actor: Actor, row: Any) -> bool:
    return (actor.kind == "user" and row.user_id == actor.id) or (actor.node is not None and row.node_id == actor.node)


def _rotate(
    hub: HubState, connection: Connection, actor: Actor, row: Any, said: Rotation, statement: Statement
) -> None:
    if not _own(actor, row):
        raise NotAllowed("Only a member itself names its next key.")
    if _keep(connection, said, said.number, statement):
        return
    after = standing(connection, row)
    if after.revoked:
        raise Conflict("This member was revoked; it has no next key.", next_step="Make new keys with `flame keys new`.")
    if after.key != said.next_key:
        raise BadSignature(
            "This is not the next key: it is not signed by the present one, or its number is another.",
            next_step="Rotate from the key that is in use; `flame keys list` shows it.",
        )
    fingerprint = fingerprint_of(said.next_key)
    _put_in_use(connection, row, said.next_key, fingerprint)
    facts = {"kind": said.kind, "number": said.number, "previous": said.previous, "key": fingerprint}
    facts["publicKey"] = said.next_key  # so that whoever reads the log can check what is signed with it
    hub.log.tell(connection, "rotation", said.member, facts | {"statement": said.digest.hex()})


def _put_in_use(connection: Connection, row: Any, public: str, fingerprint: str) -> None:
    moment = now()
    if row.node_id:
        other = select(nodes.c.id).where(nodes.c.public_key == public, nodes.c.id != row.node_id)
        if connection.execute(other).first():
            raise Conflict("This key belongs to another node already.")
        values = {"public_key": public, "member": row.fingerprint, "updated_at": moment}
        connection.execute(update(nodes).where(nodes.c.id == row.node_id).values(**values))
        return
    kind = _WIRE[row.kind]
    mine = (user_keys.c.user_id == row.user_id) & (user_keys.c.kind == kind) & user_keys.c.revoked_at.is_(None)
    connection.execute(update(user_keys).where(mine).values(revoked_at=moment, updated_at=moment))
    values = fresh(user_id=row.user_id, kind=kind, public_key=public, fingerprint=fingerprint, member=row.fingerprint)
    connection.execute(insert(user_keys).values(**values, revoked_at=None))


def _revoke(
    hub: HubState, connection: Connection, actor: Actor, row: Any, said: Revocation, statement: Statement
) -> None:
    if not _own(actor, row):
        if actor.node is None:
            raise NotAllowed("A member is revoked by itself, or by the stewards of two nodes at their nodes.")
        public = connection.execute(select(nodes.c.public_key).where(nodes.c.id == actor.node)).scalar_one()
        statement.verify(PublicKey.from_hex_pem(public))
    if _keep(connection, said, 0, statement):
        return
    after = standing(connection, row)
    if _own(actor, row) and not after.revoked:
        raise BadSignature("The revocation is not signed by a key of this member.")
    facts = {"kind": said.kind, "signer": said.signer, "reason": said.reason, "statement": said.digest.hex()}
    hub.log.tell(connection, "revocation", said.member, facts)
    if not after.revoked:
        return  # one voice of two
    moment = now()
    connection.execute(update(members).where(members.c.fingerprint == said.member).values(revoked_at=moment))
    theirs = update(user_keys).where(user_keys.c.member == said.member, user_keys.c.revoked_at.is_(None))
    connection.execute(theirs.values(revoked_at=moment, updated_at=moment))
    if row.node_id:
        connection.execute(update(nodes).where(nodes.c.id == row.node_id).values(enrolled=False, updated_at=moment))


def _keep(connection: Connection, said: Rotation | Revocation, number: int, statement: Statement) -> bool:
    """Whether it was kept before."""
    digest = said.digest.hex()
    same = (key_statements.c.digest == digest) & (key_statements.c.signature == statement.signature)
    if connection.execute(select(key_statements.c.id).where(same)).first():
        return True
    values = fresh(member=said.member, kind=said.kind, signer=said.signer, number=number, digest=digest)
    values |= {"document": statement.document, "signature": statement.signature}
    connection.execute(insert(key_statements).values(**values))
    return False


async def roster(request: Request) -> Response:
    """``GET /core/roster?members=FINGERPRINT,…``: public keys, signed statements and signed endorsements of members.

    Whoever asks names the members by their fingerprints, and can check all of the answer against them.
    """
    await authenticate(request)
    asked = [part for part in request.query_params.get("members", "").split(",") if part]
    if not 0 < len(asked) <= MAX_ASKED or not all(_FINGERPRINT.fullmatch(part) for part in asked):
        raise wrong("members", f"'members' is a list of 1 to {MAX_ASKED} fingerprints of 64 hexadecimal digits.")

    def load(connection: Connection) -> list[dict[str, Any]]:
        known = connection.execute(select(members.c.fingerprint).where(members.c.fingerprint.in_(asked))).scalars()
        return [_shown(connection, fingerprint) for fingerprint in known]

    return answer({"data": await hub_of(request).database.read(load)})


def _shown(connection: Connection, fingerprint: str) -> dict[str, Any]:
    row = connection.execute(select(members).where(members.c.fingerprint == fingerprint)).one()
    said = select(endorsements).where(endorsements.c.subject == fingerprint).order_by(endorsements.c.created_at)
    return {
        "member": row.fingerprint,
        "kind": row.kind,
        "publicKey": row.public_key,
        "userId": row.user_id,
        "nodeId": row.node_id,
        "revokedAt": row.revoked_at,
        "statements": [
            {"document": s.document, "signature": s.signature} for s in _statements(connection, fingerprint)
        ],
        "endorsements": [{"event": e.event, "signature": e.signature} for e in connection.execute(said)],
    }


def keep_endorsement(connection: Connection, event: Any, text: str, signature: str) -> None:
    """A node's confirmation of a member, as it stands in the log: others may count it. Called when the log takes one."""
    kind = event.facts.get("kind")
    if kind not in ("node", "researcher", "result") or not _FINGERPRINT.fullmatch(event.subject):
        return
    same = (endorsements.c.subject == event.subject) & (endorsements.c.signer == event.signer)
    there = connection.execute(select(endorsements.c.id).where(same, endorsements.c.kind == kind)).first()
    values = {"event": text, "signature": signature}
    if there is None:
        row = fresh(subject=event.subject, kind=kind, signer=event.signer, **values)
        connection.execute(insert(endorsements).values(**row))


ROUTES = [
    Described("GET", "/core/roster", roster, About(shape="list", query={"members": in_query()})),
    Described("POST", "/core/key-statements", take_statement, About(status=201, body=StatementBody)),
]
