"""What the acceptance tests of a whole federation share: data, a small program, the log, the hub's files."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

from flame.lab.federation import Federation, Site
from flame.model.errors import FlameError
from flame.researcher.api import Api
from flame.researcher.session import Progress, Submission

T = TypeVar("T")
PATIENCE = 60.0

AUTHOR = b"""
[analysis]
purpose = "acceptance test"
runs_max = 3
[[parameters]]
name = "shift"
type = "number"
default = 0.0
options = [0.0, 1.0]
[[releases]]
kind = "sum"
max_bytes = 100000
rounds_max = 10
[[releases]]
kind = "model"
max_bytes = 1000000
rounds_max = 10
[[releases]]
kind = "object"
max_bytes = 1000000
rounds_max = 10
[[releases]]
kind = "log"
[[releases]]
kind = "final"
max_bytes = 1000000
release = "auto"
"""

MEAN = b"""
import flame

with flame.connect() as fed:
    if fed.is_aggregator:
        total, hospitals = fed.total("ages")
        fed.submit({"mean": total["sum"] / total["n"], "hospitals": hospitals})
    else:
        ages = fed.data().numbers("age")
        fed.contribute("ages", {"n": len(ages), "sum": ages.sum()})
"""
FILES: Mapping[str, bytes] = {"main.py": MEAN, "flame.toml": AUTHOR}


def make_sites(folder: Path, hospitals: int = 2) -> list[Site]:
    folder.mkdir(parents=True, exist_ok=True)
    sites = []
    for number in range(hospitals):
        path = folder / f"hospital-{number}.csv"
        rows = "\n".join(f"{40 + number + i % 30}" for i in range(50))
        path.write_text(f"age\n{rows}\n")
        sites.append(Site(f"hospital-{number}", path))
    return sites


def submitted(federation: Federation, title: str, files: Mapping[str, bytes] = FILES) -> Submission:
    """Uploaded, locked, signed by the researcher; nobody has approved it."""
    federation.ensure_project()
    return federation.session.submit(
        federation.project,
        files,
        entrypoint="main.py",
        title=title,
        image=federation.image,
        environment=federation.environment,
        nodes=federation.known_nodes,
    )


def approved(federation: Federation, title: str, files: Mapping[str, bytes] = FILES) -> Submission:
    """The same, approved by every steward, built and distributed: a start order is all that is missing."""
    submission = submitted(federation, title, files)
    federation.approve(submission)
    federation.session.build_and_distribute(submission.analysis, _silent)
    return submission


def _silent(step: Progress) -> None:
    del step


def log_of(federation: Federation) -> dict[str, Any]:
    """The hub's log, exported by its administrator."""
    api = Api.login(federation.hub_url, federation.admin.username, federation.admin.password)
    with closing(api):
        found: dict[str, Any] = api.get("/core/audit/export")
        return found


def events_of(federation: Federation) -> list[dict[str, Any]]:
    return [json.loads(json.loads(leaf)["event"]) for leaf in log_of(federation)["leaves"]]


def events_about(federation: Federation, subject: str) -> list[dict[str, Any]]:
    return [event for event in events_of(federation) if event["subject"] == subject]


def node_run(federation: Federation, node: str, analysis: str) -> dict[str, Any] | None:
    """The newest run of an analysis, as the node's own interface shows it."""
    rows = [row for row in federation.steward(node).runs() if row["analysis"] == analysis]
    return rows[0] if rows else None


def eventually(look: Callable[[], T | None], what: str, seconds: float = PATIENCE) -> T:
    """What `look` finds, once it finds something."""
    until = time.monotonic() + seconds
    while True:
        try:
            found = look()
        except FlameError:
            if time.monotonic() > until:
                raise
            found = None
        if found:
            return found
        assert time.monotonic() < until, f"{what} did not come"
        time.sleep(0.05)


def change_hub(federation: Federation, sql: str, *values: Any) -> int:
    """What an operator of the hub can do who means ill: write into its database. Returns how many rows were changed."""
    with closing(sqlite3.connect(federation.directory / "hub" / "hub.db", timeout=30)) as connection, connection:
        return connection.execute(sql, values).rowcount
