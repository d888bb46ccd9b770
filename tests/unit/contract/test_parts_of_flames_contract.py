"""The parts of FLAME's contract alone: tokens, forms, searches, listings, noise, log lines, relay."""

from __future__ import annotations

import base64
import json
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flame.model.errors import DoesNotMatchApproval, Invalid, Malformed, NotFound
from flame.node.contract import relay
from flame.node.contract.fhir import FhirFolder
from flame.node.contract.forms import read_form
from flame.node.contract.lines import is_own_line
from flame.node.contract.program import Program
from flame.node.contract.run import ContractRun
from flame.node.contract.sources import Sources
from flame.node.contract.tokens import LIFE_SECONDS, RENEW_BELOW, Tokens
from flame.node.data.folder import freeze_folder
from flame.node.gateway.http import Head
from flame.privacy.laplace import add_laplace

# --- tokens -------------------------------------------------------------------------------------------------------


def test_a_token_is_read_by_plain_base64_without_padding() -> None:
    for _ in range(200):
        head, payload, signature = Tokens("11111111-1111-4111-8111-111111111111").mint().split(".")
        assert head and signature
        assert not set(payload) & set("-_=") and len(payload) % 4 == 0
        claims = json.loads(base64.b64decode(payload, validate=True))
        assert claims["client_id"] == "11111111-1111-4111-8111-111111111111"
        assert 300 <= claims["exp"] - time.time() <= LIFE_SECONDS
    assert RENEW_BELOW == LIFE_SECONDS * 2 // 3


# --- forms --------------------------------------------------------------------------------------------------------


def form(boundary: str, *parts: bytes) -> bytearray:
    mark = f"--{boundary}".encode()
    return bytearray(b"".join(mark + b"\r\n" + part + b"\r\n" for part in parts) + mark + b"--\r\n")


FILE = b'Content-Disposition: form-data; name="file"; filename="a.txt"\r\nContent-Type: text/plain\r\n\r\n'
FIELD = b'Content-Disposition: form-data; name="tag"\r\n\r\nfirst'


@settings(deadline=None)
@given(content=st.binary(max_size=300))
def test_a_file_arrives_as_it_was(content: bytes) -> None:
    if b"\r\n--b0undary" in b"\r\n" + content:
        return
    found = read_form("multipart/form-data; boundary=b0undary", form("b0undary", FIELD, FILE + content))
    assert (bytes(found.content), found.filename, found.media_type, found.fields) == (
        content, "a.txt", "text/plain", {"tag": "first"},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/json", form("b", FILE)),
        ("multipart/form-data; boundary=b", form("c", FILE)),
        ("multipart/form-data; boundary=b", form("b", FIELD)),
        ("multipart/form-data; boundary=b", form("b", FILE, FILE)),
        ("multipart/form-data; boundary=b", form("b", FILE)[:-20]),
        ("multipart/form-data; boundary=b", form("b", *[FIELD] * 17)),
        ("multipart/form-data; boundary=b", form("b", b"no head")),
        ("multipart/form-data; boundary=b", form("b", FIELD + b"x" * 5000, FILE)),
        ("multipart/form-data; boundary=b", bytearray()),
    ],
)
def test_a_form_that_is_none_is_refused(kind: str, body: bytearray) -> None:
    with pytest.raises(Malformed):
        read_form(kind, body)


# --- data ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "folder"
    place.mkdir()
    patients = [
        {
            "resourceType": "Patient",
            "id": f"p{n}",
            "gender": ("female", "male")[n % 2],
            "birthDate": f"19{50 + n}-06-01",
        }
        for n in range(7)
    ]
    seen = {"resourceType": "Observation", "id": "o1", "subject": {"reference": "Patient/p3"}, "status": "final",
            "code": {"coding": [{"system": "http://loinc.org", "code": "8867-4"}]}}  # fmt: skip
    (place / "all.ndjson").write_text("".join(json.dumps(r) + "\n" for r in [*patients, seen]))
    (place / "a&b <c>.txt").write_bytes(b"odd name")
    (place / "deep" / "er").mkdir(parents=True)
    (place / "deep" / "er" / "x.bin").write_bytes(b"\x00\x01")
    return place


def search(folder: Path, query: str) -> Any:
    return json.loads(FhirFolder(freeze_folder(folder, 0)).answer(query, "http://n/kong/d/fhir"))


