"""Programs that were written for FLAME run unmodified, with the original SDK in their environment: real hub, nodes, sandbox."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from federation_world import Researcher, eventually
from flame.lab.federation import Federation, Outcome, Site
from flame.node.data.sources import Sources, make_source, read_sources, write_sources

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
    lines = [
        row["message"]
        for node in federation.nodes
        for row in api.get(
            f"/core/analysis-node-logs?filter[analysisId]={outcome.analysis}&filter[nodeId]={node.id}&page[limit]=50"
        )["data"]
    ]
    assert any("FlameCoreSDK ready" in line for line in lines)
    assert not any("Data extracted" in line for line in lines)


def test_our_own_programs_still_run_beside_them(federation: Federation) -> None:
    source = b"""\
import flame
with flame.connect() as fed:
    if fed.is_aggregator:
        fed.submit({"from": [m.value for m in fed.gather("hello").values()]})
    else:
        fed.send(fed.aggregator, 1, "hello")
"""
    files = {"main.py": source, "flame.toml": b"data = []\n" + OPEN}
    outcome = federation.submit(files, entrypoint="main.py", title="Ours")
    assert outcome.status == "executed", outcome.reason
    assert json.loads(outcome.results[0].content) == {"from": [1, 1]}


ITERATIVE = """\
import json
from flame.star import StarAggregator, StarAnalyzer, StarModel

class Ages(StarAnalyzer):
    def analysis_method(self, data, aggregator_results):
        rows = data[0]["ages.csv"].decode().split()[1:]
        assert data[0]["images/scan 1.bin"] == bytes(range(256)) * 8
        assert len(data) == 1 and sorted(data[0]) == ["ages.csv", "images/scan 1.bin"], sorted(data[0])
        shift = (aggregator_results or {"mean": 0.0})["mean"]
        return {"n": len(rows), "sum": sum(float(age) - shift for age in rows)}

class Mean(StarAggregator):
    def aggregation_method(self, results):
        step = sum(r["sum"] for r in results) / sum(r["n"] for r in results)
        return {"mean": (self.latest_result or {"mean": 0.0})["mean"] + step, "step": step}
    def has_converged(self, result, last_result):
        return abs(result["step"]) < 1e-9

class Final(Mean):
    def aggregation_method(self, results):
        found = super().aggregation_method(results)
        return found
    def has_converged(self, result, last_result):
        if super().has_converged(result, last_result):
            self.flame.submit_final_result([b"\\x00\\xff", result["mean"], b"last"], ["bytes", "str", "bytes"], True)
            return True
        return False

StarModel(Ages, Final, "s3", query=[], simple_analysis=False, output_type="str", filename="mean.txt")
"""


def test_an_iterative_star_reads_files_and_submits_several_results(federation: Federation) -> None:
    found = results(federation, run(federation, ITERATIVE))
    ages = [30 + 7 * n for patients in HOSPITALS.values() for n in range(patients)]
    mean = sum(ages) / len(ages)
    assert found["result.bin"] == b"\x00\xff"
    assert float(found["result-2.txt"]) == pytest.approx(mean, rel=1e-12)
    assert found["result-3.bin"] == b"last"
    assert b"'mean'" in found["mean.txt"]


NOISY = COUNT.replace("StarModel", "StarLocalDPModel").replace('output_type="str")', "epsilon=1.0, sensitivity=1.0)")


def test_local_noise_is_added_at_the_node_also_where_nothing_converges(federation: Federation) -> None:
    (first,), (second,) = (results(federation, run(federation, NOISY)).values() for _ in range(2))
    assert float(first) != float(second)
    for noisy in (first, second):
        assert float(noisy) != 8.0
        assert abs(float(noisy) - 8.0) < 60.0  # beyond with a probability of e^-60


RING = """\
from flamesdk import FlameCoreSDK
flame = FlameCoreSDK()
everyone = sorted([flame.get_id(), *flame.get_participant_ids()])
after = everyone[(everyone.index(flame.get_id()) + 1) % len(everyone)]
before = everyone[everyone.index(flame.get_id()) - 1]
flame.ready_check()
for number in range(5):
    acknowledged, missing = flame.send_message([after], "ring", {"number": number, "text": "\\u00e4 \\"quoted\\""})
    assert (acknowledged, missing) == ([after], []), (acknowledged, missing)
