"""The API guide is one program; it runs with the official client against a real hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from docs.test_documents_keep_their_word import blocks
from integration.hub.world import PASSWORD, HubProcess, World

GUIDE = "docs/guides/api.md"


def test_the_api_guide_runs(tmp_path: Path) -> None:
    hub = HubProcess(tmp_path / "hub", admin_password=PASSWORD)
    world = World(hub)
    names: dict[str, Any] = {}
    try:
        realm = world.realm("university")
        world.admin.make(
            "/auth/users", name="ada", password="correct horse battery", realmId=realm, roles=["researcher"]
        )
        for kind in ("default", "aggregator"):
            world.node(world.realm("hospital"), kind)
        program = "\n".join(text for name, text in blocks("python") if name == GUIDE)
        exec(compile(program.replace("https://hub.example", hub.url), GUIDE, "exec"), names)
        assert names["files"][0].path == "main.py"
    finally:
        for client in ("core", "storage", "people", "auth"):
            if client in names:
                names[client]._client.close()
        world.close()
        hub.stop()
