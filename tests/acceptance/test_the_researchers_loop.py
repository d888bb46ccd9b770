"""The loop of real people against a real hub: keys, login, project, submission, approvals, watching, opening.

Everything through the command line in processes of its own: the researcher's with a configuration of their own, the
stewards' at their nodes. The lab only starts the federation.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from federation_world import AGES, HOSPITALS, eventually, sites
from flame.lab import environment
from flame.lab.federation import Federation, _grant
from flame.node.local.client import LocalClient
from flame.researcher.api import Api

ENDED = ("stopped", "failed")
"""By its own node, or because a participant told of its stop before."""
AGES_ALL = [age for name in HOSPITALS for age in AGES[name]]
PROGRAM = """\
import time

import flame

with flame.connect() as fed:
    least = fed.parameters["least"]
    if fed.parameters["wait"]:
        time.sleep(600)
    if fed.is_aggregator:
        total, hospitals = fed.total("ages")
        fed.submit({"n": total["n"], "sum": total["sum"], "hospitals": hospitals}, "ages.json")
    else:
        ages = fed.data().numbers("age")
        ages = ages[ages >= least]
        fed.contribute("ages", {"n": len(ages), "sum": float(ages.sum())})
"""
AUTHOR = """\
[analysis]
purpose = "How old are the patients?"
runs_max = 3

[[parameters]]
name = "least"
type = "integer"
default = 0
range = [0, 60]

[[parameters]]
name = "wait"
type = "flag"
default = false
options = [true]

[[releases]]
kind = "sum"

[[releases]]
kind = "final"
release = "auto"
"""


@dataclass
class Ada:
    """A researcher with a machine of her own."""

    place: Path
    env: dict[str, str] = field(default_factory=dict)

    def run(self, *arguments: str, seconds: float = 240, **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "flame", *arguments],
            cwd=self.place, env={**os.environ, **self.env, "FLAME_CONFIG_DIR": str(self.place / "config")},
            capture_output=True, text=True, timeout=seconds, stdin=subprocess.DEVNULL, **options,
        )  # fmt: skip

    def does(self, *arguments: str, **options: Any) -> Any:
        done = self.run(*arguments, "--json", **options)
        assert done.returncode == 0, f"flame {' '.join(arguments)}: {done.stdout}{done.stderr}"
        return json.loads(done.stdout)

    def keyed(self, *arguments: str) -> Any:
        return self.does(*arguments, "--passphrase-file", str(self.place / "passphrase"))

    def fails(self, *arguments: str, code: int = 3) -> dict[str, str]:
        done = self.run(*arguments, "--json")
        assert done.returncode == code, f"flame {' '.join(arguments)}: {done.returncode} {done.stdout}{done.stderr}"
        said: dict[str, str] = json.loads(done.stderr.strip().splitlines()[-1])
        assert said["message"] and said["nextStep"]
        return said


@dataclass
class World:
    federation: Federation
    ada: Ada
    project: str = ""

    def steward(self, node: str, *arguments: str) -> Any:
        """A steward's command."""
        return self.ada.does("node", *arguments, "--dir", str(self.federation.node(node).directory))

    def at(self, node: str) -> LocalClient:
        """What the commands speak to, without a process for each: where many nodes are to do the same."""
        return LocalClient(self.federation.node(node).directory)

    def confirm(self, keys: list[dict[str, str]], name: str = "ada") -> None:
        first, *others = [node.name for node in self.federation.nodes]
        for key in keys:
            self.steward(first, "confirm", name, key["fingerprint"])
            for node in others:
                self.at(node).post("members", body={**{n: key[n] for n in ("fingerprint", "kind")}, "name": name})

    def approve(self, analysis: str, *, but: tuple[str, ...] = ()) -> None:
        for node in self.federation.nodes:
            if node.name not in but:
                self.approve_at(node.name, analysis)

    def approve_at(self, node: str, analysis: str, *more: str) -> Any:
        eventually(lambda: self.seen_signed(node, analysis), f"{node} sees the signed analysis", 60)
        if more or node == "Aachen":
            return self.steward(node, "approve", analysis, "--yes", *more)
        digest = self.at(node).get("analyses", analysis)["digest"]
        return self.at(node).post("analyses", analysis, "decision", body={"decision": "approved", "digest": digest})

    def seen_signed(self, node: str, analysis: str) -> bool:
        rows = self.at(node).get("analyses")
        return any(row["id"] == analysis for row in rows) and self.at(node).get("analyses", analysis)["signed"]

    def propose(self, name: str, **fields: str) -> str:
        options = [part for key, value in fields.items() for part in (f"--{key.replace('_', '-')}", value)]
        nodes = [part for node in self.federation.nodes for part in ("--node", node.name)]
        project = str(self.ada.does("projects", "create", name, *nodes, *options)["id"])
        self.take_part(project)
        return project

    def take_part(self, project: str) -> None:
        for node in self.federation.nodes:
            asked = lambda node=node: [r for r in self.at(node.name).get("projects") if r["id"] == project]  # noqa: E731
            eventually(asked, f"{node.name} is asked", 30)
            digest = self.at(node.name).get("projects", project)["digest"]
            body = {"decision": "approved", "digest": digest}
            self.at(node.name).post("projects", project, "decision", body=body)
            if (node.directory / "sources.toml").exists():
                _grant(node.directory, project)

    def submit(self, project: str, *more: str, program: Path | None = None) -> dict[str, Any]:
        return dict(self.ada.keyed("submit", str(program or self.ada.place / "ages"), "--project", project, *more))

    def running(self, node: str, run: str) -> bool:
        rows = self.at(node).get("runs")
        return any(row["id"] == run and row["state"] == "running" for row in rows)

    def state(self, node: str, run: str) -> str:
        return next((row["state"] for row in self.at(node).get("runs") if row["id"] == run), "")


