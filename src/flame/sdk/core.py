"""``FlameCoreSDK`` on top of ``Federation``: programs written against FLAME's own SDK run unchanged.

What differs, on purpose: an error is raised and ends the run truthfully (the original sleeps for 1000 seconds); values
travel typed and are never unpickled, so an object that is not made of numbers, text, bytes, lists, dictionaries and
NumPy arrays is refused with a clear error; nothing polls; free text of a log line stays at the node.
"""

from __future__ import annotations

import io
import math
import pickle
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

from flame.model.errors import Invalid
from flame.sdk.federation import Federation, NoMessage, connect
from flame.sdk.federation import Message as Received

_OBJECT = "object."
INTERMEDIATE = "intermediate_data"
FINISHED = "analysis_finished"

_LEVELS = {
    "debug": "debug",
    "warn": "warning",
    "warning": "warning",
    "alert": "error",
    "emerg": "error",
    "error": "error",
    "crit": "error",
}
_SUFFIXES = {"str": ".txt", "bytes": ".bin", "pickle": ".pkl"}


class LocalDifferentialPrivacyParams(TypedDict):
    """Noise of the scale sensitivity / epsilon."""

    epsilon: float
    sensitivity: float


@dataclass
class NodeConfig:
    """``.config`` of the original, as far as it means something without tokens and proxies."""

    analysis_id: str
    project_id: str
    node_id: str
    node_role: str
    finished: bool = False


@dataclass
class Message:
    """A message that came in. ``body``: what was sent, and ``meta`` about it."""

    recipients: list[str]
    message_category: str
    body: dict[str, Any] = field(repr=False)

    def set_read(self) -> None:
        self.body["meta"]["status"] = "read"


