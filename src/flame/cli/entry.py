"""The entry point: a table of verbs, each loaded only when somebody says it."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import flame

if TYPE_CHECKING:
    import typer

VERBS: Final[Mapping[str, tuple[str, str]]] = {
    "demo": ("flame.cli.demo", "A federation from nothing to a result, beside the pooled fit."),
    "dev": ("flame.cli.dev", "A federation on this machine, left running, to try programs on."),
    "login": ("flame.cli.login", "Log in at a hub."),
    "logout": ("flame.cli.login:logout_app", "End the login."),
    "keys": ("flame.cli.keys", "Your own keys: one signs what you submit, one opens your results."),
    "projects": ("flame.cli.projects", "Projects: what you propose to hospitals, and what they say."),
    "submit": ("flame.cli.loop:submit_app", "Submit a program: upload, lock, compare, sign."),
    "sign": ("flame.cli.loop:sign_app", "Sign an analysis that another client has made."),
    "start": ("flame.cli.loop:start_app", "Order a run, with other parameter values if wanted."),
    "stop": ("flame.cli.loop:stop_app", "Stop what runs of an analysis."),
    "watch": ("flame.cli.loop:watch_app", "Follow an analysis to its end."),
    "analyses": ("flame.cli.analyses", "Your analyses, and what the hospitals say."),
    "results": ("flame.cli.results", "Results: fetched sealed, opened here."),
    "node": ("flame.cli.node", "A hospital's node: enrol it, serve, decide what runs, see what leaves."),
    "hub": ("flame.cli.hub", "The hub: serve it, show its settings."),
    "methods": ("flame.cli.methods", "The catalogue of ready methods: what there is, and what each takes."),
    "audit": ("flame.cli.audit", "The transparency log: fetch it, check it offline."),
    "doctor": ("flame.cli.doctor", "What this machine can do for FLAME, and what is missing."),
    "version": ("flame.cli.version", "The version of FLAME."),
}
"""Verb: its module (whose ``app`` is it, or what stands after a colon) and a line of help."""

NEEDS_EXTRA: Final = "pip install 'flame-federated[lab]'"


def main() -> None:
    """``flame``. Exit codes: see ``flame.cli.output.EXIT_CODES``."""
    if sys.argv[1:] in (["version"], ["--version"]):  # what scripts ask first costs no more than Python itself
        sys.stdout.write(f"flame {flame.__version__}\n")
        return
    try:
        import typer  # noqa: F401 - the base install is the SDK alone and has no command line
    except ImportError:
        sys.stderr.write(f"Error: The command line is not installed.\n  What to do: {NEEDS_EXTRA}\n")
        raise SystemExit(1) from None
    if "--json" in sys.argv[1:]:
        _run_for_a_program()
    else:
        command()(prog_name="flame")


def _run_for_a_program() -> None:
    """With ``--json`` a wrong usage is one JSON object on stderr as well, like every other error."""
    import typer

    usage_error: Any = typer.BadParameter.__base__  # typer carries a click of its own or not, as its version has it
    try:
        code = command().main(prog_name="flame", standalone_mode=False)
    except usage_error as error:
        where: Any = error
        path = where.ctx.command_path if where.ctx else "flame"
        said = {"code": "usage", "message": where.format_message(), "nextStep": f"See `{path} --help`."}
        sys.stderr.write(json.dumps(said) + "\n")
        raise SystemExit(2) from None
    except typer.Abort:
        sys.stderr.write(json.dumps({"code": "aborted", "message": "Aborted.", "nextStep": ""}) + "\n")
        raise SystemExit(1) from None
    raise SystemExit(code if isinstance(code, int) else 0)


def command() -> Any:
    """The whole command, for ``main`` and for tests."""
    import typer.core
    import typer.main

    class Verbs(typer.core.TyperGroup):
        """Lists all verbs from the table, and imports the one that is used."""

        def list_commands(self, ctx: Any) -> list[str]:
            return list(VERBS)

        def get_command(self, ctx: Any, cmd_name: str) -> Any:
            return load(cmd_name) if cmd_name in VERBS else None

        def format_commands(self, ctx: Any, formatter: Any) -> None:
            with formatter.section("Commands"):
                formatter.write_dl([(verb, line) for verb, (_, line) in VERBS.items()])

    return Verbs(
        name="flame",
        help="Federated learning and analyses in medicine: the analysis travels, the patients' data never leave.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )


def load(verb: str) -> Any:
    """A verb's command. A missing extra is said in words."""
    import typer.main

    try:
        module, _, name = VERBS[verb][0].partition(":")
        app: typer.Typer = getattr(import_module(module), name or "app")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "flame":
            raise
        sys.stderr.write(f"Error: `flame {verb}` needs {error.name}, which is not installed.\n")
        sys.stderr.write(f"  What to do: {NEEDS_EXTRA}\n")
        raise SystemExit(1) from None
    app.rich_markup_mode = None  # plain help: quick, and the same for all verbs
    several = len(app.registered_commands) > 1 or bool(app.registered_groups)
    found = typer.main.get_group(app) if several else typer.main.get_command(app)
    found.name = verb
    return found