def opened(found: list[dict[str, Any]], run: int, place: Path) -> dict[str, Any]:
    path = next(row["path"] for row in found if row["run"] == run)
    return dict(json.loads((place / path).read_text()))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    place = tmp_path_factory.mktemp("loop")
    patch = pytest.MonkeyPatch()
    patch.setattr(
        environment, "_default_cache", lambda: place / "environments"
    )  # another test may renew the shared one
    federation = Federation.up(place / "federation", sites(place / "sites"))
    try:
        admin = Api.login(federation.hub_url, federation.admin.username, federation.admin.password)
        admin.post("/auth/users", {"name": "ada", "password": "a good password", "roles": ["researcher"]})
        ada = Ada(place / "ada")
        (ada.place / "ages").mkdir(parents=True)
        (ada.place / "ages" / "main.py").write_text(PROGRAM)
        (ada.place / "ages" / "flame.toml").write_text(AUTHOR)
        (ada.place / "passphrase").write_text("correct horse battery staple\n")
        (ada.place / "password").write_text("a good password\n")
        world = World(federation, ada)
        ada.does("login", "--hub", federation.hub_url, "--username", "ada", "--password-file", "password")
        made = ada.keyed("keys", "new")
        world.confirm(made["keys"])
        world.project = world.propose("ages", purpose="How old are they?", contact="ada@example.org")
        yield world
    finally:
        federation.down(keep_files=True)
        patch.undo()


@pytest.fixture(scope="module")
def finished(world: World) -> str:
    """An analysis that has a result."""
    analysis = str(world.submit(world.project, "--title", "finished")["analysis"])
    world.approve(analysis)
    assert world.ada.keyed("watch", analysis)["status"] == "executed"
    return analysis


