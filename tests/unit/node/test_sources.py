"""A source is granted to the projects that are named, and to nobody else."""

from __future__ import annotations

from pathlib import Path

import pytest

from flame.model.errors import Conflict, Invalid, NotAllowed, NotFound
from flame.node.data.sources import Sources, make_source, read_sources, write_sources

ROW = '[[source]]\nname = "data"\nid = "d1"\npath = "/srv/a.csv"\n'


def written(tmp_path, text):
    path = tmp_path / "sources.toml"
    path.write_text(text, encoding="utf-8")
    return read_sources(path)


def test_without_a_file_nothing_is_offered(tmp_path):
    with pytest.raises(NotFound, match="no source"):
        read_sources(tmp_path / "sources.toml").granted("data", "p")


def test_a_source_without_projects_is_granted_to_nobody(tmp_path):
    with pytest.raises(NotAllowed):
        written(tmp_path, ROW).granted("data", "p")


def test_only_the_named_project_gets_it(tmp_path):
    sources = written(tmp_path, ROW + 'projects = ["p"]\n')
    assert sources.granted("data", "p").id == "d1"
    with pytest.raises(NotAllowed, match="not granted"):
        sources.granted("data", "q")
    with pytest.raises(NotFound):
        sources.granted("other", "p")


def test_a_projects_own_source_goes_before_the_one_for_everybody(tmp_path):
    both = ROW + 'projects = "*"\npublic = true\n' + ROW.replace("d1", "d2") + 'projects = ["p"]\n'
    sources = written(tmp_path, both)
    assert sources.granted("data", "p").id == "d2"
    assert sources.granted("data", "q").id == "d1"


@pytest.mark.parametrize(
    "text",
    [
        'source = "x"\n',
        "[source]\n",
        ROW + "secret = 1\n",
        ROW.replace("/srv/a.csv", "a.csv"),
        ROW.replace("/srv/a.csv", "/srv/../etc/a.csv"),
        ROW.replace("/srv/a.csv", "/etc/shadow"),
        ROW.replace("/srv/a.csv", "/srv/a.csv\\u0000"),
        ROW.replace('"d1"', "3"),
        ROW.replace("data", "da ta"),
        ROW + 'projects = "p"\n',
        ROW + 'projects = ["p", "*"]\n',
        ROW + "projects = [1]\n",
        ROW + 'public = "no"\n',
        '[[source]]\nname = "data"\n',
        "other = 1\n",
    ],
)
def test_what_is_not_understood_is_refused(tmp_path, text):
    with pytest.raises(Invalid, match=r"sources\.toml") as refused:
        written(tmp_path, text)
    assert str(refused.value)


def test_the_line_of_an_unknown_key_is_that_of_its_own_table(tmp_path):
    with pytest.raises(Invalid, match="line 9"):
        written(tmp_path, ROW + ROW.replace("d1", "d2") + "typo = 1\n")


@pytest.mark.parametrize("second", [ROW, ROW.replace("d1", "d2") + 'projects = ["p"]\n'])
def test_nothing_is_said_twice(tmp_path, second):
    with pytest.raises(Conflict):
        written(tmp_path, ROW + 'projects = ["p"]\n' + second)


def test_what_is_written_is_read_back(tmp_path):
    path = tmp_path / "sources.toml"
    sources = Sources(
        (
            make_source("data", "d1", Path('/srv/Größe "x" 😀\\y.csv'), ("*",), True),
            make_source("other", "d2", Path("/srv/b.PARQUET"), ("p", "q"), False),
            make_source("third", "d3", Path("/srv/c.csv"), (), False),
        )
    )
    write_sources(path, sources)
    assert read_sources(path) == sources
    assert path.stat().st_mode & 0o077 == 0


def test_what_could_not_be_read_back_is_not_written(tmp_path):
    path = tmp_path / "sources.toml"
    write_sources(path, Sources((make_source("data", "d1", Path("/srv/a.csv"), (), False),)))
    before = path.read_text()
    one = make_source("data", "d1", Path("/srv/a.csv"), (), False)
    with pytest.raises(Conflict):
        write_sources(path, Sources((one, one)))
    assert path.read_text() == before


def test_a_source_without_an_id_has_the_same_one_every_time(tmp_path):
    row = '[[source]]\nname = "data"\npath = "/srv/cohort.csv"\nprojects = "*"\n'
    ids = [written(tmp_path, row).granted("data", project).id for project in "pq"]
    assert ids == ["data-cohort", "data-cohort"]
    with pytest.raises(Invalid, match="id"):
        written(tmp_path, row.replace("cohort.csv", "my cohort.csv"))
