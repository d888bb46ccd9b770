"""``flame results …``: sealed results, fetched from the hub and opened here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from flame.cli.options import Json
from flame.cli.output import Output, told_errors
from flame.cli.people import KeyDir, PassphraseFd, PassphraseFile, open_session
from flame.model.errors import NotFound

if TYPE_CHECKING:
    from flame.researcher.session import ResearcherSession, ResultFile, Submission

app = typer.Typer(help="Results: the hub holds them sealed; they are opened on this machine.", no_args_is_help=True)

_SAFE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
Researcher = Annotated[
    str | None,
    typer.Option("--researcher", metavar="FINGERPRINT", help="Of a colleague's analysis: the key that they gave you."),
]


@app.command("list")
def list_results(analysis: str, json: Json = False) -> None:
    """What the hub holds of an analysis' results: sealed, so that it knows their sizes alone."""
    with told_errors(json):
        from flame.researcher.login import open_api
        from flame.researcher.loop import find_analysis, pages

        api = open_api()
        id_ = str(find_analysis(api, analysis)["id"])
        buckets = api.get(f"/core/analysis-buckets?filter[analysisId]={id_}&filter[type]=RESULT")["data"]
        found = pages(
            api, f"/core/analysis-bucket-files?filter[analysisBucketId]={buckets[0]['id'] if buckets else id_}"
        )
        numbers = {run["id"][:12]: run["number"] for run in api.get(f"/core/analyses/{id_}/runs")["data"]}
        rows = [
            {"file": row["path"], "run": numbers.get(row["path"][:12], "?"), "since": row["createdAt"]} for row in found
        ]
        Output(json).rows(rows, ("file", "run", "since"), "There is no result yet.")


@app.command()
def get(
    analysis: str,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the sealed files go.")] = Path(),
    json: Json = False,
) -> None:
    """Fetch sealed results as they are, to keep them or to open them elsewhere."""
    with told_errors(json):
        from flame.researcher.login import open_api
        from flame.researcher.loop import find_analysis, pages

        api = open_api()
        id_ = str(find_analysis(api, analysis)["id"])
        buckets = api.get(f"/core/analysis-buckets?filter[analysisId]={id_}&filter[type]=RESULT")["data"]
        found = (
            pages(api, f"/core/analysis-bucket-files?filter[analysisBucketId]={buckets[0]['id']}") if buckets else []
        )
        written = []
        for number, row in enumerate(found, start=1):
            name = row["path"] if _SAFE_NAME.fullmatch(row["path"]) else f"result-{number}.flame"
            written.append(_write(out, name, api.download(f"/storage/bucket-files/{row['bucketFileId']}/stream")))
        if not written:
            raise NotFound("There is no result yet.", next_step="See `flame watch ANALYSIS`.")
        Output(json).rows(written, ("path", "bytes"), "")


@app.command("open")
def open_results(
    analysis: str,
    run: Annotated[int | None, typer.Option("--run", metavar="N", help="Of this run alone, by its number.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="Where they go. (default: flame-results-ANALYSIS)", show_default=False
        ),
    ] = None,
    view: Annotated[
        bool, typer.Option("--view", help="Show them once in the browser instead, from this machine.")
    ] = False,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="With --view: print the address only.")] = False,
    researcher: Researcher = None,
    keys: KeyDir = None,
    passphrase_file: PassphraseFile = None,
    passphrase_fd: PassphraseFd = None,
    json: Json = False,
) -> None:
    """Fetch results, verify who sealed them and for which run, and open them with your key."""
    with told_errors(json):
        from flame.researcher import loop

        session = open_session(keys, passphrase_file, passphrase_fd)
        id_ = str(loop.find_analysis(session.api, analysis)["id"])
        submission = session.signed(id_, by=_signers(session, researcher))
        opened = _opened(session, submission, run)
        if view:
            from flame.researcher.view import show_once

            show_once([(f"Run {number}: {file.name}", file.content) for number, file in opened], browser=not no_browser)
            return
        folder = out or Path(f"flame-results-{id_[:8]}")
        written = [
            {"run": number, **_write(folder, _name(file, i), file.content)}
            for i, (number, file) in enumerate(opened, 1)
        ]
        Output(json).rows(written, ("run", "path", "bytes"), "")


def _signers(session: ResearcherSession, researcher: str | None) -> Any:
    if researcher is None:
        return ()
    from flame.crypto.keys import parse_fingerprint
    from flame.researcher.loop import researcher_keys

    return researcher_keys(session.api, parse_fingerprint(researcher).hex())


def _opened(session: ResearcherSession, submission: Submission, wanted: int | None) -> list[tuple[int, ResultFile]]:
    from flame.researcher import loop

    runs = loop.own_runs(session, submission)
    chosen = {id_: number for id_, number in runs.items() if wanted in (None, number)}
    begins = {id_[:12] for id_ in chosen}
    rows = [row for row in session.sealed_results(submission.analysis) if row["path"][:12] in begins]
    if not rows:
        raise NotFound("There is no result of such a run yet.", next_step="See `flame watch ANALYSIS`.")
    keys = loop.aggregator_keys(session.api, loop.read(submission.manifest))
    opened = (session.open_result(session.fetch(row), keys, chosen) for row in rows)
    return [(chosen[run], file) for run, file in opened]


def _name(file: ResultFile, number: int) -> str:
    """The name comes from the analysis: it names a file here, and nothing else."""
    return file.name if _SAFE_NAME.fullmatch(file.name) else f"result-{number}.bin"


def _write(folder: Path, name: str, content: bytes) -> dict[str, Any]:
    """Never over another file: a second run's result of the same name gets a number."""
    folder.mkdir(parents=True, exist_ok=True)
    path, number = folder / name, 1
    while path.exists() and path.read_bytes() != content:
        number += 1
        path = folder / f"{Path(name).stem}-{number}{Path(name).suffix}"
    path.write_bytes(content)
    return {"name": path.name, "path": str(path), "bytes": len(content)}