def test_a_submission_is_approved_watched_and_opened(world: World) -> None:
    ada = world.ada
    planned = ada.keyed("submit", "ages", "--project", world.project, "--dry-run")
    assert {p["name"] for p in planned["participants"]} == {*HOSPITALS, "aggregator"}
    assert not [row for row in ada.does("analyses", "list") if row["displayName"] == "ages"]
    submitted = world.submit(world.project)
    analysis = submitted["analysis"]
    watching = threading.Thread(
        target=lambda: told.append(ada.run("watch", analysis, "--passphrase-file", "passphrase"))
    )
    told: list[subprocess.CompletedProcess[str]] = []
    watching.start()
    world.approve(analysis, but=("aggregator",))
    shown = ada.does("analyses", "show", analysis)
    assert shown["build"] is None, "nothing is built before every participant has approved, the aggregator included"
    by = {row["hospital"]: row for row in shown["approvals"]}
    assert by["Aachen"]["signed"] and by["Aachen"]["by"] == "steward of Aachen (steward)" and by["Aachen"]["time"]
    assert by["aggregator"]["decision"] == "not decided yet"
    world.approve_at("aggregator", analysis)
    watching.join(timeout=200)
    assert told and told[0].returncode == 0, told and told[0].stderr
    assert "results open" in told[0].stdout
    (row,) = ada.does("results", "list", analysis)
    assert row["run"] == 1
    found = ada.keyed("results", "open", analysis)
    assert opened(found, 1, ada.place) == {"n": len(AGES_ALL), "sum": float(sum(AGES_ALL)), "hospitals": 3}


def test_the_same_approval_serves_other_parameters_inside_its_range_so_often(world: World) -> None:
    ada = world.ada
    analysis = world.submit(world.project, "--no-start", "--title", "again")["analysis"]
    world.approve(analysis)
    for run, least in ((1, 50), (2, 60)):
        started = ada.keyed("start", analysis, "--param", f"least={least}")
        assert (started["number"], started["parameters"]) == (run, {"least": least})
        assert ada.keyed("watch", analysis)["status"] == "executed"
        found = ada.keyed("results", "open", analysis, "--run", str(run))
        assert opened(found, run, ada.place)["n"] == sum(age >= least for age in AGES_ALL)
    passphrase = ("--passphrase-file", "passphrase")
    assert "not asked for" in ada.fails("start", analysis, "--param", "least=61", *passphrase)["message"]
    assert "no parameter" in ada.fails("start", analysis, "--param", "age=1", *passphrase, code=2)["message"]
    ada.keyed("start", analysis)
    ada.keyed("watch", analysis)
    assert "runs that were approved" in ada.fails("start", analysis, *passphrase)["message"]


def test_a_condition_narrows_and_is_shown(world: World) -> None:
    ada = world.ada
    analysis = world.submit(world.project, "--title", "narrow", "--no-start")["analysis"]
    world.approve(analysis, but=("Bonn",))
    world.approve_at("Bonn", analysis, "--condition", "min_rows=100", "-m", "only with many")
    by = {row["hospital"]: row for row in ada.does("analyses", "show", analysis)["approvals"]}
    assert by["Bonn"]["conditions"] == {"min_rows": 100}
    assert by["Bonn"]["comment"] == "only with many"
    ada.keyed("start", analysis)
    failed = ada.run("watch", analysis, "--passphrase-file", "passphrase")
    assert failed.returncode == 7
    assert "Bonn" in failed.stderr and "100" in failed.stderr


def test_results_are_shown_once_on_the_own_machine(world: World, finished: str) -> None:
    ada, analysis = world.ada, finished
    shown = subprocess.Popen(
        [sys.executable, "-m", "flame", "results", "open", analysis, "--view", "--no-browser", "--passphrase-file", "passphrase"],
        cwd=ada.place, env={**os.environ, "FLAME_CONFIG_DIR": str(ada.place / "config")}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert shown.stderr is not None
        address = shown.stderr.readline().strip()
        assert address.startswith("http://127.0.0.1:")
        base, _, token = address.rpartition("/")
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"{base}/{token[:-1]}x", timeout=30)
        with urllib.request.urlopen(address, timeout=30) as answer:
            policy = answer.headers["Content-Security-Policy"]
            page = answer.read().decode()
        assert policy.startswith("default-src 'none'") and "script" not in policy
        assert f"<td>{len(AGES_ALL)}</td>" in page and "<script" not in page
        assert shown.wait(timeout=30) == 0
        with pytest.raises(OSError):
            urllib.request.urlopen(address, timeout=5)
    finally:
        shown.kill()
        shown.communicate()


