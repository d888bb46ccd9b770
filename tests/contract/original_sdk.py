"""A stand-in for FLAME's original SDK and its star pattern, written from the contract's text alone.

It sends the contract's requests, in their order, with their headers and time-outs, and has none of the SDK's tolerance:
where the original would sleep for a thousand seconds, or silently go on, it writes ``CONTRACT BROKEN`` and ends the
process with the code 70. Standard library only; it is copied into an environment as the package ``flamesdk``.
"""

import base64
import datetime
import http.client
import http.server
import json
import os
import pickle
import re
import threading
import time
import uuid

SMALL_SECONDS = 5.0
POLL = float(os.environ.get("ORIGINAL_POLL", "0.1"))  # the original polls each second


def broken(what):
    print(f"CONTRACT BROKEN: {what}", flush=True)
    os._exit(70)


def request(method, path, headers, body=None, *, small=True, accept=(200, 201, 202, 204), again=False):
    """One request through HTTP_PROXY, with an absolute URI as httpx writes it."""
    proxy = re.fullmatch(r"http://([\d.]+):(\d+)", os.environ["HTTP_PROXY"])
    host = "nginx-" + os.environ["DEPLOYMENT_NAME"]
    started = time.monotonic()
    connection = http.client.HTTPConnection(
        proxy.group(1), int(proxy.group(2)), timeout=SMALL_SECONDS if small else 600
    )
    everything = {"Host": host, "Accept-Encoding": "gzip, deflate", "User-Agent": "python-httpx/0.27.2", **headers}
    try:
        connection.putrequest(method, f"http://{host}{path}", skip_host=True, skip_accept_encoding=True)
        for name, value in everything.items():
            connection.putheader(name, value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        content = answer.read()
    except OSError as error:
        if again:
            return None
        broken(f"{method} {path}: {error!r}")
    finally:
        connection.close()
    took = time.monotonic() - started
    if small and took > SMALL_SECONDS:
        broken(f"{method} {path} took {took:.1f} s")
    if accept and answer.status not in accept:
        broken(f"{method} {path} answered {answer.status}: {content[:500]!r}")
    return answer.status, content, answer.headers


class Message:
    def __init__(self, body):
        self.body = body

    def set_read(self):
        self.body["meta"]["status"] = "read"


class Config:
    def __init__(self):
        self.analysis_id = os.environ["ANALYSIS_ID"]
        self.project_id = os.environ["PROJECT_ID"]
        self.keycloak_token = os.environ["KEYCLOAK_TOKEN"]
        self.data_source_token = os.environ["DATA_SOURCE_TOKEN"]
        self.nginx_name = "nginx-" + os.environ["DEPLOYMENT_NAME"]
        self.node_role = self.node_id = None
        self.finished = False


def expiry(token):
    parts = token.split(".")
    if len(parts) != 3:
        broken("the token has not three parts")
    if "-" in parts[1] or "_" in parts[1]:
        broken("the token's payload holds '-' or '_'")
    claims = json.loads(base64.b64decode(parts[1] + "=" * (-len(parts[1]) % 4), validate=True))
    if claims.get("client_id") != os.environ["ANALYSIS_ID"]:
        broken("the token's client_id is not the analysis")
    return int(claims["exp"])


class FlameCoreSDK:
    def __init__(
        self,
        aggregator_requires_data=False,
        stream_log_level=20,
        silent=False,
        status_sync=("executed", "stopped", "failed"),
    ):
        self.config = Config()
        self._status, self._progress, self._queued = "starting", 0, []
        self._started = time.monotonic()
        self._status_sync = status_sync
        self._inbox, self._acks, self._known, self._number = [], [], set(), 0
        self._lock = threading.Condition()
        self._main = threading.current_thread()
        self.refreshed = 0
        expiry(self.config.keycloak_token)
        self._connected = False
        for line in ("Starting FlameCoreSDK", "\tExtracting node config"):
            self.flame_log(line)
        self._wait_for_nginx()
        a = self.config.analysis_id
        base = f"/message-broker/analyses/{a}"
        hook = {"webhookUrl": f"http://{self.config.nginx_name}/analysis/webhook"}
        request(
            "POST",
            f"{base}/messages/subscriptions",
            {**self._bearer(), "Connection": "keep-alive", "Content-Type": "application/json"},
            json.dumps(hook).encode(),
        )
        for _ in range(2):
            me = self._get_json(f"{base}/participants/self")
        if set(me) < {"nodeId", "nodeType"} or me["nodeType"] not in ("default", "aggregator"):
            broken(f"participants/self is {me}")
        self.config.node_id, self.config.node_role = me["nodeId"], me["nodeType"]
        everyone = self._get_json(f"{base}/participants")
        if not isinstance(everyone, list) or self.config.node_id not in [p["nodeId"] for p in everyone]:
            broken(f"participants are {everyone}")
        self._participants = [p for p in everyone if p["nodeId"] != self.config.node_id]
        self._connected = True
        queued, self._queued = self._queued, []
        for line in queued:
            self._stream(line)
        for part in ("nginx", "MessageBroker", "PO service", "ResultService", "DataApi"):
            self.flame_log(f"\tConnecting to {part}...success")
        self._sources = None
        if self.config.node_role == "default" or aggregator_requires_data:
            found = self._get_json(f"/hub-adapter/kong/datastore/{self.config.project_id}")
            if not isinstance(found, dict) or not isinstance(found.get("data"), list):
                broken(f"the data store's answer is {found}")
            self._sources = found["data"]
            for source in self._sources:
                if not {"id", "name"} <= set(source):
                    broken(f"a source lacks id or name: {source}")
        threading.Thread(target=self._serve, daemon=False).start()
        self.flame_log("\tStarting FlameApi thread...success")
        self._status = "executing"
        self.flame_log("FlameCoreSDK ready")

    # --- wire ---

    def _bearer(self):
        return {
            "Authorization": f"Bearer {self.config.keycloak_token}",
            "Accept": "application/json",
            "Connection": "close",
        }

    def _get_json(self, path):
        return json.loads(request("GET", path, self._bearer())[1])

    def _wait_for_nginx(self):
        while True:
            found = request("GET", "/healthz", {"Accept": "*/*", "Connection": "keep-alive"}, again=True)
            if found is not None:
                return
            time.sleep(1)

    def _serve(self):
        sdk = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def _reply(self, document, status=200):
                body = json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self):
                if self.path != "/healthz":
                    return self._reply({"detail": "Not Found"}, 404)
                left = expiry(sdk.config.keycloak_token) - int(time.time())
                self._reply({"status": sdk._health(), "token_remaining_time": left})
                return None

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"null")
                if self.path == "/webhook":
                    sdk._receive(body)
                    self._reply(None)
                elif self.path == "/token_refresh":
                    expiry(body["token"])
                    sdk.config.keycloak_token = body["token"]
                    sdk.refreshed += 1
                    self._reply({"message": "Token refreshed successfully"})
                elif self.path == "/partner_status":
                    states = body["partner_status"]
                    if time.monotonic() - sdk._started > float(os.environ.get("ORIGINAL_SYNC", "100")):
                        for state in ("executed", "stopped", "failed"):
                            if state in states.values() and state in sdk._status_sync and sdk._status == "executing":
                                sdk._status = state
                    self._reply({"status": sdk._status})
                else:
                    self._reply({"echo": body})  # as programs that add endpoints of their own

            def log_message(self, *_):
                pass

        http.server.ThreadingHTTPServer(("0.0.0.0", 8000), Handler).serve_forever()

    def _health(self):
        if self._status in ("stopped", "failed"):
            return self._status
        if self._status == "executed" or self.config.finished:
            return "executed"
        return "executing" if self._main.is_alive() else "failed"

    # --- general ---

    def get_participants(self):
        return self._participants

    def get_participant_ids(self):
        return [p["nodeId"] for p in self._participants]

    def get_aggregator_id(self):
        return next((p["nodeId"] for p in self._participants if p["nodeType"] == "aggregator"), None)

    def get_id(self):
        return self.config.node_id

    def get_role(self):
        return self.config.node_role

    def get_analysis_id(self):
        return self.config.analysis_id

    def get_project_id(self):
        return self.config.project_id

    def flame_log(self, msg, sep="", end="", log_type="info"):
        line = (str(msg), log_type, self._status, self._progress)
        print(msg, flush=True)
        if self._connected:
            self._stream(line)
        else:
            self._queued.append(line)

    def _stream(self, line):
        text, kind, status, progress = line
        document = {
            "log": text,
            "log_type": kind,
            "analysis_id": self.config.analysis_id,
            "status": status,
            "progress": progress,
        }
        request(
            "POST",
            "/po/stream_logs",
            {
                "Authorization": f"Bearer {self.config.keycloak_token}",
                "accept": "application/json",
                "Connection": "keep-alive",
                "Content-Type": "application/json",
            },
            json.dumps(document).encode(),
        )

    def set_progress(self, progress):
        self._progress = max(self._progress, int(progress))

    def ready_check(self, nodes="all", attempt_interval=30, timeout=None):
        waiting = list(self.get_participant_ids() if nodes == "all" else nodes)
        states = dict.fromkeys(waiting, False)
        until = None if timeout is None else time.monotonic() + timeout
        while waiting and (until is None or time.monotonic() < until):
            acked, _ = self.send_message(waiting, "ready_check", {}, timeout=attempt_interval)
            for node in acked:
                waiting.remove(node)
                states[node] = True
        return states

    def analysis_finished(self):
        self.send_message(
            self.get_participant_ids(), "analysis_finished", {}, max_attempts=5, timeout=None, attempt_timeout=30
        )
        self._node_finished()
        return True

    def _node_finished(self):
        self.config.finished = True
        self._progress, self._status = 100, "executed"
        self.flame_log("Node finished successfully")
        self.flame_log("Analysis finished!")

    # --- messages ---

    def send_message(self, receivers, message_category, message, max_attempts=1, timeout=None, attempt_timeout=10):
        receivers = [receivers] if isinstance(receivers, str) else list(receivers)
        self._number += 1
        meta = {
            "type": "outgoing",
            "category": message_category,
            "id": f"{self.get_id()[:4]}-{self._number}-{uuid.uuid4().hex[:4]}",
            "akn_id": None,
            "status": "unread",
            "sender": self.get_id(),
            "created_at": str(datetime.datetime.now()),
            "arrived_at": None,
            "number": self._number,
        }
        body = {**message, "meta": meta}
        missing = list(receivers)
        for attempt in range(1, max_attempts + 1):
            self._post(missing, body)
            wait = (
                timeout / max_attempts
                if timeout is not None
                else (None if attempt == max_attempts else attempt_timeout)
            )
            until = None if wait is None else time.monotonic() + wait
            while missing and (until is None or time.monotonic() < until):
                with self._lock:
                    for ack in list(self._acks):
                        if ack["meta"]["id"] == meta["id"] and ack["meta"]["akn_id"] in missing:
                            payload = {k: v for k, v in ack.items() if k != "meta"}
                            if payload != json.loads(json.dumps(message)):
                                broken(f"an acknowledgement is not of the message that was sent: {ack}")
                            missing.remove(ack["meta"]["akn_id"])
                            self._acks.remove(ack)
                time.sleep(POLL)
            if not missing:
                break
        return [r for r in receivers if r not in missing], missing

    def _post(self, recipients, message):
        path = f"/message-broker/analyses/{self.config.analysis_id}/messages"
        headers = {**self._bearer(), "Content-Type": "application/json"}
        request("POST", path, headers, json.dumps({"recipients": recipients, "message": message}).encode())

    def _receive(self, body):
        meta = body["meta"]
        if meta["akn_id"] is not None:
            with self._lock:
                self._acks.append(body)
            return
        if meta["sender"] == self.get_id() or meta["sender"] not in self.get_participant_ids():
            broken(f"a message came from {meta['sender']}")
        meta["type"], meta["akn_id"], meta["arrived_at"] = "incoming", self.get_id(), str(datetime.datetime.now())
        with self._lock:
            if meta["id"] not in self._known:
                self._known.add(meta["id"])
                self._inbox.append(Message(body))
        self._post([meta["sender"]], body)
        self.flame_log(f"received message from {meta['sender']}")
        if meta["category"] == "analysis_finished":
            self._node_finished()

    def await_messages(self, senders, message_category, message_id=None, timeout=None):
        until = None if timeout is None else time.monotonic() + timeout
        found = dict.fromkeys(senders)
        while True:
            with self._lock:
                for sender in senders:
                    here = [
                        m
                        for m in self._inbox
                        if m.body["meta"]["sender"] == sender
                        and m.body["meta"]["category"] == message_category
                        and m.body["meta"]["status"] == "unread"
                        and message_id in (None, m.body["meta"]["id"])
                    ]
                    if here:
                        found[sender] = (found[sender] or []) + here
                    for m in here:
                        m.set_read()
            if all(found.values()) or (until is not None and time.monotonic() > until):
                return found
            time.sleep(POLL)

    # --- storage ---

    def _put(self, path, content, filename, media, fields):
        boundary = uuid.uuid4().hex
        body = b""
        for name, value in fields.items():
            body += f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        body += (
            (
                f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{filename}"\r\n'
                f"Content-Type: {media}\r\n\r\n"
            ).encode()
            + content
            + f"\r\n--{boundary}--\r\n".encode()
        )
        headers = {
            "Accept": "*/*",
            "Authorization": f"Bearer {self.config.keycloak_token}",
            "Connection": "close",
            "Content-Type": f"multipart/form-data; boundary={boundary}",
        }
        return request("PUT", path, headers, body, small=False)

    def _named(self, filename, kind):
        ext, media = {
            "str": (".txt", "text/plain"),
            "pickle": (".pkl", "application/octet-stream"),
            "bytes": (".bin", "application/octet-stream"),
        }[kind]
        stamp = time.strftime("%y%m%d%H%M%S")
        return filename or f"result_{uuid.uuid4().hex[:4]}_{stamp}{ext}", media

    def submit_final_result(self, result, output_type="str", multiple_results=False, filename=None, local_dp=None):
        if multiple_results and isinstance(result, (list, tuple)) and len(result) > 1:
            kinds = [output_type] * len(result) if isinstance(output_type, str) else output_type
            names = filename if isinstance(filename, list) else [filename] * len(result)
            return [self._submit(r, k, n, local_dp) for r, k, n in zip(result, kinds, names, strict=False)]
        return self._submit(result, output_type, filename, local_dp)

    def _submit(self, result, kind, filename, local_dp):
        content = {
            "str": lambda: str(result).encode(),
            "bytes": lambda: bytes(result),
            "pickle": lambda: pickle.dumps(result),
        }[kind]()
        name, media = self._named(filename, kind)
        fields = {k: str(v) for k, v in (local_dp or {}).items()}
        self._put("/storage/final" + ("/localdp" if local_dp else ""), content, name, media, fields)
        return {"status": "success"}

    def save_intermediate_data(self, data, location="local", remote_node_ids=None, tag=None):
        name, media = self._named(None, "pickle")
        if location == "global":
            return {r: self._save(data, "intermediate", name, media, {"remote_node_id": r}) for r in remote_node_ids}
        if tag is not None and not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", tag):
            raise ValueError("tag")
        return self._save(data, "local", name, media, {"tag": tag} if tag else {})

    def _save(self, data, where, name, media, fields):
        answer = json.loads(self._put(f"/storage/{where}", pickle.dumps(data), name, media, fields)[1])
        return {"status": "success", "url": answer["url"], "id": answer["url"].split("/")[-1]}

    def get_intermediate_data(self, location, query=None, tag=None, tag_option="all"):
        if tag is not None:
            found = json.loads(request("GET", f"/storage/local/tags/{tag}", self._bearer())[1])["results"]
            found = {"all": found, "first": found[:1], "last": found[-1:]}[tag_option]
            return [self._fetch("local", entry["url"].split("/local/")[1]) for entry in found]
        return self._fetch("intermediate" if location == "global" else "local", query)

    def _fetch(self, where, handle):
        headers = {"Accept": "*/*", "Connection": "keep-alive", "Authorization": f"Bearer {self.config.keycloak_token}"}
        return pickle.loads(request("GET", f"/storage/{where}/{handle}", headers, small=False)[1])

    def get_local_tags(self, filter=None):
        tags = [t["name"] for t in json.loads(request("GET", "/storage/local/tags", self._bearer())[1])["tags"]]
        return [t for t in tags if filter is None or filter in t]

    def send_intermediate_data(
        self, receivers, data, message_category="intermediate_data", max_attempts=1, timeout=None, attempt_timeout=10
    ):
        handles = {r: s["id"] for r, s in self.save_intermediate_data(data, "global", receivers).items()}
        return self.send_message(
            receivers, message_category, {"result_id": handles}, max_attempts, timeout, attempt_timeout
        )

    def await_intermediate_data(self, senders, message_category="intermediate_data", timeout=None):
        found = self.await_messages(senders, message_category, timeout=timeout)
        return {
            s: self._fetch("intermediate", ms[-1].body["result_id"][self.get_id()]) if ms else None
            for s, ms in found.items()
        }

    # --- data ---

    def get_data_sources(self):
        return self._sources

    def _kong(self):
        return {
            "Accept": "*/*",
            "apikey": self.config.data_source_token,
            "Content-Type": "application/json",
            "Connection": "close",
        }

    def get_fhir_data(self, queries=None):
        if not queries:
            return None
        everything = []
        for source in self._sources:
            here = {}
            for query in queries:
                status, content, _ = request(
                    "GET", f"/kong/{source['name']}/fhir/{query}", self._kong(), small=False, accept=()
                )
                if status == 200:
                    here[query] = json.loads(content)
            everything.append(here)
        return everything

    def get_s3_data(self, keys=()):
        if keys is None:
            return None
        everything = []
        for source in self._sources:
            listing = request("GET", f"/kong/{source['name']}/s3", self._kong(), accept=(200,))[1].decode()
            if "ListBucketResult" not in listing:
                broken(f"the listing is {listing[:200]}")
            here = [k for k in re.findall(r"<Key>(.*?)</Key>", listing) if not keys or k in keys]
            everything.append(
                {
                    k: request(
                        "GET",
                        f"/kong/{source['name']}/s3/{k.replace(' ', '%20')}",
                        self._kong(),
                        small=False,
                        accept=(200,),
                    )[1]
                    for k in here
                }
            )
        return everything