@pytest.mark.parametrize(
    ("query", "total"),
    [
        ("Patient", 7),
        ("Patient?_summary=count", 7),
        ("Patient?gender=female", 4),
        ("Patient?gender=female,male&birthdate=ge1953&birthdate=lt1955-06-01", 2),
        ("Patient?_id=p1,p2", 2),
        ("Observation?code=8867-4", 1),
        ("Observation?code=http://loinc.org|8867-4&patient=p3", 1),
        ("Observation?code=http://snomed.info/sct|8867-4", 0),
        ("Observation?subject=Patient/p3&status=final", 1),
        ("Condition?_summary=count", 0),
    ],
)
def test_a_search_counts_what_fits(folder: Path, query: str, total: int) -> None:
    found = search(folder, query)
    assert (found["resourceType"], found["total"]) == ("Bundle", total)
    assert ("entry" in found) is ("_summary" not in query)


def test_pages_follow_each_other_and_miss_nothing(folder: Path) -> None:
    seen, query = [], "Patient?_count=3"
    while query:
        page = search(folder, query)
        seen += [entry["resource"]["id"] for entry in page["entry"]]
        query = next((link["url"].split("/fhir/")[1] for link in page["link"] if link["relation"] == "next"), "")
    assert seen == [f"p{n}" for n in range(7)]
    assert search(folder, "Patient/p2")["birthDate"] == "1952-06-01"


@pytest.mark.parametrize(
    "query", ["Patient?name=Erika", "Patient?_include=x", "Patient?_summary=text", "../x", "Patient?birthdate=soon"]
)
def test_what_is_not_understood_is_refused_and_not_ignored(folder: Path, query: str) -> None:
    with pytest.raises(Invalid):
        search(folder, query)


def test_every_source_answers_both_kinds_of_questions(folder: Path) -> None:
    empty = folder.parent / "empty"
    empty.mkdir()
    sources = Sources({}, {"files": freeze_folder(folder, 0), "none": freeze_folder(empty, 0)}, "nginx-x")
    assert [(s["name"], s["type"]) for s in sources.listed()] == [("files", "fhir"), ("none", "s3")]
    listing = bytes(sources.answer("files", "s3", "").body).decode()
    keys = re.findall("<Key>(.*?)</Key>", listing)
    assert keys == ["a&amp;b &lt;c&gt;.txt", "deep/er/x.bin"]
    for key in (keys[0], "a%26b%20%3Cc%3E.txt"):  # as it stands in the listing, and as it should be
        answer = sources.answer("files", f"s3/{key}", "")
        assert b"".join(answer.pieces or ()) == b"odd name" and answer.length == 8
    assert "<Key>" not in bytes(sources.answer("none", "s3", "").body).decode()
    refused = sources.answer("none", "fhir/Patient", "_summary=count")
    assert refused.status == 404 and json.loads(bytes(refused.body))["resourceType"] == "OperationOutcome"
    page = bytes(sources.answer("files", "s3", "max-keys=1").body).decode()
    assert "<IsTruncated>true</IsTruncated>" in page
    for bad in ("s3/../all.ndjson", "s3/all.ndjson", "s3/nothing"):
        with pytest.raises(NotFound):
            sources.answer("files", bad, "")


def test_a_file_that_was_changed_since_the_run_began_is_not_served(folder: Path) -> None:
    frozen = freeze_folder(folder, 0)
    (folder / "deep" / "er" / "x.bin").write_bytes(b"\x00\x02\x03")
    with pytest.raises(DoesNotMatchApproval):
        frozen.open("deep/er/x.bin")
    (folder / "deep" / "er" / "x.bin").unlink()
    (folder / "deep" / "er" / "x.bin").symlink_to("/etc/passwd")
    with pytest.raises(DoesNotMatchApproval):
        frozen.open("deep/er/x.bin")
    with pytest.raises(Invalid, match="no plain file"):
        freeze_folder(folder, 0)


# --- noise --------------------------------------------------------------------------------------------------------


def test_noise_has_the_scale_that_was_asked_for() -> None:
    drawn = [add_laplace(100.0, 0.5, 2.0, n.to_bytes(4, "big")) - 100.0 for n in range(4000)]
    assert sum(map(abs, drawn)) / len(drawn) == pytest.approx(4.0, rel=0.08)  # five standard errors
    assert abs(sum(drawn) / len(drawn)) < 0.5
    assert sum(abs(x) > 4.0 * 3 for x in drawn) / len(drawn) == pytest.approx(2.718281828**-3, rel=0.4)