seen = []
while len(seen) < 5:
    seen += [m.body for m in flame.await_messages([before], "ring")[before]]
assert [m["number"] for m in seen] == list(range(5)), seen
assert all(m["text"] == "\\u00e4 \\"quoted\\"" and m["meta"]["sender"] == before for m in seen), seen
ok, failed = flame.send_intermediate_data([after], {"big": b"x" * 3_000_000, "from": flame.get_id()})
got = flame.await_intermediate_data([before])[before]
assert got["from"] == before and len(got["big"]) == 3_000_000
if flame.get_role() == "aggregator":
    answers = flame.await_messages(flame.get_participant_ids(), "done")
    flame.submit_final_result(sorted(m[0].body["sum"] for m in answers.values()), filename="ring.txt")
    flame.analysis_finished()
else:
    flame.send_message([flame.get_aggregator_id()], "done", {"sum": sum(m["number"] for m in seen)})
"""


def test_analyzers_send_each_other_messages_and_objects(federation: Federation) -> None:
    assert results(federation, run(federation, RING)) == {"ring.txt": b"[10, 10]"}


TAGS = """\
from flamesdk import FlameCoreSDK
flame = FlameCoreSDK()
flame.ready_check()
known = flame.get_local_tags()
for number in range(3):
    kept = flame.save_intermediate_data({"round": number}, tag="checkpoint-1")
    assert flame.get_intermediate_data("local", query=kept["id"]) == {"round": number}
assert flame.get_local_tags()[-1] == "checkpoint-1"
assert flame.get_intermediate_data("local", tag="checkpoint-1", tag_option="last") == [{"round": 2}]
assert flame.get_intermediate_data("local", tag="nobody-saved-this") == []
first = flame.get_intermediate_data("local", tag="checkpoint-1", tag_option="first")
count = len(flame.get_intermediate_data("local", tag="checkpoint-1"))
if flame.get_role() == "aggregator":
    found = flame.await_messages(flame.get_participant_ids(), "tags")
    flame.submit_final_result(sorted((m[0].body["known"], m[0].body["count"]) for m in found.values()), filename="tags.txt")
    flame.analysis_finished()
else:
    flame.send_message([flame.get_aggregator_id()], "tags", {"known": known, "count": count})
"""


def test_tags_are_kept_for_the_project_and_seen_where_the_manifest_asks(federation: Federation) -> None:
    alone = b"[(['checkpoint-1'], 3), (['checkpoint-1'], 3)]".replace(b"'checkpoint-1'", b"")
    assert results(federation, run(federation, TAGS)) == {"tags.txt": alone}
    assert results(federation, run(federation, TAGS)) == {"tags.txt": alone}
    local = b'[[data]]\nsource = "local"\n\n' + OPEN
    later = b"[(['checkpoint-1'], 9), (['checkpoint-1'], 9)]"
    assert results(federation, run(federation, TAGS, local)) == {"tags.txt": later}


CRASH = """\
from flamesdk import FlameCoreSDK
flame = FlameCoreSDK()
patient = "Erika Mustermann"
if flame.get_role() == "default":
    {patient: 1}["name of " + patient + " / " + str(1 / 0)]
