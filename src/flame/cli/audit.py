"""``flame audit …``: fetch the transparency log, check it without believing the hub, and read what it tells."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flame.cli.options import Json
from flame.cli.output import Output, told_errors
from flame.model.errors import BadSignature, Conflict, Invalid, Malformed, NotFound, Refused

if TYPE_CHECKING:
    from flame.crypto.keys import PublicKey
    from flame.protocol.audit import Export, KnownHead, Report
    from flame.protocol.history import History
    from flame.researcher.api import Api

app = typer.Typer(name="audit", help="The transparency log: fetch it, check it offline, read it.", no_args_is_help=True)

MAX_TOLD = 20
"""Problems and oddities in the sentence of an error; ``--json`` gives all."""

Hub = Annotated[
    str,
    typer.Option(
        "--hub",
        metavar="FINGERPRINT",
        help="The hub's fingerprint in hex, from its operator or `flame node init`.",
        show_default=False,
    ),
]
Since = Annotated[
    Path | None,
    typer.Option("--since", metavar="FILE", help="An earlier export: the log must continue it.", show_default=False),
]
Heads = Annotated[
    list[str] | None,
    typer.Option(
        "--head",
        metavar="SIZE:ROOT",
        help="A tree head that somebody kept, as `flame node status` shows it. May be given several times.",
        show_default=False,
    ),
]
Logged = Annotated[Path, typer.Argument(help="An exported log.")]


@app.command()
def verify(file: Logged, hub: Hub = "", since: Since = None, head: Heads = None, json: Json = False) -> None:
    """Check an exported log offline against what you kept: the hub's fingerprint, an earlier export, or a tree head.

    Says who approved what, what ran, what left, and what is missing; a log that was changed is refused, with its first
    bad entry.
    """
    with told_errors(json):
        from flame.protocol.history import History

        history = History()
        with _opened(file) as export, _earlier(since) as before:
            key = _pinned(export, hub, before, head)
            report = _checked(export, key, before, _heads_of(head, before), history)
        _tell(report, history, pinned=bool(hub or before), json=json)


@app.command()
def show(
    file: Logged,
    analysis: Annotated[
        str, typer.Option("--analysis", metavar="ID", help="Only this analysis.", show_default=False)
    ] = "",
    json: Json = False,
) -> None:
    """Read an exported log: what happened to each project and analysis, with the number of each entry.

    Nothing is checked: that is `flame audit verify`.
    """
    with told_errors(json):
        from flame.protocol.history import History

        history = History()
        with _opened(file) as export:
            for index, event in _events(export):
                history.take(index, event)
        if analysis and analysis not in history.analyses:
            raise NotFound(
                f"The log says nothing about the analysis {analysis}.", next_step="See it without --analysis."
            )
        if json:
            Output(True).document(history.document())
        else:
            Output().text("\n".join(history.text(analysis)) or "The log says nothing about projects or analyses.")


@app.command()
def export(
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="File to write; it must not exist yet.")],
    url: Annotated[str, typer.Argument(help="The hub's address; without one, the hub of `flame login`.")] = "",
    user: Annotated[
        str,
        typer.Option(
            "--user", metavar="NAME", help="Log in by this name; the password is asked for.", show_default=False
        ),
    ] = "",
    json: Json = False,
) -> None:
    """Fetch the log into a file: what you may read in full, everything else as hashes, so that the whole can be checked."""
    with told_errors(json):
        api = _api(url, user)
        api.get("/core/audit/head")  # a session that is over is renewed here, or said to be over
        try:
            with out.open("xb") as target:
                api.save("/core/audit/export", target)
        except FileExistsError:
            raise Conflict(f"{out} exists already.", next_step="Name another file: an export is evidence.") from None
        from flame.protocol.audit import open_export

        with open_export(out) as export:
            size, root, key = export.head.size, export.head.root.hex(), export.hub_key.fingerprint.hex()
        Output(json).done(
            f"{size} entries in {out}, root {root[:16]}…, signed by the hub's key {key[:16]}…",
            {"file": str(out), "entries": size, "root": root, "hub": key},
        )


def _api(url: str, user: str) -> Api:
    from flame.researcher.api import Api
    from flame.researcher.login import open_api

    if not url and not user:
        return open_api()
    if not url or not user:
        raise Invalid("An address and a name belong together.", next_step="Give both, or `flame login` and neither.")
    return Api.login(url, user, typer.prompt("Password", hide_input=True, err=True))


@contextmanager
def _opened(file: Path) -> Iterator[Export]:
    from flame.protocol.audit import open_export

    try:
        with open_export(file) as export:
            yield export
    except OSError as error:
        raise NotFound(f"{file} cannot be read: {error.strerror}.", next_step="Check the path.") from None


@contextmanager
def _earlier(since: Path | None) -> Iterator[Export | None]:
    if since is None:
        yield None
        return
    with _opened(since) as export:
        yield export


def _pinned(export: Export, fingerprint: str, before: Export | None, heads: list[str] | None) -> PublicKey:
    """The hub's key, once it is the one that the caller knows from elsewhere; with a kept head alone, that in the file."""
    from flame.crypto.keys import parse_fingerprint

    known = [parse_fingerprint(fingerprint)] if fingerprint else []
    known += [before.hub_key.fingerprint] if before else []
    if not known and not heads:
        raise Invalid(
            "Against what? A log that is only compared with itself proves nothing.",
            next_step="Give --hub with the hub's fingerprint, --since with an earlier export, or --head.",
        )
    if any(export.hub_key.fingerprint != one for one in known):
        raise BadSignature(
            "The log was signed with another key than the hub's that was named.",
            next_step="Compare the fingerprint with the one that `flame node init` showed.",
        )
    return export.hub_key


