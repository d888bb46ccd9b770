"""``flame demo`` through real processes: the federated answer is the pooled one, and nothing is left behind."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

EXACT = 1e-10
COEFFICIENT = {"name", "estimate", "se", "ci_low", "ci_high", "p", "odds_ratio"}
KEYS = {
    "coefficients", "log_likelihood", "pooled", "max_abs_deviation", "rounds", "hospitals", "seconds", "hub",
    "log_verified", "isolation", "plot",
}  # fmt: skip

# ../shared/design/methods.md, "Reference values"; there for benign, so the signs turn round.
MALIGNANT = (-0.93736012, 5.22349002, 1.61619551, 1.66780706, 0.56047028)
MALIGNANT_SE = (0.20466408, 0.58772706, 0.24965491, 0.32015249, 0.29935748)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """An empty directory to work in, and one for temporary files that must be empty afterwards."""
    (tmp_path / "work").mkdir()
    (tmp_path / "tmp").mkdir()
    return tmp_path / "work"


def variables(place: Path) -> dict[str, str]:
    cache = place.parent.parent / "cache"  # another version of FLAME at work on this machine has its own
    return {**os.environ, "TMPDIR": str(place.parent / "tmp"), "XDG_CACHE_HOME": str(cache), "COLUMNS": "120"}


def flame(place: Path, *arguments: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flame", *arguments],
        cwd=place,
        env=variables(place),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def demo(place: Path, *arguments: str) -> dict[str, Any]:
    done = flame(place, "demo", "--json", "--out", "out", *arguments)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)  # one object and nothing else
    assert_nothing_left(place)
    return found


def processes_of(place: Path) -> list[str]:
    found = []
    for process in psutil.process_iter(["pid", "cmdline", "status"]):
        line = " ".join(process.info["cmdline"] or ())
        if str(place) in line and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(line)
    return found


def assert_nothing_left(place: Path) -> None:
    assert processes_of(place) == []
    assert list((place.parent / "tmp").iterdir()) == []
    assert {path.name for path in place.iterdir()} <= {"out", "sites"}
    out = place / "out"
    if out.exists():
        assert {p.name for p in out.iterdir()} == {"forest.png", "forest.svg", "result.json", "table.txt"}


def column(found: Sequence[dict[str, Any]], key: str) -> list[float]:
    return [row[key] for row in found]


def assert_equals_pooled(found: dict[str, Any]) -> None:
    for key in ("estimate", "se", "p", "ci_low", "ci_high"):
        np.testing.assert_allclose(
            column(found["coefficients"], key), column(found["pooled"], key), rtol=1e-9, atol=EXACT
        )
    deviation = max(
        abs(a - b)
        for a, b in zip(column(found["coefficients"], "estimate"), column(found["pooled"], "estimate"), strict=True)
    )
    assert deviation == found["max_abs_deviation"] <= EXACT


def test_one_object_says_everything(place: Path) -> None:
    found = demo(place)
    assert set(found) == KEYS
    assert all(set(row) == COEFFICIENT for row in (*found["coefficients"], *found["pooled"]))
    assert_equals_pooled(found)
    np.testing.assert_allclose(column(found["coefficients"], "estimate"), MALIGNANT, atol=5e-9)
    np.testing.assert_allclose(column(found["coefficients"], "se"), MALIGNANT_SE, atol=5e-9)
    assert found["log_likelihood"] == pytest.approx(-91.92297515, abs=5e-9)
    assert found["hospitals"] == 3
    assert found["rounds"] >= 3
    assert set(found["hub"]) == {"messages", "sealed_bytes", "control_bytes", "code_bytes", "payload_readable"}
    assert found["hub"]["payload_readable"] == 0
    assert min(found["hub"][key] for key in ("messages", "sealed_bytes", "control_bytes", "code_bytes")) > 0
    assert found["log_verified"] is True
    assert found["isolation"] in ("full", "no-network-own-files", "none")
    assert all(seconds >= 0 for seconds in found["seconds"].values())
    assert Path(found["plot"]).read_bytes().startswith(b"\x89PNG")
    assert json.loads((place / "out" / "result.json").read_text()) == found


@pytest.mark.parametrize("hospitals", [2, 4, 5, 6])
def test_the_pooled_answer_for_any_number_of_hospitals(place: Path, hospitals: int) -> None:
    found = demo(place, "--hospitals", str(hospitals))
    assert found["hospitals"] == hospitals
    assert_equals_pooled(found)
    np.testing.assert_allclose(column(found["coefficients"], "estimate"), MALIGNANT, atol=5e-9)


def write(path: Path, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return f"{path.stem}={path}"


def test_a_hospital_with_a_single_class(place: Path) -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(240, 2))
    y = (rng.random(240) < 1 / (1 + np.exp(-(0.4 + x @ [0.8, -0.5])))).astype(int)
    order = np.argsort(y, kind="stable")  # the first hospital has nobody with the outcome
    sites = [
        write(
            place / "sites" / f"{name}.csv",
            ["y", "dose", "age"],
            [[y[i], repr(float(x[i, 0])), repr(float(x[i, 1]))] for i in part],
        )
        for name, part in zip(("North", "South", "West"), np.split(order, [40, 150]), strict=True)
    ]
    found = demo(place, *(f"--site={site}" for site in sites), "--outcome", "y", "--covariates", "dose,age")
    assert found["hospitals"] == 3
    assert_equals_pooled(found)


def test_four_real_hospitals_on_the_raw_scale(place: Path) -> None:
    data = os.environ.get("FLAME_TEST_DATA")
    if not data:
        pytest.skip("FLAME_TEST_DATA does not say where the heart-disease data are")
    wanted = ["age", "sex", "trestbps"]
    sites = []
    for source in sorted((Path(data) / "heart-disease").glob("*.csv")):
        with source.open(newline="") as file:
            rows = list(csv.DictReader(file))
        cells = [[int(float(row["num"]) > 0), *(row[name] for name in wanted)] for row in rows]
        sites.append(write(place / "sites" / f"{source.stem}.csv", ["disease", *wanted], cells))
    assert len(sites) == 4
    model = ("--outcome", "disease", "--covariates", ",".join(wanted))
    found = demo(place, *(f"--site={site}" for site in sites), *model)
    assert [row["name"] for row in found["coefficients"]] == ["(Intercept)", *wanted]
    assert_equals_pooled(found)


def test_a_missing_column_is_named_before_anything_starts(place: Path) -> None:
    good = write(place / "sites" / "Mainz.csv", ["y", "age"], [[0, 50], [1, 60]])
    bad = write(place / "sites" / "Ulm.csv", ["y", "Alter"], [[0, 50], [1, 60]])
    done = flame(
        place, "demo", "--json", "--out", "out", "--site", good, "--site", bad, "--outcome", "y", "--covariates", "age"
    )
    assert done.returncode == 4
    assert done.stdout == ""
    error = json.loads(done.stderr)
    assert "Ulm" in error["message"] and "'age'" in error["message"]
    assert "Alter" in error["nextStep"]
    assert_nothing_left(place)


def test_text_where_numbers_are_needed_ends_with_a_reason_and_nothing_left(place: Path) -> None:
    rows = [[i % 2, 40 + i] for i in range(30)]
    good = write(place / "sites" / "Mainz.csv", ["y", "age"], rows)
    bad = write(place / "sites" / "Ulm.csv", ["y", "age"], [[0, "young"], [1, "old"]])
    model = ("--outcome", "y", "--covariates", "age")
    done = flame(place, "demo", "--json", "--out", "out", "--site", good, "--site", bad, *model)
    assert done.returncode == 7
    assert done.stdout == ""
    assert json.loads(done.stderr)["code"] == "run_failed"
    assert_nothing_left(place)


WITHOUT_BUBBLEWRAP = """
mount --make-rprivate /
for program in /usr/bin/bwrap /bin/bwrap /usr/local/bin/bwrap; do
    if [ -e "$program" ]; then mount --bind "$1" "$program"; fi
