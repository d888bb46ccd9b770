"""From the locked state of an analysis to its manifest: what is there is frozen, what is missing is said."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, select

from flame.crypto.canonical import canonical, digest
from flame.crypto.keys import PublicKey
from flame.hub.analyses.tables import analyses, analysis_bucket_files, analysis_buckets, analysis_nodes
from flame.hub.identity.routes import active_key
from flame.hub.identity.tables import users
from flame.hub.nodes.resources import organisation
from flame.hub.nodes.tables import nodes
from flame.hub.objects.tables import bucket_files
from flame.hub.projects.tables import project_members, projects
from flame.hub.registry.tables import master_images
from flame.model.errors import FlameError
from flame.model.manifest import CodeFile, Environment, Participant, Recipient, Researcher
from flame.protocol.freeze import AUTHOR_FILE, LockedState, format_time, freeze

MAX_AUTHOR_FILE = 64 << 10


@dataclass(frozen=True, slots=True)
class Frozen:
    """A manifest's canonical text and digest (hex); or, without one, what is missing in words."""

    text: str | None
    digest: str | None
    missing: tuple[str, ...] = ()


def code_of(connection: Connection, analysis: str) -> list[Any]:
    """The files of the program: path, size, sha256, hash (the object's key), root."""
    statement = (
        select(
            analysis_bucket_files.c.path,
            analysis_bucket_files.c.root,
            bucket_files.c.size,
            bucket_files.c.sha256,
            bucket_files.c.hash,
        )
        .join(bucket_files, bucket_files.c.id == analysis_bucket_files.c.bucket_file_id)
        .join(analysis_buckets, analysis_buckets.c.id == analysis_bucket_files.c.analysis_bucket_id)
        .where(analysis_bucket_files.c.analysis_id == analysis, analysis_buckets.c.type == "CODE")
        .order_by(analysis_bucket_files.c.path)
    )
    return list(connection.execute(statement))


def freeze_analysis(
    connection: Connection, analysis: str, author_files: Mapping[str, bytes], moment: datetime | None = None
) -> Frozen:
    """The manifest of an analysis as it stands now. `author_files`: content of ``flame.toml`` by its object's key."""
    row = connection.execute(select(analyses).where(analyses.c.id == analysis)).one()
    missing: list[str] = []
    code = code_of(connection, analysis)
    author = next((file for file in code if file.path == AUTHOR_FILE), None)
    state = LockedState(
        analysis=row.id,
        project=row.project_id,
        title=row.display_name or row.name,
        created=format_time(moment or datetime.now(UTC)),
        code=[CodeFile(file.path, file.size, file.sha256) for file in code],
        entrypoint=next((file.path for file in code if file.root), ""),
        arguments=[str(a["value"]) for a in json.loads(row.image_command_arguments or "[]")],
        environment=_environment(connection, row.master_image_id, missing),
        participants=_participants(connection, analysis, missing),
        researcher=_researcher(connection, row.user_id, missing),
        people=_people(connection, row),
        author_file=author_files.get(author.hash) if author else None,
    )
    if author is not None and author.hash not in author_files:
        missing.append(f"{AUTHOR_FILE} could not be read.")
    if missing:
        return Frozen(None, None, tuple(missing))
    try:
        encoded = canonical(freeze(state).document())
    except FlameError as error:
        return Frozen(None, None, (str(error),))
    return Frozen(encoded.decode(), digest(encoded).hex())


def _environment(connection: Connection, image: str | None, missing: list[str]) -> Environment:
    row = connection.execute(select(master_images).where(master_images.c.id == image)).first()
    if row is None or not row.digest:
        missing.append("The master image has no digest: an administrator registers the environment.")
        return Environment("", "")
    return Environment(row.virtual_path, row.digest)


def _participants(connection: Connection, analysis: str, missing: list[str]) -> list[Participant]:
    statement = (
        select(nodes, organisation.label("said"))
        .join(analysis_nodes, analysis_nodes.c.node_id == nodes.c.id)
        .where(analysis_nodes.c.analysis_id == analysis)
    )
    found = []
    for row in connection.execute(statement):
        if not row.enrolled:
            missing.append(f"Node '{row.name}' has no enrolled key.")
            continue
        member = row.member or PublicKey.from_hex_pem(row.public_key).fingerprint.hex()
        found.append(Participant(row.id, row.name, row.type, row.said, member))
    return found


def _researcher(connection: Connection, user: str | None, missing: list[str]) -> Researcher:
    row = connection.execute(select(users).where(users.c.id == user)).first()
    key = active_key(connection, user, "sign")
    if row is None or key is None:
        missing.append("The researcher has no signing key: `flame keys new`.")
        return Researcher("", "", "")
    if active_key(connection, user, "result") is None:
        missing.append("The researcher has no result key: `flame keys new`. Nobody could open the result.")
    return Researcher(row.id, row.name, key.member or key.fingerprint)


def _people(connection: Connection, analysis: Any) -> dict[str, Recipient]:
    members = select(project_members.c.user_id).where(project_members.c.project_id == analysis.project_id)
    creator = select(projects.c.user_id).where(projects.c.id == analysis.project_id)
    known = users.c.id.in_(members) | users.c.id.in_(creator) | (users.c.id == analysis.user_id)
    rows = connection.execute(select(users.c.id, users.c.name).where(known, users.c.active.is_(True))).all()
    found: dict[str, Recipient] = {}
    for row in sorted(rows, key=lambda r: r.id != analysis.user_id):
        key = active_key(connection, row.id, "result")
        if key is not None:
            found.setdefault(row.name, Recipient(row.id, row.name, key.member or key.fingerprint))
    return found
