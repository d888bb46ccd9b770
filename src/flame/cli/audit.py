"""``flame audit …``: fetch the transparency log, and check it without believing the hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flame.cli.options import Json
from flame.cli.output import Output, told_errors
from flame.model.errors import BadSignature, Invalid, Malformed, NotFound, Refused

if TYPE_CHECKING:
    from flame.crypto.keys import PublicKey
    from flame.protocol.audit import KnownHead, Report

app = typer.Typer(name="audit", help="The transparency log: fetch it, check it offline.", no_args_is_help=True)

MAX_EXPORT = 1 << 30

Hub = Annotated[
    str,
    typer.Option(
        "--hub", metavar="FINGERPRINT", help="The hub's fingerprint in hex, from its operator or `flame node init`."
    ),
]
Since = Annotated[
    Path | None,
    typer.Option("--since", metavar="FILE", help="An earlier export: the log must continue it.", show_default=False),
]


@app.command()
def verify(
    file: Annotated[Path, typer.Argument(help="An exported log.")], hub: Hub, since: Since = None, json: Json = False
) -> None:
    """Check an exported log offline: head, order, signatures, and that it continues an earlier export."""
    with told_errors(json):
        from flame.protocol.audit import verify_export

        content = _read(file)
        heads = [_head_of(_read(since))] if since is not None else []
        report = verify_export(content, _hub_key(content, hub), heads)
        if not report.ok:
            raise Refused(
                f"The log does not verify: {' '.join(report.problems[:20])}",
                next_step="Keep both exports; compare with another member's, and ask the hub's operator.",
            )
        Output(json).document(_shown(report), "The log verifies.")


@app.command()
def export(
    url: Annotated[str, typer.Argument(help="The hub's address.")],
    out: Annotated[Path, typer.Option("--out", help="File to write.")],
    user: Annotated[
        str, typer.Option("--user", help="Name of an administrator or auditor; the password is asked for.")
    ],
    json: Json = False,
) -> None:
    """Fetch the whole log from the hub into a file."""
    with told_errors(json):
        import json as text

        from flame.researcher.api import Api

        found: dict[str, Any] = Api.login(url, user, typer.prompt("Password", hide_input=True, err=True)).get(
            "/core/audit/export"
        )
        with out.open("x", encoding="utf-8") as target:
            text.dump(found, target)
        Output(json).done(
            f"{len(found['leaves'])} entries in {out}", {"file": str(out), "entries": len(found["leaves"])}
        )


def _read(file: Path) -> bytes:
    try:
        if file.stat().st_size > MAX_EXPORT:
            raise Invalid(f"{file} is larger than {MAX_EXPORT} bytes.")
        return file.read_bytes()
    except OSError as error:
        raise NotFound(f"{file} cannot be read: {error.strerror}.", next_step="Check the path.") from None


def _document(content: bytes) -> dict[str, Any]:
    import msgspec

    try:
        found: dict[str, Any] = msgspec.json.decode(content, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError) as error:
        raise Malformed(f"This is not an exported log: {error}") from None
    return found


def _hub_key(content: bytes, fingerprint: str) -> PublicKey:
    """The key in the file, once it is the one that the caller knows from elsewhere."""
    from flame.crypto.keys import PublicKey, parse_fingerprint

    key = PublicKey.from_hex_pem(str(_document(content).get("hubKey")))
    if key.fingerprint != parse_fingerprint(fingerprint):
        raise BadSignature(
            "The log was signed with another key than the hub's that was named.",
            next_step="Compare the fingerprint with the one that `flame node init` showed.",
        )
    return key


def _head_of(content: bytes) -> KnownHead:
    from flame.protocol.audit import KnownHead

    head = _document(content).get("head")
    try:
        assert isinstance(head, dict)
        return KnownHead(int(head["size"]), bytes.fromhex(str(head["root"])))
    except (AssertionError, KeyError, ValueError, TypeError):
        raise Malformed("The earlier export has no head that can be read.") from None


def _shown(report: Report) -> dict[str, Any]:
    return {
        "verified": report.ok,
        "entries": report.size,
        "root": report.root.hex(),
        "signatures checked": report.verified,
        "signers not known here": len(report.unknown),
        "continues": report.heads,
    }