done
shift
exec "$@"
"""


def without_bubblewrap(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command where bubblewrap cannot be run: in a view of the file system of its own."""
    if os.geteuid() != 0 or subprocess.run(["unshare", "-m", "true"], check=False).returncode != 0:
        pytest.skip("only root can hide bubblewrap from the command")
    hidden = place.parent / "not-a-program"
    hidden.touch(mode=0o644)
    command = ["unshare", "-m", "sh", "-ec", WITHOUT_BUBBLEWRAP, "sh", str(hidden), sys.executable, "-m", "flame"]
    return subprocess.run(
        [*command, *arguments],
        cwd=place,
        env=variables(place),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_without_bubblewrap_public_data_run_and_it_is_said(place: Path) -> None:
    done = without_bubblewrap(place, "demo", "--json", "--out", "out")
    assert done.returncode == 0, done.stderr
    assert "apt-get install" in done.stderr and "public" in done.stderr
    found = json.loads(done.stdout)
    assert found["isolation"] == "none"
    assert_equals_pooled(found)
    assert "bubblewrap is missing" in (place / "out" / "table.txt").read_text()
    assert_nothing_left(place)


def test_without_bubblewrap_own_data_do_not_run(place: Path) -> None:
    site = write(place / "sites" / "Mainz.csv", ["y", "age"], [[0, 50], [1, 60]])
    done = without_bubblewrap(place, "demo", "--out", "out", "--site", site, "--outcome", "y", "--covariates", "age")
    assert done.returncode == 3
    assert "bubblewrap is missing" in done.stderr and "apt-get install" in done.stderr
    assert_nothing_left(place)


@pytest.mark.parametrize(
    ("number", "stage", "keep"),
    [
        (signal.SIGINT, "starting hub", ()),
        (signal.SIGTERM, "enrolling", ("--keep",)),
        (signal.SIGINT, "researcher and", ()),
        (signal.SIGINT, "sign", ()),
        (signal.SIGTERM, "sign", ("--keep",)),
    ],
)
def test_an_interruption_ends_everything(place: Path, number: int, stage: str, keep: tuple[str, ...]) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "flame", "demo", "--out", "out", *keep],
        cwd=place,
        env=variables(place),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if stage in line:
                break
        process.send_signal(number)
        process.stderr.read()
    assert process.returncode == 130
    assert_nothing_left(place)
    assert not (place / "out").exists()


