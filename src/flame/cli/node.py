"""``flame node …``: a hospital's node. Most verbs ask the node that runs on this machine; none of them holds a rule."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from flame.cli.output import Output, plain, plain_lines, told_errors

if TYPE_CHECKING:
    from flame.node.data.sources import Source
    from flame.node.local.client import LocalClient

app = typer.Typer(
    name="node", help="A hospital's node: enrol it, serve, decide what runs, see what leaves.", no_args_is_help=True
)
data_app = typer.Typer(help="What this hospital offers, and to which projects.", no_args_is_help=True)
steward_app = typer.Typer(help="Who may decide at this node.", no_args_is_help=True)
projects_app = typer.Typer(help="The projects that ask for this hospital.", no_args_is_help=True)
keys_app = typer.Typer(help="This node's own key.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(projects_app, name="projects")
app.add_typer(keys_app, name="keys")
app.add_typer(steward_app, name="steward")

DEFAULT_DIRECTORY: Final = Path("~/.flame/node")

Dir = Annotated[Path, typer.Option("--dir", envvar="FLAME_NODE_DIR", help="The node's directory.", show_default=True)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
TokenFile = Annotated[
    Path | None,
    typer.Option("--token-file", help="File with a steward's token; else $FLAME_NODE_TOKEN, else DIR/local-token."),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Comment = Annotated[str, typer.Option("--comment", "-m", help="A reason; it is recorded.")]

_LISTED: Final = (
    "id",
    "name",
    "title",
    "project",
    "role",
    "kind",
    "state",
    "status",
    "decision",
    "toConfirm",
    "signed",
    "created",
    "expires",
)


# --- the node itself ------------------------------------------------------------------------------------------------


@app.command()
def init(
    hub: Annotated[str, typer.Option("--hub", help="The hub's address.")],
    token: Annotated[
        str,
        typer.Option(
            "--token",
            envvar="FLAME_ENROLMENT_TOKEN",
            help="One-time token of the hub's administrator; '-' reads it from standard input.",
        ),
    ],
    name: Annotated[str | None, typer.Option("--name", help="The node's name, if the hub is to learn one.")] = None,
    dir: Dir = DEFAULT_DIRECTORY,
    json: Json = False,
) -> None:
    """Make this node's keys and enrol it at a hub."""
    with told_errors(json):
        from flame.node.enrolment import init as enrol

        once = sys.stdin.readline().strip() if token == "-" else token  # noqa: S105
        found = enrol(dir.expanduser(), hub, once, name)
        Output(json).document(
            found, "The node is enrolled. Compare the fingerprint with what the hub's administrator sees."
        )


@app.command()
def serve(dir: Dir = DEFAULT_DIRECTORY) -> None:
    """Run the node until it is stopped (Ctrl-C or SIGTERM)."""
    with told_errors():
        from flame.node.service import serve as run

        run(dir.expanduser())


@app.command()
def status(dir: Dir = DEFAULT_DIRECTORY, token_file: TokenFile = None, json: Json = False) -> None:
    """Whether the node runs, is connected and isolated; what waits for a decision."""
    with told_errors(json):
        Output(json).document(_node(dir, token_file).get("status"))


# --- analyses and projects ------------------------------------------------------------------------------------------


@app.command()
def analyses(dir: Dir = DEFAULT_DIRECTORY, token_file: TokenFile = None, json: Json = False) -> None:
    """The analyses that ask for this node."""
    with told_errors(json):
        Output(json).rows(_node(dir, token_file).get("analyses"), _LISTED, "No analysis asks for this node.")


@app.command()
def show(
    analysis: str,
    code: Annotated[
        bool, typer.Option("--code", help="Print the program too, file by file, checked against the manifest.")
    ] = False,
    dir: Dir = DEFAULT_DIRECTORY,
    token_file: TokenFile = None,
    json: Json = False,
) -> None:
    """What an analysis would run, read and release here."""
    with told_errors(json):
        node = _node(dir, token_file)
        id = _id(node, "analyses", analysis)
        shown = node.get("analyses", id)
        files = _code_of(node, shown) if code else []
        Output(json).document({**shown, "code": files} if code and json else shown)
        if not json:
            _print_code(files)


