"""``INSERT … ON CONFLICT``, the same statement for SQLite and PostgreSQL.

SQLAlchemy has one construct for each of the two; the rendered SQL is the same. PostgreSQL's compiler asks the clause
for one more attribute, which SQLite's lacks; the import of PostgreSQL's would cost every start 20 ms.
"""

from __future__ import annotations

from sqlalchemy.dialects.sqlite import dml
from sqlalchemy.dialects.sqlite import insert as upsert

dml.OnConflictClause.constraint_target = None  # type: ignore[attr-defined,unused-ignore]

__all__ = ["upsert"]
