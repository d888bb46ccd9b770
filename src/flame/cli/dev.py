"""``flame dev …``: a federation on this machine that stays up, for development, tests and benchmarks."""

from __future__ import annotations

import re
import shlex
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from flame.cli.options import Json, ended_by_signals, read_interpreters, read_sites
from flame.cli.output import Output, told_errors
from flame.model.errors import Conflict, RunFailed
from flame.researcher.program import choose_entrypoint, read_program

if TYPE_CHECKING:
    from flame.lab.federation import Federation, Outcome, Site

app = typer.Typer(
    name="dev", help="A federation on this machine, left running, to try programs on.", no_args_is_help=True
)

DEFAULT_DIRECTORY: Final = Path(".flame-dev")
_SAFE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

Dir = Annotated[Path, typer.Option("--dir", metavar="DIR", envvar="FLAME_DEV_DIR", help="The federation's directory.")]


@app.command()
def up(
    hospitals: Annotated[
        int | None, typer.Option("--hospitals", help="Data hospitals. (default: 3)", show_default=False)
    ] = None,
    site: Annotated[
        list[str] | None,
        typer.Option("--site", metavar="NAME=PATH", help="A hospital and its data (file or folder); repeat for each."),
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="The data given with --site are public: warn instead of refusing.")
    ] = False,
    environment: Annotated[
        list[str] | None,
        typer.Option(
            "--environment",
            metavar="NAME=PYTHON",
            help="A Python of this machine, with what is installed beside it, for programs to run in; repeat for others.",
        ),
    ] = None,
    record: Annotated[
        bool, typer.Option("--record", help="Let the hub record every byte, for `flame dev status` to count.")
    ] = False,
    dir: Dir = DEFAULT_DIRECTORY,
    json: Json = False,
) -> None:
    """Start a hub, data hospitals and an aggregator, and leave them running.

    Without --site the hospitals have the breast cancer data (column `malignant` and 30 covariates). With --environment,
    a --site folder is served as it is to programs written for FLAME: its files as S3 objects, its *.ndjson as FHIR.
    """
    with told_errors(json), ended_by_signals(), ExitStack() as stack:
        from flame.cli.progress import progress
        from flame.lab.federation import Federation
        from flame.researcher.session import Progress

        interpreters = read_interpreters(environment or ())
        given = read_sites(site or (), (".csv", ".parquet"), folders=bool(interpreters))
        sites, known_public = _sites(hospitals, given, stack)
        view = stack.enter_context(progress(json))
        federation = Federation.up(
            dir,
            sites,
            public_data=public or known_public,
            record=record,
            interpreters=interpreters,
            progress=lambda stage, text: view(Progress(stage, None, 0, text)),
        )
        stack.close()
        Output(json).document(federation.document(), "The federation runs. `flame dev down` ends it.")


@app.command()
def status(dir: Dir = DEFAULT_DIRECTORY, json: Json = False) -> None:
    """Whether each part runs, is connected and isolated."""
    with told_errors(json):
        from flame.lab.federation import Federation

        federation = Federation.load(dir)
        found = federation.status()
        directories = {node.id: str(node.directory) for node in federation.nodes}
        found["nodes"] = [{**row, "directory": directories[row["id"]]} for row in found["nodes"]]
        if federation.recorded:
            found["recorded"] = federation.hub_counts()
        if json:
            Output(True).document(found)
        else:
            _print_status(found)


@app.command()
def down(
    keep_files: Annotated[bool, typer.Option("--keep-files", help="Leave databases and logs where they are.")] = False,
    dir: Dir = DEFAULT_DIRECTORY,
    json: Json = False,
) -> None:
    """End exactly what `up` started, and remove its files."""
    with told_errors(json):
        from flame.lab.federation import Federation

        federation = Federation.load(dir)
        federation.down(keep_files=keep_files)
        if not keep_files and not any(federation.directory.iterdir()):
            federation.directory.rmdir()
        document = {"dir": str(federation.directory), "ended": ["hub", *(node.name for node in federation.nodes)]}
        Output(json).done("The federation has ended.", document)


