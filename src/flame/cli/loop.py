"""``flame submit``, ``sign``, ``start``, ``stop``, ``watch``: an analysis from a folder to its results."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flame.cli.options import Json
from flame.cli.output import Output, told_errors
from flame.cli.people import KeyDir, PassphraseFd, PassphraseFile, open_session
from flame.model.errors import Conflict, Invalid, NotFound, RunFailed

if TYPE_CHECKING:
    from flame.researcher.session import ResearcherSession, Submission

submit_app = typer.Typer(add_completion=False)
sign_app = typer.Typer(add_completion=False)
start_app = typer.Typer(add_completion=False)
stop_app = typer.Typer(add_completion=False)
watch_app = typer.Typer(add_completion=False)

Params = Annotated[
    list[str] | None, typer.Option("--param", metavar="K=V", help="A parameter's value, among the approved ones.")
]
DEFAULT_SECONDS = 24 * 3600.0


@submit_app.command()
def submit(
    program: Annotated[Path, typer.Argument(metavar="DIR_OR_FILE", help="A folder of files, or one Python file.")],
    project: Annotated[str, typer.Option("--project", help="Id or name of the project.")],
    entrypoint: Annotated[
        str | None,
        typer.Option("--entrypoint", metavar="FILE", help="The file that runs. (default: main.py)", show_default=False),
    ] = None,
    title: Annotated[str, typer.Option("--title", help="What the stewards read. (default: the folder's name)")] = "",
    image: Annotated[
        str | None, typer.Option("--image", help="The environment. (default: the project's)", show_default=False)
    ] = None,
    argument: Annotated[list[str] | None, typer.Option("--argument", help="An argument of the program.")] = None,
    param: Params = None,
    no_start: Annotated[bool, typer.Option("--no-start", help="Sign no start order yet: `flame start` does.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be submitted, and do nothing.")] = False,
    keys: KeyDir = None,
    passphrase_file: PassphraseFile = None,
    passphrase_fd: PassphraseFd = None,
    json: Json = False,
) -> None:
    """Submit a program: upload it, lock it, compare what the hub froze with what is meant, sign it and its first run.

    The run begins by itself when every hospital has approved. `flame.toml` in the folder says what is read and released.
    """
    with told_errors(json):
        from flame.cli.progress import progress
        from flame.crypto.canonical import canonical, digest
        from flame.model.manifest import Environment
        from flame.researcher import loop
        from flame.researcher.program import choose_entrypoint, read_program
        from flame.researcher.session import Progress

        files = read_program(program)
        first = choose_entrypoint(files, entrypoint)
        session = open_session(keys, passphrase_file, passphrase_fd)
        found = loop.find_project(session.api, project)
        name = title or program.resolve().stem
        planned = loop.plan(session, found, files, first, name, image, tuple(argument or ()))
        values = loop.parameter_values(planned.manifest, param or ())
        if dry_run:
            shown = loop.shown_manifest(planned.manifest, digest(canonical(planned.manifest.document())).hex())
            for made_at_the_hub in ("digest", "analysis"):
                shown.pop(made_at_the_hub)
            Output(json).document(shown, "Nothing was submitted. It would be:")
            return
        with progress(json) as view:
            view(Progress("submit", None, 0, "uploading, locking, signing"))
            submission = session.submit(
                str(found["id"]),
                files,
                entrypoint=first,
                title=name,
                image=str(planned.image["id"]),
                environment=Environment(str(planned.image["virtualPath"]), str(planned.image["digest"])),
                nodes=planned.nodes,
                arguments=tuple(argument or ()),
            )
            if not no_start:
                session.start(submission, parameters=values, hours=None)
        document = {
            "analysis": submission.analysis,
            "project": submission.project,
            "digest": digest(submission.manifest).hex(),
            "run": submission.run or None,
            "participants": [node.name for node in planned.nodes],
        }
        Output(json).document(document, _next(submission.analysis, no_start))


def _next(analysis: str, no_start: bool) -> str:
    then = f"`flame start {analysis[:8]}` orders a run" if no_start else f"`flame watch {analysis[:8]}` follows it"
    return f"Submitted and signed. The hospitals decide now; {then}."


@sign_app.command()
def sign(
    analysis: str,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    keys: KeyDir = None,
    passphrase_file: PassphraseFile = None,
    passphrase_fd: PassphraseFd = None,
    json: Json = False,
) -> None:
    """Sign an analysis that another client has made and locked, after a look at exactly what the hub has frozen."""
    with told_errors(json):
        from flame.crypto.canonical import digest
        from flame.researcher import loop

        session = open_session(keys, passphrase_file, passphrase_fd)
        id_ = str(loop.find_analysis(session.api, analysis)["id"])
        manifest, _ = session.frozen(id_)
        hex_ = digest(manifest).hex()
        if not yes:
            Output().document(loop.shown_manifest(loop.read(manifest), hex_), "This is what you would sign:")
            if not typer.confirm("Sign exactly this?", err=True):
                raise typer.Exit(1)
        session.sign(id_, manifest)
        Output(json).done("Signed.", {"analysis": id_, "digest": hex_})


@start_app.command()
def start(
    analysis: str,
    param: Params = None,
    keys: KeyDir = None,
    passphrase_file: PassphraseFile = None,
    passphrase_fd: PassphraseFd = None,
    json: Json = False,
) -> None:
    """Order a run of a signed analysis: with other parameter values if wanted, at most `runs_max` times."""
    with told_errors(json):
        from flame.researcher import loop

        session = open_session(keys, passphrase_file, passphrase_fd)
        row = loop.find_analysis(session.api, analysis)
        submission = session.signed(str(row["id"]))
        manifest = loop.read(submission.manifest)
        number = loop.order_number(session.api, submission.analysis, submission.manifest)
        if number > manifest.runs_max:
            raise Conflict(
                f"All {manifest.runs_max} runs that were approved have been ordered.",
                next_step="For more runs, set runs_max in flame.toml and submit the analysis again.",
            )
        values = loop.parameter_values(manifest, param or ())
        waits = row["distributionStatus"] != "executed"
        run = session.start(submission, number, values, **({"hours": None} if waits else {}))
        said = f"Run {number} of {manifest.runs_max} is ordered. `flame watch {submission.analysis[:8]}` follows it."
        Output(json).done(said, {"analysis": submission.analysis, "run": run, "number": number, "parameters": values})


@stop_app.command()
def stop(analysis: str, json: Json = False) -> None:
    """Stop what runs of an analysis, and take back an order that still waits."""
    with told_errors(json):
        from flame.researcher.login import open_api
        from flame.researcher.loop import find_analysis

        api = open_api()
        id_ = find_analysis(api, analysis)["id"]
        found = api.post(f"/core/analyses/{id_}/command", {"command": "executionStop"})["data"]
        Output(json).done("It is being stopped.", {"analysis": id_, "execution": found["executionStatus"]})


@watch_app.command()
def watch(
    analysis: str,
    seconds: Annotated[
        float, typer.Option("--timeout", help="Give up watching after so many seconds.")
    ] = DEFAULT_SECONDS,
    keys: KeyDir = None,
    passphrase_file: PassphraseFile = None,
    passphrase_fd: PassphraseFd = None,
    json: Json = False,
) -> None:
    """Follow an analysis: who has approved, how far each hospital is, how it ends. The hub tells news at once."""
    with told_errors(json):
        from flame.cli.progress import progress
        from flame.researcher import loop

        if not 0 <= seconds <= 366 * 24 * 3600:
            raise Invalid("--timeout is a number of seconds, at most a year.")
        session = open_session(keys, passphrase_file, passphrase_fd)
        submission = session.signed(str(loop.find_analysis(session.api, analysis)["id"]))
        submission.run = newest_run(session, submission)
        names = {p.node: p.name for p in loop.read(submission.manifest).participants}
        with progress(json) as view:
            status, reason = loop.follow_run(session, submission, names, view, seconds)
        document = {"analysis": submission.analysis, "run": submission.run, "status": status, "reason": reason}
        if status == "waiting":
            Output(json).document(document, "It goes on; watch it again later.")
            return
        Output(json).document(document, f"The run {status}." if status != "executed" else _opened(submission.analysis))
        if status != "executed":
            raise RunFailed(f"The run {status}: {reason}", next_step="See `flame analyses show ANALYSIS`.")


def _opened(analysis: str) -> str:
    return f"The run has ended well. `flame results open {analysis[:8]}` opens the result."


def newest_run(session: ResearcherSession, submission: Submission) -> str:
    """The last run that was ordered. Raises NotFound without any."""
    from flame.researcher.loop import own_runs

    runs: dict[str, Any] = own_runs(session, submission)
    if not runs:
        raise NotFound("No run of this analysis was ordered.", next_step="Order one: `flame start ANALYSIS`.")
    return max(runs, key=lambda run: runs[run])
