"""``flame login`` in the browser, by its own process against a real hub: the code is typed where a person is."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from html import unescape
from pathlib import Path

import httpx2
from world import PASSWORD, World


def confirmed(hub: str, code: str, decision: str) -> None:
    """What a person does on the hub's page."""
    with httpx2.Client(base_url=hub, trust_env=False) as browser:
        page = browser.get("/auth/device", params={"user_code": code})
        page = browser.post("/auth/device", data={**hidden(page.text), "user_code": code})
        typed = {"username": "admin", "password": PASSWORD, "decision": decision}
        assert browser.post("/auth/device", data={**hidden(page.text), **typed}).status_code == 200


def hidden(page: str) -> dict[str, str]:
    return {n: unescape(v) for n, v in re.findall(r'<input type=hidden name="([^"]+)" value="([^"]*)">', page)}


def begun(hub: str, place: Path) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "flame", "login", "--hub", hub, "--json"],
        env={**os.environ, "FLAME_CONFIG_DIR": str(place)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    said = process.stderr.readline()
    found = re.search(r"/auth/device and type ([B-Z]{4}-[B-Z]{4})", said)
    assert found, said
    return process, found[1]


def test_a_login_in_the_browser_gives_tokens_that_renew_themselves(world: World, tmp_path: Path) -> None:
    process, code = begun(world.hub.url, tmp_path)
    confirmed(world.hub.url, code, "allow")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert json.loads(out) == {"hub": world.hub.url, "user": "admin"}
    kept = json.loads((tmp_path / "login.json").read_text())
    assert (tmp_path / "login.json").stat().st_mode & 0o777 == 0o600
    (tmp_path / "login.json").write_text(json.dumps({**kept, "until": time.time() - 1}))
    listed = subprocess.run(
        [sys.executable, "-m", "flame", "projects", "list", "--json"],
        env={**os.environ, "FLAME_CONFIG_DIR": str(tmp_path)}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert listed.returncode == 0, listed.stderr
    assert json.loads((tmp_path / "login.json").read_text())["refresh"] != kept["refresh"]


def test_a_person_who_says_no_is_heard(world: World, tmp_path: Path) -> None:
    process, code = begun(world.hub.url, tmp_path)
    confirmed(world.hub.url, code, "deny")
    out, err = process.communicate(timeout=60)
    assert process.returncode != 0 and not out
    assert json.loads(err.strip().splitlines()[-1])["message"]
    assert not (tmp_path / "login.json").exists()