def _heads_of(texts: list[str] | None, before: Export | None) -> list[KnownHead]:
    from flame.protocol.audit import KnownHead

    heads = [KnownHead(before.head.size, before.head.root)] if before else []
    for text in texts or ():
        size, _, root = text.partition(":")
        try:
            heads.append(KnownHead(int(size), bytes.fromhex(root)))
        except ValueError:
            raise Invalid(f"'{text[:80]}' is no tree head.", next_step="Write entries:root, the root in hex.") from None
        if len(heads[-1].root) != 32:
            raise Invalid(f"The root in '{text[:80]}' has not 64 digits.", next_step="Copy it whole.")
    return heads


def _checked(export: Export, key: PublicKey, before: Export | None, heads: list[KnownHead], history: History) -> Report:
    from flame.protocol.audit import verify_export

    entries = before.entries if before else ()
    return verify_export(export, key, heads, earlier=entries, each=history.take)


def _tell(report: Report, history: History, *, pinned: bool, json: bool) -> None:
    document = _shown(report, pinned) | history.document()
    output = Output(json)
    if json:
        output.document(document)
        if not report.ok:
            raise SystemExit(3)
        return
    if not report.ok:
        raise Refused(
            f"The log does not verify: {' '.join(report.problems[:MAX_TOLD])}",
            next_step="Keep both exports; compare with another member's, and ask the hub's operator.",
        )
    text = "\n".join(history.text())
    if text:
        output.text(text)
        output.text("")
    gaps = [*document["gaps"], *report.oddities]
    if not pinned:
        gaps.append("The hub's key was not named: it is only known that the log continues the head that you gave.")
    if report.unknown:
        gaps.append(
            f"{len(report.unknown)} entries are signed by keys that are not known here, from {report.unknown[0]} on."
        )
    if gaps:
        output.text("To look at:\n" + "\n".join(f"  {gap}" for gap in gaps[:MAX_TOLD]))
        output.text("")
    output.document(_shown(report, pinned), "The log verifies.")


def _events(export: Export) -> Iterator[tuple[int, Any]]:
    from flame.protocol.audit import event_of

    for index, entry in enumerate(export.entries):
        if entry.text is not None:
            try:
                yield index, event_of(entry.text)[0]
            except Malformed as error:
                raise Malformed(f"Entry {index} cannot be read: {error.message}") from None


def _shown(report: Report, pinned: bool) -> dict[str, Any]:
    return {
        "verified": report.ok,
        "entries": report.size,
        "root": report.root.hex(),
        "signatures checked": report.verified,
        "signers not known here": len(report.unknown),
        "entries not shown to you": report.hidden,
        "continues": report.heads,
        "hub's key pinned": pinned,
    } | ({} if report.ok else {"first bad entry": report.first_bad, "problems": report.problems})
