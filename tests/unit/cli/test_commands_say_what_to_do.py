"""The command line: quick, lazily loaded, clear about mistakes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from flame.cli.doctor import examine
from flame.cli.entry import VERBS, load
from flame.cli.options import read_columns, read_sites
from flame.model.errors import Invalid, NotFound
from flame.researcher.program import choose_entrypoint, read_program


def flame(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flame", *arguments], cwd=cwd, capture_output=True, text=True, timeout=60, check=False
    )


def test_version_loads_nothing_heavy() -> None:
    code = "import sys; sys.argv = ['flame', 'version']\nfrom flame.cli import main; main(); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    said, modules = done.stdout.split("\n", 1)
    assert said.startswith("flame ")
    for heavy in ("typer", "rich", "numpy", "cryptography", "asyncio", "flame.hub", "flame.node", "flame.lab"):
        assert f"'{heavy}'" not in modules


def test_help_lists_every_verb_without_loading_any() -> None:
    done = flame("--help")
    assert done.returncode == 0
    assert all(f"  {verb} " in done.stdout for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_loads_and_has_help(verb: str) -> None:
    assert load(verb).help


def test_an_unknown_verb_is_a_usage_error() -> None:
    done = flame("nonsense")
    assert done.returncode == 2
    assert "nonsense" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("demo", "--json", "--hospitals", "many"), "--hospitals"),
        (("demo", "--nonsense", "--json"), "--nonsense"),
        (("dev", "submit", "--json"), "PROGRAM_OR_DIR"),
        (("nonsense", "--json"), "nonsense"),
    ],
)
def test_a_wrong_usage_with_json_is_one_object(arguments: tuple[str, ...], named: str) -> None:
    done = flame(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    said = json.loads(done.stderr)
    assert set(said) == {"code", "message", "nextStep"}
    assert said["code"] == "usage" and named in said["message"] and "--help" in said["nextStep"]


def test_no_federation_is_said_in_words(tmp_path: Path) -> None:
    done = flame("dev", "status", cwd=tmp_path)
    assert done.returncode == 4
    assert "flame dev up" in done.stderr
    assert "Traceback" not in done.stderr
    as_json = flame("dev", "status", "--json", cwd=tmp_path)
    assert as_json.stdout == ""
    assert json.loads(as_json.stderr)["code"] == "entity_not_found"


@pytest.mark.parametrize(
    "text", ["Mainz", "=x.csv", "../up=x.csv", "a b=x.csv", "-x=x.csv", "a" * 65 + "=x.csv", "a/b/c=x.csv"]
)
def test_names_of_sites_are_names_of_directories(text: str) -> None:
    with pytest.raises(Invalid, match="NAME=PATH"):
        read_sites([text])


def test_sites_need_existing_files_and_names_of_their_own(tmp_path: Path) -> None:
    file = tmp_path / "a=b.csv"
    file.write_text("x\n1\n")
    (site,) = read_sites([f"Mainz={file}"])
    assert site.name == "Mainz" and site.path == file
    with pytest.raises(NotFound, match="Mainz"):
        read_sites(["Mainz=nowhere.csv"])
    for names in (("Mainz", "mainz"), ("Mainz", "aggregator"), ("hub", "Mainz")):
        with pytest.raises(Invalid, match="name"):
            read_sites([f"{name}={file}" for name in names])


def test_the_wrong_name_of_a_site_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("x\n1\n")
    with pytest.raises(Invalid, match=r"same name: 'Mainz' and 'MAINZ'"):
        read_sites([f"Mainz={file}", f"Ulm={file}", f"MAINZ={file}"])
    with pytest.raises(Invalid, match="--site Hub has the name"):
        read_sites([f"Hub={file}"])
    assert [site.name for site in read_sites([f"Ma={file}", f"B={file}"])] == ["site-Ma", "site-B"]


def test_a_folder_stands_for_its_one_table(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    for tables in ([], ["a.csv"], ["a.csv", "b.csv"]):
        for name in tables:
            (tmp_path / name).write_text("x\n1\n")
        if len(tables) == 1:
            assert read_sites([f"Mainz={tmp_path}"])[0].path == tmp_path / "a.csv"
        else:
            with pytest.raises(Invalid, match=f"{len(tables)} tables"):
                read_sites([f"Mainz={tmp_path}"])
    with pytest.raises(Invalid, match="csv"):
        read_sites([f"Mainz={tmp_path / 'notes.txt'}"])


def test_lists_of_columns() -> None:
    assert read_columns(None) == ()
    assert read_columns("age, mean radius") == ("age", "mean radius")
    for text in ("", "a,,b", "a,"):
        with pytest.raises(Invalid):
            read_columns(text)


def test_a_program_is_its_files_and_nothing_hidden(tmp_path: Path) -> None:
    (tmp_path / "lib" / "__pycache__").mkdir(parents=True)
    (tmp_path / ".git").mkdir()
    for name in ("main.py", "lib/a.py", "lib/__pycache__/a.pyc", ".git/config", ".env"):
        (tmp_path / name).write_text(name)
    assert read_program(tmp_path) == {"lib/a.py": b"lib/a.py", "main.py": b"main.py"}
    assert read_program(tmp_path / "main.py") == {"main.py": b"main.py"}
    (tmp_path / "secret.py").symlink_to("/etc/hostname")
    with pytest.raises(Invalid, match="link"):
        read_program(tmp_path)
    with pytest.raises(NotFound):
        read_program(tmp_path / "none")


def test_what_runs_is_clear() -> None:
    assert choose_entrypoint({"main.py": b"", "b.py": b""}, None) == "main.py"
    assert choose_entrypoint({"only.py": b"", "flame.toml": b""}, None) == "only.py"
    assert choose_entrypoint({"a.py": b"", "b.py": b""}, "b.py") == "b.py"
    with pytest.raises(Invalid, match="--entrypoint"):
        choose_entrypoint({"a.py": b"", "b.py": b""}, None)
    with pytest.raises(NotFound, match=r"a\.py"):
        choose_entrypoint({"a.py": b""}, "c.py")


def test_the_doctor_looks_at_everything() -> None:
    findings = {finding.name: finding for finding in examine()}
    assert set(findings) == {"python", "system", "parts", "byte code", "sandbox", "limits", "disk"}
    for finding in findings.values():
        assert finding.found
        assert finding.state == "good" or finding.next_step or finding.name == "limits"


def test_the_doctor_misses_bubblewrap(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("flame.runtime.process._PROGRAMS", str(tmp_path))
    sandbox = next(finding for finding in examine() if finding.name == "sandbox")
    assert sandbox.state == "bad"
    assert "apt-get install" in sandbox.next_step


def test_settings_tell_where_they_come_from_and_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAME_HUB_ADMIN_PASSWORD", "very secret")
    monkeypatch.setenv("FLAME_HUB_PORT", "8123")
    done = flame("hub", "settings", "--json", "--dir", str(tmp_path))
    assert "very secret" not in done.stdout
    rows = {row["setting"]: row for row in json.loads(done.stdout)}
    assert rows["FLAME_HUB_PORT"] == {"setting": "FLAME_HUB_PORT", "value": 8123, "from": "environment"}
    assert rows["FLAME_HUB_DIR"]["from"] == "command line"
    assert rows["FLAME_HUB_HOST"]["from"] == "default"
