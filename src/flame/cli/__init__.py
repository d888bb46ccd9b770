"""The command ``flame``: one thin file for each verb, loaded when it is used."""

from flame.cli.entry import main

__all__ = ["main"]
