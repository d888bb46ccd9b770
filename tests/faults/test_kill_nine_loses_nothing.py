"""kill -9 at each named write of a run: after the restart the run ends with the same bits, and nothing told is lost."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import flame.hub.app
import flame.node.service  # noqa: F401 - with the hub's: all that can be declared is declared now
from federation_world import Researcher, Ward, eventually, program, run_state
from flame.lab.federation import Federation
from flame.lab.processes import alive
from flame.model.errors import FlameError, Unavailable
from flame.node.enrolment import init
from flame.storage.failpoints import FAILPOINTS

BULK = 40_000
"""Padding with which a contribution is larger than what goes through the control channel."""


@dataclass(frozen=True)
class Scenario:
    point: str
    victim: str
    stage: str
    """Before which step of the researcher's the victim is made vulnerable: submit, approve, build, run."""
    hit: int = 1
    padding: int = 0

    def __str__(self) -> str:
        large = "-bulk" if self.padding else ""
        return f"{self.point}-{self.victim}-{self.stage}-{self.hit}{large}"


def at_both(name: str, *where: tuple[Any, ...]) -> list[Scenario]:
    return [Scenario(f"{name}.{side}-commit", *place) for side in ("before", "after") for place in where]


SCENARIOS = [
    *at_both("hub.lock", ("hub", "submit"), ("hub", "build")),
    *at_both("hub.upload", ("hub", "submit"), ("hub", "run")),
    *at_both("hub.audit", ("hub", "submit"), ("hub", "run", 2)),
    *at_both("hub.approvals", ("hub", "approve")),
    *at_both("hub.runs", ("hub", "run"), ("hub", "run", 2)),
    *at_both("hub.mailbox", ("hub", "run"), ("hub", "run", 4), ("hub", "run", 3, BULK)),
    Scenario("hub.objects.after-spool", "hub", "submit"),
    Scenario("hub.objects.after-spool", "hub", "run"),
    Scenario("hub.objects.after-spool", "hub", "run", 2, BULK),
    Scenario("hub.objects.after-keep", "hub", "submit"),
    Scenario("hub.objects.after-keep", "hub", "run"),
    Scenario("hub.objects.after-keep", "hub", "run", 2, BULK),
    Scenario("node.approval.after-commit", "Bonn", "approve"),
    Scenario("node.run.after-accept", "Bonn", "run"),
    Scenario("node.run.after-accept", "aggregator", "run"),
    *(Scenario("node.run.after-state", "Bonn", "run", hit) for hit in (1, 2, 3, 4)),
    *(Scenario("node.run.after-state", "aggregator", "run", hit) for hit in (1, 4)),
    Scenario("node.run.after-announcement", "Bonn", "run"),
    Scenario("node.run.after-announcement", "aggregator", "run"),
    *at_both("node.outbox", ("Bonn", "run"), ("Bonn", "run", 2), ("aggregator", "run", 2), ("Bonn", "run", 2, BULK)),
    *at_both("node.inbox", ("Bonn", "run"), ("aggregator", "run", 2), ("aggregator", "run", 1, BULK)),
    Scenario("node.result.after-commit", "aggregator", "run"),
]
ENROLMENT = {"hub.enrolment.before-commit", "hub.enrolment.after-commit"}


def test_every_fail_point_has_its_scenario() -> None:
    declared = {name for name in FAILPOINTS if not name.startswith("t.")}
    assert declared == {scenario.point for scenario in SCENARIOS} | ENROLMENT


@pytest.fixture(scope="module")
def undisturbed(ward: Ward) -> dict[int, bytes]:
    """The result of a run that nothing happens to, by padding: it does not depend on it, but the way does."""
    with ward.lent() as federation:
        found = {}
        for padding in (0, BULK):
            outcome = Researcher(federation).run(program(padding=padding))
            assert outcome.status == "executed", outcome.reason
            (result,) = outcome.results
            found[padding] = result.content
    return found


class Rescue:
    """Starts the victim again as soon as it has died."""

    def __init__(self, federation: Federation, victim: str) -> None:
        self._federation, self._victim = federation, victim
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.error: Exception | None = None

    def _watch(self) -> None:
        pid = self._federation.pid_of(self._victim)
        while not self._over.wait(0.05):
            if not alive(pid):
                try:
                    self._federation.restart(self._victim)
                except Exception as error:
                    self.error = error
                return

    def __enter__(self) -> Rescue:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