# --- the star pattern -------------------------------------------------------------------------------------------------


class StarAnalyzer:
    def __init__(self, flame):
        if flame.get_role() != "default":
            raise ValueError(flame.get_role())
        self.flame, self.id, self.role = flame, flame.get_id(), flame.get_role()
        self.partner_node_ids, self.latest_result, self.finished, self.num_iterations = (
            flame.get_participant_ids(),
            None,
            False,
            0,
        )


class StarAggregator:
    def __init__(self, flame):
        if flame.get_role() != "aggregator":
            raise ValueError(flame.get_role())
        self.flame, self.id, self.role = flame, flame.get_id(), flame.get_role()
        self.partner_node_ids, self.latest_result, self.finished, self.num_iterations = (
            flame.get_participant_ids(),
            None,
            False,
            0,
        )
        self.delta_criteria = None


class StarModel:
    local_dp = None

    def __init__(
        self,
        analyzer,
        aggregator,
        data_type,
        query=None,
        simple_analysis=True,
        output_type="str",
        multiple_results=False,
        analyzer_kwargs=None,
        aggregator_kwargs=None,
        filename=None,
    ):
        self.flame = flame = FlameCoreSDK()
        if flame.get_role() == "aggregator":
            flame.flame_log("Aggregator started")
            self._aggregate(
                aggregator(flame, **(aggregator_kwargs or {})), simple_analysis, output_type, multiple_results, filename
            )
        else:
            flame.flame_log("Analyzer started")
            self._analyze(analyzer(flame, **(analyzer_kwargs or {})), data_type, query, simple_analysis)
        while not flame.config.finished:  # the original burns a core here
            time.sleep(POLL)

    def _analyze(self, analyzer, data_type, query, simple):
        flame, boss = self.flame, self.flame.get_aggregator_id()
        flame.flame_log("Awaiting contact with aggregator node...")
        flame.ready_check([boss])
        flame.flame_log("Awaiting contact with aggregator node...success")
        query = [query] if isinstance(query, str) else query
        data = flame.get_fhir_data(query) if data_type == "fhir" else flame.get_s3_data(query)
        flame.flame_log("\tData extracted: " + str(data)[:100])
        while not analyzer.finished:
            result = analyzer.analysis_method(data, analyzer.latest_result)
            flame.flame_log("sending intermediate result")
            flame.send_intermediate_data([boss], result)
            analyzer.num_iterations += 1
            if simple:
                analyzer.finished = True
                continue
            analyzer.latest_result = flame.await_intermediate_data([boss])[boss]  # for ever, after the last round

    def _aggregate(self, aggregator, simple, output_type, multiple_results, filename):
        flame, nodes = self.flame, self.flame.get_participant_ids()
        flame.ready_check("all")
        while not aggregator.finished:
            results = list(flame.await_intermediate_data(nodes).values())
            result = aggregator.aggregation_method(results)
            aggregator.delta_criteria = aggregator.has_converged(result, aggregator.latest_result)
            converged = simple or (aggregator.num_iterations > 0 and aggregator.delta_criteria)
            aggregator.latest_result, aggregator.num_iterations = result, aggregator.num_iterations + 1
            if converged:
                dp = self.local_dp if isinstance(result, (int, float)) else None
                flame.submit_final_result(result, output_type, multiple_results, filename, local_dp=dp)
                flame.analysis_finished()
                aggregator.finished = True
            else:
                flame.send_intermediate_data(nodes, result)


class StarLocalDPModel(StarModel):
    def __init__(self, *args, epsilon=None, sensitivity=None, **kwargs):
        self.local_dp = {"epsilon": epsilon, "sensitivity": sensitivity}
        super().__init__(*args, **kwargs)
