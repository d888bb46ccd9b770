"""A federation on one machine: a hub and its nodes as processes of their own, on free loopback ports, in one directory.

The lab plays everyone (administrator, stewards, researcher), each with the means that this person really has: the hub's
HTTP API, a node's local interface, keys of their own. What it confirms it has seen being made.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from flame.crypto.canonical import digest
from flame.crypto.keys import PublicKey
from flame.lab.processes import Child, alive, belongs, end, wait_for_file
from flame.lab.stewards import Steward
from flame.model.errors import Conflict, FlameError, Invalid, NotFound, RunFailed, Unavailable
from flame.model.manifest import Environment, Manifest
from flame.researcher.api import Api
from flame.researcher.keys import Keys
from flame.researcher.session import KnownNode, Progress, ResearcherSession, ResultFile, Submission

STATE = "federation.json"
AGGREGATOR = "aggregator"
_FOLDERS = ("hub", "nodes", "researcher", "record")
IMAGE = "python/base"

Tell = Callable[[str, str], None]


@dataclass(frozen=True)
class Site:
    """A data hospital and its file, or a folder of files."""

    name: str
    path: Path | None


@dataclass(frozen=True)
class Credentials:
    username: str
    password: str


@dataclass(frozen=True)
class NodeInfo:
    id: str
    name: str
    role: str
    directory: Path
    url: str
    pid: int
    fingerprint: str
    public_key: str
    steward_token: str


@dataclass
class Outcome:
    analysis: str
    run: str
    status: str
    reason: str
    seconds: dict[str, float]
    rounds: int | None
    results: list[ResultFile]


@dataclass
class Federation:
    directory: Path
    hub_url: str
    hub_pid: int
    hub_key: str
    admin: Credentials
    researcher: Credentials
    nodes: list[NodeInfo]
    environment: Environment
    image: str
    recorded: bool = False
    project: str = ""
    environments: dict[str, dict[str, str]] = field(default_factory=dict)
    """Registered besides: name -> reference, digest, and the id of the hub's master image."""
    _session: ResearcherSession | None = field(default=None, repr=False)

    # --- life -------------------------------------------------------------------------------------------------------

    @classmethod
    def up(
        cls,
        directory: Path,
        sites: Sequence[Site],
        *,
        public_data: bool = True,
        record: bool = False,
        progress: Tell = lambda stage, text: None,
        variables: Mapping[str, Mapping[str, str]] | None = None,
        interpreters: Mapping[str, Path] | None = None,
    ) -> Federation:
        """Start everything. On any failure what was started is ended again.

        interpreters: Python interpreters of this machine, by the name under which programs may ask for them.
        variables: for tests, environment of single processes by name ("hub" or a node's name).
        """
        directory = directory.resolve()
        if (directory / STATE).exists():
            raise Conflict(
                f"A federation is in {directory} already.",
                next_step="End it with `flame dev down`, or name another --dir.",
            )
        if there := [name for name in _FOLDERS if (directory / name).exists()]:
            raise Conflict(
                f"{directory} holds a folder '{there[0]}' already, which this federation would use.",
                next_step="Name another --dir, or remove it.",
            )
        directory.mkdir(parents=True, exist_ok=True)
        starting = _Starting(directory, variables or {})
        try:
            federation = starting.bring_up(
                list(sites), public_data=public_data, record=record, progress=progress, interpreters=interpreters or {}
            )
        except BaseException:
            starting.end_all()
            _remove_folders(directory)  # keys, databases and copies of data among them
            raise
        starting.let_go()
        return federation

    @classmethod
    def load(cls, directory: Path) -> Federation:
        """One that was left running. Raises NotFound."""
        path = directory.resolve() / STATE
        try:
            state = json.loads(path.read_text())
        except OSError:
            raise NotFound(f"No federation is in {directory}.", next_step="Start one with `flame dev up`.") from None
        nodes = [NodeInfo(**{**node, "directory": Path(node["directory"])}) for node in state.pop("nodes")]
        return cls(
            directory=path.parent,
            nodes=nodes,
            admin=Credentials(**state.pop("admin")),
            researcher=Credentials(**state.pop("researcher")),
            environment=Environment(**state.pop("environment")),
            **state,
        )

    def save(self) -> None:
        path = self.directory / STATE
        state = {
            "hub_url": self.hub_url,
            "hub_pid": self.hub_pid,
            "hub_key": self.hub_key,
            "admin": asdict(self.admin),
            "researcher": asdict(self.researcher),
            "nodes": [{**asdict(node), "directory": str(node.directory)} for node in self.nodes],
            "environment": asdict(self.environment),
            "image": self.image,
            "recorded": self.recorded,
            "project": self.project,
            "environments": self.environments,
        }
        temporary = path.with_suffix(".new")
        temporary.touch(mode=0o600)
        temporary.write_text(json.dumps(state, indent=2))
        temporary.replace(path)

    def down(self, *, keep_files: bool = False) -> None:
        """End exactly what ``up`` started, and remove its files."""
        for pid in [*(node.pid for node in self.nodes), self.hub_pid]:
            if belongs(pid, self.directory):
                end(pid)
        (self.directory / STATE).unlink(missing_ok=True)
        if not keep_files:
            _remove_folders(self.directory)

    def restart(self, name: str, variables: Mapping[str, str] | None = None) -> None:
        """Start one process again ("hub" or a node's name), in its directory; one that still runs is ended first.

        The hub comes back at its address. variables: environment for this start alone. Raises Unavailable.
        """
        self.stop(name)
        hub = name == "hub"
        folder = self.directory / "hub" if hub else self.node(name).directory
        arguments = ["-m", "flame.hub", str(folder), self.hub_url.rpartition(":")[2]]
        child = Child(
            arguments if hub else ["-m", "flame.node", str(folder)],
            folder / "stderr.log",
            {**(_hub_variables(self.directory, self.recorded) if hub else {}), **(variables or {})},
        )
        try:
            said = wait_for_file(folder / ("hub.json" if hub else "node.json"), child)
        except BaseException:
            end(child.pid, 2.0)
            raise
        finally:
            child.let_go()
        if hub:
            self.hub_pid = child.pid
        else:
            node = self.node(name)
            self.nodes[self.nodes.index(node)] = replace(node, pid=child.pid, url=str(said["url"]))
        self.save()

    def stop(self, name: str) -> None:
        """End one process and leave its directory as it is."""
        if belongs(self.pid_of(name), self.directory):
            end(self.pid_of(name))

    def pid_of(self, name: str) -> int:
        return self.hub_pid if name == "hub" else self.node(name).pid

    def status(self) -> dict[str, Any]:
        return {
            "dir": str(self.directory),
            "hub": {"url": self.hub_url, "running": alive(self.hub_pid) and belongs(self.hub_pid, self.directory)},
            "nodes": [self._status_of(node) for node in self.nodes],
        }

    def document(self) -> dict[str, Any]:
        """What ``flame dev up --json`` prints."""
        return {
            "dir": str(self.directory),
            "hub": {"url": self.hub_url, "admin": asdict(self.admin)},
            "researcher": asdict(self.researcher),
            "nodes": [
                {"id": n.id, "name": n.name, "role": n.role, "directory": str(n.directory), "url": n.url}
                for n in self.nodes
            ],
        }

    # --- the people -------------------------------------------------------------------------------------------------

    @property
    def session(self) -> ResearcherSession:
        if self._session is None:
            api = Api.login(self.hub_url, self.researcher.username, self.researcher.password)
            self._session = ResearcherSession(api, Keys.load(self.directory / "researcher"))
        return self._session

    def steward(self, name: str) -> Steward:
        node = self.node(name)
        return Steward(node.directory, node.steward_token)

    def node(self, name: str) -> NodeInfo:
        for node in self.nodes:
            if name in (node.name, node.id):
                return node
        raise NotFound(f"This federation has no node '{name}'.")

    @property
    def known_nodes(self) -> list[KnownNode]:
        return [KnownNode(n.id, n.name, n.role, n.fingerprint) for n in self.nodes]

    @property
    def aggregator(self) -> NodeInfo:
        return next(node for node in self.nodes if node.role == "aggregator")

    # --- the loop ---------------------------------------------------------------------------------------------------

    def submit(
        self,
        files: Mapping[str, bytes],
        *,
        entrypoint: str,
        title: str,
        parameters: Mapping[str, Any] | None = None,
        progress: Callable[[Progress], None] = lambda step: None,
        arguments: Sequence[str] = (),
        environment: str | None = None,
    ) -> Outcome:
        """Project, upload, lock, signature, approvals, build, start order, watching, opening: everything."""
        clock = _Clock()
        progress(Progress("submit", None, 0, "uploading and signing"))
        self.ensure_project()
        submission = self.session.submit(
            self.project,
            files,
            entrypoint=entrypoint,
            title=title,
            image=self.image_of(environment),
            environment=self.environment_of(environment),
            nodes=self.known_nodes,
            arguments=arguments,
        )
        clock.lap("submit")
        progress(Progress("approve", None, 0, "stewards decide at their nodes"))
        self.approve(submission)
        clock.lap("approve")
        self.session.build_and_distribute(submission.analysis, progress)
        clock.lap("build")
        self.session.start(submission, parameters=parameters)
        clock.lap("start")
        return self.finish(submission, progress, clock)

    def environment_of(self, name: str | None) -> Environment:
        """A registered environment; None: the one with FLAME's own SDK. Raises NotFound."""
        if name is None:
            return self.environment
        self._need_environment(name)
        return Environment(self.environments[name]["reference"], self.environments[name]["digest"])

    def image_of(self, name: str | None) -> str:
        if name is None:
            return self.image
        self._need_environment(name)
        return self.environments[name]["image"]

    def _need_environment(self, name: str) -> None:
        if name not in self.environments:
            known = ", ".join(sorted(self.environments)) or "none besides FLAME's own"
            raise NotFound(
                f"This federation has no environment '{name[:64]}' (it has: {known}).",
                next_step="Start it with `flame dev up --environment NAME=PYTHON`.",
            )

    def finish(self, submission: Submission, progress: Callable[[Progress], None], clock: _Clock) -> Outcome:
        names = {node.id: node.name for node in self.nodes}
        manifest = Manifest.from_document(json.loads(submission.manifest))
        status, reason = self.session.watch(submission, names, progress, manifest.resources.runtime_seconds + 600)
        clock.lap("run")
        results: list[ResultFile] = []
        if status == "executed":
            progress(Progress("open", None, 0, "opening the sealed results"))
            self.steward(self.aggregator.name).release_held(submission.run)
            results = self.session.open_results(submission, PublicKey.from_hex_pem(self.aggregator.public_key))
            clock.lap("open")
        return Outcome(submission.analysis, submission.run, status, reason, clock.seconds, None, results)

    def ensure_project(self) -> str:
        """The project that everything of this federation belongs to, approved by each steward."""
        if not self.project:
            description = "A federation on one machine, for trying things out."
            self.project = self.session.create_project("laboratory", description, [node.id for node in self.nodes])
            self._each(lambda node: self.steward(node.name).approve_project(self.project))
            for node in self.nodes:
                _grant(node.directory, self.project)
            self.save()
        return self.project

    def approve(self, submission: Submission) -> None:
        self._each(lambda node: self._approve_at(node, submission))

    def _approve_at(self, node: NodeInfo, submission: Submission) -> None:
        steward = self.steward(node.name)
        until = time.monotonic() + 30
        while True:
            try:
                if not steward.show(submission.analysis)["signed"]:
                    raise NotFound("The node has not seen the researcher's signature yet.")
                if steward.show(submission.analysis)["signed"] or time.monotonic() > until:
                    steward.decide(submission.analysis, digest=digest(submission.manifest).hex())
                    return
            except NotFound:  # the hub's push is still on its way, of the analysis or of its signature
                if time.monotonic() > until:
                    raise
            time.sleep(0.02)

    # --- what the demo tells ----------------------------------------------------------------------------------------

    def isolation(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for node in self.nodes:
            until = time.monotonic() + 30
            while (level := self.steward(node.name).status().get("isolation")) is None and time.monotonic() < until:
                time.sleep(0.05)
            found[node.name] = level["level"] if level else "unknown"
        return found

    def log_verified(self) -> bool:
        """The hub's log, exported and verified here with the hub's key and the keys of everyone the lab knows."""
        from flame.protocol.audit import verify_export

        api = Api.login(self.hub_url, self.admin.username, self.admin.password)
        keys = [PublicKey.from_hex_pem(node.public_key) for node in self.nodes]
        report = verify_export(
            api.get("/core/audit/export"),
            PublicKey.from_hex_pem(self.hub_key),
            keys={key.fingerprint.hex(): key for key in keys},
        )
        return bool(report.ok)

    def hub_counts(self) -> dict[str, int]:
        from flame.lab.record import canaries_of_table, count_record

        if not self.recorded:
            raise RunFailed("This federation's hub records nothing.", next_step="Start it with record=True.")
        files = [path for node in self.nodes for path in (node.directory / "data").glob("*.csv")]
        return count_record(self.directory / "record", [c for path in files for c in canaries_of_table(path)])

    def _status_of(self, node: NodeInfo) -> dict[str, Any]:
        row: dict[str, Any] = {"name": node.name, "id": node.id, "role": node.role, "url": node.url, "running": False}
        if belongs(node.pid, self.directory):
            try:
                row.update(running=True, status=self.steward(node.name).status())
            except FlameError as error:
                row["error"] = str(error)
        return row

    def _each(self, act: Callable[[NodeInfo], None]) -> None:
        with ThreadPoolExecutor(max_workers=min(8, len(self.nodes))) as pool:
            for done in [pool.submit(act, node) for node in self.nodes]:
                done.result()


def _remove_folders(directory: Path) -> None:
    for name in _FOLDERS:
        shutil.rmtree(directory / name, ignore_errors=True)


class _Clock:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, stage: str) -> None:
        now = time.monotonic()
        self.seconds[stage] = round(now - self._last, 3)
        self._last = now


