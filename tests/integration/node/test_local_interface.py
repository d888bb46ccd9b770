"""Only a steward of this node, on this machine, decides; and the commands say what happened and what to do next."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
from urllib.parse import urlsplit

import pytest
from typer.testing import CliRunner

from flame.cli.node import app as commands
from flame.model.errors import NotApproved, NotAuthenticated, NotFound, Unavailable
from flame.node.local.client import LocalClient
from flame.node.local.server import serve_local
from flame.node.local.stewards import Accounts, write_local_token
from node_world import ANALYSIS, PROJECT

RUN = "ab" * 32


SEEN = "5e" * 32
FILE = {"path": "main.py", "size": 9, "sha256": "ab" * 32, "text": "print(1)\n"}


class RecordingNode:
    """The node behind the interface: remembers what it was asked."""

    def __init__(self):
        self.asked = []
        self.broken = None
        self.file = FILE

    async def status(self):
        if self.broken:
            raise self.broken
        return {"connected": True, "isolation": "full"}

    async def analyses(self):
        return [{"id": ANALYSIS, "title": "Survival \x1b[31mred", "state": "waiting"}]

    async def analysis(self, id):
        if id != ANALYSIS:
            raise NotFound("No such analysis.", next_step="See the list.")
        return {
            "id": id,
            "title": "Survival",
            "digest": SEEN,
            "releases": [{"name": "beta", "kind": "sum"}],
            "manifest": {"code": [{name: FILE[name] for name in ("path", "size", "sha256")}]},
        }

    async def code(self, id):
        self.asked.append(("code", id))
        return [self.file]

    async def decide(self, analysis, decision, steward, comment, days, confirm_unsigned, seen_digest, conditions):
        asked = ("decide", analysis, decision, steward, comment, days, confirm_unsigned, seen_digest, conditions)
        self.asked.append(asked)
        return {"id": analysis, "decision": decision}

    async def start(self, analysis, steward):
        raise NotApproved("The analysis is not approved here.", next_step="Approve it first.")

    async def projects(self):
        return [{"id": PROJECT, "name": "Lung"}]

    async def project(self, id):
        return {"id": id, "name": "Lung", "digest": SEEN}

    async def comment_project(self, project, comment):
        self.asked.append(("comment_project", project, comment))
        return {"id": project, "comment": comment}

    async def decide_project(self, project, decision, steward, comment, seen_digest, days):
        self.asked.append(("decide_project", project, decision, steward, comment, seen_digest, days))
        return {"id": project, "decision": decision}

    async def members(self):
        return [{"name": "A", "kind": "node", "confirmed": False, "fingerprint": "c" * 64}]

    async def confirm(self, fingerprint, kind, name, steward):
        self.asked.append(("confirm", fingerprint, kind, name, steward))
        return {"fingerprint": fingerprint, "kind": kind, "name": name, "words": "amber-birch"}

    async def revoke(self, member, reason, steward):
        self.asked.append(("revoke", member, reason, steward))
        return {"name": member}

    async def keys(self):
        return {"member": "c" * 64}

    async def rotate_key(self, steward):
        self.asked.append(("rotate", steward))
        return {"member": "c" * 64}

    async def runs(self):
        return [{"id": RUN, "state": "running"}]

    async def run(self, id):
        return {"id": id, "state": "running"}

    async def stop(self, run, steward, reason):
        self.asked.append(("stop", run, steward, reason))
        return {"id": run}

    async def output(self, run):
        return "line 1\n\x1b[2Jline 2\n"

    async def releases(self):
        return [{"id": f"{RUN}-0", "run": RUN, "state": "held"}]

    async def release(self, id, decision, steward):
        self.asked.append(("release", id, decision, steward))
        return {"id": id}


class Served:
    """A node's interface in a thread of its own, and the files around it."""

    def __init__(self, folder):
        self.folder = folder
        self.node = RecordingNode()
        self.accounts = Accounts(folder / "stewards.json")
        write_local_token(folder, self.accounts, "local")
        self.token = (folder / "local-token").read_text().strip()
        self.admin = self.accounts.add("root", "admin")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._runner, self.url = self._await(serve_local(self.node, self.accounts))
        (folder / "node.json").write_text(json.dumps({"url": self.url, "pid": 1}))

    def _await(self, work):
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def close(self):
        self._await(self._runner.cleanup())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def ask(self, method, path, body=None, token=None, **headers):
        parts = urlsplit(self.url)
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)
        sent = {"Authorization": f"Bearer {self.token if token is None else token}", "Content-Type": "application/json"}
        sent.update({name.replace("_", "-"): value for name, value in headers.items()})
        connection.request(
            method,
            path,
            body if body is None or isinstance(body, bytes) else json.dumps(body),
            {k: v for k, v in sent.items() if v},
        )
        response = connection.getresponse()
        data = json.loads(response.read() or b"null")
        connection.close()
        return response.status, data