@app.command()
def approve(
    analysis: str,
    comment: Comment = "",
    condition: Annotated[
        list[str] | None,
        typer.Option(
            "--condition",
            help="Narrow it: hold, rounds_max=N, max_bytes=N, runs_max=N, min_rows=N or runtime_minutes=N. Repeatable.",
        ),
    ] = None,
    days: Annotated[int | None, typer.Option("--days", help="How long the approval holds.")] = None,
    confirm_unsigned: Annotated[
        bool, typer.Option("--confirm-unsigned", help="Yes, although only the hub says who asks for this.")
    ] = False,
    yes: Yes = False,
    dir: Dir = DEFAULT_DIRECTORY,
    token_file: TokenFile = None,
    json: Json = False,
) -> None:
    """Let an analysis run here, exactly as it stands."""
    with told_errors(json):
        from flame.node.supervisor.conditions import parse_conditions

        conditions = parse_conditions(condition or ())
        node = _node(dir, token_file)
        id = _id(node, "analyses", analysis)
        shown = node.get("analyses", id)
        if not yes:
            files = _code_of(node, shown)
            Output().document(shown)
            _print_code(files)
            _ask("Approve exactly this?")
        body: dict[str, Any] = {
            "decision": "approved",
            "comment": comment,
            "confirmUnsigned": confirm_unsigned,
            "digest": shown["digest"],
            "conditions": conditions,
        }
        found = node.post("analyses", id, "decision", body=body if days is None else {**body, "days": days})
        Output(json).done("Approved. The approval is signed with this node's key.", found)


@app.command()
def reject(
    analysis: str, comment: Comment = "", dir: Dir = DEFAULT_DIRECTORY, token_file: TokenFile = None, json: Json = False
) -> None:
    """Refuse an analysis, or withdraw its approval; what runs of it is stopped."""
    with told_errors(json):
        node = _node(dir, token_file)
        id = _id(node, "analyses", analysis)
        Output(json).done(
            "Rejected.", node.post("analyses", id, "decision", body={"decision": "rejected", "comment": comment})
        )


@app.command()
def start(analysis: str, dir: Dir = DEFAULT_DIRECTORY, token_file: TokenFile = None, json: Json = False) -> None:
    """Start an approved analysis, where policy.toml says autostart = false."""
    with told_errors(json):
        node = _node(dir, token_file)
        Output(json).done("Started.", node.post("analyses", _id(node, "analyses", analysis), "start"))


@projects_app.command("list")
def projects(dir: Dir = DEFAULT_DIRECTORY, token_file: TokenFile = None, json: Json = False) -> None:
    """The projects that ask for this node."""
    with told_errors(json):
        columns = ("id", "name", "decision", "toConfirm", "expires", "ended")
        Output(json).rows(_node(dir, token_file).get("projects"), columns, "No project asks for this node.")


@projects_app.command("show")
def show_project(project: str, dir: Dir = DEFAULT_DIRECTORY, token_file: TokenFile = None, json: Json = False) -> None:
    """What a project proposes: purpose, data, risk, legal basis, runtime, contact; and what was decided here."""
    with told_errors(json):
        node = _node(dir, token_file)
        Output(json).document(node.get("projects", _id(node, "projects", project)))


@projects_app.command("approve")
def approve_project(
    project: str,
    comment: Comment = "",
    days: Annotated[int | None, typer.Option("--days", help="How long the approval holds.")] = None,
    yes: Yes = False,
    dir: Dir = DEFAULT_DIRECTORY,
    token_file: TokenFile = None,
    json: Json = False,
) -> None:
    """Take part in a project, exactly as it is proposed. Its analyses still need an approval each."""
    with told_errors(json):
        node = _node(dir, token_file)
        shown = node.get("projects", _id(node, "projects", project))
        if not yes:
            Output().document(shown)
            _ask("Take part in this project?")
        body: dict[str, Any] = {"decision": "approved", "comment": comment, "digest": shown["digest"]}
        if days is not None:
            body["days"] = days
        Output(json).done("Approved.", node.post("projects", shown["id"], "decision", body=body))