def test_a_rotation_voids_no_approval_and_older_results_still_open(world: World, finished: str) -> None:
    ada = world.ada
    analysis = world.submit(world.project, "--no-start", "--title", "rotated")["analysis"]
    world.approve(analysis)
    before = {row["kind"]: row["fingerprint"] for row in ada.does("keys", "fingerprint")["keys"]}
    ada.keyed("keys", "rotate")
    listed = ada.does("keys", "list")
    assert [(row["use"], row["number"]) for row in listed if row["in use"]] == [("sign", 2), ("result", 2)]
    assert before == {row["kind"]: row["fingerprint"] for row in ada.does("keys", "fingerprint")["keys"]}
    rotated = world.steward("aggregator", "keys", "rotate")
    assert rotated["number"] == 2 and rotated["fingerprint"] != rotated["member"]
    world.steward("Aachen", "keys", "rotate")
    ada.keyed("start", analysis)
    assert ada.keyed("watch", analysis)["status"] == "executed"
    assert opened(ada.keyed("results", "open", analysis), 1, ada.place)["n"] == len(AGES_ALL)
    assert opened(ada.keyed("results", "open", finished), 1, ada.place)["n"] == len(AGES_ALL)
    known = {(row["name"], row["kind"]): row for row in world.steward("Bonn", "members")}
    assert known["ada", "researcher"]["keys"] == 2 and known["ada", "researcher"]["confirmed"] == "here"
    again = world.submit(world.project, "--title", "after")["analysis"]
    world.approve(again)
    assert ada.keyed("watch", again)["status"] == "executed"


def test_a_changed_proposal_voids_approvals_and_stops_what_runs(world: World) -> None:
    ada = world.ada
    project = world.propose("changing", purpose="One thing")
    submitted = world.submit(project, "--param", "wait=true")
    world.approve(submitted["analysis"])
    eventually(lambda: world.running("Bonn", submitted["run"]), "Bonn runs", 60)
    ada.does("projects", "change", project, "--purpose", "Quite another thing")
    eventually(lambda: world.state("Bonn", submitted["run"]) in ENDED, "Bonn has stopped", 60)
    decisions = {row["name"]: row["decision"] for row in ada.does("projects", "show", project)["hospitals"]}
    assert set(decisions.values()) == {"not decided yet"}
    assert world.steward("Bonn", "projects", "show", project)["decision"] == "pending"


def test_a_withdrawal_stops_what_runs_and_deletes_what_is_left(world: World) -> None:
    project = world.propose("leaving")
    submitted = world.submit(project, "--param", "wait=true")
    world.approve(submitted["analysis"])
    eventually(lambda: world.running("Bonn", submitted["run"]), "Bonn runs", 60)
    gone = world.steward("Bonn", "projects", "reject", project, "-m", "no longer")
    assert gone["deleted"]["runs"] == 1
    assert world.state("Bonn", submitted["run"]) in ENDED
    assert not (world.federation.node("Bonn").directory / "runs" / submitted["run"]).exists()
    failed = world.ada.run("watch", submitted["analysis"], "--passphrase-file", "passphrase")
    assert failed.returncode == 7 and "steward of Bonn" in failed.stderr


def test_a_project_ends_by_itself_at_its_date(world: World) -> None:
    moment = datetime.now(UTC) + timedelta(seconds=25)
    project = world.propose("short", expires=moment.strftime("%Y-%m-%dT%H:%M:%SZ"))
    submitted = world.submit(project, "--param", "wait=true")
    world.approve(submitted["analysis"])
    eventually(lambda: world.running("Cologne", submitted["run"]), "Cologne runs", 60)
    eventually(lambda: world.state("Cologne", submitted["run"]) in ENDED, "Cologne has stopped", 60)
    row = world.steward("Cologne", "run", submitted["run"])
    assert "expired" in row["reason"]
    assert "expired" in world.ada.fails("start", submitted["analysis"], "--passphrase-file", "passphrase")["message"]