@pytest.fixture
def served(tmp_path):
    served = Served(tmp_path)
    try:
        yield served
    finally:
        served.close()


@pytest.fixture
def flame_node(served, monkeypatch):
    monkeypatch.setenv("FLAME_NODE_DIR", str(served.folder))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("FLAME_NODE_TOKEN", raising=False)
    return lambda *arguments: CliRunner().invoke(commands, list(arguments))


DECISION = f"/api/analyses/{ANALYSIS}/decision"


def test_an_approval_names_what_was_looked_at(served):
    status, problem = served.ask("POST", DECISION, {"decision": "approved"})
    assert (status, problem["code"]) == (400, "bad_request")
    assert "digest" in problem["message"]
    assert served.node.asked == []


def test_it_listens_on_this_machine_alone(served):
    assert served.url.startswith("http://127.0.0.1:")


def test_a_steward_decides_and_the_node_learns_who(served):
    body = {"decision": "approved", "comment": "fine", "days": 30, "confirmUnsigned": True, "digest": SEEN}
    body["conditions"] = {"hold": True}
    status, found = served.ask("POST", DECISION, body)
    assert (status, found["decision"]) == (200, "approved")
    assert served.node.asked == [("decide", ANALYSIS, "approved", "local", "fine", 30, True, SEEN, {"hold": True})]


@pytest.mark.parametrize("path", ["/api/status", "/api/nothing", "/", "/api/runs/x/output"])
@pytest.mark.parametrize("authorization", ["", "Bearer", "Bearer wrong", "Basic bG9jYWw6eA=="])
def test_without_a_token_nothing_answers(served, path, authorization):
    status, problem = served.ask("GET", path, Authorization=authorization)
    assert status == 401
    assert problem["code"] == "identity_unauthorized"
    assert problem["nextStep"]


def test_a_removed_account_is_out_at_once(served):
    token = served.accounts.add("Ada")
    assert served.ask("GET", "/api/status", token=token)[0] == 200
    served.accounts.remove("Ada")
    assert served.ask("GET", "/api/status", token=token)[0] == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": "127.0.0.1:80@evil.example"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Content_Type": "text/plain"},
        {"Content_Type": "application/x-www-form-urlencoded"},
        {"Content_Type": "multipart/form-data; boundary=x"},
    ],
)
def test_a_web_page_cannot_decide_for_the_steward(served, headers):
    status, problem = served.ask("POST", DECISION, {"decision": "approved"}, **headers)
    assert (status, problem["code"]) == (403, "permission_denied")
    assert served.node.asked == []


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (DECISION, {"decision": "approved", "digest": SEEN}),
        (f"/api/projects/{PROJECT}/decision", {"decision": "approved"}),
        ("/api/members", {"fingerprint": "a" * 64, "kind": "node", "name": "A"}),
        ("/api/releases/r1/decision", {"decision": "released"}),
    ],
)
def test_an_administrator_does_not_decide_about_data(served, path, body):
    status, problem = served.ask("POST", path, body, token=served.admin)
    assert (status, problem["code"]) == (403, "permission_denied")
    assert served.ask("GET", f"/api/runs/{RUN}/output", token=served.admin)[0] == 403
    assert served.node.asked == []
    assert served.ask("POST", path, body)[0] == 200


def test_a_held_result_is_decided_under_the_id_that_the_list_shows(flame_node, served):
    held = json.loads(flame_node("releases", "--json").stdout)[0]["id"]
    assert flame_node("release", held).exit_code == 0
    assert flame_node("release", held, "--refuse").exit_code == 0
    assert served.node.asked == [("release", held, "released", "local"), ("release", held, "rejected", "local")]
    assert served.ask("POST", f"/api/releases/{'a' * 81}/decision", {"decision": "released"})[0] == 404