class _Starting:
    """A federation on its way up."""

    def __init__(self, directory: Path, variables: Mapping[str, Mapping[str, str]]) -> None:
        self._directory, self._variables = directory, variables
        self._children: list[Child] = []

    def bring_up(
        self,
        sites: list[Site],
        *,
        public_data: bool,
        record: bool,
        progress: Tell,
        interpreters: Mapping[str, Path],
    ) -> Federation:
        from flame.lab.environment import ensure_environment, register_interpreter

        names = [*(site.name for site in sites), AGGREGATOR]
        if len(set(names)) != len(names):
            raise Conflict(
                "Two nodes have the same name.",
                next_step=f"Give each --site a name of its own, other than '{AGGREGATOR}'.",
            )
        if short := [name for name in names if not 3 <= len(name) <= 128]:
            raise Invalid(
                f"The site's name '{short[0]}' is too short or too long.", next_step="Use 3 to 128 characters."
            )
        progress("start", "starting hub and nodes")
        hub = self._spawn(
            "hub",
            ["-m", "flame.hub", str(self._directory / "hub"), "0"],
            _hub_variables(self._directory, record),
        )
        node_dirs = {name: self._directory / "nodes" / name for name in names}
        nodes = {name: self._spawn(name, ["-m", "flame.node", str(node_dirs[name]), "--enrol"], {}) for name in names}
        environment = ensure_environment()
        registry = _registry_of(environment.record.parent)
        others = {
            name: register_interpreter(name if "/" in name else f"local/{name}", python, registry)
            for name, python in interpreters.items()
        }
        hub_file = wait_for_file(self._directory / "hub" / "hub.json", hub)
        url = str(hub_file["url"])
        admin = Credentials("admin", (self._directory / "hub" / "admin-password").read_text().strip())
        api = Api.login(url, admin.username, admin.password)
        progress("enrol", "enrolling the nodes, confirming fingerprints")
        infos = self._enrol(api, url, sites, nodes, node_dirs)
        progress("people", "researcher and stewards")
        researcher, keys = self._researcher(api, url)
        image = self._image(api, IMAGE, environment.digest)
        environments = {
            name: {
                "reference": other.name,
                "digest": other.digest,
                "image": self._image(api, other.name, other.digest),
            }
            for name, other in others.items()
        }
        for info in infos:
            _equip(info, sites, environment.record.parent, public_data)
            nodes[info.name].say(go="on")
        ready = [self._running(info, nodes[info.name]) for info in infos]
        federation = Federation(
            directory=self._directory,
            hub_url=url,
            hub_pid=hub.pid,
            hub_key=self._hub_key,
            admin=admin,
            researcher=researcher,
            nodes=ready,
            environment=Environment(IMAGE, environment.digest),
            image=image,
            recorded=record,
            environments=environments,
        )
        federation._each(lambda node: _confirm_everyone(federation, node, keys))
        federation.save()
        return federation

    def end_all(self) -> None:
        for child in self._children:
            end(child.pid, 2.0)
            child.let_go()

    def let_go(self) -> None:
        for child in self._children:
            child.let_go()

    def _spawn(self, name: str, arguments: list[str], variables: Mapping[str, str]) -> Child:
        folder = self._directory / ("hub" if name == "hub" else f"nodes/{name}")
        folder.mkdir(parents=True, exist_ok=True)
        child = Child(arguments, folder / "stderr.log", {**variables, **self._variables.get(name, {})})
        self._children.append(child)
        return child

    def _enrol(
        self, api: Api, url: str, sites: list[Site], nodes: Mapping[str, Child], directories: Mapping[str, Path]
    ) -> list[NodeInfo]:
        records: dict[str, str] = {}
        for name, child in nodes.items():
            kind = "aggregator" if name == AGGREGATOR else "default"
            body = {"name": name, "externalName": name.lower().replace("_", "-")[:64], "type": kind, "hidden": False}
            records[name] = str(api.post("/core/nodes", body)["data"]["id"])
            token = api.post(f"/core/nodes/{records[name]}/enrolment-token")["data"]["token"]
            child.say(hub=url, token=token)
        infos = []
        for name, child in nodes.items():
            said = child.answer()
            api.post(f"/core/nodes/{records[name]}/enrolment/confirm", {"fingerprint": said["fingerprint"]})
            self._hub_key = str(_enrolled(directories[name]).hub_key)
            role = "aggregator" if name == AGGREGATOR else "default"
            public = str(api.get(f"/core/nodes/{records[name]}")["data"]["publicKey"])
            if PublicKey.from_hex_pem(public).fingerprint.hex() != _plain_hex(said["fingerprint"]):
                raise Unavailable("The hub registered another key than the node's.")
            infos.append(
                NodeInfo(
                    records[name],
                    name,
                    role,
                    directories[name],
                    "",
                    child.pid,
                    _plain_hex(said["fingerprint"]),
                    public,
                    "",
                )
            )
        return infos

    def _researcher(self, api: Api, url: str) -> tuple[Credentials, Keys]:
        import secrets

        credentials = Credentials("researcher", secrets.token_urlsafe(18))
        api.post(
            "/auth/users", {"name": credentials.username, "password": credentials.password, "roles": ["researcher"]}
        )
        keys = Keys.make(self._directory / "researcher")
        ResearcherSession(Api.login(url, credentials.username, credentials.password), keys).register_keys()
        return credentials, keys

    def _image(self, api: Api, name: str, digest: str) -> str:
        """Register an environment's digest as a master image that analyses are built on."""
        return str(api.post("/core/master-images", {"virtualPath": name, "path": name, "digest": digest})["data"]["id"])

    def _running(self, info: NodeInfo, child: Child) -> NodeInfo:
        said = wait_for_file(info.directory / "node.json", child)
        token = (info.directory / "local-token").read_text().strip()
        return replace(info, url=str(said["url"]), steward_token=token)