def test_keep_leaves_a_federation_that_down_ends(place: Path) -> None:
    federation = str(place / "out" / "federation")
    try:
        done = flame(place, "demo", "--json", "--keep", "--out", "out")
        assert done.returncode == 0, done.stderr
        assert set(json.loads(done.stdout)) == KEYS
        assert "http://127.0.0.1:" in done.stderr
        status = json.loads(flame(place, "dev", "status", "--json", "--dir", federation).stdout)
        assert status["hub"]["running"] and all(node["running"] for node in status["nodes"])
    finally:
        down = flame(place, "dev", "down", "--dir", federation)
    assert down.returncode == 0, down.stderr
    assert_nothing_left(place)


def test_a_failure_with_keep_says_what_goes_on_and_how_to_end_it(place: Path) -> None:
    good = write(place / "sites" / "Mainz.csv", ["y", "age"], [[i % 2, 40 + i] for i in range(30)])
    bad = write(place / "sites" / "Ulm.csv", ["y", "age"], [[0, "young"], [1, "old"]])
    model = ("--outcome", "y", "--covariates", "age")
    federation = str(place / "out" / "federation")
    try:
        done = flame(place, "demo", "--json", "--keep", "--out", "out", "--site", good, "--site", bad, *model)
        assert done.returncode == 7
        said = json.loads(done.stderr)["nextStep"]
        assert f"goes on in {federation}" in said
        assert said.endswith(f"flame dev down --dir {federation}")
        assert "Repeat with --keep" not in said
    finally:
        flame(place, "dev", "down", "--dir", federation)
    (place / "out").rmdir()  # nothing is in it
    assert_nothing_left(place)