flame.await_messages(flame.get_participant_ids(), "never")
"""


def test_a_crash_is_told_by_type_and_line_and_without_values(federation: Federation) -> None:
    outcome = run(federation, CRASH)
    assert outcome.status == "failed"
    assert "ZeroDivisionError" in outcome.reason and "main.py, line 5" in outcome.reason
    assert "Mustermann" not in outcome.reason


def test_a_crash_before_the_sdk_is_told_as_well(federation: Federation) -> None:
    outcome = run(federation, "import nowhere_to_be_found\n")
    assert outcome.status == "failed"
    assert "ModuleNotFoundError" in outcome.reason and "main.py, line 1" in outcome.reason


def test_a_program_that_never_exits_is_ended_when_it_is_executed(federation: Federation) -> None:
    stubborn = (
        "import signal, threading\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "threading.Thread(target=lambda: [0 for _ in iter(int, 1)]).start()\n" + COUNT
    )
    outcome = run(federation, stubborn)
    assert results(federation, outcome) == {"result.txt": b"8"}
    below = [child for node in federation.nodes for child in psutil.Process(node.pid).children(recursive=True)]
    assert not [child for child in below if "bwrap" in child.name()]


def test_a_program_that_takes_long_to_import_is_waited_for(federation: Federation) -> None:
    slow = "import os, time\nif os.environ['DATA_SOURCE_TOKEN'] != 'none_needed':\n    time.sleep(8)\n" + COUNT
    assert results(federation, run(federation, slow)) == {"result.txt": b"8"}


NO_DATA = """\
from flamesdk import FlameCoreSDK
flame = FlameCoreSDK()
assert flame.get_role() == "aggregator" or flame.get_data_sources() == [], flame.get_data_sources()
assert flame.get_s3_data([]) == [] and flame.get_fhir_data(["Patient"]) == [] if flame.get_role() == "default" else True
flame.ready_check()
if flame.get_role() == "aggregator":
    flame.submit_final_result("nothing", filename="none.txt")
    flame.analysis_finished()
"""


def test_a_project_without_data_has_an_empty_list_of_sources(federation: Federation) -> None:
    assert results(federation, run(federation, NO_DATA, b"data = []\n" + OPEN)) == {"none.txt": b"nothing"}


MIXED = """\
from flamesdk import FlameCoreSDK
flame = FlameCoreSDK()
flame.ready_check()
if flame.get_role() == "aggregator":
    found = flame.await_messages(flame.get_participant_ids(), "found")
    flame.submit_final_result(sorted(str(m[0].body["found"]) for m in found.values()), filename="mixed.txt")
    flame.analysis_finished()
else:
    fhir = flame.get_fhir_data(["Patient?_summary=count", "Patient?gender=female&_count=1", "Patient?no-such-thing=1"])
    files = flame.get_s3_data([])
    assert [sorted(f) for f in files] == [["ages.csv", "images/scan 1.bin"], ["notes.csv"]], files
    assert files[1]["notes.csv"].decode().split() == ["word,n", "a,1.0", "b,"], files[1]
    assert fhir[1] == {} and set(fhir[0]) == {"Patient?_summary=count", "Patient?gender=female&_count=1"}, fhir
    page, women = fhir[0]["Patient?gender=female&_count=1"], []
    while page:
        women += [e["resource"]["id"] for e in page["entry"]]
        following = [l["url"] for l in page["link"] if l["relation"] == "next"]
        query = following[0].split("/fhir/")[1] if following else None
        page = flame.get_fhir_data([query])[0][query] if query else None
    total = fhir[0]["Patient?_summary=count"]["total"]
    assert len(women) == len(set(women)) == (total + 1) // 2
    flame.send_message([flame.get_aggregator_id()], "found", {"found": [total, len(women)]})
"""


def test_files_and_fhir_of_one_project_answer_side_by_side(federation: Federation) -> None:
    for name in HOSPITALS:
        directory = federation.node(name).directory
        (directory / "data" / "notes.csv").write_text("word,n\na,1\nb,\n")
        known = read_sources(directory / "sources.toml").all
        notes = make_source("notes", "notes", directory / "data" / "notes.csv", ("*",), True)
        write_sources(directory / "sources.toml", Sources((*known, notes)))
    author = b'[[data]]\nsource = "data"\n\n[[data]]\nsource = "notes"\n\n' + OPEN
    assert results(federation, run(federation, MIXED, author)) == {"mixed.txt": b"['[3, 2]', '[5, 3]']"}


OWN_ENDPOINT = """\
import json, time
from flamesdk import FlameCoreSDK, request
flame = FlameCoreSDK()
time.sleep(0.5)
body = json.dumps({"run": 1}).encode()
status, content, _ = request("POST", "/analysis/nextflow", {"Content-Type": "application/json"}, body)
assert (status, json.loads(content)) == (200, {"echo": {"run": 1}})
status, content, _ = request("POST", "/nextflow/run", {"Content-Type": "application/json"}, body, accept=())
assert status == 404, content
flame.ready_check()
if flame.get_role() == "aggregator":
    flame.submit_final_result(1, filename="one.txt")
    flame.analysis_finished()
