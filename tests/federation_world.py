"""A small federation of real processes for tests of faults: three hospitals with a few patients, and a short program."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from flame.crypto.keys import PublicKey
from flame.lab.federation import Federation, Outcome, Site
from flame.model.errors import NotFound, Unavailable
from flame.researcher.session import Submission

T = TypeVar("T")

HOSPITALS = ("Aachen", "Bonn", "Cologne")
AGES = {"Aachen": (34, 51, 68, 70), "Bonn": (29, 44, 57), "Cologne": (61, 63, 75, 48, 39)}
PATIENCE = 240.0
"""Seconds that a test waits for what must come; generous, because a machine may be five times slower."""

AUTHOR_FILE = """\
[analysis]
purpose = "How old are the patients, and how much do their ages differ?"

[[parameters]]
name = "padding"
type = "integer"
default = {padding}

[[releases]]
kind = "sum"
max_bytes = 1000000
rounds_max = 10

[[releases]]
kind = "model"
max_bytes = 100000
rounds_max = 10

[[releases]]
kind = "log"

[[releases]]
kind = "final"
release = "auto"

[resources]
runtime_minutes = {minutes}
memory_mb = {memory}
"""

AGES_PROGRAM = b"""\
import numpy as np

import flame

with flame.connect() as federation:
    padding = np.zeros(federation.parameters["padding"])
    if federation.is_aggregator:
        mean = 0.0
        for number in (1, 2, 3):
            total, hospitals = federation.total("ages", number)
            mean += total["deviation"] / total["n"]
            federation.broadcast({"mean": mean}, "model")
        federation.submit({"mean": mean, "variance": total["square"] / total["n"], "hospitals": hospitals})
    else:
        ages = federation.data().numbers("age")
        mean = 0.0
        for number in (1, 2, 3):
            off = ages - mean
            part = {"n": len(ages), "deviation": off.sum(), "square": (off * off).sum(), "padding": padding}
            federation.contribute("ages", part, number)
            mean = federation.receive("model").value["mean"]
"""


def program(
    source: bytes = AGES_PROGRAM, *, padding: int = 0, minutes: int = 10, memory: int = 512
) -> dict[str, bytes]:
    """Files to submit. padding: numbers that each contribution carries along (from 40000 on it is sent in bulk)."""
    author = AUTHOR_FILE.format(padding=padding, minutes=minutes, memory=memory)
    return {"main.py": source, "flame.toml": author.encode()}


def sites(folder: Path, tables: Mapping[str, str] | None = None) -> list[Site]:
    """One file for each hospital; ``tables`` replaces the content of some."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for name in HOSPITALS:
        rows = "".join(f"{age},{number}\n" for number, age in enumerate(AGES[name]))
        path = folder / f"{name}.csv"
        path.write_text((tables or {}).get(name, "age,number\n" + rows))
        found.append(Site(name, path))
    return found


@contextmanager
def federation_in(
    folder: Path, tables: Mapping[str, str] | None = None, variables: Mapping[str, Mapping[str, str]] | None = None
) -> Iterator[Federation]:
    federation = Federation.up(folder / "federation", sites(folder / "sites", tables), variables=variables)
    try:
        federation.ensure_project()
        yield federation
    finally:
        federation.down(keep_files=True)


