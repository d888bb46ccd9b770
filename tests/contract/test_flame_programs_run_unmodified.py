"""Programs that were written for FLAME run unmodified, with the original SDK in their environment: real hub, nodes, sandbox."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from federation_world import Researcher, eventually, run_state
from flame.lab.federation import Federation, Outcome, Site

HERE = Path(__file__).parent
NAME = "flame/original"
HOSPITALS = {"Aachen": 5, "Bonn": 3}

OPEN = b"""\
[[releases]]
kind = "object"
max_bytes = 8000000
rounds_max = 1000
release = "auto"

[[releases]]
kind = "log"

[[releases]]
kind = "final"
release = "auto"

[resources]
runtime_minutes = 5
memory_mb = 512
"""


def interpreter(folder: Path) -> Path:
    """An installation of its own, as a person who has FLAME's original SDK would have it."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=120)
    site = next(folder.glob("lib/python*/site-packages"))
    (site / "flamesdk").mkdir()
    (site / "flamesdk" / "__init__.py").write_bytes((HERE / "original_sdk.py").read_bytes())
    (site / "flame" / "star").mkdir(parents=True)
    names = "StarModel, StarLocalDPModel, StarAnalyzer, StarAggregator"
    (site / "flame" / "star" / "__init__.py").write_text(f"from flamesdk import {names}\n")
    return folder / "bin" / "python"


def hospital(folder: Path, name: str, patients: int) -> Site:
    place = folder / name
    (place / "images").mkdir(parents=True)
    rows = [
        {
            "resourceType": "Patient",
            "id": f"{name}-{n}",
            "gender": ("female", "male")[n % 2],
            "birthDate": f"{1950 + n}-02-03",
        }
        for n in range(patients)
    ]
    (place / "patients.ndjson").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "ages.csv").write_text("age\n" + "".join(f"{30 + 7 * n}\n" for n in range(patients)))
    (place / "images" / "scan 1.bin").write_bytes(bytes(range(256)) * 8)
    return Site(name, place)


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    folder = tmp_path_factory.mktemp("original")
    sites = [hospital(folder / "sites", name, patients) for name, patients in HOSPITALS.items()]
    federation = Federation.up(folder / "federation", sites, interpreters={NAME: interpreter(folder / "python")})
    try:
        yield federation
    finally:
        federation.down(keep_files=True)


def run(federation: Federation, source: str, author: bytes = OPEN) -> Outcome:
    files = {"main.py": source.encode(), "flame.toml": author}
    return federation.submit(files, entrypoint="main.py", title="Original", environment=NAME)


def output(federation: Federation, node: str, run: str) -> str:
    return (federation.node(node).directory / "runs" / run / "output.txt").read_text()


def everything_said(federation: Federation, outcome: Outcome) -> str:
    return "\n".join(f"--- {n.name}\n{output(federation, n.name, outcome.run)[-6000:]}" for n in federation.nodes)


def results(federation: Federation, outcome: Outcome) -> dict[str, bytes]:
    assert outcome.status == "executed", f"{outcome.reason}\n{everything_said(federation, outcome)}"
    assert "CONTRACT BROKEN" not in everything_said(federation, outcome)
    return {result.name: result.content for result in outcome.results}


COUNT = """\
from flame.star import StarAggregator, StarAnalyzer, StarModel

class Count(StarAnalyzer):
    def analysis_method(self, data, aggregator_results):
        return int(data[0]["Patient?_summary=count"]["total"])

class Total(StarAggregator):
    def aggregation_method(self, analysis_results):
        return sum(analysis_results)
    def has_converged(self, result, last_result):
        return False

StarModel(Count, Total, "fhir", query="Patient?_summary=count", output_type="str")
"""


def test_a_star_counts_patients_over_fhir_and_ends(federation: Federation) -> None:
    outcome = run(federation, COUNT)
    assert results(federation, outcome) == {"result.txt": b"8"}
    assert "\tData extracted: [{'Patient?_summary=count'" in output(federation, "Aachen", outcome.run)
    api = federation.session.api
    rows = api.get(f"/core/analysis-node-logs?filter[analysisId]={outcome.analysis}&page[limit]=50")["data"]
    lines = [row["message"] for row in rows]
    assert any("FlameCoreSDK ready" in line for line in lines)
    assert not any("Data extracted" in line for line in lines)
