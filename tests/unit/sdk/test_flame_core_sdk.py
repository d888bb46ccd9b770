"""``FlameCoreSDK``: the original's calls, with truthful answers."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from flame.model.errors import Invalid
from flame.sdk import Federation, FlameCoreSDK
from unit.sdk.gateway_in_memory import AGGREGATOR, Run

Join = Callable[[str], Federation]


def sdk(join: Join, node: str, **options: Any) -> FlameCoreSDK:
    return FlameCoreSDK(federation=join(node), **options)


def test_the_node_knows_its_place(join: Join) -> None:
    flame = sdk(join, "node-a")
    assert flame.get_participants() == [
        {"nodeId": "node-b", "nodeType": "default"},
        {"nodeId": AGGREGATOR, "nodeType": "aggregator"},
    ]
    assert flame.get_participant_ids() == ["node-b", AGGREGATOR]
    assert (flame.get_id(), flame.get_role(), flame.get_aggregator_id()) == ("node-a", "default", AGGREGATOR)
    assert (flame.get_analysis_id(), flame.get_project_id()) == ("analysis-1", "project-1")
    assert (flame.config.node_id, flame.config.node_role, flame.config.finished) == ("node-a", "default", False)
    assert sdk(join, AGGREGATOR).get_aggregator_id() is None


def test_a_ready_check_leaves_the_callers_list_alone(join: Join) -> None:
    flame, nodes = sdk(join, "node-a"), ["node-b", "stranger"]
    assert flame.ready_check(nodes) == {"node-b": True, "stranger": False}
    assert nodes == ["node-b", "stranger"]


def test_data_as_csv_by_name(join: Join) -> None:
    flame = sdk(join, "node-a")
    (files,) = flame.get_s3_data() or []
    rows = list(csv.DictReader(io.StringIO(files["data.csv"].decode())))
    assert rows == [{"age": "40.0", "ward": "north"}, {"age": "50.0", "ward": ""}]
    assert flame.get_s3_data(["data.csv"]) == [files]
    assert flame.get_s3_data(None) is None and flame.get_fhir_data() is None
    with pytest.raises(Invalid, match=r"other\.csv"):
        flame.get_s3_data(["other.csv"])
    with pytest.raises(Invalid, match="get_s3_data"):
        flame.get_fhir_data(["Patient?_summary=count"])
    assert flame.get_data_sources() == [{"name": "data"}]


def test_progress_only_rises(join: Join, run: Run) -> None:
    flame = sdk(join, "node-a")
    for value in (10, 5, 10, 200, -3, 60.9):
        flame.set_progress(value)
    assert flame.get_progress() == 60
    assert run.requests["node-a", "Progress"] == 2


def test_free_text_stays_at_the_node(join: Join, run: Run) -> None:
    flame = sdk(join, "node-a")
    flame.flame_log("Patient ", halt_submission=True)
    flame.flame_log("Erika", log_type="alert")
    sdk(join, "node-b", silent=True).flame_log("nothing")
    assert [(line.level, line.template, line.values) for _, line in run.logs] == [
        ("error", "{text}", {"text": "Patient Erika"})
    ]


def test_the_key_meta_is_taken(join: Join) -> None:
    with pytest.raises(Invalid, match="meta"):
        sdk(join, "node-a").send_message([AGGREGATOR], "x", {"meta": 1})


def test_messages_can_be_kept_and_forgotten(join: Join) -> None:
    a, c = sdk(join, "node-a"), sdk(join, AGGREGATOR)
    for i in range(3):
        a.send_message(AGGREGATOR, "x", {"i": i})
    got = [c.await_messages(["node-a"], "x")["node-a"] for _ in range(3)]
    assert [message.body["i"] for messages in got for message in messages or []] == [0, 1, 2]
    first = got[0][0]  # type: ignore[index]
    assert first.recipients == [AGGREGATOR] and first.body["meta"]["category"] == "x"
    assert c.delete_messages([first.body["meta"]["id"]]) == 1
    assert c.clear_messages("read", min_age=3600) == 0
    assert c.clear_messages() == 2 and c.get_messages("read") == []


def test_intermediate_data_keep_type_and_order(join: Join) -> None:
    a, b, c = sdk(join, "node-a"), sdk(join, "node-b"), sdk(join, AGGREGATOR)
    b.send_intermediate_data([AGGREGATOR], {"w": np.eye(2), "n": 3})
    a.send_intermediate_data([AGGREGATOR], [1.5, "x", None, True, b"raw"])
    got = c.await_intermediate_data(["node-a", "node-b"])
    assert list(got) == ["node-a", "node-b"]
    assert got["node-a"] == [1.5, "x", None, True, b"raw"] and got["node-b"]["w"].tolist() == [[1, 0], [0, 1]]


def test_the_end_of_the_analysis_ends_a_wait_but_loses_nothing_sent_before(join: Join) -> None:
    a, c = sdk(join, "node-a"), sdk(join, AGGREGATOR)
    c.send_intermediate_data(["node-a"], 1)
    c.analysis_finished()
    assert a.await_intermediate_data([AGGREGATOR]) == {AGGREGATOR: 1} and not a.config.finished
    assert a.await_intermediate_data([AGGREGATOR]) == {AGGREGATOR: None} and a.config.finished
    assert a.await_intermediate_data([AGGREGATOR]) == {AGGREGATOR: None}
    assert c.get_progress() == 100


def test_results_by_type_and_name(join: Join, run: Run) -> None:
    flame = sdk(join, AGGREGATOR)
    assert flame.submit_final_result(1.5) == {"status": "success"}
    flame.submit_final_result(b"raw", "bytes")
    flame.submit_final_result({"a": 1}, "pickle")
    answers = flame.submit_final_result(["a", b"b"], ["str", "bytes"], multiple_results=True, filename=["x.md", "y"])
    assert answers == [{"status": "success"}] * 2
    flame.submit_final_result([1, 2], multiple_results=True, filename="stem")
    flame.submit_final_result([7], multiple_results=True, filename="one.txt")
    assert {name: data for name, (_, data) in run.results.items() if name != "result.pkl"} == {
        "result.txt": b"1.5",
        "result.bin": b"raw",
        "x.md": b"a",
        "y": b"b",
        "stem_1": b"1",
        "stem_2": b"2",
        "one.txt": b"[7]",
    }
    assert run.results["result.pkl"][1].startswith(b"\x80")


@pytest.mark.parametrize(
    "wrong",
    [
        {"result": "text", "output_type": "bytes"},
        {"result": 1, "output_type": "yaml"},
        {"result": [1, 2], "output_type": ["str"], "multiple_results": True},
        {"result": "1.0", "local_dp": {"epsilon": 1.0, "sensitivity": 1.0}},
        {"result": float("nan"), "local_dp": {"epsilon": 1.0, "sensitivity": 1.0}},
        {"result": "x", "filename": "../x"},
    ],
)
def test_a_result_that_cannot_be_as_asked_is_refused(join: Join, run: Run, wrong: dict[str, Any]) -> None:
    with pytest.raises(Invalid):
        sdk(join, AGGREGATOR).submit_final_result(**wrong)
    assert not run.results


def test_noise_is_asked_of_the_node_and_never_added_here(join: Join, run: Run) -> None:
    sdk(join, AGGREGATOR).submit_final_result(3, local_dp={"epsilon": 0.5, "sensitivity": 2.0}, filename="n.txt")
    assert run.results["n.txt"][1] == b"3.0"
    assert run.noise == {"n.txt": (0.5, 2.0)}


def test_what_is_kept_is_found_by_id_and_by_tag(join: Join) -> None:
    flame = sdk(join, "node-a")
    assert flame.get_local_tags() == [] and flame.load_checkpoint(1) is None
    ids = [flame.save_intermediate_data({"round": n}, tag="rounds")["id"] for n in range(3)]
    assert flame.get_intermediate_data("local", query=ids[1]) == {"round": 1}
    assert flame.get_intermediate_data(tag="rounds") == [{"round": 0}, {"round": 1}, {"round": 2}]
    assert flame.get_intermediate_data(tag="rounds", tag_option="last") == [{"round": 2}]
    flame.set_checkpoint(1, [1, 2])
    assert flame.load_checkpoint(1) == [1, 2]
    assert flame.get_local_tags() == ["rounds", "checkpoint-1"]
    assert flame.get_local_tags("check") == ["checkpoint-1"]


def test_an_object_for_another_node_is_fetched_by_its_id_as_often_as_wanted(join: Join) -> None:
    a, b = sdk(join, "node-a"), sdk(join, "node-b")
    saved = a.save_intermediate_data([1, 2], "global", ["node-b"])
    for _ in range(2):
        assert b.get_intermediate_data("global", query=saved["node-b"]["id"]) == [1, 2]
    with pytest.raises(Invalid, match="remote_node_ids"):
        a.save_intermediate_data(1, "global")
    with pytest.raises(Invalid, match="no other node"):
        a.save_intermediate_data(1, "local", ["node-b"])


def test_a_message_and_its_answers(join: Join) -> None:
    a, b = sdk(join, "node-a"), sdk(join, "node-b")
    b.send_message("node-a", "question", {"answer": 2})
    answers = a.send_message_and_wait_for_responses(["node-b"], "question", {"what": 1}, timeout=None)
    assert [message.body["answer"] for message in answers["node-b"] or []] == [2]
    assert a.send_message_and_wait_for_responses(["node-b"], "question", {"what": 1}, timeout=0.05) == {"node-b": None}


def test_places_are_the_same_at_every_node(join: Join) -> None:
    a, b = sdk(join, "node-a"), sdk(join, "node-b")
    assert (a.get_self_node_index(), a.get_node_index("node-b"), b.get_self_node_index()) == (0, 1, 1)
    assert a.get_type() == "default" and a.node_has_data()
    with pytest.raises(Invalid):
        a.get_node_index("stranger")


def test_the_alias_is_the_same_class() -> None:
    import flamesdk

    assert flamesdk.FlameCoreSDK is FlameCoreSDK and flamesdk.__all__ == ["FlameCoreSDK"]
