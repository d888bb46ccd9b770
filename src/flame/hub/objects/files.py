"""Stored files as parts of an analysis: what uploads and ``analysis-bucket-files`` share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from msgspec import Meta
from sqlalchemy import Connection, insert, select

from flame.hub.analyses.tables import analysis_bucket_files, analysis_buckets
from flame.hub.authorisation import Actor
from flame.hub.columns import fresh
from flame.model.errors import Conflict

FilePath = Annotated[str, Meta(min_length=1, max_length=512)]


def is_entrypoint(connection: Connection, bucket: str, path: str) -> bool:
    table = analysis_bucket_files
    root = select(table.c.root).where(table.c.bucket_id == bucket, table.c.path == path)
    return bool(connection.execute(root).scalar())


def register_file(
    connection: Connection, actor: Actor, file: Mapping[str, Any], link: Any, *, root: bool = False
) -> str:
    """Make a stored file part of the analysis that its bucket belongs to; the row's id.

    Raises Conflict when another bucket of the program has a file of this path: one of them would shadow the other.
    """
    table = analysis_bucket_files
    if link.type == "CODE":
        elsewhere = select(table.c.id).join(analysis_buckets, analysis_buckets.c.id == table.c.analysis_bucket_id)
        same = (table.c.analysis_id == link.analysis_id) & (table.c.path == file["path"])
        other = (analysis_buckets.c.type == "CODE") & (analysis_buckets.c.id != link.id)
        if connection.execute(elsewhere.where(same, other)).first():
            raise Conflict(f"The program has a file '{file['path'][:100]}' in another bucket already.")
    values = fresh(
        path=file["path"], root=root, bucket_id=file["bucket_id"], bucket_file_id=file["id"],
        analysis_bucket_id=link.id, analysis_id=link.analysis_id, realm_id=link.realm_id,
        user_id=actor.id if actor.kind == "user" else None, client_id=actor.id if actor.kind == "client" else None,
    )  # fmt: skip
    connection.execute(insert(table).values(**values))
    return str(values["id"])
