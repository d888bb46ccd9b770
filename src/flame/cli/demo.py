"""``flame demo``."""

from __future__ import annotations

import json as jsonlib
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flame.cli.options import Json, ended_by_signals, read_columns, read_sites
from flame.cli.output import Output, told_errors
from flame.model.errors import FlameError, Invalid

if TYPE_CHECKING:
    from rich.console import Console

    from flame.lab.demo import Demo, Shown, Wish

app = typer.Typer(add_completion=False)


@app.command()
def demo(
    hospitals: Annotated[
        int | None, typer.Option("--hospitals", help="Data hospitals. (default: 3)", show_default=False)
    ] = None,
    site: Annotated[
        list[str] | None,
        typer.Option("--site", metavar="NAME=FILE.csv", help="A hospital and its own data; repeat for each."),
    ] = None,
    outcome: Annotated[str | None, typer.Option("--outcome", metavar="COLUMN", help="The outcome: 0 and 1.")] = None,
    covariates: Annotated[
        str | None, typer.Option("--covariates", metavar="A,B,C", help="What may explain it: columns of numbers.")
    ] = None,
    standardise: Annotated[
        bool | None,
        typer.Option(
            "--standardise/--raw",
            help="Coefficients per standard deviation over all hospitals, or per unit. "
            "(default: --raw for your own data)",
            show_default=False,
        ),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the federation running.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="Where the results go. (default: flame-demo-TIME)", show_default=False
        ),
    ] = None,
    json: Json = False,
) -> None:
    """A whole federation on this machine: hub, hospitals, an approved analysis, its result beside the pooled fit.

    Without --site: malignancy of 569 breast tumours, divided unevenly over the hospitals.
    """
    with told_errors(json), ended_by_signals():
        from flame.cli.progress import progress
        from flame.lab.demo import Demo, Wish
        from flame.lab.report import print_facts, print_result

        sites = read_sites(site or ())
        if sites and hospitals not in (None, len(sites)):
            raise Invalid("--hospitals and --site disagree.", next_step="Leave --hospitals out: each --site is one.")
        wish = Wish(
            out or Path(f"flame-demo-{datetime.now():%Y%m%d-%H%M%S}"),
            3 if hospitals is None else hospitals,
            sites,
            outcome or "",
            read_columns(covariates),
            standardise,
            keep,
        )
        if not sites:
            _warn_without_sandbox()
        with progress(json) as view:

            def present(shown: Shown) -> None:
                view.close()
                if not json:
                    print_result(_console(), shown)

            play = Demo(wish, view, present)
            try:
                shown = play.run()
            except FlameError as error:
                raise _and_what_stays(error, play) if keep else error from None
        _write(wish, shown)
        if json:
            Output(True).document(shown.document())
        else:
            print_facts(_console(), shown)
            sys.stdout.write(f"\nSaved in {wish.out}: forest.png, forest.svg, result.json, table.txt\n")
        if keep:
            _say_how_to_go_on(play)


def _and_what_stays(error: FlameError, play: Demo) -> FlameError:
    """After a failure with --keep: the same error, and where the federation goes on."""
    from flame.lab.demo import how_to_end

    federation = play.federation
    if federation is not None:
        error.next_step = (
            f"{error.next_step} The federation goes on in {federation.directory}, with a copy of each site's data; each "
            f"node's logs are in its directory under nodes/. End it and remove all of it with: {how_to_end(federation)}"
        ).strip()
    return error


def _warn_without_sandbox() -> None:
    from flame.lab.demo import NO_BUBBLEWRAP, has_bubblewrap

    if not has_bubblewrap():
        sys.stderr.write(
            "bubblewrap is missing, so programs run at a lower isolation level. That is acceptable only because the "
            f"demo's data are public.\n  To have the sandbox: {NO_BUBBLEWRAP}\n"
        )


def _write(wish: Wish, shown: Shown) -> None:
    from flame.lab.report import as_text

    (wish.out / "result.json").write_text(jsonlib.dumps(shown.document(), indent=2) + "\n", encoding="utf-8")
    (wish.out / "table.txt").write_text(as_text(shown), encoding="utf-8")


def _console() -> Console:
    from rich.console import Console

    from flame.lab.report import WIDE

    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=WIDE)


def _say_how_to_go_on(play: Demo) -> None:
    """On stderr, so that --json stays one object."""
    from flame.lab.demo import how_to_end

    federation = play.federation
    assert federation is not None
    lines = ["", "The federation goes on:", f"  {'hub':<16} {federation.hub_url}"]
    lines += [f"  {node.name:<16} {node.url}  ({node.role})" for node in federation.nodes]
    lines += [f"  end it:  {how_to_end(federation)}", ""]
    sys.stderr.write("\n".join(lines))
