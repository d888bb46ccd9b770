"""FLAME: federated learning and analyses in medicine. ``flame.connect()`` joins the run that a program is part of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flame.sdk import connect

__version__ = "0.1.0"
__all__ = ["__version__", "connect"]


def __getattr__(name: str) -> Any:
    """``connect`` is looked up when first used, so that ``import flame`` stays light in every room."""
    if name == "connect":
        from flame.sdk import connect

        return connect
    raise AttributeError(f"module 'flame' has no attribute {name!r}")