class Ward:
    """A federation that many tests share; one that a failed test has left in an unknown state is replaced."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._number = folder, 0
        self._federation: Federation | None = None

    @contextmanager
    def lent(self) -> Iterator[Federation]:
        if self._federation is None:
            self._number += 1
            place = self._folder / str(self._number)
            self._federation = Federation.up(place / "federation", sites(place / "sites"))
            self._federation.ensure_project()
        try:
            yield self._federation
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._federation is not None:
            self._federation.down(keep_files=True)
            self._federation = None


def eventually(look: Callable[[], T], what: str, seconds: float = PATIENCE) -> T:
    """The first true value of ``look``."""
    until = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < until, f"In {seconds:.0f} s never: {what}"
        time.sleep(0.05)
    return found


def persistently(act: Callable[[], T], seconds: float = PATIENCE) -> T:
    """As a person would: who cannot reach somebody tries again, for a while."""
    until = time.monotonic() + seconds
    while True:
        try:
            return act()
        except (Unavailable, NotFound):
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


@dataclass
class Researcher:
    """The lab's loop step by step; whatever breaks is asked for again, and what the hub has kept is taken up."""

    federation: Federation

    def submit(self, files: Mapping[str, bytes], title: str = "Ages") -> Submission:
        fed = self.federation
        return persistently(
            lambda: fed.session.submit(
                fed.project,
                files,
                entrypoint="main.py",
                title=title,
                image=fed.image,
                environment=fed.environment,
                nodes=fed.known_nodes,
            )
        )

    def approve(self, submission: Submission) -> None:
        """Returns when the hub has heard of every approval: a node tells a hub that was away a little later."""
        persistently(lambda: self.federation.approve(submission))
        eventually(
            lambda: (
                {
                    row["approvalStatus"]
                    for row in self._get(
                        f"/core/analysis-nodes?filter[analysisId]={submission.analysis}&page[limit]=50"
                    )
                }
                == {"approved"}
            ),
            "the hub knows every approval",
        )

    def build(self, submission: Submission) -> None:
        for command, status in (("buildStart", "buildStatus"), ("distributionStart", "distributionStatus")):
            if self._get(f"/core/analyses/{submission.analysis}")[status] is None:
                self._send(submission, command, status)
            eventually(
                lambda status=status: (  # type: ignore[misc]
                    self._get(f"/core/analyses/{submission.analysis}")[status] == "executed"
                ),
                f"{status} executed",
            )

    def _send(self, submission: Submission, command: str, status: str) -> None:
        try:
            self.federation.session.command(submission.analysis, command)
        except Unavailable:
            if self._get(f"/core/analyses/{submission.analysis}")[status] is None:
                self._send(submission, command, status)

    def start(self, submission: Submission) -> None:
        try:
            self.federation.session.start(submission)
        except Unavailable:
            kept = self._get(f"/core/analyses/{submission.analysis}/runs")
            if kept:  # nobody could tell us, but it was written
                submission.run = kept[0]["id"]
            else:
                self.federation.session.start(submission)

    def finish(self, submission: Submission) -> Outcome:
        fed = self.federation
        names = {node.id: node.name for node in fed.nodes}
        status, reason = persistently(
            lambda: fed.session.watch(submission, names, lambda step: None, PATIENCE), 2 * PATIENCE
        )
        results = []
        if status == "executed":
            key = PublicKey.from_hex_pem(fed.aggregator.public_key)
            results = persistently(lambda: fed.session.open_results(submission, key))
        return Outcome(submission.analysis, submission.run, status, reason, {}, None, results)

    def prepared(self, files: Mapping[str, bytes], title: str = "Ages") -> Submission:
        """Everything but the order to start."""
        submission = self.submit(files, title)
        self.approve(submission)
        self.build(submission)
        return submission

    def started(self, files: Mapping[str, bytes], title: str = "Ages") -> Submission:
        submission = self.prepared(files, title)
        self.start(submission)
        return submission

    def run(self, files: Mapping[str, bytes], title: str = "Ages") -> Outcome:
        return self.finish(self.started(files, title))

    def _get(self, path: str) -> Any:
        return persistently(lambda: self.federation.session.api.get(path)["data"])


def run_state(federation: Federation, node: str, run: str) -> dict[str, Any] | None:
    """What a node's steward sees of a run."""
    rows = persistently(lambda: federation.steward(node).runs())
    return next((row for row in rows if row["id"] == run), None)


LIVING = ("queued", "preparing", "prepared", "running")
"""States of a run that has not ended."""


def sandboxes(federation: Federation) -> list[str]:
    """What runs below the nodes in sandboxes: node, process, its state and what it executes, for a failure to be read."""
    import psutil

    found = []
    for node in federation.nodes:
        for process in psutil.Process(node.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                name = process.name()
                if "bwrap" in name or "python" in name:
                    found.append(f"{node.name}: {name} {process.pid} {process.status()} {process.cmdline()[:4]}")
    return found
