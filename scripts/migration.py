#!/usr/bin/env python3
"""Writes the newest revision of the hub's schema anew: the difference between the one before it and today's tables.

    .venv/bin/python scripts/migration.py            # says what it wrote
    .venv/bin/python scripts/migration.py --check    # fails when the revision is not what it would write

Run it after changing a ``tables.py``. A released revision is never written again: add a new one (a line in
``storage/schema.py``'s REVISIONS, then this script). What must happen to data goes into ``storage/migrations/steps.py``.

The difference is taken on PostgreSQL (the tests' server: ``tests/postgres_world.py``), which knows every constraint by
its name; SQLite has none, so there `NAMES` gives unnamed ones the names that PostgreSQL would have given.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from alembic.autogenerate import produce_migrations, render_python_code
from alembic.operations.ops import (
    AddColumnOp,
    CreateForeignKeyOp,
    CreateUniqueConstraintOp,
    MigrateOperation,
    ModifyTableOps,
    UpgradeOps,
)
from alembic.runtime.migration import MigrationContext

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import flame.hub.app  # noqa: E402, F401 - imports every feature's tables
from flame.storage import postgresql  # noqa: E402
from flame.storage.engine import metadata  # noqa: E402
from flame.storage.migrations import upgrade as upgrading  # noqa: E402
from flame.storage.schema import HEAD, REVISIONS  # noqa: E402
from postgres_world import running  # noqa: E402

VERSIONS = Path(upgrading.__file__).parent / "versions"
TEXT = '''"""Revision {revision}, from {before}. Written by scripts/migration.py: do not edit."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from flame.storage.migrations import steps

revision = "{revision}"
down_revision = {down}


def upgrade() -> None:
{body}
    steps.after_{revision}(op.get_bind())
'''


def written() -> str:
    """The newest revision as it should be."""
    before = REVISIONS[-2] if len(REVISIONS) > 1 else None
    with running() as server:
        url = server.url(server.fresh())
        if before is not None:
            upgrading.upgrade(url, before)
        engine = postgresql.writer(url)
        with engine.begin() as connection:
            options = {"target_metadata": metadata, "compare_server_default": True}
            operations = produce_migrations(MigrationContext.configure(connection, opts=options), metadata).upgrade_ops
        engine.dispose()
    assert operations is not None
    for step in _steps(operations):
        _check(step)
        _name(step)
    body = render_python_code(operations, render_as_batch=True)
    body = "    " + "\n".join(line for line in body.splitlines() if not line.strip().startswith("# ###")).strip()
    body = body.replace(", schema=None)", ", naming_convention=steps.NAMES)").replace(", schema=None,", ",")
    for number, name in enumerate(("false", "true")):  # each database has words of its own for them
        body = re.sub(
            rf"(sa\.(?:Boolean|BOOLEAN)\(\),\s*server_default=)sa\.text\('{number}'\)", rf"\g<1>sa.{name}()", body
        )
    text = TEXT.format(revision=HEAD, before=before or "nothing", down=repr(before), body=body)
    ruff = Path(sys.executable).with_name("ruff")
    done = subprocess.run([str(ruff), "format", "-"], input=text, capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stdout


def _steps(operations: UpgradeOps) -> Iterator[MigrateOperation]:
    for group in operations.ops:
        yield from group.ops if isinstance(group, ModifyTableOps) else [group]


def _check(step: MigrateOperation) -> None:
    if isinstance(step, AddColumnOp) and not step.column.nullable and step.column.server_default is None:
        what = f"{step.table_name}.{step.column.name} is NOT NULL and has no server_default"
        raise SystemExit(f"{what}: rows that are there already need one.")


def _name(step: MigrateOperation) -> None:
    """As PostgreSQL would."""
    if isinstance(step, CreateForeignKeyOp) and step.constraint_name is None:
        step.constraint_name = f"{step.source_table}_{'_'.join(step.local_cols)}_fkey"
    if isinstance(step, CreateUniqueConstraintOp) and step.constraint_name is None:
        step.constraint_name = f"{step.table_name}_{'_'.join(step.columns)}_key"


def main() -> None:
    path = VERSIONS / f"r{HEAD}.py"
    text = written()
    if "--check" in sys.argv[1:]:
        raise SystemExit(0 if path.read_text() == text else f"{path.name} is out of date: run scripts/migration.py.")
    path.write_text(text)
    sys.stdout.write(f"wrote {path}\n")


if __name__ == "__main__":
    main()
