"""What a person sees while a federation starts and computes: a live view on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Protocol, TextIO

from flame.cli.output import plain

if TYPE_CHECKING:
    from flame.researcher.session import Progress

_BAR: Final = 24
_HEADLINES: Final = {"build": "building on the pinned environment, distributing", "run": "computing at the hospitals"}
"""Stages whose steps are told in the wire's words, or node by node."""


def headline(step: Progress) -> str:
    return _HEADLINES.get(step.stage, step.text)


class View(Protocol):
    """Told what happens; entered before, left after."""

    def __enter__(self) -> View: ...

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...

    def __call__(self, step: Progress) -> None: ...

    def close(self) -> None:
        """Make room for the result; nothing more is shown."""


class Quiet:
    """Shows nothing: for --json."""

    def __enter__(self) -> Quiet:
        return self

    def __exit__(self, *_: object) -> None: ...

    def __call__(self, step: Progress) -> None: ...

    def close(self) -> None: ...


class Lines:
    """One line for each new stage, on stderr so that stdout stays the result's."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out, self._last = out or sys.stderr, ""
        self._began = time.monotonic()

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None: ...

    def __call__(self, step: Progress) -> None:
        if headline(step) != self._last:
            self._last = headline(step)
            self._out.write(f"{time.monotonic() - self._began:6.1f} s  {plain(self._last)}\n")
            self._out.flush()

    def close(self) -> None: ...


class Live:
    """The stage that is under way, and a bar for each node; it is wiped when the work is done."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live as RichLive

        self._began = time.monotonic()
        self._done: list[str] = []
        self._now = ""
        self._nodes: dict[str, tuple[int, str]] = {}
        console = Console(stderr=True, highlight=False)
        self._live = RichLive(get_renderable=self._view, console=console, transient=True, refresh_per_second=12)

    def __enter__(self) -> Live:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._live.stop()

    def __call__(self, step: Progress) -> None:
        if step.node is not None:
            self._nodes[step.node] = (step.percent, step.text)
        if headline(step) != self._now:
            if self._now:
                self._done.append(self._now)
            self._now = headline(step)

    def _view(self) -> Any:
        from rich.console import Group
        from rich.spinner import Spinner
        from rich.text import Text

        rows: list[Any] = [Text(f"  ✓ {plain(text)}", style="dim") for text in self._done]
        rows.append(Spinner("dots", Text(f"{plain(self._now)}  {time.monotonic() - self._began:.1f} s"), style="cyan"))
        for node, (percent, text) in self._nodes.items():
            filled = round(_BAR * percent / 100)
            row = Text(f"    {plain(node)[:24]:<24} ")
            row.append("━" * filled, style="cyan").append("━" * (_BAR - filled), style="dim")
            rows.append(row.append(f" {percent:3d} %  {plain(text)}"))
        return Group(*rows)


def progress(as_json: bool) -> View:
    if as_json:
        return Quiet()
    return Live() if sys.stderr.isatty() else Lines()