"""


def test_a_program_reaches_endpoints_of_its_own_by_the_gateway_s_name(federation: Federation) -> None:
    assert results(federation, run(federation, OWN_ENDPOINT)) == {"one.txt": b"1"}


BREACHES = {
    "a final result of an analyzer": ("flame.submit_final_result(1)", "aggregator"),
    "another analysis": (
        "request('GET', '/message-broker/analyses/11111111-1111-4111-8111-111111111111/participants', {}, accept=())",
        "own analysis",
    ),
    "a stranger as a recipient": ("flame._post(['11111111-1111-4111-8111-111111111111'], {'meta': {'id': 'x'}})", ""),
    "an object of somebody else": (
        "request('GET', f'/storage/local/{flame.get_id()}', {}, accept=(), small=False)",
        "no such local object",
    ),
}


@pytest.mark.parametrize("what", BREACHES)
def test_a_breach_ends_the_run_at_once_and_says_why(federation: Federation, what: str) -> None:
    act, said = BREACHES[what]
    source = (
        "import time\nfrom flamesdk import FlameCoreSDK, request\nflame = FlameCoreSDK()\nflame.ready_check()\n"
        f"if flame.get_role() == 'default':\n    {act}\ntime.sleep(1000)\n"
    ).replace("flame.submit_final_result(1)", "request('PUT', '/storage/final', *FORM, accept=())")
    form = "FORM = ({'Content-Type': 'multipart/form-data; boundary=b'}, b'--b\\r\\nContent-Disposition: form-data; name=\"file\"; filename=\"a.txt\"\\r\\n\\r\\n1\\r\\n--b--\\r\\n')\n"
    started = time.monotonic()
    outcome = run(
        federation,
        form + source.replace("flame._post(", "__import__('flamesdk').broken = lambda w: None; flame._post("),
    )
    assert outcome.status == "failed"
    assert said in outcome.reason
    assert time.monotonic() - started < 60


def test_what_is_not_declared_ends_the_run_instead_of_a_thousand_seconds_of_sleep(federation: Federation) -> None:
    closed = OPEN.replace(b'kind = "object"', b'kind = "object"\nname = "only_this"')
    lenient = "import flamesdk\nflamesdk.broken = lambda what: print(what)\n"
    outcome = run(federation, lenient + COUNT, closed)
    assert outcome.status == "failed"
    assert "release_refused" in outcome.reason or "declares no release" in outcome.reason


PATIENT = """\
import time
from flamesdk import FlameCoreSDK
flame = FlameCoreSDK()
flame.ready_check()
print("HALF WAY", flush=True)
for _ in range(80):
    time.sleep(0.1)
    flame._get_json(f"/message-broker/analyses/{flame.get_analysis_id()}/participants")
    flame._get_json(f"/hub-adapter/kong/datastore/{flame.get_project_id()}")
    flame.get_local_tags()
    flame.flame_log("still here")
    flame._post(flame.get_participant_ids(), {"meta": {"id": "x", "akn_id": None, "category": "tick", "number": 1}})
if flame.get_role() == "aggregator":
    found = flame.await_intermediate_data(flame.get_participant_ids())
    flame.submit_final_result(sum(found.values()), filename="sum.txt")
    flame.analysis_finished()
else:
    flame.send_intermediate_data([flame.get_aggregator_id()], 21)
