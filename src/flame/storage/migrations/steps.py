"""What revisions do to data, beyond what the tables say. Called at the end of a revision, in its transaction."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection

NAMES: Final = {"fk": "%(table_name)s_%(column_0_N_name)s_fkey", "uq": "%(table_name)s_%(column_0_N_name)s_key"}
"""What PostgreSQL calls a constraint without a name; on SQLite revisions call it so, too, to be able to drop it."""


def after_0002(connection: Connection) -> None:
    """Nothing yet: what release 0.2 keeps beside the old rows is filled in by the features when the hub starts."""
