"""Whose keys this hospital believes: confirmed here, or by two members that are; their chains, and who was revoked.

The hub carries keys, rotations, revocations and endorsements. What it gives is checked from the fingerprints that a
steward has confirmed, and what was once checked stays: a hub that withholds it later changes nothing.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal, cast

import msgspec

from flame.crypto.keys import PublicKey, fingerprint_words, parse_fingerprint
from flame.crypto.signatures import verify_event
from flame.model.errors import BadSignature, Conflict, DoesNotMatchApproval, FlameError, Invalid, NotFound, Refused
from flame.model.manifest import Manifest
from flame.node.context import Context, log, now
from flame.node.supervisor.events import Events
from flame.node.supervisor.verification import Member
from flame.protocol.documents import Event, MemberKind, Revocation, Rotation
from flame.protocol.freeze import format_time
from flame.protocol.roster import (
    MAX_STATEMENTS,
    VOICES,
    Standing,
    Statement,
    Voice,
    fingerprint_of,
    follow,
    sign_statement,
)

KINDS: Final = ("node", "researcher", "result")
ASKED_AT_ONCE: Final = 100
REASONS: Final = ("stolen", "lost", "left", "other")


class _Entry(msgspec.Struct, rename="camel"):
    """One member as ``GET /core/roster`` gives it."""

    member: str
    kind: str
    public_key: str
    statements: list[Statement] = []
    endorsements: list[_Endorsement] = []


class _Endorsement(msgspec.Struct):
    event: str
    signature: str


class Roster:
    def __init__(self, context: Context, events: Events) -> None:
        self._context, self._events = context, events
        self._cached: dict[str, Member] | None = None

    # --- asking -----------------------------------------------------------------------------------------------------

    async def members(self) -> dict[str, Member]:
        """Everyone believed here, the revoked among them marked."""
        if self._cached is None:
            self._cached = await self._context.journal.read(self._compute)
        return self._cached

    async def named(self, wanted: Iterable[tuple[str, str, str]]) -> list[dict[str, Any]]:
        """For people: each (fingerprint, kind, name) with how far it is believed here."""
        known = await self.members()
        return [
            {
                "name": name,
                "kind": kind,
                "confirmed": said_of(known.get(fingerprint), kind),
                "fingerprint": fingerprint,
                "words": fingerprint_words(bytes.fromhex(fingerprint)),
            }
            for fingerprint, kind, name in dict.fromkeys(wanted)
        ]

    async def own_keys(self) -> tuple[PublicKey, ...]:
        """All keys that this node has had, the one in use last."""
        return tuple(PublicKey.from_hex_pem(key) for key in (await self.own()).keys)

    async def own(self) -> Standing:
        return await self._context.journal.read(self._own)

    # --- learning ---------------------------------------------------------------------------------------------------

    async def learn(self, manifest: Manifest) -> None:
        """Fetch what the hub has about everyone whom a manifest names."""
        await self.refresh(name for name, _, _ in people_of(manifest))

    async def refresh(self, wanted: Iterable[str]) -> list[str]:
        """Returns who is newly revoked. Raises Unavailable, DoesNotMatchApproval (a swapped key), Refused (a fork)."""
        before = {name for name, member in (await self.members()).items() if member.revoked}
        asked = sorted({*wanted})
        for start in range(0, len(asked), ASKED_AT_ONCE):
            answer = await self._context.link.request(
                "GET", f"/core/roster?members={','.join(asked[start : start + ASKED_AT_ONCE])}"
            )
            try:
                entries = msgspec.convert(answer["data"], list[_Entry])
            except (msgspec.ValidationError, KeyError, TypeError):
                raise Conflict("The hub's roster cannot be read.", next_step="Tell the hub's operator.") from None
            await self._keep(entries)
        self._cached = None
        revoked = [name for name, m in (await self.members()).items() if m.revoked and name not in before]
        for name in revoked:
            log.warning("member %s… was revoked", name[:16])
            await self._events.add_once("revocation-seen", name)
        return revoked

    async def _keep(self, entries: Sequence[_Entry]) -> None:
        for entry in entries:
            if fingerprint_of(entry.public_key) != entry.member:
                raise DoesNotMatchApproval(
                    f"The hub gives another key than the one confirmed here as {entry.member[:16]}…: "
                    "a participant's key was swapped.",
                    next_step="Ask the member by telephone; tell the hub's operator.",
                )

        def write(connection: sqlite3.Connection) -> None:
            for entry in entries:
                connection.execute("INSERT OR IGNORE INTO known_keys VALUES(?, ?)", (entry.member, entry.public_key))
            keys = _known_keys(connection, self._context.identity.public)
            for entry in entries:
                _signed(entry.statements, keys)  # first whose keys there are, whichever comes first
            for entry in entries:
                rows = [(entry.member, s.document, s.signature) for s in _signed(entry.statements, keys)]
                connection.executemany("INSERT OR IGNORE INTO key_statements VALUES(?, ?, ?)", rows)
                said = [(entry.member, e.event, e.signature) for e in entry.endorsements if _endorses(e, keys)]
                connection.executemany("INSERT OR IGNORE INTO endorsements VALUES(?, ?, ?)", said)

        await self._context.journal.write(write)

    # --- deciding ---------------------------------------------------------------------------------------------------

    async def confirm(self, fingerprint: str, kind: str, name: str, steward: str) -> dict[str, Any]:
        """Believe a key. The steward has compared the fingerprint with a source that is not the hub."""
        if kind not in KINDS:
            raise Invalid(f"'{kind}' is no kind of member.", next_step="Use node, researcher or result.")
        hex_ = parse_fingerprint(fingerprint).hex()
        known = (await self.members()).get(hex_)
        if known is not None and known.kind != kind:
            raise Conflict(
                f"This key is confirmed here as the one of a {known.kind} ({known.name}), not of a {kind}.",
                next_step="Compare the fingerprint again: one key serves one purpose.",
            )
        row = (hex_, kind, name[:128], "", steward, format_time(now()))
        await self._context.journal.execute(
            "INSERT INTO members VALUES(?, ?, ?, ?, ?, ?) ON CONFLICT(fingerprint) DO UPDATE SET name = excluded.name",
            *row,
        )
        self._cached = None
        await self._events.add("confirmation", hex_, kind=kind)
        return {"fingerprint": hex_, "kind": kind, "name": name, "words": fingerprint_words(bytes.fromhex(hex_))}

    async def kind_at_hub(self, fingerprint: str) -> str:
        """What the hub calls a key that it knows; a node's where it knows none. Shown to the steward, who judges."""
        hex_ = parse_fingerprint(fingerprint).hex()
        answer = await self._context.link.request("GET", f"/core/roster?members={hex_}")
        rows = [row for row in answer.get("data", []) if isinstance(row, dict) and row.get("member") == hex_]
        kind = str(rows[0].get("kind")) if rows else "node"
        return kind if kind in KINDS else "node"

    async def revoke(self, wanted: str, reason: str, steward: str) -> dict[str, Any]:
        """This hospital's word against a member: it holds here at once, elsewhere when a second member says so too.

        ``wanted``: a name, or the beginning of a fingerprint; ``self`` revokes this node, everywhere and for good.
        """
        if reason not in REASONS:
            raise Invalid(f"'{reason[:40]}' is no reason.", next_step=f"Use one of {', '.join(REASONS)}.")
        member, kind, name = await self._one(wanted)
        said = Revocation(member, kind, self._context.fingerprint, cast("Literal['other']", reason), format_time(now()))
        statement = sign_statement(self._context.identity, said)
        await self._context.journal.execute(
            "INSERT OR IGNORE INTO key_statements VALUES(?, ?, ?)", member, statement.document, statement.signature
        )
        self._cached = None
        await self._events.add("revocation", member, kind=kind, reason=reason, statement=said.digest.hex(), by=steward)
        await self._context.link.request("POST", "/core/key-statements", msgspec.to_builtins(statement))
        return {"fingerprint": member, "kind": kind, "name": name, "revoked": f"by this hospital: {reason}"}

    async def _one(self, wanted: str) -> tuple[str, MemberKind, str]:
        if wanted == "self":
            return self._context.member, "node", self._context.enrolled.name
        known = (await self.members()).values()
        begins = "".join(wanted.split()).replace(":", "").lower()
        found = [m for m in known if m.name == wanted or (len(begins) >= 8 and m.fingerprint.startswith(begins))]
        if not found:
            raise NotFound(f"No member here is '{wanted[:128]}'.", next_step="See `flame node members`.")
        if len(found) > 1:
            raise Invalid(f"Several members here are '{wanted[:128]}'.", next_step="Use the fingerprint.")
        return found[0].fingerprint, cast("MemberKind", found[0].kind), found[0].name

    # --- computing --------------------------------------------------------------------------------------------------

    def _own(self, connection: sqlite3.Connection) -> Standing:
        member = self._context.member
        return follow(member, "node", self._context.first_key, _statements(connection).get(member, []))

    def _compute(self, connection: sqlite3.Connection) -> dict[str, Member]:
        rows = connection.execute("SELECT fingerprint, kind, name FROM members").fetchall()
        first = dict(connection.execute("SELECT fingerprint, public FROM known_keys").fetchall())
        statements = _statements(connection)
        voices = self._voices(rows, first, statements)
        found = {
            fingerprint: _member(fingerprint, kind, name, "here", first, statements, rows, voices, self._own_word)
            for fingerprint, kind, name in rows
        }
        speaking = {f: v for f, v in voices.items() if v.member in found and not found[v.member].revoked}
        for fingerprint, kind in _endorsed(connection, speaking):
            if fingerprint not in found and fingerprint != self._context.member:
                found[fingerprint] = _member(
                    fingerprint, kind, "", "by two members", first, statements, rows, voices, self._own_word
                )
        return found

    def _voices(
        self, rows: Sequence[Any], first: Mapping[str, str], statements: Mapping[str, list[Statement]]
    ) -> dict[str, Voice]:
        """Keys of the nodes confirmed here."""
        found: dict[str, Voice] = {}
        for fingerprint, kind, _ in rows:
            if kind == "node" and fingerprint in first:
                for key in _chain(fingerprint, "node", first[fingerprint], statements):
                    found[fingerprint_of(key)] = Voice(fingerprint, PublicKey.from_hex_pem(key))
        return found

    def _own_word(self, statements: Sequence[Statement]) -> str:
        """A revocation that this node has signed itself."""
        for statement in statements:
            try:
                said = statement.read()
                if isinstance(said, Revocation) and said.signer == self._context.fingerprint:
                    statement.verify(self._context.identity.public)
                    return f"by this hospital: {said.reason}"
            except FlameError:
                continue
        return ""


