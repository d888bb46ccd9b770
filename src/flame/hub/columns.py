"""The columns that every table shares, and the two things they hold: identifiers and times."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import Column, ForeignKey, String

from flame.model.errors import NotFound


def identifier() -> Column[str]:
    return Column("id", String(36), primary_key=True)


def reference(
    name: str, target: str | Column[Any], *, nullable: bool = False, cascade: bool = True, unique: bool = False
) -> Column[str]:
    """A foreign key; what it points to takes this row along when it goes, or (nullable) leaves it empty."""
    rule = "CASCADE" if cascade else "SET NULL"
    return Column(name, String(64), ForeignKey(target, ondelete=rule), nullable=nullable, index=True, unique=unique)


def stamps() -> tuple[Column[str], Column[str]]:
    return Column("created_at", String(24), nullable=False), Column("updated_at", String(24), nullable=False)


def new_id() -> str:
    return str(uuid4())


def now() -> str:
    """This moment as FLAME writes it: ``2026-11-23T10:00:00.000Z``."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def moment(seconds: float) -> str:
    """A time in seconds since 1970, as `now` writes it: such texts sort by time."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def fresh(**values: Any) -> dict[str, Any]:
    """A new row: an id, both times, and the values given."""
    moment = now()
    return {"id": new_id(), "created_at": moment, "updated_at": moment, **values}


def is_id(value: str) -> bool:
    try:
        return str(UUID(value)) == value
    except ValueError:
        return False


def check_id(value: str, what: str) -> str:
    """An id of a path. What is not even an id does not exist."""
    if is_id(value):
        return value
    raise NotFound(f"The {what} was not found.")
