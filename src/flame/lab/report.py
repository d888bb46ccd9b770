"""How a demonstration looks in a terminal and in ``table.txt``."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from flame.lab.demo import NO_BUBBLEWRAP, Shown, count
from flame.lab.plot import INTERCEPT, p_value

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

WIDE: Final = 120
"""Columns of a terminal that has room for the little forest plot."""
_ROOMY: Final = 96
_WIDTH: Final = 17
_STAGES: Final = {
    "federation": "hub and nodes started, enrolled, confirmed",
    "submit": "uploaded, locked, signed",
    "approve": "approved by the stewards",
    "build": "built and distributed",
    "start": "start order given",
    "run": "computed at the hospitals",
    "open": "results fetched and opened",
    "result": "from the command to the result",
}


def as_text(shown: Shown, width: int = WIDE) -> str:
    """The whole report without colours: what ``table.txt`` holds."""
    from rich.console import Console

    file = io.StringIO()
    console = Console(file=file, width=width, color_system=None, highlight=False)
    print_result(console, shown)
    print_facts(console, shown)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def print_result(console: Console, shown: Shown) -> None:
    """The table, and how far it is from the pooled fit: what somebody waits for."""
    console.print()
    console.print(_heading(shown))
    console.print(_coefficients(shown, console.width))
    console.print()
    console.print(_comparison(shown))


def print_facts(console: Console, shown: Shown) -> None:
    """What the hub handled, whether the log verifies, how well the programs were locked away, seconds by stage."""
    console.print()
    console.print(_facts(shown))


def _heading(shown: Shown) -> Text:
    from rich.text import Text

    study, result = shown.study, shown.result
    per = "per standard deviation over all hospitals" if study.standardise else "per unit"
    text = Text(study.title, style="bold")
    text.append(
        f"\nlogistic regression over {count(len(study.sites), 'hospital')}, {result['n']} patients "
        f"({result['events']} with the outcome), {per}",
        style="dim",
    )
    if result["dropped"]:
        text.append(f"; {count(result['dropped'], 'incomplete record')} left out", style="dim")
    return text


def _coefficients(shown: Shown, width: int) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    digits = 6 if width >= _ROOMY else 4
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("", min_width=12)
    for name in (
        "coeff.",
        "SE",
        "95 % CI",
        "p",
        "odds ratio" if digits == 6 else "OR",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    if width >= WIDE:
        table.add_column(_axis(shown.coefficients), no_wrap=True)
    table.add_column("pooled", justify="right", no_wrap=True)
    for ours, theirs in zip(shown.coefficients, shown.pooled["coefficients"], strict=True):
        row: list[str | Text] = [
            Text(ours["name"][:40]),
            f"{ours['estimate']:.{digits}f}",
            f"{ours['se']:.{digits}f}",
            f"{ours['ci_low']:.{digits // 2}f} to {ours['ci_high']:.{digits // 2}f}",
            p_value(ours["p"]),
            f"{ours['odds_ratio']:.4g}",
        ]
        if width >= WIDE:
            row.append(Text("") if ours["name"] == INTERCEPT else _forest(ours, shown.coefficients))
        table.add_row(*row, f"{theirs['estimate']:.{digits}f}")
    return table


def _comparison(shown: Shown) -> Text:
    from rich.text import Text

    good = shown.max_abs_deviation <= 1e-10
    text = Text("Largest difference from the pooled fit (statsmodels): ")
    text.append(f"{shown.max_abs_deviation:.1e}", style="bold green" if good else "bold red")
    text.append(f"   log-likelihood {shown.result['log_likelihood']:.8f}, {shown.result['rounds']} rounds", style="dim")
    return text


def _facts(shown: Shown) -> Table:
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    table.add_row("the hub handled", _handled(shown.hub))
    table.add_row("the hub could read", _readable(shown.hub))
    table.add_row(
        "its log", "verified: complete, signed, nothing rewritten" if shown.log_verified else _bad("NOT verified")
    )
    table.add_row("isolation", _isolation(shown.isolation))
    table.add_row(
        "keys", "confirmed by this demo for the stewards it plays; real stewards do it by telephone or letter"
    )
    table.add_row("", "")
    for stage, seconds in shown.seconds.items():
        table.add_row(f"{seconds:8.2f} s", _STAGES.get(stage, stage))
    return table


def _handled(hub: Mapping[str, int]) -> str:
    return (
        f"{hub.get('messages', 0)} messages, {_bytes(hub.get('sealed_bytes', 0))} sealed, "
        f"{_bytes(hub.get('control_bytes', 0))} control, {_bytes(hub.get('code_bytes', 0))} program code"
    )


def _readable(hub: Mapping[str, int]) -> RenderableType:
    readable = hub.get("payload_readable", 0)
    text = f"{readable} bytes of what the hospitals sent, counted in every byte that it received and sent"
    return text if readable == 0 else _bad(text)


def _isolation(level: str) -> RenderableType:
    if level == "full":
        return "full: no network, own files, own user, limits; verified from outside"
    if level == "none":
        return _bad(f"none: bubblewrap is missing. It ran only because these data are public. `{NO_BUBBLEWRAP}`")
    return f"{level}: verified from outside"


def _bad(text: str) -> Text:
    from rich.text import Text

    return Text(text, style="bold red")


def _bytes(number: int) -> str:
    for unit in ("bytes", "kB", "MB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "bytes" or number >= 100 else f"{number:.1f} {unit}"
        number = number / 1000  # type: ignore[assignment]
    return f"{number:.1f} GB"


def _span(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """The log odds at both ends of the little forest plot, with 0 (odds ratio 1) inside."""
    kept = [row for row in rows if row["name"] != INTERCEPT]
    edges = [0.0, *(row[key] for row in kept for key in ("ci_low", "ci_high"))]
    low, high = max(min(edges), -14.0), min(max(edges), 14.0)
    margin = max(high - low, 0.2) * 0.04
    return low - margin, high + margin


def _place(value: float, span: tuple[float, float]) -> int:
    low, high = span
    return min(max(round((value - low) / (high - low) * (_WIDTH - 1)), 0), _WIDTH - 1)


def _forest(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Text:
    from rich.text import Text

    span = _span(rows)
    left, middle, right, one = (_place(value, span) for value in (row["ci_low"], row["estimate"], row["ci_high"], 0.0))
    cells = [" "] * _WIDTH
    cells[one] = "┊"
    cells[left : right + 1] = "─" * (right - left + 1)
    cells[middle] = "■"
    crosses = row["ci_low"] <= 0 <= row["ci_high"]
    return Text("".join(cells), style="dim" if crosses else ("red" if row["estimate"] > 0 else "cyan"))


def _axis(rows: Sequence[Mapping[str, Any]]) -> Text:
    from rich.text import Text

    low, high = (math.exp(edge) for edge in _span(rows))
    one = _place(0.0, _span(rows))
    left, right = f"{low:.2g}", f"{high:.2g}"
    cells = list(" " * _WIDTH)
    cells[_WIDTH - len(right) :] = right
    if one > len(left) and one < _WIDTH - len(right) - 1:
        cells[: len(left)] = left
    cells[one] = "1"
    return Text("".join(cells))
