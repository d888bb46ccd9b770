"""``flame analyses …``: what a researcher has submitted, and what the hospitals say."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from flame.cli.options import Json
from flame.cli.output import Output, told_errors

app = typer.Typer(help="Your analyses: what you have submitted, and what has become of it.", no_args_is_help=True)

_LISTED = ("id", "name", "displayName", "configurationLocked", "nodesApproved", "nodes", "executionStatus", "createdAt")


@app.command("list")
def list_analyses(
    project: Annotated[str | None, typer.Option("--project", help="Of this project alone.")] = None, json: Json = False
) -> None:
    """The analyses that you see."""
    with told_errors(json):
        from flame.researcher.login import open_api
        from flame.researcher.loop import find_project, pages

        api = open_api()
        only = f"?filter[projectId]={find_project(api, project)['id']}" if project else ""
        Output(json).rows(pages(api, f"/core/analyses{only}"), _LISTED, "There is no analysis that you see.")


@app.command()
def show(analysis: str, json: Json = False) -> None:
    """Manifest, approvals (signer, time, conditions), runs and results of an analysis."""
    with told_errors(json):
        from flame.researcher.login import open_api
        from flame.researcher.loop import find_analysis, places_of, read

        api = open_api()
        found = find_analysis(api, analysis)
        shown: dict[str, Any] = {
            "id": found["id"],
            "name": found["displayName"] or found["name"],
            "project": found["projectId"],
            "locked": found["configurationLocked"],
            "build": found["buildStatus"],
            "distribution": found["distributionStatus"],
            "execution": found["executionStatus"],
        }
        if found["configurationLocked"]:
            frozen = api.get(f"/core/analyses/{found['id']}/manifest")["data"]
            shown |= {"digest": frozen["digest"], "signed by": frozen["signer"], "missing": frozen["missing"]}
            if frozen["manifest"]:
                shown["runs_max"] = read(frozen["manifest"].encode()).runs_max
        places = places_of(api, "analysis", "analysisId", str(found["id"]))
        shown["approvals"] = [_approval(place) for place in places]
        runs = api.get(f"/core/analyses/{found['id']}/runs")["data"]
        shown["runs"] = [{"number": run["number"], "state": run["state"], "id": run["id"]} for run in runs]
        Output(json).document(shown)


def _approval(place: dict[str, Any]) -> dict[str, Any]:
    from flame.model.errors import FlameError
    from flame.protocol.documents import Approval

    row: dict[str, Any] = {
        "hospital": (place.get("node") or {}).get("name", place["nodeId"]),
        "decision": place.get("approvalStatus") or "not decided yet",
        "signed": bool(place.get("approvalSigned")),
        "by": place.get("approvalBy") or "",
        "comment": place.get("comment") or "",
        "run": place.get("executionStatus") or "",
        "reason": place.get("executionReason") or "",
    }
    if place.get("approval"):
        try:
            said: Approval = Approval.decode(str(place["approval"]).encode())
        except FlameError:
            return {**row, "by": "a document that cannot be read"}
        row |= {
            "by": ", ".join(f"{by.name} ({by.kind})" for by in said.by),
            "time": said.time,
            "expires": said.expires,
            "conditions": said.conditions,
        }
    return row