def _hub_variables(directory: Path, record: bool) -> dict[str, str]:
    variables = {"FLAME_HUB_PASSWORD_FILE": "1", "FLAME_HUB_BULK_PORT": "0"}
    if record:
        variables["FLAME_HUB_RECORD"] = str(directory / "record")
    return variables


def _equip(info: NodeInfo, sites: Sequence[Site], environments: Path, public_data: bool) -> None:
    """What the hospital's administrator sets up: policy, environment, data source, a steward's account."""
    from flame.node.local.stewards import Accounts

    directory = info.directory
    lines = ["host_environments = true", f"public_data = {'true' if public_data else 'false'}"]
    (directory / "policy.toml").write_text("\n".join(lines) + "\n")
    registry = directory / "environments"
    if registry.is_dir() and not registry.is_symlink():
        registry.rmdir()
    registry.symlink_to(_registry_of(environments))
    token = Accounts(directory / "stewards.json").add(f"steward of {info.name}", "steward")
    path = directory / "local-token"
    path.touch(mode=0o600)
    path.write_text(token)
    site = next((s for s in sites if s.name == info.name), None)
    if site is not None and site.path is not None:
        _place_data(directory, site.path, public_data)


def _place_data(directory: Path, source: Path, public_data: bool) -> None:
    """The hospital's own copy of its file, read by nobody else."""
    folder = directory / "data"
    folder.mkdir(mode=0o700, exist_ok=True)
    target = folder / source.name
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns(".*"))
    else:
        shutil.copyfile(source, target)
        target.chmod(0o600)
    _write_source(directory, target, (), public_data)


