"""``flame hub …``: what a hub's operator types."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from flame.cli.options import Json
from flame.cli.output import Output, told_errors

app = typer.Typer(name="hub", help="The hub: serve it, show its settings.", no_args_is_help=True)

Dir = Annotated[
    Path | None,
    typer.Option("--dir", metavar="DIR", help="The hub's directory. (env: FLAME_HUB_DIR)", show_default=False),
]
Host = Annotated[
    str | None,
    typer.Option("--host", help="Address to listen on. (env: FLAME_HUB_HOST; default: 127.0.0.1)", show_default=False),
]
Port = Annotated[
    int | None,
    typer.Option("--port", help="Port; 0 takes a free one. (env: FLAME_HUB_PORT; default: 8600)", show_default=False),
]


@app.command()
def serve(dir: Dir = None, host: Host = None, port: Port = None) -> None:
    """Run the hub until it is stopped (Ctrl-C or SIGTERM). The first start shows the admin's password, once."""
    with told_errors():
        from flame.hub import serve as run
        from flame.hub.settings import Settings

        run(Settings.from_env(dir=dir, host=host, port=port))


@app.command()
def settings(dir: Dir = None, host: Host = None, port: Port = None, json: Json = False) -> None:
    """The settings that `serve` would use here, and where each comes from. Secrets are not shown."""
    with told_errors(json):
        Output(json).rows(_rows({"dir": dir, "host": host, "port": port}), ("setting", "value", "from"), "")


def _rows(given: dict[str, Any]) -> list[dict[str, Any]]:
    from dataclasses import fields

    from flame.hub.settings import PREFIX, Settings

    found = Settings.from_env(**given)
    rows = []
    for field in fields(Settings):
        variable = PREFIX + field.name.upper()
        value = getattr(found, field.name)
        if given.get(field.name) is not None:
            source = "command line"
        else:
            source = "environment" if variable in os.environ else "default"
        secret = field.name == "database_url" or "password" in field.name
        shown = "(set)" if secret and isinstance(value, str) else value
        rows.append(
            {"setting": variable, "value": shown if isinstance(shown, int | None) else str(shown), "from": source}
        )
    return rows