@projects_app.command("reject")
def reject_project(
    project: str, comment: Comment = "", dir: Dir = DEFAULT_DIRECTORY, token_file: TokenFile = None, json: Json = False
) -> None:
    """Do not take part in a project, or no longer: what runs of it is stopped, what it has left here is deleted."""
    with told_errors(json):
        node = _node(dir, token_file)
        id = _id(node, "projects", project)
        Output(json).done(
            "Rejected.", node.post("projects", id, "decision", body={"decision": "rejected", "comment": comment})
        )


@projects_app.command("comment")
def comment_project(
    project: str, comment: str, dir: Dir = DEFAULT_DIRECTORY, token_file: TokenFile = None, json: Json = False
) -> None:
    """Say something about a project to its researcher, without a decision."""
    with told_errors(json):
        node = _node(dir, token_file)
        id = _id(node, "projects", project)
        Output(json).done(
            "The researcher can read it.", node.post("projects", id, "comment", body={"comment": comment})
        )


# --- members --------------------------------------------------------------------------------------------------------


@app.command()
def members(dir: Dir = DEFAULT_DIRECTORY, token_file: TokenFile = None, json: Json = False) -> None:
    """Nodes, researchers and result keys: confirmed here, by two members confirmed here, or not."""
    with told_errors(json):
        columns = ("name", "kind", "confirmed", "keys", "fingerprint", "words")
        Output(json).rows(_node(dir, token_file).get("members"), columns, "No member is known yet.")


@app.command()
def confirm(
    member: Annotated[str, typer.Argument(help="Whose key it is; a person's two keys get the same name.")],
    fingerprint: Annotated[str, typer.Argument(help="All 64 hex digits, as a source other than the hub gave them.")],
    kind: Annotated[
        str | None,
        typer.Option("--kind", help="node, researcher or result. (default: what the hub calls it)", show_default=False),
    ] = None,
    dir: Dir = DEFAULT_DIRECTORY,
    token_file: TokenFile = None,
    json: Json = False,
) -> None:
    """Confirm that a key belongs to a member: by telephone, letter or contract, never by what the hub says.

    The confirmation is signed and stands in the log: where two members confirmed at a hospital have confirmed a third,
    that one counts there too.
    """
    with told_errors(json):
        digits = "".join(fingerprint.split()).replace(":", "").lower()
        body = {"fingerprint": digits, "kind": kind or "", "name": member}
        found = _node(dir, token_file).post("members", body=body)
        Output(json).document(
            {name: found[name] for name in ("kind", "name", "fingerprint", "words")},
            "Confirmed. The node believed what was typed. If the key's owner has not read this out to you, ask them now:",
        )


@app.command()
def revoke(
    member: Annotated[str, typer.Argument(help="A name or fingerprint of `flame node members`; 'self' for this node.")],
    reason: Annotated[str, typer.Option("--reason", help="stolen, lost, left or other.")] = "other",
    yes: Yes = False,
    dir: Dir = DEFAULT_DIRECTORY,
    token_file: TokenFile = None,
    json: Json = False,
) -> None:
    """Say that a member is none any more. Here it holds at once; elsewhere when a second member has said so too.

    A node that revokes itself is out everywhere, for good: it enrols anew, and every hospital confirms it anew.
    """
    with told_errors(json):
        if not yes:
            _ask(f"Revoke '{member}'? This cannot be taken back.")
        found = _node(dir, token_file).post("members", "revocation", body={"member": member, "reason": reason})
        Output(json).document(found, "Revoked.")