def said_of(member: Member | None, kind: str) -> str:
    """Beside a name: ``here``, ``by two members``, ``no``, or why it is none any more."""
    if member is None or member.kind != kind:
        return "no"
    return f"revoked {member.revoked}" if member.revoked else member.how


def people_of(manifest: Manifest) -> list[tuple[str, str, str]]:
    """Fingerprint, kind and name of everyone whom a manifest names."""
    return [
        *((p.member, "node", p.name) for p in manifest.participants),
        (manifest.researcher.key, "researcher", manifest.researcher.name),
        *((r.result_key, "result", r.name) for r in manifest.recipients),
    ]


def _known_keys(connection: sqlite3.Connection, own: PublicKey) -> dict[str, PublicKey]:
    """Every signing key that is known here, by fingerprint: what one of them has signed is worth keeping."""
    texts = [str(row[0]) for row in connection.execute("SELECT public FROM known_keys")]
    for statements in _statements(connection).values():
        said = [s.read() for s in statements]
        texts += [rotation.next_key for rotation in said if isinstance(rotation, Rotation)]
    found = {own.fingerprint.hex(): own}
    for text in texts:
        try:
            key = PublicKey.from_hex_pem(text)
        except FlameError:
            continue  # a result key signs nothing
        found[key.fingerprint.hex()] = key
    return found