def test_an_administrator_stops_a_run(served):
    assert served.ask("POST", f"/api/runs/{RUN}/stop", {"reason": "full"}, token=served.admin)[0] == 200
    assert served.node.asked == [("stop", RUN, "root", "full")]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"decision": "approved"},
        {"decision": "maybe"},
        {"decision": ["approved"]},
        {"decision": "approved", "days": 0},
        {"decision": "approved", "days": True},
        {"decision": "approved", "days": "7"},
        {"decision": "approved", "confirmUnsigned": "yes"},
        {"decision": "approved", "comment": "x" * 5000},
        {"decision": "approved", "comment": 3},
        {"decision": "approved", "steward": "somebody else"},
        [],
        b"{",
        b"[" * 100_000,
        b"\xff\xfe",
    ],
)
def test_what_is_not_understood_is_refused_and_decides_nothing(served, body):
    status, problem = served.ask("POST", DECISION, body)
    assert status == 400
    assert problem["message"]
    assert served.node.asked == []


def test_a_giant_body_is_refused(served):
    assert served.ask("POST", DECISION, {"decision": "approved", "comment": "x" * 500_000})[0] == 413
    assert served.node.asked == []


def test_errors_are_problems_with_a_next_step(served):
    status, problem = served.ask("POST", f"/api/analyses/{ANALYSIS}/start", {})
    assert (status, problem["code"], problem["nextStep"]) == (409, "not_approved", "Approve it first.")
    assert served.ask("GET", "/api/nothing")[0] == 404
    assert served.ask("DELETE", "/api/status")[0] == 405
    assert served.ask("GET", "/api/runs/..%2f..%2fetc")[0] == 404


def test_an_error_inside_the_node_stays_inside(served, caplog):
    served.node.broken = RuntimeError("/srv/secret")
    status, problem = served.ask("GET", "/api/status")
    assert (status, problem["code"]) == (500, "internal")
    assert "secret" not in json.dumps(problem)
    assert "secret" in caplog.text


# --- the commands ---------------------------------------------------------------------------------------------------


def test_the_client_raises_what_the_node_said(served):
    with pytest.raises(NotApproved, match="Approve it first"):
        LocalClient(served.folder).post("analyses", ANALYSIS, "start")


def test_a_client_shows_its_token_to_this_machine_alone(served):
    (served.folder / "node.json").write_text(json.dumps({"url": "http://evil.example:80"}))
    with pytest.raises(Exception, match="not on this machine"):
        LocalClient(served.folder)


def test_without_a_running_node_or_a_token_the_client_says_so(served, tmp_path, monkeypatch):
    monkeypatch.delenv("FLAME_NODE_TOKEN", raising=False)
    with pytest.raises(Unavailable, match="No node runs"):
        LocalClient(tmp_path / "elsewhere")
    (served.folder / "local-token").unlink()
    with pytest.raises(NotAuthenticated, match="No token"):
        LocalClient(served.folder)


def test_commands_list_and_print_json(flame_node):
    shown = flame_node("analyses")
    assert shown.exit_code == 0
    assert "Survival" in shown.stdout
    assert "\x1b" not in shown.stdout
    listed = flame_node("analyses", "--json")
    assert json.loads(listed.stdout)[0]["id"] == ANALYSIS
    assert json.loads(flame_node("status", "--json").stdout)["account"] == {"name": "local", "role": "steward"}


def test_approving_needs_a_yes_and_takes_the_beginning_of_an_id(flame_node, served):
    asked = flame_node("approve", ANALYSIS[:8])
    assert asked.exit_code == 2
    assert "--yes" in asked.stderr
    assert "   1 | print(1)\n" in asked.stdout, "the program stands above the question"
    assert served.node.asked == [("code", ANALYSIS)]
    served.node.asked.clear()
    assert (
        flame_node("approve", ANALYSIS[:8], "--yes", "-m", "fine", "--days", "5", "--condition", "runs_max=2").exit_code
        == 0
    )
    assert flame_node("reject", "Survival \x1b[31mred").exit_code == 0
    assert served.node.asked == [
        ("decide", ANALYSIS, "approved", "local", "fine", 5, False, SEEN, {"runs_max": 2}),
        ("decide", ANALYSIS, "rejected", "local", "", None, False, "", {}),
    ]