@contextmanager
def vulnerable(federation: Federation, scenario: Scenario, marker: Path) -> Iterator[None]:
    """The victim dies at the fail point, once, and is started again."""
    federation.restart(
        scenario.victim,
        {
            "FLAME_TEST_HOOKS": "1",
            "FLAME_FAILPOINT": scenario.point,
            "FLAME_FAILPOINT_HIT": str(scenario.hit),
            "FLAME_FAILPOINT_ONCE": str(marker),
        },
    )
    before = federation.pid_of(scenario.victim)
    with Rescue(federation, scenario.victim) as rescue:
        yield
        eventually(marker.exists, f"{scenario.point} reached", 30)
        eventually(lambda: rescue.error or federation.pid_of(scenario.victim) != before, "the victim was started again")
    assert rescue.error is None, rescue.error


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
def test_a_killed_process_comes_back_and_the_run_ends_with_the_same_bits(
    ward: Ward, undisturbed: dict[int, bytes], scenario: Scenario, tmp_path: Path
) -> None:
    with ward.lent() as federation:
        researcher = Researcher(federation)

        def at(stage: str) -> AbstractContextManager[None]:
            return vulnerable(federation, scenario, tmp_path / "died") if stage == scenario.stage else nullcontext()

        with at("submit"):
            submission = researcher.submit(program(padding=scenario.padding))
        with at("approve"):
            researcher.approve(submission)
        with at("build"):
            researcher.build(submission)
        with at("run"):
            researcher.start(submission)
            outcome = researcher.finish(submission)
        assert outcome.status == "executed", outcome.reason
        assert [result.content for result in outcome.results] == [undisturbed[scenario.padding]]
        assert_nothing_is_lost(federation, submission.run)


def assert_nothing_is_lost(federation: Federation, run: str) -> None:
    """Every node ended the run, holds nothing of it any more, and the log has heard of each of these ends, once."""
    for node in federation.nodes:
        eventually(
            lambda node=node: (run_state(federation, node.name, run) or {}).get("state") == "ended",  # type: ignore[misc]
            f"{node.name} ended the run",
        )
        eventually(
            lambda node=node: federation.steward(node.name).status()["logEventsWaiting"] == 0,  # type: ignore[misc]
            f"{node.name} told the log",
        )
        folder = node.directory / "runs" / run
        eventually(
            lambda folder=folder: {path.name for path in folder.iterdir()} <= {"output.txt"},  # type: ignore[misc]
            f"{node.name} cleaned up",
        )
    assert federation.log_verified()


@pytest.mark.parametrize("side", ["before", "after"])
def test_an_enrolment_that_is_cut_off_can_be_made_again(tmp_path: Path, side: str) -> None:
    from flame.lab.processes import Child, end, wait_for_file
    from flame.researcher.api import Api

    hub_dir, marker, children = tmp_path / "hub", tmp_path / "died", []

    def start(port: str, **variables: str) -> tuple[Any, Api]:
        child = Child(
            ["-m", "flame.hub", str(hub_dir), port],
            tmp_path / "log",
            {"FLAME_HUB_PASSWORD_FILE": "1", **variables},
        )
        children.append(child)
        place = wait_for_file(hub_dir / "hub.json", child)
        password = (hub_dir / "admin-password").read_text().strip()
        return place["url"], Api.login(place["url"], "admin", password)

    try:
        point = f"hub.enrolment.{side}-commit"
        hooks = {"FLAME_TEST_HOOKS": "1", "FLAME_FAILPOINT": point, "FLAME_FAILPOINT_ONCE": str(marker)}
        url, api = start("0", **hooks)
        node = api.post("/core/nodes", {"name": "Aachen", "externalName": "aachen", "type": "default", "hidden": False})
        where = f"/core/nodes/{node['data']['id']}"
        token = api.post(f"{where}/enrolment-token")["data"]["token"]
        with pytest.raises(Unavailable, match="cannot be reached"):
            init(tmp_path / "node", url, token)
        assert marker.exists()
        url, api = start(url.rpartition(":")[2])
        try:
            said = init(tmp_path / "node", url, token)
        except FlameError as error:  # the token was used: the hub says so, and what helps
            assert side == "after"
            assert "token" in str(error)
            assert error.next_step
            said = init(tmp_path / "node", url, api.post(f"{where}/enrolment-token")["data"]["token"])
        api.post(f"{where}/enrolment/confirm", {"fingerprint": said["fingerprint"]})
        assert api.get(where)["data"]["publicKey"]
    finally:
        for child in children:
            end(child.pid)
            child.let_go()