class FlameCoreSDK:
    """``FlameCoreSDK()`` joins the run that this program is part of.

    The arguments are those of the original; ``stream_log_level``, ``status_sync`` and ``aggregator_requires_data`` are
    accepted and have no effect: level, states and data are a matter of the manifest here.
    """

    def __init__(
        self,
        aggregator_requires_data: bool = False,
        stream_log_level: int = 20,
        silent: bool = False,
        status_sync: Sequence[str] = ("executed", "stopped", "failed"),
        *,
        federation: Federation | None = None,
    ) -> None:
        del aggregator_requires_data, stream_log_level, status_sync
        self.federation = federation or connect()
        fed = self.federation
        self.silent = silent
        self.config = NodeConfig(fed.analysis, fed.project, fed.id, fed.role)
        self._progress = 0
        self._held_back = ""
        self._messages: list[Message] = []
        self._handed = 0
        self._received: dict[str, Any] = {}

    # --- general ----------------------------------------------------------------------------------------------------

    def get_aggregator_id(self) -> str | None:
        """None on the aggregator itself."""
        return None if self.federation.is_aggregator else self.federation.aggregator

    def get_participants(self) -> list[dict[str, str]]:
        """The others, as ``{"nodeId": …, "nodeType": "default" | "aggregator"}``."""
        mine = self.federation.id
        return [{"nodeId": p.id, "nodeType": p.role} for p in self.federation.participants if p.id != mine]

    def get_participant_ids(self) -> list[str]:
        return list(self.federation.others)

    def get_analysis_id(self) -> str:
        return self.federation.analysis

    def get_project_id(self) -> str:
        return self.federation.project

    def get_id(self) -> str:
        return self.federation.id

    def get_role(self) -> str:
        return self.federation.role

    def get_type(self) -> str:
        """The node's type, which is its role."""
        return self.federation.role

    def get_self_node_index(self) -> int:
        """This node's place among all participants, in the order of the manifest."""
        return self.get_node_index(self.federation.id)

    def get_node_index(self, node_id: str) -> int:
        """A participant's place, the same at every node. Raises Invalid for a stranger."""
        ids = [participant.id for participant in self.federation.participants]
        if node_id not in ids:
            raise Invalid("This node takes no part in the run.", next_step="Use an id from get_participant_ids().")
        return ids.index(node_id)

    def ready_check(
        self, nodes: str | Sequence[str] = "all", attempt_interval: int = 30, timeout: int | None = None
    ) -> dict[str, bool]:
        """True for each: nodes keep what is sent until its receiver asks for it, so there is nothing to wait for."""
        del attempt_interval, timeout
        wanted = self.get_participant_ids() if nodes == "all" else ([nodes] if isinstance(nodes, str) else nodes)
        return {node: node in self.federation.others for node in wanted}

    def analysis_finished(self) -> bool:
        """Tell all others that the analysis is done, and that this program has done its part."""
        self.federation.broadcast({}, FINISHED)
        self.set_progress(100)
        self.config.finished = True
        self.federation.finish()
        return True

    def flame_log(
        self,
        msg: object,
        sep: str = "",
        end: str = "",
        log_type: str = "info",
        append: bool = False,
        halt_submission: bool = False,
    ) -> None:
        """A line of free text: its level leaves the hospital, the text stays at the node.

        ``halt_submission`` keeps the text back until the next line without it.
        """
        del append
        self._held_back += f"{sep if self._held_back else ''}{msg}{end}"
        if halt_submission:
            return
        text, self._held_back = self._held_back, ""
        if not self.silent:
            self.federation.log("{text}", _LEVELS.get(log_type, "info"), text=text)

    def get_progress(self) -> int:
        return self._progress

    def set_progress(self, progress: float) -> None:
        """0 to 100, never falling; anything else is ignored, as in the original."""
        if self._progress < progress <= 100:
            self._progress = int(progress)
            self.federation.progress(self._progress)

    # --- messages ---------------------------------------------------------------------------------------------------

    def send_message(
        self,
        receivers: str | Sequence[str],
        message_category: str,
        message: dict[str, Any],
        max_attempts: int = 1,
        timeout: int | None = None,
        attempt_timeout: int = 10,
    ) -> tuple[list[str], list[str]]:
        """(acknowledged, not acknowledged): the node takes over delivery, so all are in the first list.

        Raises Invalid when the message cannot travel typed, Refused when the hospital's rules hold it back.
        """
        del max_attempts, timeout, attempt_timeout
        if "meta" in message:
            raise Invalid("The key 'meta' of a message is taken.")
        return self._send(receivers, message, message_category)

    def await_messages(
        self,
        senders: Sequence[str],
        message_category: str,
        message_id: str | None = None,
        timeout: float | None = None,
    ) -> dict[str, list[Message] | None]:
        """The next message of each sender; None for those that sent nothing in time or before the analysis ended."""
        found: dict[str, list[Message] | None] = dict.fromkeys(senders)
        for received in self._await_each(senders, message_category, timeout):
            message = _with_meta(received, self.federation.id)
            self._messages.append(message)
            if message_id is None or received.id == message_id:
                found[received.sender] = [message]
        return found

    def send_message_and_wait_for_responses(
        self,
        receivers: str | Sequence[str],
        message_category: str,
        message: dict[str, Any],
        max_attempts: int = 1,
        timeout: float | None = None,
        attempt_timeout: int = 10,
    ) -> dict[str, list[Message] | None]:
        """Send a message, then wait for one of the same category from each receiver; None for who sent none in time."""
        to, _ = self.send_message(receivers, message_category, message, max_attempts, None, attempt_timeout)
        return self.await_messages(to, message_category, timeout=timeout)

    def get_messages(self, status: str = "unread") -> list[Message]:
        """Messages this program has received. Those not awaited yet are still at the node and not among them."""
        return [message for message in self._messages if message.body["meta"]["status"] == status]

    def delete_messages(self, message_ids: Sequence[str]) -> int:
        """Forget received messages; returns how many."""
        return self._forget(lambda message: message.body["meta"]["id"] in set(message_ids))

    def clear_messages(self, status: str = "read", min_age: int | None = None) -> int:
        """Forget received messages of a status ('read', 'unread', 'all'), at least ``min_age`` seconds old."""
        before = time.time() - (min_age or 0)
        return self._forget(
            lambda message: (
                status in ("all", message.body["meta"]["status"]) and message.body["meta"]["arrived_at"] <= before
            )
        )

    # --- results and intermediate data ------------------------------------------------------------------------------

    def submit_final_result(
        self,
        result: Any,
        output_type: str | Sequence[str] = "str",
        multiple_results: bool = False,
        filename: str | Sequence[str] | None = None,
        local_dp: LocalDifferentialPrivacyParams | None = None,
    ) -> dict[str, str] | list[dict[str, str]]:
        """Hand in the final result as ``.txt``, ``.bin`` or ``.pkl`` (of our own object; nothing here reads pickles).

        ``multiple_results``: a list or tuple, one file each; ``output_type`` and ``filename`` may then be lists, or a
        file name whose stem is numbered. ``local_dp``: one number, to which the node adds Laplace noise
        before it leaves; the program never sees what was added. Without noise it does not leave.
        """
        if local_dp is not None:
            return self._submit_noisy(result, local_dp, filename)
        if not (multiple_results and isinstance(result, list | tuple) and len(result) > 1):
            kind = output_type if isinstance(output_type, str) else output_type[0]
            name = filename if isinstance(filename, str) or filename is None else filename[0]
            return self._submit(result, kind, name)
        kinds = _one_each(output_type, len(result), "output_type")
        names = _names(filename, len(result))
        return [self._submit(item, kind, name) for item, kind, name in zip(result, kinds, names, strict=True)]

    def send_intermediate_data(
        self,
        receivers: str | Sequence[str],
        data: Any,
        message_category: str = INTERMEDIATE,
        max_attempts: int = 1,
        timeout: int | None = None,
        attempt_timeout: int = 10,
    ) -> tuple[list[str], list[str]]:
        """Send a value; (acknowledged, not acknowledged) as ``send_message``. Tuples arrive as lists."""
        del max_attempts, timeout, attempt_timeout
        return self._send(receivers, data, message_category)

    def await_intermediate_data(
        self, senders: Sequence[str], message_category: str = INTERMEDIATE, timeout: float | None = None
    ) -> dict[str, Any]:
        """The next value of each sender, in the order of ``senders``; None where none came in time.

        When another node says ``analysis_finished()`` meanwhile, ``config.finished`` is True and the rest is None.
        """
        found: dict[str, Any] = dict.fromkeys(senders)
        for received in self._await_each(senders, message_category, timeout):
            found[received.sender] = received.value
        return found

    def save_intermediate_data(
        self,
        data: Any,
        location: Literal["local", "global"] = "local",
        remote_node_ids: Sequence[str] | None = None,
        tag: str | None = None,
    ) -> Any:
        """``local``: keep a value at this node (``tag``: to find it by). ``global``: hand one to each of the nodes.

        Returns ``{"status", "url", "id"}``, for ``global`` one for each node; the receiver fetches it by that id.
        """
        if location == "local":
            if remote_node_ids:
                raise Invalid("What is kept locally is for no other node.", next_step="Use location='global'.")
            return _saved(self.federation.keep(data, tag or ""))
        if not remote_node_ids:
            raise Invalid("location='global' needs remote_node_ids.", next_step="Name the receivers.")
        if tag is not None:
            raise Invalid("Only what is kept locally has a tag.", next_step="Leave tag out.")
        saved = {}
        for node in remote_node_ids:
            self._handed += 1
            category = f"{_OBJECT}{self._handed}"
            self.federation.send([node], data, category)
            saved[node] = _saved(f"{category}?remote_node_id={self.get_id()}")
        return saved

    def get_intermediate_data(
        self,
        location: Literal["local", "global"] = "local",
        query: str | None = None,
        tag: str | None = None,
        tag_option: Literal["all", "first", "last"] = "all",
    ) -> Any:
        """By ``query`` (an id): the value. By ``tag``: always a list, of all, the first or the last. Raises NotFound."""
        if tag is not None:
            ids = self.federation.kept_under(tag)
            wanted = {"all": ids, "first": ids[:1], "last": ids[-1:]}[tag_option]
            return [self.federation.kept(id_) for id_ in wanted]
        if query is None:
            raise Invalid("Something is fetched by its id or by its tag.", next_step="Give query or tag.")
        if location == "local":
            return self.federation.kept(query)
        if query not in self._received:
            category, _, sender = query.partition("?remote_node_id=")
            self._received[query] = self.federation.receive(category, [sender]).value
        return self._received[query]

    def get_local_tags(self, filter: str | None = None) -> list[str]:
        """The tags of what is kept at this node; ``filter``: only those that hold this text."""
        return [tag for tag in self.federation.kept_tags() if filter is None or filter in tag]

    def set_checkpoint(self, number: int, data: Any) -> None:
        """Keep a value under the tag ``checkpoint-<number>``."""
        self.federation.keep(data, f"checkpoint-{number}")

    def load_checkpoint(self, number: int) -> Any:
        """The newest value of a checkpoint; None when there is none."""
        found = self.get_intermediate_data(tag=f"checkpoint-{number}", tag_option="last")
        return found[0] if found else None

    # --- data -------------------------------------------------------------------------------------------------------

    def node_has_data(self) -> bool:
        """Whether this node has a data source for the run."""
        return bool(self.federation.sources)

    def fhir_to_csv(
        self,
        fhir_data: Mapping[str, Any],
        col_key_seq: str,
        value_key_seq: str,
        input_resource: str,
        row_key_seq: str | None = None,
        row_id_filters: Sequence[str] | None = None,
        col_id_filters: Sequence[str] | None = None,
        row_col_name: str = "",
        separator: str = ",",
        output_type: Literal["file", "dict"] = "file",
    ) -> io.StringIO | dict[str, dict[str, Any]]:
        """A bundle of Observations or QuestionnaireResponses as a table; see ``flame.sdk.fhir.fhir_to_csv``."""
        from flame.sdk.fhir import fhir_to_csv

        return fhir_to_csv(
            fhir_data,
            col_key_seq,
            value_key_seq,
            input_resource,
            row_key_seq,
            row_id_filters,
            col_id_filters,
            row_col_name,
            separator,
            output_type,
            following=self._following,
        )

    def get_data_sources(self) -> list[dict[str, str]]:
        return [{"name": name} for name in self.federation.sources]

    def get_s3_data(self, keys: Sequence[str] | None = ()) -> list[dict[str, bytes]] | None:
        """The tables of the run as CSV files: one ``{"<source>.csv": bytes}`` for each source.

        ``keys``: only these file names; empty: all; None: None.
        """
        if keys is None:
            return None
        tables = {f"{source}.csv": source for source in self.federation.sources}
        wanted = [name for name in tables if not keys or name in keys]
        if missing := [key for key in keys if key not in tables]:
            raise Invalid(f"No data source gives {missing}.", next_step=f"There are: {list(tables)}.")
        return [{name: self.federation.data(tables[name]).to_csv()} for name in wanted]

    def get_fhir_data(self, fhir_queries: Sequence[str] | None = None) -> list[dict[str, Any]] | None:
        """None without queries. Raises Invalid otherwise: the sources of this node are tables so far."""
        if not fhir_queries:
            return None
        raise Invalid(
            "This node's data sources are tables; it answers no FHIR searches.",
            next_step="Read them with get_s3_data() as CSV, or with flame.connect().data().",
        )

    # --- inside -----------------------------------------------------------------------------------------------------

    def _following(self, query: str) -> Mapping[str, Any]:
        """The next page of a search."""
        found = [answers[query] for answers in self.get_fhir_data([query]) or [] if query in answers]
        if not found:
            raise Invalid("No data source has the next page of the search.")
        page: Mapping[str, Any] = found[0]
        return page

    def _submit_noisy(
        self, result: Any, local_dp: LocalDifferentialPrivacyParams, filename: str | Sequence[str] | None
    ) -> dict[str, str]:
        if isinstance(result, bool) or not isinstance(result, int | float) or not math.isfinite(result):
            raise Invalid("local_dp is for one finite number.", next_step="Submit a single int or float.")
        name = filename if isinstance(filename, str) or filename is None else filename[0]
        noise = (float(local_dp["epsilon"]), float(local_dp["sensitivity"]))
        self.federation.submit(repr(float(result)), name, suffix=".txt", noise=noise)
        return {"status": "success"}

    def _send(self, receivers: str | Sequence[str], value: Any, category: str) -> tuple[list[str], list[str]]:
        to = [receivers] if isinstance(receivers, str) else list(receivers)
        self.federation.send(to, value, category)
        return to, []

    def _await_each(self, senders: Sequence[str], category: str, timeout: float | None) -> Iterable[Received]:
        """One message of each sender until all are there, the time is up or the analysis has finished."""
        deadline = None if timeout is None else time.monotonic() + timeout
        missing = list(dict.fromkeys(senders))
        while missing:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                received = self._next(missing, category, left)
            except NoMessage:
                return
            missing.remove(received.sender)
            yield received

    def _next(self, senders: list[str], category: str, timeout: float | None) -> Received:
        """Raises NoMessage when nothing came in time, or nothing will come any more."""
        if self.config.finished or self.federation.is_aggregator or category == FINISHED:
            # Nobody ends the analysis but the aggregator; after the end only what is already here is looked at.
            return self.federation.receive(category, senders, 0.0 if self.config.finished else timeout)
        received = self.federation.receive(category, senders, timeout, until=FINISHED)
        if received.category == FINISHED:
            self.config.finished = True
            raise NoMessage("The analysis has finished.")
        return received

    def _submit(self, result: Any, output_type: str, filename: str | None) -> dict[str, str]:
        if output_type not in _SUFFIXES:
            raise Invalid(f"'{output_type}' is no output type.", next_step=f"Use one of {', '.join(_SUFFIXES)}.")
        encoded = _encoded(result, output_type)
        self.federation.submit(encoded, filename, suffix=_SUFFIXES[output_type])
        return {"status": "success"}

    def _forget(self, matches: Any) -> int:
        kept = [message for message in self._messages if not matches(message)]
        count = len(self._messages) - len(kept)
        self._messages = kept
        return count


