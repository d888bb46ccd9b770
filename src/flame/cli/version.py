"""``flame version``."""

from __future__ import annotations

from typing import Annotated

import typer

import flame
from flame.cli.output import Output, told_errors

app = typer.Typer(add_completion=False)


@app.command()
def version(json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """The version of FLAME."""
    with told_errors(json):
        Output(json).done(f"flame {flame.__version__}", {"version": flame.__version__})