def test_a_program_of_another_manifest_than_the_shown_one_is_an_error(flame_node, served):
    served.node.file = {**FILE, "sha256": "cd" * 32}
    for arguments in (("show", ANALYSIS, "--code"), ("approve", ANALYSIS)):
        refused = flame_node(*arguments)
        assert refused.exit_code == 3
        assert "changed while it was shown" in refused.stderr
        assert "print(1)" not in refused.stdout
    assert ("decide",) not in [asked[:1] for asked in served.node.asked]


def test_a_confirmation_shows_what_was_believed(flame_node):
    said = flame_node("confirm", "Ada", "abcd" * 16, "--kind", "researcher").stdout
    assert "believed what was typed" in said
    for shown in ("abcd" * 16, "amber-birch", "researcher", "Ada"):
        assert shown in said
    assert json.loads(flame_node("confirm", "Ada", "abcd" * 16, "--json").stdout)["words"] == "amber-birch"


def test_the_code_is_shown_where_it_is_asked_for(flame_node):
    assert "main.py  9 bytes" in flame_node("show", ANALYSIS, "--code").stdout
    assert "print(1)" not in flame_node("show", ANALYSIS).stdout
    assert json.loads(flame_node("show", ANALYSIS, "--code", "--json").stdout)["code"][0]["text"] == "print(1)\n"


def test_commands_reach_every_question_of_the_node(flame_node, served):
    for arguments in (
        ("show", ANALYSIS),
        ("projects", "list"),
        ("projects", "show", "Lung"),
        ("projects", "approve", "Lung", "-y"),
        ("projects", "reject", "Lung"),
        ("projects", "comment", "Lung", "Which years?"),
        ("members",),
        ("confirm", "A", " ".join(["AB:CD"] * 16), "--kind", "node"),
        ("revoke", "A", "--reason", "stolen", "-y"),
        ("keys", "show"),
        ("keys", "rotate"),
        ("runs",),
        ("run", RUN[:8]),
        ("stop", RUN[:8], "--reason", "full"),
        ("releases",),
    ):
        assert flame_node(*arguments).exit_code == 0, arguments
    assert served.node.asked == [
        ("decide_project", PROJECT, "approved", "local", "", SEEN, None),
        ("decide_project", PROJECT, "rejected", "local", "", "", None),
        ("comment_project", PROJECT, "Which years?"),
        ("confirm", "abcd" * 16, "node", "A", "local"),
        ("revoke", "A", "stolen", "local"),
        ("rotate", "local"),
        ("stop", RUN, "local", "full"),
    ]


def test_a_programs_output_cannot_move_the_cursor(flame_node):
    shown = flame_node("log", RUN[:8])
    assert "line 1\n" in shown.stdout
    assert "\x1b" not in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("start", ANALYSIS), 3),
        (("show", "nothing"), 4),
        (("confirm", "A", "abc"), 2),
        (("approve", ANALYSIS, "-y", "--condition", "only men"), 2),
        (("data", "test", "x"), 4),
    ],
)
def test_a_failed_command_says_what_to_do_and_has_its_exit_code(flame_node, arguments, code):
    failed = flame_node(*arguments)
    assert failed.exit_code == code
    assert failed.stderr.startswith("Error: ")
    assert "What to do: " in failed.stderr
    as_json = flame_node(*arguments, "--json")
    assert json.loads(as_json.stderr)["nextStep"]


def test_sources_are_offered_granted_and_tried(flame_node, served, tmp_path):
    (tmp_path / "cohort.csv").write_text("a,b\n1,2\n3,x\n")
    assert flame_node("data", "add", "data", str(tmp_path / "cohort.csv")).exit_code == 0
    assert flame_node("data", "grant", "data", PROJECT).exit_code == 0
    assert json.loads(flame_node("data", "list", "--json").stdout)[0]["projects"] == [PROJECT]
    found = json.loads(flame_node("data", "test", "data", "--json").stdout)
    assert (found["rows"], found["columns"]) == (2, {"a": "int64", "b": "text"})
    assert not list(served.folder.glob("test-*"))


def test_a_stewards_token_is_shown_once_and_works(flame_node, served):
    made = json.loads(flame_node("steward", "add", "Ada", "--json").stdout)
    assert served.ask("GET", "/api/status", token=made["token"])[1]["account"]["name"] == "Ada"
    assert made["token"] not in flame_node("steward", "list", "--json").stdout
    assert flame_node("steward", "remove", "Ada").exit_code == 0
    assert served.ask("GET", "/api/status", token=made["token"])[0] == 401
