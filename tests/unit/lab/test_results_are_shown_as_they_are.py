"""Table and picture: every number comes from the result, extremes included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flame.lab.demo import Shown, Study
from flame.lab.federation import Site
from flame.lab.plot import Drawing, forest_plot, p_value
from flame.lab.report import as_text


def row(name: str, estimate: float, se: float, p: float = 0.01) -> dict[str, Any]:
    import math

    odds = math.exp(min(estimate, 700))
    return {
        "name": name, "estimate": estimate, "se": se, "ci_low": estimate - 1.96 * se, "ci_high": estimate + 1.96 * se,
        "p": p, "odds_ratio": odds,
    }  # fmt: skip


def shown(*rows: dict[str, Any]) -> Shown:
    study = Study("A title", (Site("A", Path("a")), Site("B", Path("b"))), "y", ("x",), False, public=True)
    result = {"coefficients": rows, "log_likelihood": -12.5, "rounds": 7, "n": 90, "events": 30, "dropped": 2}
    hub = {"messages": 5, "sealed_bytes": 1500, "control_bytes": 20, "code_bytes": 3_000_000, "payload_readable": 0}
    return Shown(study, result, {"coefficients": list(rows)}, {"run": 1.5}, hub, True, "full")


def test_the_table_tells_all() -> None:
    text = as_text(shown(row("(Intercept)", -1.5, 0.5), row("age", 0.123456, 0.01, 0.0001)))
    for part in ("A title", "2 hospitals", "90 patients", "2 incomplete records left out", "0.123456", "0.010000",
                 "< 0.001", "7 rounds", "5 messages", "1.5 kB sealed", "3.0 MB program code", "1.50 s"):  # fmt: skip
        assert part in text
    assert "NOT" not in text


def test_bad_news_is_told() -> None:
    bad = shown(row("age", 1.0, 0.1))
    bad.log_verified, bad.isolation = False, "none"
    bad.hub = {**bad.hub, "payload_readable": 3}
    text = as_text(bad)
    assert "NOT verified" in text
    assert "bubblewrap is missing" in text
    assert "3 bytes" in text


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_any_width_of_terminal(width: int) -> None:
    text = as_text(shown(row("a covariate with a long name", 1.0, 0.1)), width=width)
    assert max(map(len, text.splitlines())) <= width


@pytest.mark.parametrize("estimate", [-40.0, 0.0, 3.0, 800.0])
def test_extremes_can_be_drawn(tmp_path: Path, estimate: float) -> None:
    rows = (row("(Intercept)", 9.0, 1.0), row("x", estimate, 0.2), row("wide", 0.1, 30.0, 0.9))
    assert as_text(shown(*rows))
    png = forest_plot(Drawing("t", "s", "f", "a", rows), tmp_path / "forest")
    assert png.read_bytes().startswith(b"\x89PNG")
    svg = (tmp_path / "forest.svg").read_text()
    assert ">x<" in svg.replace(" ", "") and "(Intercept)" not in svg


def test_the_same_result_is_the_same_picture(tmp_path: Path) -> None:
    drawing = Drawing("t", "s", "f", "a", (row("x", 1.0, 0.2),))
    for name in ("one", "two"):
        forest_plot(drawing, tmp_path / name)
    for ending in (".png", ".svg"):
        assert (tmp_path / f"one{ending}").read_bytes() == (tmp_path / f"two{ending}").read_bytes()


def test_p_values_as_journals_print_them() -> None:
    assert [p_value(p) for p in (0.00001, 0.0123, 0.5)] == ["< 0.001", "0.012", "0.500"]