@keys_app.command("show")
def keys_show(dir: Dir = DEFAULT_DIRECTORY, token_file: TokenFile = None, json: Json = False) -> None:
    """This node's key: the fingerprint that names it, and the one in use."""
    with told_errors(json):
        Output(json).document(_node(dir, token_file).get("keys"))


@keys_app.command("rotate")
def keys_rotate(dir: Dir = DEFAULT_DIRECTORY, token_file: TokenFile = None, json: Json = False) -> None:
    """Replace this node's key by a new one, signed by the present one. No approval and no confirmation is lost."""
    with told_errors(json):
        found = _node(dir, token_file).post("keys", "rotation")
        Output(json).document(found, "The new key is in use. The node keeps the name of its first key.")


# --- runs and releases ----------------------------------------------------------------------------------------------


@app.command()
def runs(dir: Dir = DEFAULT_DIRECTORY, token_file: TokenFile = None, json: Json = False) -> None:
    """What ran and runs here."""
    with told_errors(json):
        columns = ("id", "analysis", "title", "role", "state", "progress", "started", "ended", "reason")
        Output(json).rows(_node(dir, token_file).get("runs"), columns, "Nothing has run here yet.")


@app.command("run")
def show_run(run: str, dir: Dir = DEFAULT_DIRECTORY, token_file: TokenFile = None, json: Json = False) -> None:
    """One run: its data, its releases, how it ended."""
    with told_errors(json):
        node = _node(dir, token_file)
        Output(json).document(node.get("runs", _id(node, "runs", run)))


@app.command()
def stop(
    run: str,
    reason: Annotated[str, typer.Option("--reason", help="It is recorded.")] = "",
    dir: Dir = DEFAULT_DIRECTORY,
    token_file: TokenFile = None,
    json: Json = False,
) -> None:
    """End a run now."""
    with told_errors(json):
        node = _node(dir, token_file)
        Output(json).done("Stopped.", node.post("runs", _id(node, "runs", run), "stop", body={"reason": reason}))


@app.command()
def log(run: str, dir: Dir = DEFAULT_DIRECTORY, token_file: TokenFile = None, json: Json = False) -> None:
    """What a run's program printed. It stays at the node: it may show data."""
    with told_errors(json):
        node = _node(dir, token_file)
        Output(json).text(node.get("runs", _id(node, "runs", run), "output")["output"])


@app.command()
def releases(dir: Dir = DEFAULT_DIRECTORY, token_file: TokenFile = None, json: Json = False) -> None:
    """Results that wait for a steward, and what became of the others."""
    with told_errors(json):
        columns = ("id", "run", "analysis", "name", "kind", "size", "state", "created")
        Output(json).rows(_node(dir, token_file).get("releases"), columns, "Nothing waits for a steward.")


@app.command()
def release(
    release: str,
    refuse: Annotated[bool, typer.Option("--refuse", help="Keep it here for good.")] = False,
    dir: Dir = DEFAULT_DIRECTORY,
    token_file: TokenFile = None,
    json: Json = False,
) -> None:
    """Let a result leave for its recipients, or refuse it."""
    with told_errors(json):
        node = _node(dir, token_file)
        decision = "rejected" if refuse else "released"
        found = node.post("releases", _id(node, "releases", release), "decision", body={"decision": decision})
        Output(json).done("It stays here." if refuse else "Released.", found)


# --- data -----------------------------------------------------------------------------------------------------------


@data_app.command("list")
def data_list(dir: Dir = DEFAULT_DIRECTORY, json: Json = False) -> None:
    """The sources of sources.toml."""
    with told_errors(json):
        from flame.node.data import read_sources

        rows = [_source_row(source) for source in read_sources(_sources_file(dir)).all]
        Output(json).rows(
            rows,
            ("name", "id", "kind", "projects", "public", "path"),
            "No source is offered. Add one with `flame node data add`.",
        )