def _signed(statements: Sequence[Statement], keys: dict[str, PublicKey]) -> list[Statement]:
    """Those that a known key has signed, in the order of a chain; ``keys`` learns the keys that they name.

    So a hub cannot fill a node's disk with what nobody has said.
    """
    found = []
    for statement in sorted(statements[:MAX_STATEMENTS], key=_number):
        try:
            said = statement.read()
            statement.verify(keys[said.signer])
            if isinstance(said, Rotation) and said.kind != "result":
                following = PublicKey.from_hex_pem(said.next_key)
                keys[following.fingerprint.hex()] = following
        except (FlameError, KeyError):
            continue
        found.append(statement)
    return found


def _number(statement: Statement) -> int:
    try:
        said = statement.read()
    except FlameError:
        return 0
    return said.number if isinstance(said, Rotation) else 1 << 30


def _endorses(said: _Endorsement, keys: Mapping[str, PublicKey]) -> bool:
    try:
        event: Event = Event.decode(said.event.encode())
        verify_event(keys[event.signer], bytes.fromhex(said.signature), event.digest)
    except (FlameError, KeyError, ValueError):
        return False
    return event.type == "confirmation"


def _statements(connection: sqlite3.Connection) -> dict[str, list[Statement]]:
    found: dict[str, list[Statement]] = {}
    for member, document, signature in connection.execute("SELECT member, document, signature FROM key_statements"):
        found.setdefault(member, []).append(Statement(document, signature))
    return found


