"""Programs in processes of their own, over a real unix socket: what the SDK says there, and what it understands."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flame.methods import programs
from flame.methods.logistic import Logistic
from flame.methods.run import run_local
from flame.methods.standardise import Standardised
from flame.sdk import Table
from flame.wire import gateway
from unit.sdk.gateway_in_memory import AGGREGATOR, Gateway, Run

SITES = ("node-a", "node-b")
PATIENCE = 60


class World:
    """Starts the same program at every node and keeps what came of it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.gateways: list[Gateway] = []
        self.runs: list[Run] = []
        self.processes: list[subprocess.Popen[str]] = []

    def open(self, tables: dict[str, dict[str, Any]], parameters: dict[str, Any] | None = None) -> Run:
        run = Run(tables, parameters or {})
        self.runs.append(run)
        for node in [*tables, AGGREGATOR]:
            self.gateways.append(Gateway(run, node, self.root / f"{node}.sock"))
        return run

    def start(self, program: Path, node: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, str(program)],
            env={"PATH": os.environ["PATH"], gateway.SOCKET_VARIABLE: str(self.root / f"{node}.sock")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        return process

    def write(self, source: str) -> Path:
        path = self.root / "program" / "main.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(source)
        return path

    def play(self, program: Path, nodes: list[str]) -> dict[str, tuple[int, str, str]]:
        """Exit code, stdout and stderr of each node's program."""
        running = {node: self.start(program, node) for node in nodes}
        out = {}
        for node, process in running.items():
            stdout, stderr = process.communicate(timeout=PATIENCE)
            out[node] = (process.returncode, stdout, stderr)
        return out

    def close(self) -> None:
        for run in self.runs:
            run.end()
        for opened in self.gateways:
            opened.close()
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.communicate()


@pytest.fixture
def world() -> Iterator[World]:
    with tempfile.TemporaryDirectory(prefix="fl-") as short:  # a unix socket's path has at most 107 characters
        built = World(Path(short))
        yield built
        built.close()


def small_tables() -> dict[str, dict[str, Any]]:
    rng = np.random.default_rng(3)
    tables = {}
    for site, n in (("node-a", 60), ("node-b", 45)):
        age, dose = rng.normal(60, 9, n), rng.normal(2, 1, n)
        ill = (rng.random(n) < 1 / (1 + np.exp(-(0.05 * (age - 60) + 0.4 * dose - 1)))).astype("i8")
        tables[site] = {"ill": ill, "age": age, "dose": dose, "ward": ["north", None] * (n // 2) + ["north"] * (n % 2)}
    return tables


def assert_all_well(ends: dict[str, tuple[int, str, str]]) -> None:
    assert {node: (code, err) for node, (code, _, err) in ends.items()} == dict.fromkeys(ends, (0, ""))


def test_the_ready_program_gives_the_pooled_result_in_one_message_a_round(world: World) -> None:
    tables = small_tables()
    run = world.open(tables, {"outcome": "ill", "covariates": ["age", "dose"], "standardise": True})
    program = Path(programs.__file__).with_name("logistic_regression.py")
    assert_all_well(world.play(program, [*SITES, AGGREGATOR]))

    media, data = run.results["result.json"]
    result = json.loads(data)
    pooled = {name: np.concatenate([tables[site][name] for site in SITES]) for name in ("ill", "age", "dose")}
    expected = run_local(Standardised(Logistic("ill", ["age", "dose"])), [Table(pooled)])
    assert media == "application/json"
    assert result["converged"] and result["n"] == 105 and result["contributors"] == 2
    for got, want in zip(result["coefficients"], expected.coefficients, strict=True):
        assert got["estimate"] == pytest.approx(want.estimate, rel=1e-10)
        assert got["se"] == pytest.approx(want.se, rel=1e-10)
    assert run.finished == {*SITES, AGGREGATOR}
    for site in SITES:
        assert run.requests[site, "Contribute"] == run.requests[site, "Receive"] == result["rounds"]
        assert run.requests[site, "Send"] == 0
    assert run.requests[AGGREGATOR, "Send"] == run.requests[AGGREGATOR, "GetTotal"] == result["rounds"]


def test_a_model_that_cannot_be_fitted_ends_every_program_with_its_reason(world: World) -> None:
    tables = small_tables()
    for columns in tables.values():
        columns["dose"] = np.ones(len(columns["age"]))
    run = world.open(tables, {"outcome": "ill", "covariates": ["age", "dose"]})
    ends = world.play(Path(programs.__file__).with_name("logistic_regression.py"), [*SITES, AGGREGATOR])
    assert [code for code, _, _ in ends.values()] == [1, 1, 1]
    failure = run.failures[AGGREGATOR]
    assert (failure.error, failure.code) == ("flame.model.errors.Singular", "singular")
    assert "'dose'" in failure.text
    assert failure.frames == [("logistic_regression.py", 13)]
    assert {run.failures[site].code for site in SITES} == {"run_failed"}
    assert run.finished == set() and not run.results


def test_sum_is_the_same_everywhere(world: World) -> None:
    run = world.open(small_tables())
    program = world.write("""
import json
import flame

with flame.connect() as fed:
    for turn in range(3):
        if fed.is_aggregator:
            total = fed.sum()
        else:
            age = fed.data().numbers("age")
            total = fed.sum({"n": len(age), "turn": turn, "age": [age.sum()][0], "pair": age[:2]})
    print(json.dumps({k: v if isinstance(v, int | float) else v.tolist() for k, v in total.items()}))
""")
    ends = world.play(program, [*SITES, AGGREGATOR])
    assert_all_well(ends)
    totals = {node: json.loads(out) for node, (_, out, _) in ends.items()}
    assert totals["node-a"] == totals["node-b"] == totals[AGGREGATOR]
    assert totals[AGGREGATOR]["n"] == 105 and totals[AGGREGATOR]["turn"] == 4
    assert len(totals[AGGREGATOR]["pair"]) == 2
    assert run.requests["node-a", "Receive"] == run.requests["node-a", "Contribute"] == 3


def test_messages_logs_files_and_timeouts(world: World) -> None:
    run = world.open(small_tables())
    program = world.write("""
import threading
import numpy as np
import flame
from flame.sdk import NoMessage

with flame.connect() as fed:
    assert (fed.analysis, fed.project, fed.run) == ("analysis-1", "project-1", "run-1")
    assert fed.aggregator == "node-c" and fed.data_nodes == ("node-a", "node-b")
    if fed.is_aggregator:
        waiting = []
        thread = threading.Thread(target=lambda: waiting.append(fed.receive("late")))
        thread.start()                       # waits on a connection of its own
        got = fed.gather("hello")
        assert list(got) == ["node-a", "node-b"]
        assert got["node-b"].value["weights"].tolist() == [[1.0, 2.0]]
        try:
            fed.receive("never", timeout=0.05)
        except NoMessage:
            fed.log("nothing from {who}", level="warning", who="anyone")
        fed.broadcast([1, None, b"x"], "go")
        thread.join()
        assert waiting[0].value == "node-a is late"
        fed.progress(40)
        names = [fed.submit({"b": np.float64(1.5), "a": [float("nan")]}), fed.submit({}), fed.submit("text"),
                 fed.submit(b"raw", "model.onnx")]
        assert names == ["result.json", "result-2.json", "result.txt", "model.onnx"], names
    else:
        table = fed.data()
        assert table.columns == ["ill", "age", "dose", "ward"] and table["ward"][1] is None
        assert table.matrix(["dose", "ill"]).shape == (table.rows, 2)
        fed.send("node-c", {"weights": np.array([[1.0, 2.0]])}, "hello")
        assert fed.receive("go").value == [1, None, b"x"]
        if fed.id == "node-a":
            fed.send([fed.aggregator], "node-a is late", "late")
""")
    assert_all_well(world.play(program, [*SITES, AGGREGATOR]))
    assert run.results["result.json"][1] == b'{\n  "b": 1.5,\n  "a": [\n    null\n  ]\n}\n'
    assert run.results["result.txt"] == ("text/plain", b"text")
    assert run.results["model.onnx"] == ("application/octet-stream", b"raw")
    assert [(node, log.level, log.template, log.values) for node, log in run.logs] == [
        (AGGREGATOR, "warning", "nothing from {who}", {"who": "anyone"})
    ]


def test_a_refusal_is_an_error_the_program_may_handle(world: World) -> None:
    run = world.open(small_tables())
    program = world.write("""
import flame
from flame.model.errors import NotFound, ReleaseRefused

with flame.connect() as fed:
    if not fed.is_aggregator:
        try:
            fed.contribute("forbidden", {"n": 1})
        except ReleaseRefused as error:
            print(error)
        try:
            fed.data("elsewhere")
        except NotFound as error:
            print(error)
        fed.contribute("allowed", {"n": 1})
""")
    ends = world.play(program, ["node-a"])
    assert_all_well(ends)
    assert ends["node-a"][1] == (
        "The sum 'forbidden' is not in the manifest. Declare it.\nThere is no source 'elsewhere'.\n"
    )
    assert list(run.parts) == [("allowed", 1)]


@pytest.mark.parametrize("style", ["with", "bare"])
def test_an_error_is_told_with_its_place_and_ends_the_program(world: World, style: str) -> None:
    run = world.open(small_tables())
    head = "with flame.connect() as fed:\n" if style == "with" else "fed = flame.connect()\nif True:\n"
    program = world.write(
        "import flame\nimport json\n\ndef inner(patient):\n    return json.loads(patient)\n\n"
        + head
        + "    inner('Erika Mustermann')\n"
    )
    code, _, stderr = world.play(program, ["node-a"])["node-a"]
    failure = run.failures["node-a"]
    assert code == 1 and "JSONDecodeError" in stderr
    assert failure.error == "json.decoder.JSONDecodeError"
    assert failure.frames == [("main.py", 8 if style == "with" else 9), ("main.py", 5)]
    assert "Traceback" in failure.text
    assert run.finished == set()


def test_a_program_without_a_node_says_how_to_run_it(world: World) -> None:
    program = world.write("import flame\nflame.connect(patience=0.1)\n")
    code, _, stderr = world.play(program, ["nobody"])["nobody"]
    assert code == 1
    assert "No node answers" in stderr and "flame dev submit" in stderr


def test_connect_waits_for_a_socket_that_appears_late(world: World) -> None:
    program = world.write("import flame\nwith flame.connect() as fed:\n    print(fed.id)\n")
    process = world.start(program, "node-a")
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1.0)
    world.open(small_tables())
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out, err) == (0, "node-a\n", "")


def test_a_waiting_program_ends_when_its_run_is_ended(world: World) -> None:
    run = world.open(small_tables())
    program = world.write(
        "import flame\nwith flame.connect() as fed:\n    print('here', flush=True)\n    fed.receive('x')\n"
    )
    process = world.start(program, "node-a")
    assert process.stdout is not None and process.stdout.readline() == "here\n"
    with run.changed:
        run.wait(lambda: run.requests["node-a", "Receive"])
    run.end()
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1 and "Unavailable" in err


STAR = """
import csv, io
from flame.star import StarAggregator, StarAnalyzer, StarModel

class Analyzer(StarAnalyzer):
    def __init__(self, flame, column):
        super().__init__(flame)
        self.column = column

    def analysis_method(self, data, aggregator_results):
        rows = list(csv.DictReader(io.StringIO(data[0]["data.csv"].decode())))
        ages = [float(row[self.column]) for row in rows]
        middle = aggregator_results or 0.0
        return {"n": len(ages), "sum": sum(age - middle for age in ages)}

class Aggregator(StarAggregator):
    def aggregation_method(self, analysis_results):
        n = sum(r["n"] for r in analysis_results)
        return (self.latest_result or 0.0) + sum(r["sum"] for r in analysis_results) / n

    def has_converged(self, result, last_result):
        return last_result is not None and abs(result - last_result) < 1e-9

StarModel(Analyzer, Aggregator, data_type="s3", query=[], simple_analysis=%s, output_type="str",
          analyzer_kwargs={"column": "age"}, filename="mean.txt")
"""


@pytest.mark.parametrize("simple", [True, False])
def test_a_star_model_runs_to_its_end_at_every_node(world: World, simple: bool) -> None:
    tables = small_tables()
    run = world.open(tables)
    assert_all_well(world.play(world.write(STAR % simple), [*SITES, AGGREGATOR]))
    mean = np.concatenate([tables[site]["age"] for site in SITES]).mean()
    assert float(run.results["mean.txt"][1]) == pytest.approx(mean, abs=1e-9)
    assert run.finished == {*SITES, AGGREGATOR}
    assert not run.logs


def test_several_results_of_a_star_model_are_several_files(world: World) -> None:
    run = world.open(small_tables())
    program = world.write("""
from flame.star import StarAggregator, StarAnalyzer, StarModel

class Analyzer(StarAnalyzer):
    def analysis_method(self, data, aggregator_results):
        return data.rows

class Aggregator(StarAggregator):
    def aggregation_method(self, analysis_results):
        return [str(analysis_results), b"raw", {"n": sum(analysis_results)}]

    def has_converged(self, result, last_result):
        return False

StarModel(Analyzer, Aggregator, data_type="table", multiple_results=True, output_type=["str", "bytes", "pickle"],
          filename="out.dat")
""")
    assert_all_well(world.play(program, [*SITES, AGGREGATOR]))
    assert {name: data for name, (_, data) in run.results.items() if name != "out_3.dat"} == {
        "out_1.dat": b"[60, 45]",
        "out_2.dat": b"raw",
    }
    assert run.results["out_3.dat"][1].startswith(b"\x80")  # a pickle, which nothing of ours reads


def test_a_program_written_for_flamesdk_runs_unchanged(world: World) -> None:
    run = world.open(small_tables())
    program = world.write("""
from flamesdk import FlameCoreSDK

flame = FlameCoreSDK()
others = flame.get_participants()
assert flame.get_id() not in flame.get_participant_ids() and len(others) == 2
assert set(others[0]) == {"nodeId", "nodeType"}
assert flame.ready_check() == dict.fromkeys(flame.get_participant_ids(), True)
if flame.get_role() == "aggregator":
    assert flame.get_aggregator_id() is None
    sites = [p["nodeId"] for p in others if p["nodeType"] == "default"]
    greetings = flame.await_messages(sites, "greeting", timeout=30)
    assert [greetings[s][0].body["text"] for s in sites] == sites
    assert greetings[sites[0]][0].body["meta"]["sender"] == sites[0]
    assert len(flame.get_messages("read")) == 2 and flame.clear_messages("all") == 2
    data = flame.await_intermediate_data(sites)
    assert flame.await_intermediate_data(sites, "nothing", timeout=0.05) == dict.fromkeys(sites)
    flame.flame_log("patients: " + str(data), log_type="notice")
    print(flame.submit_final_result(sum(data.values())))
    flame.analysis_finished()
else:
    aggregator = flame.get_aggregator_id()
    assert flame.send_message([aggregator], "greeting", {"text": flame.get_id()}) == ([aggregator], [])
    files = flame.get_s3_data()
    flame.send_intermediate_data([aggregator], files[0]["data.csv"].count(b"\\n") - 1)
    assert flame.await_intermediate_data([aggregator]) == {aggregator: None}
    assert flame.config.finished
""")
    ends = world.play(program, [*SITES, AGGREGATOR])
    assert_all_well(ends)
    assert ends[AGGREGATOR][1] == "{'status': 'success'}\n"
    assert run.results["result.txt"][1] == b"105"
    assert [(log.level, log.template) for _, log in run.logs] == [("info", "{text}")]


def test_what_cannot_travel_is_refused_with_a_next_step(world: World) -> None:
    run = world.open(small_tables())
    program = world.write("""
from flamesdk import FlameCoreSDK

class Model: ...

FlameCoreSDK().send_intermediate_data(["node-c"], {"model": Model()})
""")
    code, _, stderr = world.play(program, ["node-a"])["node-a"]
    assert code == 1
    assert "value.model is a __main__.Model, which cannot travel." in stderr and "NumPy arrays" in stderr
    assert not run.mail
    assert run.failures["node-a"].frames == [("main.py", 6)]


def test_tables_as_csv_read_back_as_they_were(world: World) -> None:
    tables = small_tables()
    text = Table(tables["node-a"]).to_csv()
    rows = [line.split(",") for line in io.StringIO(text.decode()).read().splitlines()]
    assert rows[0] == ["ill", "age", "dose", "ward"]
    assert [float(row[1]) for row in rows[1:]] == tables["node-a"]["age"].tolist()
    assert rows[2][3] == ""
