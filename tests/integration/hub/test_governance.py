"""From a program to a run: who decides, on what, and what is refused."""

from __future__ import annotations

from world import Study


def test_a_study_goes_from_upload_to_its_end(study: Study) -> None:
    digest = study.ready()
    run = study.start(digest)
    assert study.researcher.get(f"/core/analyses/{study.analysis}/runs")[0]["id"] == run.hex()
    for node in study.nodes:
        place = study.place(node)["id"]
        node.change(f"/core/analysis-nodes/{place}", executionStatus="executing", executionProgress=50)
    assert study.researcher.get(f"/core/analyses/{study.analysis}")["executionStatus"] == "executing"
    for node in study.nodes:
        node.change(
            f"/core/analysis-nodes/{study.place(node)['id']}", executionStatus="executed", executionProgress=100
        )
    row = study.researcher.get(f"/core/analyses/{study.analysis}")
    assert (row["executionStatus"], row["executionProgress"]) == ("executed", 100)
    assert study.researcher.get(f"/core/analyses/{study.analysis}/runs")[0]["state"] == "ended"