def _chain(
    fingerprint: str, kind: MemberKind, first: str, statements: Mapping[str, list[Statement]]
) -> tuple[str, ...]:
    try:
        return follow(fingerprint, kind, first, statements.get(fingerprint, [])).keys
    except Refused:
        return ()


def _member(
    fingerprint: str,
    kind: str,
    name: str,
    how: str,
    first: Mapping[str, str],
    statements: Mapping[str, list[Statement]],
    confirmed: Sequence[Any],
    voices: Mapping[str, Voice],
    own_word: Any,
) -> Member:
    said = statements.get(fingerprint, [])
    if fingerprint not in first:
        return Member(fingerprint, kind, name, "", revoked=own_word(said), how=how)
    owner = {
        fingerprint_of(key): PublicKey.from_hex_pem(key)
        for other, other_kind, other_name in confirmed
        if kind == "result" and other_kind == "researcher" and other_name == name and name and other in first
        for key in _chain(other, "researcher", first[other], statements)
    }
    try:
        standing = follow(fingerprint, cast("MemberKind", kind), first[fingerprint], said, owner, voices)
    except Refused as error:
        return Member(fingerprint, kind, name, first[fingerprint], revoked=str(error.message), how=how)
    revoked = own_word(said) or standing.revoked
    return Member(fingerprint, kind, name, standing.key, standing.keys, revoked, how)


def _endorsed(connection: sqlite3.Connection, voices: Mapping[str, Voice]) -> list[tuple[str, str]]:
    """Fingerprint and kind of whom at least two different members, confirmed here, have confirmed."""
    said: dict[tuple[str, str], set[str]] = {}
    for fingerprint, text, signature in connection.execute("SELECT fingerprint, event, signature FROM endorsements"):
        try:
            event: Event = Event.decode(text.encode())
            voice = voices.get(event.signer)
            kind = event.facts.get("kind")
            if voice is None or event.type != "confirmation" or event.subject != fingerprint or kind not in KINDS:
                continue
            verify_event(voice.key, bytes.fromhex(signature), event.digest)
        except (BadSignature, FlameError, ValueError):
            continue
        if voice.member != fingerprint:
            said.setdefault((fingerprint, str(kind)), set()).add(voice.member)
    return [key for key, members in said.items() if len(members) >= VOICES]
