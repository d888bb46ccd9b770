"""``flame hub …``: what a hub's operator types."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flame.cli import hub_desk
from flame.cli.options import Json
from flame.cli.output import Output, told_errors

if TYPE_CHECKING:
    from flame.hub.settings import Settings

app = typer.Typer(name="hub", help="The hub: serve it, look after it.", no_args_is_help=True)
app.add_typer(hub_desk.user)
app.add_typer(hub_desk.realm)
app.add_typer(hub_desk.node)

Dir = Annotated[
    Path | None,
    typer.Option("--dir", metavar="DIR", help="The hub's directory. (env: FLAME_HUB_DIR)", show_default=False),
]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="FILE", help="A TOML file with settings. (env: FLAME_HUB_CONFIG)", show_default=False
    ),
]
Host = Annotated[
    str | None,
    typer.Option("--host", help="Address to listen on. (env: FLAME_HUB_HOST; default: 127.0.0.1)", show_default=False),
]
Port = Annotated[
    int | None,
    typer.Option("--port", help="Port; 0 takes a free one. (env: FLAME_HUB_PORT; default: 8600)", show_default=False),
]


Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE", help="Any other setting; see `flame hub settings`.", show_default=False
    ),
]


def settings_of(dir: Path | None, config: Path | None, more: list[str] | None = None, **given: Any) -> Settings:
    from flame.hub.settings import Settings, from_arguments

    named = {name: value for name, value in {"dir": dir, **given}.items() if value is not None}
    return Settings.from_env(config=config, **{**from_arguments(more or []), **named})


@app.command()
def serve(dir: Dir = None, host: Host = None, port: Port = None, config: Config = None, more: Set = None) -> None:
    """Run the hub until it is stopped (Ctrl-C or SIGTERM). The first start shows the admin's password, once."""
    with told_errors():
        from flame.hub import serve as run

        run(settings_of(dir, config, more, host=host, port=port))


@app.command()
def init(dir: Dir = None, config: Config = None, json: Json = False) -> None:
    """Make a hub's key, database and first administrator without serving. The password is shown here, once."""
    with told_errors(json):
        from flame.hub.app import open_hub
        from flame.model.errors import Conflict

        settings = settings_of(dir, config)
        hub, password = open_hub(settings)
        hub.database.close()
        if password is None and settings.admin_password is None:
            raise Conflict(f"There is a hub in {settings.dir} already.", next_step="Start it with `flame hub serve`.")
        made = {"dir": str(settings.dir), "fingerprint": hub.key.public.fingerprint.hex(), "user": "admin"}
        if password is not None:
            made["password"] = password
        Output(json).document(made, f"A hub is made in {settings.dir}.")


@app.command()
def migrate(dir: Dir = None, config: Config = None, json: Json = False) -> None:
    """Bring the database of an older release to this one's schema. Stop the hub first.

    A SQLite database is copied first, to hub.db.before-REVISION beside it; of PostgreSQL take a dump yourself.
    """
    with told_errors(json):
        from flame.hub.upgrading import migrate as run

        done = run(settings_of(dir, config))
        if done["before"] == done["after"]:
            text = f"The database has the schema of this release already ({done['after']})."
        else:
            text = f"The database was brought from schema {done['before']} to {done['after']}."
        Output(json).done(text + (f" The old one is {done['copy']}." if done["copy"] else ""), done)


@app.command()
def backup(
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="A new directory.")],
    dir: Dir = None,
    config: Config = None,
    with_key: Annotated[
        bool, typer.Option("--with-key", help="Copy the hub's key as well: whoever has it can be the hub.")
    ] = False,
    json: Json = False,
) -> None:
    """Copy the hub, running or not: the database as of one moment, every object it names, each checked."""
    with told_errors(json):
        from flame.hub.backup import back_up, shown

        found = back_up(settings_of(dir, config), target, with_key=with_key)
        Output(json).document({"target": str(target), **shown(found)}, "The hub is copied and checked.")
        if with_key:
            typer.echo("Warning: the backup holds the hub's key. Keep it as secret as the hub.", err=True)
        else:
            typer.echo("The hub's key is not in the backup: keep DIR/keys/hub.pem apart, in a safe place.", err=True)


@app.command()
def restore(
    source: Annotated[Path, typer.Argument(metavar="BACKUP", help="What `flame hub backup` has made.")],
    dir: Dir = None,
    config: Config = None,
    key: Annotated[
        Path | None, typer.Option("--key", metavar="FILE", help="The hub's key, for a backup without it.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Check every byte of the backup, and restore nothing.")
    ] = False,
    json: Json = False,
) -> None:
    """Make a hub from a backup, in an empty directory (and an empty database, if the settings name PostgreSQL)."""
    with told_errors(json):
        from flame.hub.backup import restore as run
        from flame.hub.backup import shown, verify

        if check:
            Output(json).document(shown(verify(source)), "The backup is whole.")
            return
        settings = settings_of(dir, config)
        found = run(settings, source, key=key)
        Output(json).document({"dir": str(settings.dir), **shown(found)}, f"The hub is restored in {settings.dir}.")


@app.command()
def doctor(dir: Dir = None, config: Config = None, json: Json = False) -> None:
    """Whether this hub can serve: settings, directory, key, database, objects, TLS. Exit code 1 when something is bad."""
    with told_errors(json):
        from dataclasses import asdict

        from flame.hub.examination import examine

        findings = examine(settings_of(dir, config))
        Output(json).rows([asdict(finding) for finding in findings], ("name", "state", "found", "next_step"), "")
        if any(finding.state == "bad" for finding in findings):
            raise typer.Exit(1)


@app.command()
def settings(dir: Dir = None, host: Host = None, port: Port = None, config: Config = None, json: Json = False) -> None:
    """The settings that `serve` would use here, and where each comes from. Secrets are not shown."""
    with told_errors(json):
        given = {"dir": dir, "host": host, "port": port}
        Output(json).rows(_rows(given, config), ("setting", "value", "from"), "")


def _rows(given: dict[str, Any], config: Path | None) -> list[dict[str, Any]]:
    from dataclasses import fields

    from flame.hub.settings import PREFIX, SECRET, Settings, collect

    found = Settings.from_env(config=config, **given)
    sources = {name: source for name, (_, source) in collect(None, config, given).items()}
    rows = []
    for field in fields(Settings):
        value = getattr(found, field.name)
        shown = "(set)" if field.name in SECRET and value is not None else value
        shown = shown if isinstance(shown, int | None) else str(shown)
        rows.append(
            {"setting": PREFIX + field.name.upper(), "value": shown, "from": sources.get(field.name, "default")}
        )
    return rows