"""


def half_way(federation: Federation, known: set[str]) -> str:
    """The run that has come to the line, at every node."""
    folder = federation.aggregator.directory / "runs"

    def look() -> str | None:
        for run in {path.name for path in folder.iterdir()} - known:
            said = [n.directory / "runs" / run / "work" / "stdout" for n in federation.nodes]
            if all(path.exists() and b"HALF WAY" in path.read_bytes() for path in said):
                return run
        return None

    return str(eventually(look, "all programs are half way", 60))


def test_small_calls_answer_while_the_hub_is_away_and_messages_come_later(federation: Federation) -> None:
    known = {path.name for path in (federation.aggregator.directory / "runs").iterdir()}
    researcher = Researcher(
        replace(federation, image=federation.image_of(NAME), environment=federation.environment_of(NAME), _session=None)
    )
    submission = researcher.started({"main.py": PATIENT.encode(), "flame.toml": OPEN})
    half_way(federation, known)
    federation.stop("hub")
    time.sleep(4)
    federation.restart("hub")
    federation._session = None
    assert results(federation, researcher.finish(submission)) == {"sum.txt": b"42"}


def test_a_node_that_dies_in_mid_run_goes_on_and_nothing_is_lost_or_sent_twice(federation: Federation) -> None:
    known = {path.name for path in (federation.aggregator.directory / "runs").iterdir()}
    source = PATIENT.replace("range(80)", "range(20)")
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run, federation, source)
        half_way(federation, known)
        os.kill(federation.node("Aachen").pid, signal.SIGKILL)
        federation.restart("Aachen")
        assert results(federation, running.result(200)) == {"sum.txt": b"42"}


OLD_TOKEN = """\
import base64, json, time
from flamesdk import FlameCoreSDK, expiry
flame = FlameCoreSDK()
first = flame.config.keycloak_token
assert expiry(first) - time.time() > 300
claims = json.dumps({"exp": int(time.time()) + 30, "client_id": flame.get_analysis_id()})
old = base64.b64encode((claims + " " * (-len(claims) % 3)).encode()).decode()
flame.config.keycloak_token = "e30." + old + ".AAAA"
until = time.monotonic() + 20
while flame.refreshed == 0 and time.monotonic() < until:
    time.sleep(0.1)
assert flame.refreshed == 1 and expiry(flame.config.keycloak_token) - time.time() > 300, flame.refreshed
time.sleep(3)
assert flame.refreshed == 1, "a fresh token is left alone"
flame.ready_check()
if flame.get_role() == "aggregator":
    flame.submit_final_result("fresh", filename="token.txt")
    flame.analysis_finished()
"""


def test_a_token_that_grows_old_is_renewed_through_the_program_s_own_endpoint(federation: Federation) -> None:
    assert results(federation, run(federation, OLD_TOKEN)) == {"token.txt": b"fresh"}


LONELY = """\
import os, time
os.environ["ORIGINAL_SYNC"] = "0"
from flamesdk import FlameCoreSDK
flame = FlameCoreSDK()
flame.ready_check()
if flame.get_role() == "aggregator":
    flame.submit_final_result("early", filename="early.txt")
    flame._node_finished()
while True:
    time.sleep(1)
"""


def test_partners_that_have_ended_are_told_so_that_nobody_waits_for_ever(federation: Federation) -> None:
    assert results(federation, run(federation, LONELY)) == {"early.txt": b"early"}


def test_three_commands_are_enough_to_try_a_program(tmp_path: Path) -> None:
    """As in the guide: up with an interpreter and folders, submit a program in it, down."""
    python = interpreter(tmp_path / "python")
    sites = [hospital(tmp_path / "sites", name, patients) for name, patients in HOSPITALS.items()]
    (tmp_path / "count.py").write_text(COUNT)

    def flame(*arguments: str) -> Any:
        done = subprocess.run(
            [sys.executable, "-m", "flame", "dev", *arguments, "--json"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    given = [word for site in sites for word in ("--site", f"{site.name}={site.path}")]
    flame("up", "--environment", f"study={python}", *given)
    try:
        found = flame("submit", "count.py", "--environment", "study")
        assert found["status"] == "executed"
        assert (tmp_path / found["results"][0]["path"]).read_text() == "8"
    finally:
        flame("down")
