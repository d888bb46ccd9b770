"""``flame login`` and ``flame logout``: being somebody at a hub."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from flame.cli.options import Json
from flame.cli.output import Output, plain, told_errors
from flame.cli.people import read_passphrase
from flame.model.errors import Invalid

app = typer.Typer(add_completion=False)
logout_app = typer.Typer(add_completion=False)


@app.command()
def login(
    hub: Annotated[
        str | None,
        typer.Option("--hub", metavar="URL", help="The hub. (default: the one of the last login)", show_default=False),
    ] = None,
    username: Annotated[
        str | None, typer.Option("--username", help="Log in with name and password instead of the browser.")
    ] = None,
    password_file: Annotated[
        Path | None, typer.Option("--password-file", metavar="FILE", help="With --username: its first line.")
    ] = None,
    json: Json = False,
) -> None:
    """Log in at a hub: in the browser, or with --username. The tokens stay in a file of your own (mode 0600)."""
    with told_errors(json):
        from flame.researcher import login as logins

        where = _hub(hub)
        if username is not None:
            found = logins.by_password(where, username, _password(password_file))
        else:
            device = logins.begin_device(where)
            sys.stderr.write(f"Open {plain(device.url)} and type {plain(device.user_code)}\n")
            sys.stderr.write(f"  or open {plain(device.url_complete)}\n")
            sys.stderr.flush()
            found = logins.finish_device(where, device)
        Output(json).done(f"Logged in at {found.hub} as {found.username}.", {"hub": found.hub, "user": found.username})


@logout_app.command()
def logout(json: Json = False) -> None:
    """End the login at the hub, and remove its tokens here. Keys stay."""
    with told_errors(json):
        from flame.researcher import login as logins

        found = logins.forget()
        said = f"Logged out of {found.hub}." if found else "Nobody was logged in."
        Output(json).done(said, {"hub": found.hub if found else None})


def _hub(given: str | None) -> str:
    if given is None:
        from flame.researcher import login as logins

        return logins.current().hub
    where = urlsplit(given)
    if where.scheme not in ("http", "https") or not where.hostname or where.username or where.query:
        raise Invalid(f"{given[:200]!r} is not the address of a hub.", next_step="Give it as https://hub.example.org.")
    return given.rstrip("/")


def _password(file: Path | None) -> str:
    if file is not None:
        return read_passphrase(file, None)
    if not sys.stdin.isatty():
        raise Invalid("Nobody is there to be asked for the password.", next_step="Use --password-file FILE.")
    return str(typer.prompt("Password", hide_input=True, err=True))
