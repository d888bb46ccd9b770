"""``flame dev``: the loop of everyone who tries something, with the very programs that the documents show."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from flame.lab.datasets import breast_cancer

ROOT = Path(__file__).parents[2]


def flame(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flame", *arguments],
        cwd=place,
        env={**os.environ, "XDG_CACHE_HOME": str(place.parent / "cache")},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def running(place: Path) -> list[int]:
    lines = {p.pid: " ".join(p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"])}
    return [pid for pid, line in lines.items() if str(place) in line]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dev")


@pytest.fixture(scope="module")
def up(place: Path) -> Iterator[dict[str, Any]]:
    """Two hospitals with the demo's data, in the default directory."""
    done = flame(place, "dev", "up", "--hospitals", "2", "--json")
    assert done.returncode == 0, done.stderr
    yield json.loads(done.stdout)
    down = flame(place, "dev", "down", "--json")
    assert down.returncode == 0, down.stderr
    assert running(place) == []
    assert not (place / ".flame-dev").exists()


def shown(document: str, language: str) -> str:
    found = re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / document).read_text(), re.MULTILINE | re.DOTALL)
    return str(found[0])


def submit(place: Path, *arguments: str) -> tuple[int, dict[str, Any], str]:
    done = flame(place, "dev", "submit", "--json", *arguments)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout), done.stderr


def program(place: Path, name: str, code: str, author: str | None = None) -> str:
    folder = place / "programs" / name
    folder.mkdir(parents=True)
    (folder / "main.py").write_text(code)
    if author is not None:
        (folder / "flame.toml").write_text(author)
    return str(folder)


def test_up_says_where_everything_is(place: Path, up: dict[str, Any]) -> None:
    assert set(up) == {"dir", "hub", "researcher", "nodes"}
    assert set(up["hub"]) == {"url", "admin"}
    assert set(up["hub"]["admin"]) == set(up["researcher"]) == {"username", "password"}
    assert [node["role"] for node in up["nodes"]] == ["default", "default", "aggregator"]
    for node in up["nodes"]:
        assert set(node) == {"id", "name", "role", "directory", "url"}
        assert node["url"].startswith("http://127.0.0.1:")
        assert Path(node["directory"]).is_dir()


def test_status_shows_every_part(place: Path, up: dict[str, Any]) -> None:
    status = json.loads(flame(place, "dev", "status", "--json").stdout)
    assert status["hub"]["running"] is True
    assert [node["running"] for node in status["nodes"]] == [True, True, True]
    assert {n["id"]: n["directory"] for n in status["nodes"]} == {n["id"]: n["directory"] for n in up["nodes"]}
    text = flame(place, "dev", "status").stdout
    assert all(node["name"] in text and node["directory"] in text for node in up["nodes"])


def test_a_second_federation_in_the_same_directory_is_refused(place: Path, up: dict[str, Any]) -> None:
    done = flame(place, "dev", "up")
    assert done.returncode == 3
    assert "flame dev down" in done.stderr
    assert json.loads(flame(place, "dev", "status", "--json").stdout)["hub"]["running"] is True


def test_the_guide_s_program_gives_the_pooled_mean(place: Path, up: dict[str, Any]) -> None:
    author = shown("docs/quickstart.md", "toml")
    folder = program(place, "mean", shown("docs/quickstart.md", "python"), author)
    code, found, errors = submit(place, folder, "--out", "mean-results")
    assert code == 0, errors
    assert set(found) == {"analysis", "status", "reason", "seconds", "results"}
    assert (found["status"], found["reason"]) == ("executed", "")
    (result,) = found["results"]
    assert set(result) == {"name", "path", "bytes"}
    written = (place / result["path"]).read_bytes()
    assert len(written) == result["bytes"]
    answer = json.loads(written)
    cohort = breast_cancer()
    radius = np.array([float(row[cohort.columns.index("mean radius")]) for row in cohort.rows])
    assert answer["n"] == 569
    assert answer["hospitals"] == 2
    assert answer["mean"] == pytest.approx(radius.mean(), rel=1e-12)


def test_the_readme_s_program_runs(place: Path, up: dict[str, Any]) -> None:
    code = shown("README.md", "python").replace('"age"', '"mean area"')
    author = shown("docs/quickstart.md", "toml").replace('"mean radius"', '"mean area"').replace('"radius"', '"ages"')
    status, found, errors = submit(place, program(place, "readme", code, author))
    assert status == 0, errors
    assert found["results"][0]["path"].startswith("flame-results-")


def test_a_program_that_fails_names_place_and_line(place: Path, up: dict[str, Any]) -> None:
    code = "import flame\nwith flame.connect() as fed:\n    if not fed.is_aggregator:\n        1 / 0\n    fed.receive('never')\n"
    status, found, errors = submit(place, program(place, "failing", code, shown("docs/quickstart.md", "toml")))
    assert status == 7
    assert found["status"] == "failed"
    assert found["results"] == []
    assert "ZeroDivisionError" in found["reason"] and "main.py" in found["reason"]
    assert any(node["name"] in found["reason"] for node in up["nodes"])
    error = json.loads(errors.strip().splitlines()[-1])
    assert error["code"] == "run_failed"
    command = shlex.split(error["nextStep"].partition(": ")[2])
    failed = next(node for node in up["nodes"] if node["name"] in found["reason"])
    assert command[:3] == ["flame", "node", "log"] and command[4:] == ["--dir", failed["directory"]]
    log = flame(place, *command[1:])
    assert log.returncode == 0, log.stderr
    assert "ZeroDivisionError" in log.stdout


def test_what_is_not_declared_does_not_leave(place: Path, up: dict[str, Any]) -> None:
    code = shown("docs/quickstart.md", "python").replace('"radius"', '"everything"')
    status, found, _ = submit(place, program(place, "greedy", code, shown("docs/quickstart.md", "toml")))
    assert status == 7
    assert "'everything'" in found["reason"]


def test_an_unknown_entrypoint_is_named_before_anything_is_sent(place: Path, up: dict[str, Any]) -> None:
    folder = program(place, "entry", "import flame\n")
    done = flame(place, "dev", "submit", folder, "--entrypoint", "other.py")
    assert done.returncode == 4
    assert "other.py" in done.stderr and "main.py" in done.stderr


def test_a_wrong_author_file_is_invalid_input(place: Path, up: dict[str, Any]) -> None:
    author = shown("docs/quickstart.md", "toml").replace('"sum"', '"total"')
    done = flame(place, "dev", "submit", program(place, "wrong", "import flame\n", author), "--json")
    assert done.returncode == 2
    said = json.loads(done.stderr.strip().splitlines()[-1])["message"]
    assert said.startswith("flame.toml: [[releases]] number 1, key kind is 'total'; allowed are sum, ")