def _write_source(directory: Path, path: Path, projects: tuple[str, ...], public: bool) -> None:
    from flame.node.data.sources import Sources, make_source, write_sources

    write_sources(directory / "sources.toml", Sources((make_source("data", "data", path, projects, public),)))


def _grant(directory: Path, project: str) -> None:
    """The administrator grants the node's source to the project."""
    from flame.node.data.sources import Sources, read_sources, write_sources

    sources = read_sources(directory / "sources.toml")
    write_sources(
        directory / "sources.toml", Sources(tuple(replace(s, projects=(*s.projects, project)) for s in sources.all))
    )


def _confirm_everyone(federation: Federation, node: NodeInfo, keys: Keys) -> None:
    steward = federation.steward(node.name)
    for other in federation.nodes:
        if other.id != node.id:
            steward.confirm(other.fingerprint, "node", other.name)
    steward.confirm(keys.sign_fingerprint, "researcher", federation.researcher.username)
    steward.confirm(keys.result_fingerprint, "result", federation.researcher.username)


def _registry_of(environment: Path) -> Path:
    """The registry's root, from the folder of one registered environment (``<registry>/python/base``)."""
    return environment.parent.parent


def _enrolled(directory: Path) -> Any:
    from flame.node.config import Layout, read_enrolled

    return read_enrolled(Layout(directory))


def _plain_hex(fingerprint: str) -> str:
    from flame.crypto.keys import parse_fingerprint

    return parse_fingerprint(fingerprint).hex()
