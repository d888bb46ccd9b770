"""The forest plot: odds ratios with their 95 % intervals on a log scale, as PNG and SVG.

``python -m flame.lab.plot`` draws one from JSON on stdin: loading matplotlib must not keep a result waiting.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from flame.lab.elsewhere import Elsewhere, answer

INTERCEPT: Final = "(Intercept)"
_INK, _MUTED, _LINE, _BAND = "#1c2733", "#5f6d7a", "#c9d1d9", "#f4f6f8"
_HARM, _BENEFIT, _NEITHER = "#b3402e", "#1f6f8b", "#6b7783"
_WIDEST: Final = 1e6  # an odds ratio further out than this is drawn as an arrow


@dataclass(frozen=True)
class Drawing:
    title: str
    subtitle: str
    footer: str
    axis: str
    coefficients: tuple[dict[str, Any], ...]
    """``name``, ``estimate``, ``ci_low``, ``ci_high``, ``p`` on the scale of log odds; the intercept is left out."""


def draw_elsewhere(drawing: Drawing, path: Path) -> Elsewhere:
    """Start drawing; ``path`` gets ``.png`` and ``.svg`` appended. ``drawn`` waits for it."""
    return Elsewhere("flame.lab.plot", {**asdict(drawing), "path": str(path)})


def drawn(drawing: Elsewhere) -> Path:
    """The PNG. Raises RunFailed."""
    return Path(
        drawing.result(
            "The forest plot could not be drawn",
            "The result itself is complete; `pip install 'flame-federated[lab]'` brings what draws it.",
        )
    )


def forest_plot(drawing: Drawing, path: Path) -> Path:
    """Draw ``path`` + .png (200 dpi) and .svg; returns the PNG."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "flame", "font.family": "DejaVu Sans"})
    from matplotlib.figure import Figure

    rows = [row for row in drawing.coefficients if row["name"] != INTERCEPT]
    height = 1.75 + 0.52 * max(len(rows), 1)
    figure = Figure(figsize=(9.2, height), facecolor="white")
    top, bottom = 1 - 1.12 / height, 0.80 / height
    axes = figure.add_axes((0.27, bottom, 0.40, top - bottom))
    _frame(axes, drawing.axis, rows)
    for place, row in enumerate(rows):
        _one_row(axes, place, row)
    _words(figure, axes, drawing, height)
    for ending in (".png", ".svg"):
        figure.savefig(path.with_name(path.name + ending), dpi=200, metadata=_no_date(ending))
    return path.with_name(path.name + ".png")


def _frame(axes: Any, label: str, rows: Sequence[dict[str, Any]]) -> None:
    low, high = _limits(rows)
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks([])
    axes.minorticks_off()
    ticks = _ticks(low, high)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.tick_params(axis="x", colors=_MUTED, labelsize=9, length=3, color=_LINE)
    axes.set_xlabel(label, fontsize=9.5, color=_MUTED, labelpad=7)
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_LINE)
    axes.grid(axis="x", color=_LINE, linewidth=0.6, alpha=0.55)
    axes.set_axisbelow(True)
    axes.axvline(1.0, color=_INK, linewidth=1.0, zorder=1)


def _one_row(axes: Any, place: int, row: dict[str, Any]) -> None:
    low, high = axes.get_xlim()
    middle, left, right = (_odds(row[key]) for key in ("estimate", "ci_low", "ci_high"))
    colour = _NEITHER if left <= 1 <= right else (_HARM if middle > 1 else _BENEFIT)
    if place % 2 == 0:
        axes.axhspan(place - 0.5, place + 0.5, xmin=-0.625, xmax=1.8, color=_BAND, zorder=0, clip_on=False, linewidth=0)
    axes.plot([max(left, low), min(right, high)], [place, place], color=colour, linewidth=2.2, solid_capstyle="butt")
    for end in (left, right):
        if low < end < high:
            axes.plot([end, end], [place - 0.11, place + 0.11], color=colour, linewidth=2.2, solid_capstyle="butt")
        else:
            edge, mark = (low, "<") if end <= low else (high, ">")
            axes.plot([edge], [place], marker=mark, color=colour, markersize=6, clip_on=False)
    if low <= middle <= high:
        axes.plot([middle], [place], marker="s", markersize=8.5, color=colour, markeredgecolor="white", zorder=4)


def _words(figure: Any, axes: Any, drawing: Drawing, height: float) -> None:
    rows = [row for row in drawing.coefficients if row["name"] != INTERCEPT]
    at = axes.get_yaxis_transform()
    heads = ((-0.60, "Covariate", "left"), (1.52, "Odds ratio (95 % CI)", "right"), (1.76, "p", "right"))
    for x, text, side in heads:
        axes.text(x, -0.5 - 0.16, text, transform=at, fontsize=9, color=_MUTED, ha=side, va="bottom")
    for place, row in enumerate(rows):
        cells = (
            (-0.60, _short(row["name"]), "left", "normal"),
            (1.52, _interval(row), "right", "normal"),
            (1.76, p_value(row["p"]), "right", "bold" if row["p"] < 0.05 else "normal"),
        )
        for x, text, side, weight in cells:
            axes.text(x, place, text, transform=at, fontsize=10.5, color=_INK, ha=side, va="center", fontweight=weight)
    figure.text(0.03, 1 - 0.22 / height, drawing.title, fontsize=14, fontweight="bold", color=_INK, va="top")
    figure.text(0.03, 1 - 0.53 / height, drawing.subtitle, fontsize=10, color=_MUTED, va="top")
    figure.text(0.03, 0.12 / height, drawing.footer, fontsize=8.5, color=_MUTED, va="bottom")


def p_value(p: float) -> str:
    """As a medical journal prints it."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _limits(rows: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """Symmetric on the log scale around what is drawn, with 1 inside."""
    edges = [_odds(row[key]) for row in rows for key in ("ci_low", "ci_high")] + [0.5, 2.0]
    low, high = max(min(edges), 1 / _WIDEST), min(max(edges), _WIDEST)
    return low / (high / low) ** 0.05, high * (high / low) ** 0.05


def _ticks(low: float, high: float) -> list[float]:
    steps = (1, 2, 5) if math.log10(high / low) < 2.4 else (1,)
    found = [
        step * 10.0**power
        for power in range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
        for step in steps
    ]
    return [tick for tick in found if low <= tick <= high]


def _odds(log_odds: float) -> float:
    return math.exp(min(max(log_odds, -600.0), 600.0))


def _interval(row: dict[str, Any]) -> str:
    middle, left, right = (_three(_odds(row[key])) for key in ("estimate", "ci_low", "ci_high"))
    return f"{middle} ({left}–{right})"


def _three(value: float) -> str:
    """Two decimals where that says something, else three digits."""
    return f"{value:.2f}" if 0.1 <= value < 1000 else f"{value:.3g}"


def _short(name: str) -> str:
    return name if len(name) <= 28 else name[:27] + "…"


def _no_date(ending: str) -> dict[str, Any]:
    """The same result gives the same bytes."""
    return {"Date": None} if ending == ".svg" else {"Software": None}


def _asked(asked: dict[str, Any]) -> str:
    path = Path(asked.pop("path"))
    return str(forest_plot(Drawing(**{**asked, "coefficients": tuple(asked["coefficients"])}), path))


if __name__ == "__main__":
    answer(_asked)
