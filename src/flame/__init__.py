"""FLAME: federated learning and analyses in medicine. ``flame.connect()`` joins the run that a program is part of."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.2.0"
__all__ = ["__version__", "connect"]

_ROOMS = {"connect": "flame.sdk"}


def __getattr__(name: str) -> Any:
    """Looked up by name when first used: ``import flame`` stays light, and no room depends on another through it.

    ``__init__.pyi`` tells type checkers what is there.
    """
    if name in _ROOMS:
        return getattr(import_module(_ROOMS[name]), name)
    raise AttributeError(f"module 'flame' has no attribute {name!r}")