def test_the_end_of_a_project_deletes_at_hub_and_nodes_with_a_leaf_as_proof(world: World) -> None:
    ada = world.ada
    project = world.propose("ending")
    submitted = world.submit(project)
    world.approve(submitted["analysis"])
    assert ada.keyed("watch", submitted["analysis"])["status"] == "executed"
    ada.keyed("projects", "end", project, "--reason", "done", "--yes")
    assert ada.does("results", "list", submitted["analysis"]) == []
    for node in world.federation.nodes:
        folder = node.directory / "runs" / submitted["run"]
        eventually(lambda folder=folder: not folder.exists(), f"{node.name} has deleted the run", 30)
    admin = Api.login(world.federation.hub_url, "admin", world.federation.admin.password)

    def proofs() -> set[str]:
        leaves = [json.loads(json.loads(leaf)["event"]) for leaf in admin.get("/core/audit/export")["leaves"]]
        return {leaf["signer"] for leaf in leaves if leaf["type"] == "project-deleted" and leaf["subject"] == project}

    eventually(lambda: len(proofs()) == len(world.federation.nodes), "each node's leaf", 30)
    assert "ended" in ada.fails("start", submitted["analysis"], "--passphrase-file", "passphrase")["message"]


def test_what_the_official_client_made_is_signed_later_and_a_hub_decision_runs_nothing(world: World) -> None:
    ada = world.ada
    before = world.submit(world.project, "--no-start", "--title", "to unlock")["analysis"]
    world.approve(before, but=("Aachen",))
    api = Api.login(world.federation.hub_url, "ada", "a good password")
    api.post(f"/core/analyses/{before}/command", {"command": "configurationUnlock"})
    by = {row["hospital"]: row for row in ada.does("analyses", "show", before)["approvals"]}
    assert {row["decision"] for row in by.values()} == {"not decided yet"}, "an unlock voids the approvals"
    api.post(f"/core/analyses/{before}/command", {"command": "configurationLock"})
    assert "Nobody has signed" in ada.fails("start", before, "--passphrase-file", "passphrase", code=4)["message"]
    eventually(lambda: not world.seen_signed("Bonn", before), "Bonn sees it unsigned", 30)
    refused = ada.run("node", "approve", before, "--yes", "--dir", str(world.federation.node("Bonn").directory))
    assert refused.returncode == 3 and "only the hub says who asks" in refused.stderr
    ada.keyed("sign", before, "--yes")
    admin = Api.login(world.federation.hub_url, "admin", world.federation.admin.password)
    admin.post("/auth/users", {"name": "bob", "password": "another password", "roles": ["steward"]})
    bob = Api.login(world.federation.hub_url, "bob", "another password")
    for row in bob.get(f"/core/analysis-nodes?filter[analysisId]={before}")["data"]:
        bob.post(f"/core/analysis-nodes/{row['id']}", {"approvalStatus": "approved"})
    started = ada.keyed("start", before)
    failed = ada.run("watch", before, "--passphrase-file", "passphrase")
    assert failed.returncode == 7 and "approved" in failed.stderr, "decisions at the hub build, and run nothing"
    assert world.state("Bonn", started["run"]) == "refused"
    shown = next(row for row in world.steward("Bonn", "analyses") if row["id"] == before)
    assert shown["toConfirm"]["decision"] == "approved" and shown["toConfirm"]["by"] == "bob"


