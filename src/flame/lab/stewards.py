"""The steward of one hospital, played by the lab: speaks to the node's local interface and nowhere else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flame.model.errors import NotFound
from flame.researcher.api import Api


class Steward:
    def __init__(self, directory: Path, token: str) -> None:
        self._directory, self._token = directory, token
        self._api: Api | None = None

    @property
    def api(self) -> Api:
        if self._api is None:
            self._api = Api(self.url, self._token)
        return self._api

    @property
    def url(self) -> str:
        try:
            return str(json.loads((self._directory / "node.json").read_text())["url"])
        except (OSError, ValueError, KeyError):
            raise NotFound(f"The node in {self._directory} does not run.", next_step="See its node.log.") from None

    def status(self) -> dict[str, Any]:
        return dict(self.api.get("/api/status"))

    def confirm(self, fingerprint: str, kind: str, name: str) -> None:
        """Pin a key; the lab compared it with the key that it saw being made, not with what the hub says."""
        self.api.post("/api/members", {"fingerprint": fingerprint, "kind": kind, "name": name})

    def approve_project(self, project: str) -> None:
        self.api.post(f"/api/projects/{project}/decision", {"decision": "approved"})

    def analyses(self) -> list[dict[str, Any]]:
        answer = self.api.get("/api/analyses")
        return list(answer["data"] if isinstance(answer, dict) else answer)

    def show(self, analysis: str) -> dict[str, Any]:
        return dict(self.api.get(f"/api/analyses/{analysis}"))

    def decide(self, analysis: str, decision: str = "approved", comment: str = "", digest: str = "") -> dict[str, Any]:
        """``digest``: what is approved; the lab knows it from the researcher, as a steward knows it from the page."""
        given = {"decision": decision, "comment": comment, "digest": digest}
        body = {name: value for name, value in given.items() if value}
        return dict(self.api.post(f"/api/analyses/{analysis}/decision", body))

    def runs(self) -> list[dict[str, Any]]:
        answer = self.api.get("/api/runs")
        return list(answer["data"] if isinstance(answer, dict) else answer)

    def release_held(self, run: str) -> None:
        answer = self.api.get("/api/releases")
        for row in answer["data"] if isinstance(answer, dict) else answer:
            if row["run"] == run and row["state"] == "held":
                self.api.post(f"/api/releases/{row['id']}/decision", {"decision": "released"})
