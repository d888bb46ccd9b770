"""A sandbox with one promise broken on purpose: the run is ended before its program's first instruction, and everyone is told."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from acceptance.federations import FILES, events_about, eventually, make_sites, node_run
from flame.lab.federation import Federation
from flame.runtime import Promise
from unit.runtime.worlds import need_bubblewrap

BROKEN = {"hospital-0": Promise.NO_NETWORK}
SAID = b'print("it-ran-although-a-promise-was-broken")\n'


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    need_bubblewrap()
    folder = tmp_path_factory.mktemp("weakened")
    variables = {name: {"FLAME_TEST_HOOKS": "1", "FLAME_TEST_WEAKEN": str(promise)} for name, promise in BROKEN.items()}
    running = Federation.up(folder / "fed", make_sites(folder / "sites"), variables=variables)
    try:
        yield running
    finally:
        running.down(keep_files=True)


@pytest.fixture(scope="module")
def analysis(federation: Federation) -> str:
    files = {**FILES, "main.py": SAID + FILES["main.py"]}
    outcome = federation.submit(files, entrypoint="main.py", title="Weakened")
    assert outcome.status == "failed"
    assert outcome.results == []
    return outcome.analysis


@pytest.mark.parametrize("node", BROKEN)
def test_the_run_ends_with_the_promise_by_name(federation: Federation, analysis: str, node: str) -> None:
    run = node_run(federation, node, analysis)
    assert run is not None
    assert (run["state"], run["code"]) == ("failed", "promise_broken")
    assert f"'{BROKEN[node]}'" in run["reason"]


@pytest.mark.parametrize("node", BROKEN)
def test_nothing_of_the_program_ran(federation: Federation, analysis: str, node: str) -> None:
    run = node_run(federation, node, analysis)
    assert run is not None
    steward = federation.steward(node)
    assert steward.api.get(f"/api/runs/{run['id']}/output")["output"] == ""
    left = steward.api.get(f"/api/runs/{run['id']}")["releases"]
    assert {row["kind"] for row in left} <= {"control"}, "only the word to the peers, that this node has ended"


def test_the_hub_is_told_where_and_why(federation: Federation, analysis: str) -> None:
    rows = federation.session.api.get(f"/core/analysis-nodes?filter[analysisId]={analysis}")["data"]
    of = {row["nodeId"]: row for row in rows}
    for name, promise in BROKEN.items():
        row = of[federation.node(name).id]
        assert row["executionStatus"] == "failed"
        assert f"broke its promise '{promise}'" in row["executionReason"]


def test_the_log_holds_the_broken_promise(federation: Federation, analysis: str) -> None:
    for name in BROKEN:
        run = node_run(federation, name, analysis)
        assert run is not None
        signer = federation.node(name).fingerprint

        def leaf(run_id: str = run["id"], signer: str = signer) -> bool:
            return any(
                event["type"] == "run-ended"
                and event["signer"] == signer
                and event["facts"]["code"] == "promise_broken"
                for event in events_about(federation, run_id)
            )

        assert eventually(leaf, f"the leaf of {name}")


def test_the_alarm_is_in_the_nodes_log(federation: Federation) -> None:
    for name in BROKEN:
        assert "ALARM: the test hook FLAME_TEST_WEAKEN" in (federation.node(name).directory / "node.log").read_text()
    assert "ALARM" not in (federation.aggregator.directory / "node.log").read_text()


def test_a_node_that_may_hold_patients_data_does_not_start_with_a_hook() -> None:
    """Without both variables nothing happens; with both, a node that is not for public data refuses."""
    from flame.model.errors import Refused
    from flame.node.hooks import HOOKS, UNSEALED, WEAKEN, hook

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(HOOKS, raising=False)
        for variable in (UNSEALED, WEAKEN):
            patch.setenv(variable, "1")
            assert hook(variable, public_data=True) == ""
        patch.setenv(HOOKS, "1")
        for variable in (UNSEALED, WEAKEN):
            with pytest.raises(Refused, match="patients"):
                hook(variable, public_data=False)


def test_the_others_end_too_and_say_because_of_whom(federation: Federation, analysis: str) -> None:
    for node in federation.nodes:
        if node.name not in BROKEN:
            run = node_run(federation, node.name, analysis)
            assert run is not None
            assert run["state"] == "failed"
            assert "hospital-0" in run["reason"]