def _saved(id_: str) -> dict[str, str]:
    return {"status": "success", "url": id_, "id": id_}


def _encoded(result: Any, output_type: str) -> bytes:
    if output_type == "pickle":
        return pickle.dumps(result)
    if output_type == "str":
        return str(result).encode()
    if not isinstance(result, bytes | bytearray | memoryview):
        raise Invalid(f"output_type 'bytes' needs bytes, not {type(result).__name__}.", next_step="Encode it first.")
    return bytes(result)


def _one_each(given: str | Sequence[str], count: int, what: str) -> list[str]:
    if isinstance(given, str):
        return [given] * count
    if len(given) < count:
        raise Invalid(f"{what} names {len(given)} of {count} results.")
    return list(given[:count])


def _names(filename: str | Sequence[str] | None, count: int) -> list[str | None]:
    if filename is None:
        return [None] * count
    if not isinstance(filename, str):
        return list(_one_each(filename, count, "filename"))
    stem, dot, suffix = filename.rpartition(".")
    return [f"{stem}_{i}.{suffix}" if dot else f"{filename}_{i}" for i in range(1, count + 1)]


def _with_meta(received: Received, own: str) -> Message:
    payload = received.value if isinstance(received.value, dict) else {"data": received.value}
    meta = {
        "type": "incoming",
        "category": received.category,
        "id": received.id,
        "akn_id": own,
        "status": "read",
        "sender": received.sender,
        "arrived_at": time.time(),
    }
    return Message([own], received.category, {**payload, "meta": meta})