def test_two_members_confirmed_here_speak_for_a_third_and_against(world: World) -> None:
    """Grace's keys are confirmed at two hospitals; at the others she counts as well. Two revoke her: she is out."""
    admin = Api.login(world.federation.hub_url, "admin", world.federation.admin.password)
    admin.post("/auth/users", {"name": "grace", "password": "a third password", "roles": ["researcher"]})
    grace = Ada(world.ada.place.parent / "grace")
    grace.place.mkdir()
    (grace.place / "password").write_text("a third password\n")
    grace.does("login", "--hub", world.federation.hub_url, "--username", "grace", "--password-file", "password")
    keys = grace.does("keys", "new", "--unprotected")["keys"]
    own = World(world.federation, grace)
    for node in ("Aachen", "Bonn"):
        for key in keys:
            own.steward(node, "confirm", "grace", key["fingerprint"])
    nodes = [part for node in world.federation.nodes for part in ("--node", node.name)]
    project = grace.does("projects", "create", "graces", *nodes)["id"]
    own.take_part(project)
    submitted = grace.does("submit", str(world.ada.place / "ages"), "--project", project)
    own.approve(submitted["analysis"])
    assert grace.does("watch", submitted["analysis"])["status"] == "executed"
    at_cologne = {row["fingerprint"]: row["confirmed"] for row in own.at("Cologne").get("members")}
    assert [at_cologne[key["fingerprint"]] for key in keys] == ["by two members"] * 2
    sign = keys[0]["fingerprint"]
    own.steward("Aachen", "revoke", sign, "--reason", "left", "--yes")
    assert "by two" in {r["fingerprint"]: r["confirmed"] for r in own.at("Cologne").get("members")}[sign]
    own.steward("Bonn", "revoke", sign, "--reason", "left", "--yes")
    eventually(
        lambda: "revoked" in {r["fingerprint"]: r["confirmed"] for r in own.at("Cologne").get("members")}[sign],
        "Cologne knows", 30,
    )  # fmt: skip
    refused = grace.run("start", submitted["analysis"])
    assert refused.returncode != 0


def test_a_revoked_or_foreign_key_is_refused(world: World, finished: str) -> None:
    ada = world.ada
    foreign = Ada(ada.place.parent / "foreign")
    foreign.place.mkdir()
    (foreign.place / "password").write_text("a good password\n")
    foreign.does("login", "--hub", world.federation.hub_url, "--username", "ada", "--password-file", "password")
    foreign.does("keys", "new", "--unprotected", "--no-register")
    said = foreign.fails("results", "open", finished)
    assert "signed by nobody whose key you have named" in said["message"]
    analysis = world.submit(world.project, "--title", "revoked", "--param", "wait=true")
    world.approve(analysis["analysis"])
    eventually(lambda: world.running("Bonn", analysis["run"]), "Bonn runs", 60)
    ada.keyed("keys", "revoke", "--reason", "stolen", "--yes")
    eventually(lambda: world.state("Bonn", analysis["run"]) in ENDED, "the revocation has stopped it", 60)
    assert "revo" in world.steward("Bonn", "run", analysis["run"])["reason"]
    passphrase = ("--passphrase-file", "passphrase")
    assert ada.fails("submit", "ages", "--project", world.project, *passphrase, code=4)["message"].startswith(
        "There are no keys"
    )
    aside = next((ada.place / "config" / "keys").glob("revoked-*"))
    said = ada.fails("start", analysis["analysis"], "--keys", str(aside), *passphrase)
    assert "not registered" in said["message"] or "revoked" in said["message"]


def test_a_login_is_a_file_of_ones_own_and_ends(world: World) -> None:
    ada = world.ada
    path = ada.place / "config" / "login.json"
    assert path.stat().st_mode & 0o777 == 0o600
    kept = json.loads(path.read_text())
    kept["access"], kept["until"] = "spent", time.time() - 1
    path.write_text(json.dumps(kept))
    assert isinstance(ada.does("projects", "list"), list), "a spent token is renewed on the way"
    ada.does("logout")
    assert not path.exists()
    assert "logged in" in ada.fails("projects", "list", code=5)["message"]
    wrong = ada.place / "wrong"
    wrong.write_text("no good\n")
    ada.fails("login", "--hub", world.federation.hub_url, "--username", "ada", "--password-file", str(wrong), code=2)
