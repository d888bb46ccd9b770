"""A real hub process, and the people and nodes that talk to it over HTTP."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx2
from joserfc import jwt
from joserfc.jwk import OKPKey

from flame.crypto.envelope import RecipientKey
from flame.crypto.envelope import seal as sealed
from flame.crypto.keys import HybridKey, IdentityKey
from flame.crypto.signatures import sign_approval, sign_manifest, sign_start_order
from flame.protocol.documents import Approval, By, StartOrder, stamp

PASSWORD = "a password for tests"
JWT_BEARER = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"


class HubProcess:
    """A hub in a process of its own; ended by its pid."""

    def __init__(self, directory: Path, **env: str) -> None:
        self.dir = directory
        self.env = {f"FLAME_HUB_{k.upper()}": v for k, v in env.items() if k.islower()}
        self.extra = {k: v for k, v in env.items() if not k.islower()}
        self.start()

    def start(self) -> None:
        base = {k: v for k, v in os.environ.items() if not k.startswith("FLAME_")}
        env = base | {"FLAME_HUB_DIR": str(self.dir), "FLAME_HUB_PORT": "0"} | self.env | self.extra
        self.process = subprocess.Popen(
            [sys.executable, "-m", "flame.hub"], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        place = self.dir / "hub.json"
        while not self._listens(place):
            if self.process.poll() is not None:
                raise AssertionError(f"the hub ended: {self.process.communicate()}")
            time.sleep(0.02)
        self.url = json.loads(place.read_text())["url"]

    def _listens(self, place: Path) -> bool:
        return place.exists() and json.loads(place.read_text())["pid"] == self.process.pid

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.wait()

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.wait()

    def wait(self) -> None:
        self.process.wait(timeout=30)
        self.process.stdout.close()
        self.process.stderr.close()


@dataclass
class Actor:
    """Somebody with a token."""

    http: httpx2.Client
    id: str = ""

    def __call__(self, method: str, path: str, expect: int | None = None, **kwargs: Any) -> Any:
        """A request; its parsed body (or bytes). With `expect`, the status must be this one."""
        answer = self.http.request(method, path, **kwargs)
        if expect is not None:
            assert answer.status_code == expect, f"{method} {path}: {answer.status_code} {answer.text[:500]}"
        if answer.headers.get("content-type", "").startswith("application/json"):
            return answer.json()
        return answer.content

    def make(self, path: str, **body: Any) -> dict[str, Any]:
        return self("POST", path, 201, json=body)["data"]

    def change(self, path: str, **body: Any) -> dict[str, Any]:
        return self("POST", path, 202, json=body)["data"]

    def get(self, path: str, **params: str) -> Any:
        return self("GET", path, 200, params=params)["data"]

    def refused(self, status: int, method: str, path: str, **kwargs: Any) -> dict[str, Any]:
        body = self(method, path, status, **kwargs)
        assert body["statusCode"] == status and body["code"] and body["message"]
        return body


@dataclass
class Person(Actor):
    sign_key: IdentityKey = field(default_factory=IdentityKey.generate)
    result_key: HybridKey = field(default_factory=HybridKey.generate)

    def register_keys(self) -> None:
        self.make("/core/user-keys", kind="sign", publicKey=self.sign_key.public.hex_pem)
        result = base64.b64encode(self.result_key.public_bytes).decode()
        self.make("/core/user-keys", kind="result", publicKey=result)


@dataclass
class Node(Actor):
    key: IdentityKey = field(default_factory=IdentityKey.generate)
    client: str = ""
    realm: str = ""


class World:
    """Everybody around one hub."""

    def __init__(self, hub: HubProcess, password: str = PASSWORD) -> None:
        self.hub = hub
        self._open: list[httpx2.Client] = []
        self.admin = self.login("admin", password)

    def close(self) -> None:
        for client in self._open:
            client.close()

    def anonymous(self) -> Actor:
        return Actor(self._client(None))

    def _client(self, token: str | None) -> httpx2.Client:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        client = httpx2.Client(base_url=self.hub.url, headers=headers, timeout=60, trust_env=False)
        self._open.append(client)
        return client

    def login(self, name: str, password: str = PASSWORD) -> Person:
        body = {"grant_type": "password", "username": name, "password": password}
        token = self.anonymous()("POST", "/auth/token", 200, json=body)["access_token"]
        person = Person(self._client(token))
        person.id = person("GET", "/auth/userinfo", 200)["sub"]
        return person

    def realm(self, name: str) -> str:
        return str(self.admin.make("/auth/realms", name=f"{name}-{secrets.token_hex(4)}", displayName=name)["id"])

    def person(self, realm: str, *roles: str, keys: bool = False) -> Person:
        name = f"person-{secrets.token_hex(4)}"
        self.admin.make("/auth/users", name=name, password=PASSWORD, realmId=realm, roles=list(roles))
        person = self.login(name)
        if keys:
            person.register_keys()
        return person

    def node(self, realm: str, kind: str = "default", *, confirmed: bool = True) -> Node:
        row = self.admin.make("/core/nodes", name=f"node-{secrets.token_hex(4)}", realmId=realm, type=kind)
        node = Node(self._client(None), row["id"], client=row["clientId"], realm=realm)
        answer = self.enrol(node)
        if confirmed:
            self.admin.change(f"/core/nodes/{node.id}/enrolment/confirm", fingerprint=answer["fingerprint"])
            node.http = self._client(self.node_token(node))
        return node

    def enrol(self, node: Node) -> dict[str, Any]:
        token = self.admin.make(f"/core/nodes/{node.id}/enrolment-token")["token"]
        return self.anonymous().make("/core/enrolments", **enrolment(token, node.key))

    def node_token(self, node: Node) -> str:
        answer = self.anonymous()("POST", "/auth/token", 200, json=self.assertion(node))
        return str(answer["access_token"])

    def assertion(self, node: Node, **changed: Any) -> dict[str, str]:
        now = int(time.time())
        claims = {"iss": node.client, "sub": node.client, "aud": f"{self.hub.url}/auth/token", "exp": now + 120}
        claims |= {"iat": now, "jti": str(uuid4())} | changed
        return {
            "grant_type": "client_credentials",
            "client_assertion_type": JWT_BEARER,
            "client_assertion": jwt.encode({"alg": "Ed25519"}, claims, jwk(node.key), algorithms=["Ed25519"]),
        }


def enrolment(token: str, key: IdentityKey) -> dict[str, str]:
    message = b"flame-enrol-v1\0" + hashlib.sha256(token.encode() + key.public.raw).digest()
    return {"token": token, "publicKey": key.public.hex_pem, "signature": key.sign(message).hex()}


def jwk(key: IdentityKey) -> OKPKey:
    def b64(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

    values = {"kty": "OKP", "crv": "Ed25519", "x": b64(key.public.raw), "d": b64(key.private_bytes)}
    return OKPKey.import_key(values)


@dataclass
class Study:
    """A project with an analysis, two data nodes, an aggregator and their people."""

    world: World
    researcher: Person
    stewards: list[Person]
    nodes: list[Node]
    project: str = ""
    analysis: str = ""

    @classmethod
    def set_up(cls, world: World, *, keys: bool = True) -> Study:
        university = world.realm("university")
        researcher = world.person(university, "researcher", keys=keys)
        realms = [world.realm(f"hospital-{i}") for i in "abc"]
        nodes = [
            world.node(realm, kind) for realm, kind in zip(realms, ("default", "default", "aggregator"), strict=True)
        ]
        study = cls(world, researcher, [world.person(realm, "steward") for realm in realms], nodes)
        image = world.admin.get("/core/master-images", **{"filter[virtualPath]": "python/base"})[0]
        digest = "sha256:" + hashlib.sha256(b"environment").hexdigest()
        world.admin.make("/core/master-images", virtualPath="python/base", digest=digest)
        study.project = researcher.make("/core/projects", name=f"Study-{secrets.token_hex(3)}", displayName="A study")[
            "id"
        ]
        for node in nodes:
            place = researcher.make("/core/project-nodes", projectId=study.project, nodeId=node.id)
            study.approve_project(node, place["id"])
        body = {"projectId": study.project, "masterImageId": image["id"], "name": f"first-{secrets.token_hex(3)}"}
        study.analysis = researcher.make("/core/analyses", **body)["id"]
        return study

    def bucket(self, kind: str) -> str:
        found = self.researcher.get(
            "/core/analysis-buckets", **{"filter[analysisId]": self.analysis, "filter[type]": kind}
        )
        return str(found[0]["bucketId"])

    def upload(self, who: Actor, kind: str, files: dict[str, bytes], expect: int = 201) -> Any:
        parts = [(uuid4().hex, (path, data, "application/octet-stream")) for path, data in files.items()]
        return who("POST", f"/storage/buckets/{self.bucket(kind)}/upload", expect, files=parts)

    def submit(self, files: dict[str, bytes] | None = None) -> None:
        """Upload and name the entrypoint."""
        self.upload(self.researcher, "CODE", files or {"main.py": b"print('hello')\n", "lib/more.py": b"x = 1\n"})
        rows = self.researcher.get("/core/analysis-bucket-files", **{"filter[analysisId]": self.analysis})
        main = next(row for row in rows if row["path"] == "main.py")
        self.researcher.change(f"/core/analysis-bucket-files/{main['id']}", root=True)

    def command(self, name: str, who: Actor | None = None, expect: int = 202) -> Any:
        body = {"command": name}
        return (who or self.researcher)("POST", f"/core/analyses/{self.analysis}/command", expect, json=body)

    def manifest(self) -> dict[str, Any]:
        return self.researcher.get(f"/core/analyses/{self.analysis}/manifest")

    def sign(self) -> str:
        digest = str(self.manifest()["digest"])
        signature = sign_manifest(self.researcher.sign_key, bytes.fromhex(digest)).hex()
        path = f"/core/analyses/{self.analysis}/manifest/signature"
        self.researcher("PUT", path, 202, json={"digest": digest, "signature": signature})
        return digest

    def place(self, node: Node) -> dict[str, Any]:
        wanted = {"filter[analysisId]": self.analysis, "filter[nodeId]": node.id}
        return self.researcher.get("/core/analysis-nodes", **wanted)[0]

    def approval(self, node: Node, digest: str, decision: str = "approved", /, **changed: Any) -> dict[str, Any]:
        return approval_body(node, "analysis", digest, decision, changed)

    def approve_project(self, node: Node, place: str) -> None:
        digest = node.get(f"/core/projects/{self.project}/proposal")["digest"]
        node.change(f"/core/project-nodes/{place}", **approval_body(node, "project", digest))

    def approve(self) -> None:
        digest = self.manifest()["digest"]
        for node in self.nodes:
            node.change(f"/core/analysis-nodes/{self.place(node)['id']}", **self.approval(node, digest))

    def wait_for(self, field_name: str, value: str) -> dict[str, Any]:
        for _ in range(500):
            row = self.researcher.get(f"/core/analyses/{self.analysis}")
            if row[field_name] == value:
                return row
            time.sleep(0.01)
        raise AssertionError(f"{field_name} is {row[field_name]}, not {value}")

    def ready(self) -> str:
        """Locked, signed, approved, built, distributed; the manifest's digest."""
        self.submit()
        self.command("configurationLock")
        digest = self.sign()
        self.approve()
        self.command("buildStart")
        self.wait_for("buildStatus", "executed")
        self.command("distributionStart")
        self.wait_for("distributionStatus", "executed")
        return digest

    def order(self, digest: str, number: int = 1, *, key: IdentityKey | None = None, **changed: Any) -> dict[str, str]:
        now = datetime.now(UTC)
        values = {
            "manifest": digest, "number": number, "parameters": {}, "participants": sorted(n.id for n in self.nodes),
            "created": stamp(now), "expires": stamp(now + timedelta(days=1)),
        } | changed  # fmt: skip
        order = StartOrder(**values)
        signature = sign_start_order(key or self.researcher.sign_key, order.digest).hex()
        return {"order": order.encoded().decode(), "signature": signature}

    def start(self, digest: str, number: int = 1) -> bytes:
        run = self.researcher.make(f"/core/analyses/{self.analysis}/runs", **self.order(digest, number))
        return bytes.fromhex(run["id"])