@app.command()
def submit(
    program: Annotated[Path, typer.Argument(metavar="PROGRAM_OR_DIR", help="A Python file, or a folder of files.")],
    entrypoint: Annotated[
        str | None,
        typer.Option("--entrypoint", metavar="FILE", help="The file that runs. (default: main.py)", show_default=False),
    ] = None,
    environment: Annotated[
        str | None,
        typer.Option(
            "--environment",
            metavar="NAME",
            help="What it runs in: a name given to `dev up --environment`. (default: FLAME's own SDK)",
            show_default=False,
        ),
    ] = None,
    title: Annotated[str, typer.Option("--title", help="What the stewards read.")] = "",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="Where results go. (default: flame-results-ANALYSIS)", show_default=False
        ),
    ] = None,
    dir: Dir = DEFAULT_DIRECTORY,
    json: Json = False,
) -> None:
    """Submit a program as the federation's researcher, approve it as its stewards, and open the results.

    A folder's `flame.toml` says what the program reads and releases; without one it gets every column of the source
    `data`, and may send messages, log lines and a final result.
    """
    with told_errors(json), ended_by_signals():
        from flame.cli.progress import progress
        from flame.lab.federation import Federation

        federation = Federation.load(dir)
        files = read_program(program)
        first = choose_entrypoint(files, entrypoint)
        with progress(json) as view:
            outcome = federation.submit(
                files, entrypoint=first, title=title or program.resolve().stem, progress=view, environment=environment
            )
        folder = out or Path(f"flame-results-{outcome.analysis[:8]}")
        Output(json).document(_outcome_document(outcome, folder), f"The analysis {outcome.status}.")
        if outcome.status != "executed":
            raise RunFailed(
                f"The analysis {outcome.status}: {outcome.reason}",
                next_step=f"See what the program printed there: {_log_command(federation, outcome)}",
            )


def _log_command(federation: Federation, outcome: Outcome) -> str:
    """For the node that failed, which stands before its reason; where none does, for the aggregator."""
    failed = (node for node in federation.nodes if outcome.reason.startswith(f"{node.name}: "))
    node = next(failed, federation.aggregator)
    return f"flame node log {outcome.run} --dir {shlex.quote(str(node.directory))}"


def _sites(hospitals: int | None, given: tuple[Site, ...], stack: ExitStack) -> tuple[list[Site], bool]:
    """The data hospitals, and whether their data are known to be public."""
    from flame.lab import datasets
    from flame.lab.federation import Site

    if given:
        wanted = hospitals if hospitals is not None else len(given)
        if wanted < len(given):
            raise Conflict("There are more --site than --hospitals.", next_step="Leave --hospitals out.")
        taken = {site.name for site in given}
        spare = [name for name in datasets.hospital_names(datasets.MAX_HOSPITALS) if name not in taken]
        datasets.hospital_names(wanted)
        return [*given, *(Site(name, None) for name in spare[: wanted - len(given)])], False
    names = datasets.hospital_names(3 if hospitals is None else hospitals)
    folder = Path(stack.enter_context(TemporaryDirectory(prefix="flame-dev-")))
    cohort = datasets.breast_cancer()
    sites = []
    for name, patients in zip(names, datasets.uneven_shares(len(cohort.rows), len(names)), strict=True):
        cohort.part(patients).write(folder / f"{name}.csv")
        sites.append(Site(name, folder / f"{name}.csv"))
    return sites, True


def _outcome_document(outcome: Outcome, folder: Path) -> dict[str, Any]:
    """Writes the results as it goes."""
    written = []
    for number, result in enumerate(outcome.results, start=1):
        # The name comes from the analysis: it names a file here, and nothing else.
        path = folder / (result.name if _SAFE_NAME.fullmatch(result.name) else f"result-{number}.bin")
        folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(result.content)
        written.append({"name": path.name, "path": str(path), "bytes": len(result.content)})
    return {
        "analysis": outcome.analysis,
        "status": outcome.status,
        "reason": outcome.reason,
        "seconds": outcome.seconds,
        "results": written,
    }


def _print_status(found: dict[str, Any]) -> None:
    output = Output()
    rows = [{"name": "hub", "role": "", **found["hub"]}, *found["nodes"]]
    for row in rows:
        state = row.pop("status", None)
        if isinstance(state, dict):
            isolation = state.get("isolation")
            row["isolation"] = isolation.get("level") if isinstance(isolation, dict) else isolation
    output.rows(rows, ("name", "role", "running", "isolation", "url", "error"), "Nothing runs.")
    # A line each and never folded: they are there to be copied into `--dir`.
    output.document({row["name"]: row["directory"] for row in found["nodes"]}, "The nodes' directories, for --dir:")
    if "recorded" in found:
        output.document(found["recorded"], "What the hub handled:")
