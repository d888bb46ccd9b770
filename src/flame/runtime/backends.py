"""Which sandbox a node uses: the one its operator named, never another one instead."""

from __future__ import annotations

from typing import Final

from flame.model.errors import Invalid
from flame.runtime.process import ProcessSandbox
from flame.runtime.sandbox import Sandbox
from flame.runtime.unsandboxed import Unsandboxed

__all__ = ["BACKENDS", "choose_backend"]

BACKENDS: Final = ("process", "unsandboxed")


def choose_backend(wanted: str = "process") -> Sandbox:
    """The backend of this name. Raises Unavailable where it cannot work (bubblewrap missing), Invalid for another name.

    `unsandboxed` is for public demonstration data only and has to be asked for.
    """
    match wanted:
        case "process":
            return ProcessSandbox()
        case "unsandboxed":
            return Unsandboxed()
    raise Invalid(
        f"There is no sandbox called {wanted!r}.", next_step=f"Choose one of: {', '.join(BACKENDS)}.", field="sandbox"
    )