def test_the_same_seed_is_the_same_noise_and_another_is_another() -> None:
    assert add_laplace(1.0, 1.0, 1.0, b"a") == add_laplace(1.0, 1.0, 1.0, b"a") != add_laplace(1.0, 1.0, 1.0, b"b")


@pytest.mark.parametrize(
    "numbers", [(1.0, 0.0, 1.0), (1.0, 1.0, -1.0), (float("nan"), 1.0, 1.0), (1.0, float("inf"), 1.0)]
)
def test_noise_that_makes_no_sense_is_refused(numbers: tuple[float, float, float]) -> None:
    with pytest.raises(Invalid):
        add_laplace(*numbers, b"")


# --- words --------------------------------------------------------------------------------------------------------


def test_the_sdk_s_own_lines_leave_and_no_other() -> None:
    me = "11111111-1111-4111-8111-111111111111"
    assert is_own_line("\tConnecting to nginx...success", [me])
    assert is_own_line(f"received message from {me}", [me])
    assert not is_own_line("received message from 22222222-1111-4111-8111-111111111111", [me])
    assert not is_own_line("\tData extracted: [{'Patient': 1}]", [me])


def test_a_traceback_is_found_in_plain_and_in_json_output() -> None:
    plain = (
        b'Traceback (most recent call last):\n  File "/code/main.py", line 3, in <module>\n    x\nValueError: Erika\n'
    )
    for output in (plain, json.dumps({"error": plain.decode()}).encode()):
        found = ContractRun.failure_in(output)
        assert (found.error, found.frames) == ("ValueError", [("main.py", 3)])
        assert ContractRun.shows_error(output)
    assert not ContractRun.shows_error(b"all is well\n")


# --- the relay ----------------------------------------------------------------------------------------------------


def test_the_relay_carries_both_ways_and_the_program_is_the_process_that_was_started(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import http.server, os, sys, urllib.request\n"
        "print(os.getpid(), flush=True)\n"
        "print(urllib.request.urlopen('http://nginx-x/hello').read().decode(), flush=True)\n"
        "class H(http.server.BaseHTTPRequestHandler):\n"
        "    def do_POST(self):\n"
        "        body = self.rfile.read(int(self.headers['Content-Length']))\n"
        "        self.send_response(200); self.send_header('Content-Length', str(len(body))); self.end_headers()\n"
        "        self.wfile.write(body)\n"
        "    def log_message(self, *a): pass\n"
        "http.server.ThreadingHTTPServer(('127.0.0.1', int(sys.argv[1])), H).serve_forever()\n"
    )
    inside = Program(tmp_path)
    inside.open()
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(tmp_path / "gateway.sock"))
        door.listen()
        asked: list[bytes] = []

        def answer() -> None:
            stream, _ = door.accept()
            with stream:
                asked.append(stream.recv(65536))
                stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")

        threading.Thread(target=answer, daemon=True).start()
        proxy, port = free_port(), free_port()
        arguments = ["-I", "-S", "-c", relay.SOURCE, str(tmp_path), str(proxy), str(port), "4", str(program), str(port)]
        process = subprocess.Popen(
            [sys.executable, *arguments],
            stdout=subprocess.PIPE,
            env={"http_proxy": f"http://127.0.0.1:{proxy}"},
            text=True,
        )
        try:
            assert process.stdout is not None
            assert int(process.stdout.readline()) == process.pid
            assert process.stdout.readline() == "hello\n"
            assert asked[0].startswith(b"GET http://nginx-x/hello HTTP/1.1\r\n")
            big = bytes(range(256)) * 8000
            for _ in range(20):  # more often than connections are kept ready
                until = time.monotonic() + 20
                while True:
                    try:
                        status, _, content = inside.request("POST", "/", big, seconds=10)
                        break
                    except ConnectionRefusedError:
                        assert time.monotonic() < until
                assert (status, content) == (200, big)
        finally:
            process.kill()
            process.communicate()
            inside.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_an_absolute_target_is_a_path() -> None:
    from flame.node.gateway.http import parse_head

    head = parse_head(b"GET http://nginx-x/kong/a/fhir/Patient?_summary=count HTTP/1.1\r\nHost: nginx-x")
    assert isinstance(head, Head) and head.path == "/kong/a/fhir/Patient?_summary=count"
