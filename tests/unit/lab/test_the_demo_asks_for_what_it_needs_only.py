"""What the demo submits, and what it refuses before anything is started."""

from __future__ import annotations

import importlib.util
import tomllib
from pathlib import Path

import pytest

from flame.lab import demo
from flame.lab.demo import Wish, lowest, plan, program
from flame.lab.federation import Site
from flame.model.errors import Invalid, IsolationTooLow, NotFound
from flame.protocol.freeze import read_author_file


def own_site(folder: Path, name: str, header: str) -> Site:
    path = folder / f"{name}.csv"
    path.write_text(f"{header}\n0,1\n1,2\n")
    return Site(name, path)


def test_the_program_is_the_published_one(tmp_path: Path) -> None:
    spec = importlib.util.find_spec("flame.methods.programs.logistic_regression")
    assert spec is not None and spec.origin is not None
    assert program(plan(Wish(tmp_path), tmp_path))[demo.ENTRYPOINT] == Path(spec.origin).read_bytes()


def test_the_authors_file_names_columns_and_caps(tmp_path: Path) -> None:
    study = plan(Wish(tmp_path, hospitals=2), tmp_path)
    author = read_author_file(program(study)["flame.toml"])
    assert author["data"] == [{"source": "data", "columns": [study.outcome, *study.covariates]}]
    assert {row["kind"] for row in author["releases"]} == {"sum", "model", "log", "final"}
    assert all(0 < row["max_bytes"] <= 1 << 20 and 0 < row["rounds_max"] <= 100 for row in author["releases"])
    parameters = {row["name"]: row["default"] for row in author["parameters"]}
    assert parameters == {"outcome": "malignant", "covariates": list(study.covariates), "standardise": True}


@pytest.mark.parametrize("name", ['a "quoted" one', "back\\slash", "tab\there", "Größe", "line\nbreak"])
def test_any_column_name_survives_the_authors_file(tmp_path: Path, name: str) -> None:
    study = demo.Study("t", (), name, ("x",), False, public=False)
    parsed = tomllib.loads(program(study)["flame.toml"].decode())
    assert parsed["data"][0]["columns"] == [name, "x"]
    assert parsed["parameters"][0]["default"] == name


def test_own_data_are_on_the_raw_scale_and_not_called_public(tmp_path: Path) -> None:
    wish = Wish(tmp_path, sites=(own_site(tmp_path, "Mainz", "y,x"),), outcome="y", covariates=("x",))
    study = plan(wish, tmp_path)
    assert not study.standardise
    assert not study.public


def test_a_model_is_needed_for_own_data(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="model"):
        plan(Wish(tmp_path, sites=(own_site(tmp_path, "Mainz", "y,x"),), outcome="y"), tmp_path)


def test_a_missing_column_names_site_and_columns(tmp_path: Path) -> None:
    sites = (own_site(tmp_path, "Mainz", "y,x"), own_site(tmp_path, "Ulm", "y,z"))
    with pytest.raises(NotFound, match=r"Ulm.*'x'.*y, z"):
        plan(Wish(tmp_path, sites=sites, outcome="y", covariates=("x",)), tmp_path)


def test_a_column_is_not_both(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="different"):
        plan(Wish(tmp_path, outcome="malignant", covariates=("malignant",)), tmp_path)


def test_real_data_need_a_sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flame.runtime.process._PROGRAMS", str(tmp_path))
    demo.refuse_unprotected(plan(Wish(tmp_path), tmp_path))  # public data may
    own = plan(Wish(tmp_path, sites=(own_site(tmp_path, "Mainz", "y,x"),), outcome="y", covariates=("x",)), tmp_path)
    with pytest.raises(IsolationTooLow, match="bubblewrap"):
        demo.refuse_unprotected(own)


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        (["full", "full"], "full"),
        (["full", "no-network-own-files"], "no-network-own-files"),
        (["full", "none", "no-network-own-files"], "none"),
        (["full", "something new"], "something new"),
    ],
)
def test_the_weakest_level_is_the_one_that_is_told(levels: list[str], expected: str) -> None:
    assert lowest(levels) == expected