@data_app.command("add")
def data_add(
    name: Annotated[str, typer.Argument(help="What an analysis asks for; 'data' unless it says otherwise.")],
    path: Annotated[Path, typer.Argument(help="A .csv or .parquet file.")],
    id: Annotated[
        str | None, typer.Option("--id", help="What approvals fix; made from name and file if not given.")
    ] = None,
    project: Annotated[
        list[str] | None,
        typer.Option("--project", help="Id of a project that may use it; '*' for all. May be repeated."),
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Public demonstration data, not patients'.")] = False,
    dir: Dir = DEFAULT_DIRECTORY,
    json: Json = False,
) -> None:
    """Offer a file. Without --project it is granted to nobody yet."""
    with told_errors(json):
        from flame.node.data import Sources, read_sources
        from flame.node.data.sources import default_id, make_source, write_sources

        file = _sources_file(dir)
        source = make_source(
            name, id or default_id(name, path), path.expanduser().absolute(), tuple(project or ()), public
        )
        write_sources(file, Sources((*read_sources(file).all, source)))
        Output(json).done(
            f"Source '{name}' is offered. Try it with `flame node data test {name}`.", _source_row(source)
        )


@data_app.command("grant")
def data_grant(name: str, project: str, dir: Dir = DEFAULT_DIRECTORY, json: Json = False) -> None:
    """Let a project use a source, named by its id or its name."""
    with told_errors(json):
        from dataclasses import replace

        from flame.node.data import Sources, read_sources
        from flame.node.data.sources import write_sources

        file = _sources_file(dir)
        sources = read_sources(file)
        chosen = _chosen_source(sources.all, name)
        granted = replace(chosen, projects=(*chosen.projects, project))
        write_sources(file, Sources(tuple(granted if source is chosen else source for source in sources.all)))
        Output(json).done(f"Source '{name}' is granted to the project {project}.", _source_row(granted))


@data_app.command("test")
def data_test(name: str, dir: Dir = DEFAULT_DIRECTORY, json: Json = False) -> None:
    """Read a source as a run would, and say what was found. What was read is deleted again."""
    with told_errors(json):
        from tempfile import TemporaryDirectory

        from flame.model.manifest import DataRequest
        from flame.node.data import read_sources, take_snapshot

        source = _chosen_source(read_sources(_sources_file(dir)).all, name)
        with TemporaryDirectory(dir=dir.expanduser(), prefix="test-") as folder:
            found = take_snapshot(source, DataRequest("*", source.name, "table", (), 0), Path(folder) / "snapshot")
        Output(json).document(
            {"source": source.name, "rows": found.rows, "columns": found.columns, "file_sha256": found.file_sha256}
        )


# --- stewards -------------------------------------------------------------------------------------------------------


@steward_app.command("add")
def steward_add(
    name: str,
    role: Annotated[
        str, typer.Option("--role", help="steward: decides about data; admin: sees, starts, stops.")
    ] = "steward",
    dir: Dir = DEFAULT_DIRECTORY,
    json: Json = False,
) -> None:
    """Make an account; its token is shown once."""
    with told_errors(json):
        token = _accounts(dir).add(name, role)
        Output(json).document({"name": name, "role": role, "token": token}, "Keep the token; it is not shown again.")


@steward_app.command("list")
def steward_list(dir: Dir = DEFAULT_DIRECTORY, json: Json = False) -> None:
    """The accounts of this node."""
    with told_errors(json):
        rows = [{"name": a.name, "role": a.role, "created": a.created} for a in _accounts(dir).all()]
        Output(json).rows(
            rows, ("name", "role", "created"), "There is no account. Add one with `flame node steward add`."
        )


@steward_app.command("remove")
def steward_remove(name: str, dir: Dir = DEFAULT_DIRECTORY, json: Json = False) -> None:
    """Take an account away; its token is worth nothing from now on."""
    with told_errors(json):
        _accounts(dir).remove(name)
        Output(json).done(f"'{name}' may no longer decide here.", {"name": name})


# --- shared ---------------------------------------------------------------------------------------------------------


def _node(dir: Path, token_file: Path | None) -> LocalClient:
    from flame.node.local.client import LocalClient

    return LocalClient(dir.expanduser(), token_file)


def _id(node: LocalClient, kind: str, wanted: str) -> str:
    """The whole id of what begins with ``wanted``."""
    return str(_one(node.get(kind), wanted, kind)["id"])


def _one(rows: list[dict[str, Any]], wanted: str, kind: str) -> dict[str, Any]:
    from flame.model.errors import Invalid, NotFound

    exact = [row for row in rows if wanted in (row["id"], row.get("name"), row.get("title"))]
    found = exact or [row for row in rows if len(wanted) >= 4 and str(row["id"]).startswith(wanted)]
    if not found:
        listed = "projects list" if kind == "projects" else kind
        raise NotFound(f"None of the {kind} here is '{wanted}'.", next_step=f"See `flame node {listed}`.")
    if len(found) > 1:
        raise Invalid(f"Several of the {kind} here are '{wanted}'.", next_step="Use the whole id.")
    return found[0]


def _code_of(node: LocalClient, shown: dict[str, Any]) -> list[dict[str, Any]]:
    """The files of exactly the manifest that is shown: the hub may exchange it between the two questions, and back."""
    from flame.model.errors import DoesNotMatchApproval

    files: list[dict[str, Any]] = node.get("analyses", shown["id"], "code")
    fixed = ("path", "size", "sha256")
    named = [[file[key] for key in fixed] for file in shown["manifest"]["code"]]
    if [[file[key] for key in fixed] for file in files] != named:
        raise DoesNotMatchApproval(
            "The manifest was changed while it was shown: its program is another one by now.",
            next_step="Repeat the command, and read it again.",
        )
    return files


def _print_code(files: list[dict[str, Any]]) -> None:
    """Every line has its number, so that no line of a program can pass for the heading of another file."""
    for file in files:
        lines = [f"\n{plain(file['path'])}  {file['size']} bytes, SHA-256 {plain(file['sha256'])}"]
        if file["text"] is None:
            lines.append("     | (not UTF-8 text; it is not shown)")
        else:
            text = file["text"].removesuffix("\n").split("\n")
            lines += [f"{number:4} | {plain_lines(line)}" for number, line in enumerate(text, 1)]
        Output().text("\n".join(lines))


def _ask(question: str) -> None:
    from flame.model.errors import Invalid

    if not sys.stdin.isatty():
        raise Invalid(
            "Nobody is there to be asked.", next_step="Look at it with `show`, then repeat the command with --yes."
        )
    if not typer.confirm(question):
        raise typer.Exit(1)


def _sources_file(dir: Path) -> Path:
    from flame.model.errors import NotFound
    from flame.node.data.sources import FILE

    if not dir.expanduser().is_dir():
        raise NotFound(
            f"There is no node in {dir}.",
            next_step="Make one with `flame node init`, or name its directory with --dir.",
        )
    return dir.expanduser() / FILE


def _accounts(dir: Path) -> Any:
    from flame.node.local.stewards import FILE, Accounts

    return Accounts(_sources_file(dir).with_name(FILE))


def _chosen_source(sources: tuple[Source, ...], wanted: str) -> Source:
    from flame.model.errors import Invalid, NotFound

    found = [s for s in sources if s.id == wanted] or [s for s in sources if s.name == wanted]
    if not found:
        raise NotFound(f"There is no source '{wanted}'.", next_step="See `flame node data list`.")
    if len(found) > 1:
        raise Invalid(f"Several sources are named '{wanted}'.", next_step="Use the id of one of them.")
    return found[0]


def _source_row(source: Source) -> dict[str, Any]:
    return {
        "name": source.name,
        "id": source.id,
        "kind": source.kind,
        "projects": list(source.projects),
        "public": source.public,
        "path": str(source.path),
    }
