"""How a program's error is told to its node: its type and where it stood; the text stays at the node."""

from __future__ import annotations

import traceback
from pathlib import Path
from types import TracebackType

from flame.model.errors import FlameError, UnfitData
from flame.wire.gateway import Fail

_MAX_FRAMES = 50
_MAX_TEXT = 6000  # characters: at most 24 KB, so that the head of the frame holds it


def failure(kind: type[BaseException], error: BaseException, trace: TracebackType | None, program: Path) -> Fail:
    """``program``: the directory of the program's files; frames outside of it are not named."""
    text = "".join(traceback.format_exception(kind, error, trace))
    return Fail(
        error=_type_name(kind)[:200],
        frames=_own_frames(trace, program)[-_MAX_FRAMES:],
        text=text[-_MAX_TEXT:].encode(errors="replace").decode(),
        code=error.code if isinstance(error, FlameError) else "",
        column=str(error.fields["column"])[:300] if isinstance(error, UnfitData) else "",
    )


def _type_name(kind: type[BaseException]) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _own_frames(trace: TracebackType | None, program: Path) -> list[tuple[str, int]]:
    frames = []
    for frame, line in traceback.walk_tb(trace):
        path = Path(frame.f_code.co_filename).absolute()
        if path.is_relative_to(program):
            frames.append((path.relative_to(program).as_posix()[:300], line))
    return frames