def approval_body(
    node: Node, subject: str, digest: str, decision: str = "approved", changed: dict[str, Any] | None = None
) -> dict[str, Any]:
    now = datetime.now(UTC)
    values: dict[str, Any] = {
        "subject": subject, "manifest": digest, "node": node.id, "decision": decision, "conditions": {},
        "comment_sha256": hashlib.sha256(b"").hexdigest(), "time": stamp(now),
        "expires": stamp(now + timedelta(days=90)), "by": [By("steward", "alice")],
    } | (changed or {})  # fmt: skip
    approval = Approval(**values)
    document = json.loads(approval.encoded())
    signed = {"document": approval.encoded().decode(), "signature": sign_approval(node.key, document).hex()}
    return {"approvalStatus": decision, "approval": signed}


def seal(run: bytes, sender: Node, recipients: list[str], payload: bytes, n: int = 0) -> tuple[bytes, bytes]:
    """(msg_id, envelope): what a node would put; the recipients' keys are thrown away."""
    keys = [RecipientKey(UUID(r).bytes, HybridKey.generate().public_bytes, n) for r in recipients]
    msg_id, now = uuid4().bytes, int(time.time())
    envelope = sealed(
        sender.key, payload, type="message", run=run, sender=UUID(sender.id).bytes, msg_id=msg_id, round=0, created=now,
        expires=now + 3600, content_type="application/octet-stream", log_size=0, log_root=bytes(32), recipients=keys,
    )  # fmt: skip
    return msg_id, envelope
