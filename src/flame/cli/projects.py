"""``flame projects …``: what a researcher asks of hospitals."""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer

from flame.cli.options import Json
from flame.cli.output import Output, told_errors
from flame.cli.people import KeyDir, PassphraseFd, PassphraseFile, open_session
from flame.model.errors import Invalid

app = typer.Typer(help="Projects: what you propose to hospitals, and what they say.", no_args_is_help=True)

_LISTED = ("id", "name", "displayName", "nodes", "analyses", "expires", "endedAt")
Display = Annotated[str | None, typer.Option("--title", help="What people read.")]
Description = Annotated[str | None, typer.Option("--description", help="In a few sentences (5 characters or more).")]
Purpose = Annotated[str | None, typer.Option("--purpose", help="The question, and for what.")]
Data = Annotated[str | None, typer.Option("--data", help="Which data are asked for, of which years.")]
Risk = Annotated[str | None, typer.Option("--risk", help="What could harm patients, and what stands against it.")]
Basis = Annotated[str | None, typer.Option("--legal-basis", help="Consent, law, vote of the ethics committee.")]
Runtime = Annotated[str | None, typer.Option("--runtime", help="How long it is meant to last.")]
Contact = Annotated[str | None, typer.Option("--contact", help="Who answers questions.")]
Expires = Annotated[str | None, typer.Option("--expires", metavar="DATE", help="After that nothing of it runs.")]


@app.command("list")
def list_projects(json: Json = False) -> None:
    """The projects that you see."""
    with told_errors(json):
        from flame.researcher.login import open_api
        from flame.researcher.loop import pages

        Output(json).rows(pages(open_api(), "/core/projects"), _LISTED, "There is no project that you see.")


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Lower-case letters, digits, '.', '_' and '-'.")],
    node: Annotated[list[str] | None, typer.Option("--node", help="A hospital's node to ask; repeat for each.")] = None,
    title: Display = None,
    description: Description = None,
    purpose: Purpose = None,
    data: Data = None,
    risk: Risk = None,
    legal_basis: Basis = None,
    runtime: Runtime = None,
    contact: Contact = None,
    expires: Expires = None,
    json: Json = False,
) -> None:
    """Propose a project to hospitals. Each one's steward reads all of it, and decides at their node."""
    with told_errors(json):
        from flame.researcher.login import open_api

        fields = _fields(title, description, purpose, data, risk, legal_basis, runtime, contact, expires)
        api = open_api()
        chosen_nodes = _nodes(api, node or ())
        project = api.post("/core/projects", {"name": name, **fields})["data"]
        for one in chosen_nodes:
            api.post("/core/project-nodes", {"projectId": project["id"], "nodeId": one["id"]})
        Output(json).done(f"Proposed as {project['id']}.", {**project, "asked": [one["name"] for one in chosen_nodes]})


@app.command()
def show(project: str, json: Json = False) -> None:
    """A proposal, and what each hospital has said: its decision, whether its node has signed it, its comment."""
    with told_errors(json):
        from flame.researcher.login import open_api
        from flame.researcher.loop import find_project, places_of

        api = open_api()
        found = find_project(api, project)
        places = places_of(api, "project", "projectId", str(found["id"]))
        Output(json).document({**found, "hospitals": [_hospital(place) for place in places]})


@app.command()
def ask(
    project: str, node: Annotated[list[str], typer.Argument(help="Nodes by name or id.")], json: Json = False
) -> None:
    """Ask further hospitals."""
    with told_errors(json):
        from flame.researcher.login import open_api
        from flame.researcher.loop import find_project

        api = open_api()
        found = find_project(api, project)
        asked = _nodes(api, node)
        for one in asked:
            api.post("/core/project-nodes", {"projectId": found["id"], "nodeId": one["id"]})
        names = [str(one["name"]) for one in asked]
        Output(json).done(f"Asked: {', '.join(names)}.", {"id": found["id"], "asked": names})


@app.command()
def change(
    project: str,
    title: Display = None,
    description: Description = None,
    purpose: Purpose = None,
    data: Data = None,
    risk: Risk = None,
    legal_basis: Basis = None,
    runtime: Runtime = None,
    contact: Contact = None,
    expires: Expires = None,
    json: Json = False,
) -> None:
    """Change a proposal. Every hospital's approval is void then, and what runs is stopped, until they decide anew."""
    with told_errors(json):
        from flame.researcher.login import open_api
        from flame.researcher.loop import find_project

        fields = _fields(title, description, purpose, data, risk, legal_basis, runtime, contact, expires)
        if not fields:
            raise Invalid("There is nothing to change.", next_step="See `flame projects change --help`.")
        api = open_api()
        found = api.post(f"/core/projects/{find_project(api, project)['id']}", fields)["data"]
        Output(json).done("Changed. The hospitals decide anew.", found)


@app.command()
def end(
    project: str,
    reason: Annotated[str, typer.Option("--reason", help="It is signed and kept.")] = "",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    keys: KeyDir = None,
    passphrase_file: PassphraseFile = None,
    passphrase_fd: PassphraseFd = None,
    json: Json = False,
) -> None:
    """End a project: runs stop; hub and hospitals delete programs, messages, sealed results and keys of it.

    Fetch your results first. The log keeps that there was such a project, and that it was deleted.
    """
    with told_errors(json):
        from flame.researcher.loop import end_of_project, find_project

        session = open_session(keys, passphrase_file, passphrase_fd)
        found = find_project(session.api, project)
        if not yes and not typer.confirm(f"End '{found['name']}' and delete its results?", err=True):
            raise typer.Exit(1)
        body = end_of_project(session, str(found["id"]), reason[:4000])
        ended = session.api.post(f"/core/projects/{found['id']}/end", body)["data"]
        Output(json).done("Ended.", ended)


def _fields(
    title: str | None,
    description: str | None,
    purpose: str | None,
    data: str | None,
    risk: str | None,
    legal_basis: str | None,
    runtime: str | None,
    contact: str | None,
    expires: str | None,
) -> dict[str, str]:
    given = {
        "displayName": title,
        "description": description,
        "purpose": purpose,
        "dataRequested": data,
        "risk": risk,
        "legalBasis": legal_basis,
        "runtime": runtime,
        "contact": contact,
        "expires": _time(expires) if expires else expires,
    }
    return {name: value for name, value in given.items() if value is not None}


def _time(text: str) -> str:
    if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
        return f"{text}T00:00:00Z"
    if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}Z", text):
        return text
    raise Invalid(f"'{text[:40]}' is no date.", next_step="Write 2027-06-30, or 2027-06-30T12:00:00Z.")


def _nodes(api: Any, wanted: Any) -> list[dict[str, Any]]:
    from flame.researcher.loop import chosen, pages

    known = pages(api, "/core/nodes") if wanted else []
    return [chosen(known, one, "nodes", "flame projects show PROJECT") for one in wanted]


def _hospital(place: dict[str, Any]) -> dict[str, Any]:
    node = place.get("node") or {}
    signed = bool(place.get("approvalSigned"))
    return {
        "name": node.get("name", place["nodeId"]),
        "role": node.get("type", ""),
        "decision": place.get("approvalStatus") or "not decided yet",
        "signed": signed,
        "by": "its node" if signed else place.get("approvalBy") or "",
        "comment": place.get("comment") or "",
        "member": node.get("member") or "",
    }
