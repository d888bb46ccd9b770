"""What the documents show exists and works: commands, links, programs, numbers."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from flame.cli.entry import VERBS, load
from flame.protocol.freeze import read_author_file

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[tuple[str, str]]:
    return [
        (path.relative_to(ROOT).as_posix(), text)
        for path in DOCUMENTS
        for kind, text in BLOCK.findall(path.read_text(encoding="utf-8"))
        if kind == language
    ]


def targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def test_the_readme_shows_two_commands_that_the_makefile_has() -> None:
    shown = [text.strip() for name, text in blocks("sh") if name == "README.md"]
    assert shown == ["make demo", "make test"]
    assert {"demo", "test", "check", "bench", "clean"} <= targets()


def test_make_help_lists_every_target() -> None:
    listed = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert {line.split()[1] for line in listed.stdout.splitlines()} == targets()


def commands() -> list[tuple[str, str]]:
    return [(name, line) for name, text in blocks("sh") for line in text.splitlines() if line]


@pytest.mark.parametrize(("name", "line"), commands(), ids=lambda value: str(value)[:60])
def test_every_command_that_is_shown_exists(name: str, line: str) -> None:
    words = shlex.split(line)
    if words[0] == "make":
        assert words[1] in targets()
        for word in words[2:]:
            assert word.startswith("DEMO=")
            check_options(load("demo"), shlex.split(word.removeprefix("DEMO=")))
        return
    assert Path(words[0]).name == "flame"
    assert words[1] in VERBS
    command, rest = load(words[1]), words[2:]
    while hasattr(command, "commands"):
        command, rest = command.commands[rest[0]], rest[1:]
    check_options(command, rest)


def check_options(command: object, words: list[str]) -> None:
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}  # type: ignore[attr-defined]
    assert {word.split("=")[0] for word in words if word.startswith("--")} <= known


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://")):
            assert (path.parent / target.split("#")[0]).exists(), target


def test_flame_commands_in_running_text_exist() -> None:
    for path in DOCUMENTS:
        for words in re.findall(r"`flame ([a-z][a-z -]*?)(?: [A-Z][A-Z_]*)*`", path.read_text(encoding="utf-8")):
            verb, *rest = words.split()
            assert verb in VERBS, f"{path.name}: flame {words}"
            command = load(verb)
            for word in rest:
                if hasattr(command, "commands"):
                    assert word in command.commands, f"{path.name}: flame {words}"
                    command = command.commands[word]


@pytest.mark.parametrize(
    ("name", "text"), [b for b in blocks("python") if "import flame\n" in b[1]], ids=lambda value: str(value)[:30]
)
def test_programs_that_are_shown_run(name: str, text: str, tmp_path: Path) -> None:
    """Compiled, and every name of the SDK that they use exists; the mean of the guide runs in the acceptance tests."""
    from flame.sdk.federation import Federation
    from flame.sdk.table import Table

    compile(text, name, "exec")
    used = set(re.findall(r"\bfed\.(\w+)", text))
    assert used and {word for word in used if not hasattr(Federation, word) and word != "role"} == set()
    assert {word for word in re.findall(r"fed\.data\(\)\.(\w+)", text) if not hasattr(Table, word)} == set()


@pytest.mark.parametrize(("name", "text"), blocks("toml"), ids=lambda value: str(value)[:30])
def test_settings_files_that_are_shown_are_read(name: str, text: str, tmp_path: Path) -> None:
    if name.endswith("policy.md"):
        from flame.node.egress.policy import read_policy

        path = tmp_path / "policy.toml"
        path.write_text(text)
        assert read_policy(path) != read_policy(tmp_path / "absent.toml")
    elif name.endswith("hub-operator.md"):
        from flame.hub.settings import Settings

        path = tmp_path / "hub.toml"
        path.write_text(text)
        assert Settings.from_env({}, config=path).database_url == tomllib.loads(text)["database_url"]
    else:
        assert read_author_file(text.encode()) == tomllib.loads(text)


def test_the_pictures_are_pictures() -> None:
    tree = ElementTree.parse(ROOT / "docs" / "picture.svg").getroot()
    assert tree.tag.endswith("svg")
    assert tree.find("{http://www.w3.org/2000/svg}desc") is not None  # for those who cannot see it


def test_no_document_names_a_machine() -> None:
    for path in DOCUMENTS:
        assert not re.search(r"(?<![\w.])/(?:home|root|work|mnt)/", path.read_text(encoding="utf-8")), path.name


def test_the_version_is_one() -> None:
    import flame

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == flame.__version__
    done = subprocess.run([sys.executable, "-m", "flame", "version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"flame {project['version']}"
