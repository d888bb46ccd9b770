"""``StarModelTester``: a whole star on one's own machine, in threads, before anything is submitted.

Values travel encoded as they do between hospitals: what works here works there. The result is the aggregator's, in
simple analyses too; nothing is shared between two testers.
"""

from __future__ import annotations

import sys
import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flame.model.errors import Invalid, RunFailed
from flame.sdk.core import FlameCoreSDK
from flame.sdk.federation import Federation, Message, NoMessage
from flame.sdk.results import result_file
from flame.sdk.table import Table
from flame.star.pattern import DataType, StarAggregator, StarAnalyzer, StarLocalDPModel, StarModel
from flame.wire import values
from flame.wire.gateway import Participant


class StarModelTester:
    """Runs in its constructor. ``result``: what the aggregator handed in (a list for several), ``results``: its files.

    ``data_splits``: for each analyzer what ``analysis_method`` gets as data (a dictionary of columns for 'table').
    ``node_roles``: one for each split; default: an analyzer for each, and an aggregator without data besides.
    ``epsilon`` and ``sensitivity``: as for ``StarLocalDPModel``. ``result_filepath``: where the first file is written.
    An error at any node is raised here.
    """

    def __init__(
        self,
        data_splits: Sequence[Any],
        analyzer: type[StarAnalyzer],
        aggregator: type[StarAggregator],
        data_type: DataType,
        node_roles: Sequence[str] | None = None,
        query: str | Sequence[str] | None = None,
        simple_analysis: bool = True,
        output_type: str | Sequence[str] = "str",
        multiple_results: bool = False,
        analyzer_kwargs: Mapping[str, Any] | None = None,
        aggregator_kwargs: Mapping[str, Any] | None = None,
        epsilon: float | None = None,
        sensitivity: float | None = None,
        result_filepath: str | Path | None = None,
    ) -> None:
        splits, roles = _roles(data_splits, node_roles)
        laboratory = _Laboratory([Participant(f"node-{n}", role) for n, role in enumerate(roles)])
        options: dict[str, Any] = {}
        model: type[StarModel] = StarModel
        if epsilon is not None or sensitivity is not None:
            model, options = StarLocalDPModel, {"epsilon": epsilon, "sensitivity": sensitivity}

        def play(node: str, split: Any) -> None:
            try:
                model(
                    analyzer,
                    aggregator,
                    data_type,
                    query,
                    simple_analysis,
                    output_type,
                    multiple_results,
                    analyzer_kwargs,
                    aggregator_kwargs,
                    flame=_Core(_Node(laboratory, node, split), split),
                    **options,
                )
            except BaseException as error:  # noqa: BLE001 - raised again where the tester was made
                laboratory.fail(error)

        threads = [
            threading.Thread(target=play, args=(p.id, split), daemon=True)
            for p, split in zip(laboratory.participants, splits, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if laboratory.error is not None:
            raise laboratory.error
        self.results: dict[str, bytes] = laboratory.files
        handed_in = laboratory.handed_in
        self.result: Any = handed_in[0] if len(handed_in) == 1 else handed_in
        sys.stdout.write(f"Final result: {self.result}\n")
        if result_filepath is not None:
            Path(result_filepath).write_bytes(next(iter(self.results.values())))


def _roles(splits: Sequence[Any], roles: Sequence[str] | None) -> tuple[list[Any], list[str]]:
    if roles is None:
        return [*splits, None], [*["default"] * len(splits), "aggregator"]
    if len(roles) != len(splits) or sorted(roles).count("aggregator") != 1 or set(roles) - {"default", "aggregator"}:
        raise Invalid(
            "node_roles names one role for each split, exactly one of them 'aggregator'.",
            next_step="Give the aggregator None as its split.",
        )
    return list(splits), list(roles)


class _Laboratory:
    """What the nodes of one test share."""

    def __init__(self, participants: list[Participant]) -> None:
        self.participants = participants
        self.mail: dict[str, list[tuple[str, str, bytes]]] = defaultdict(list)
        self.files: dict[str, bytes] = {}
        self.handed_in: list[Any] = []
        self.error: BaseException | None = None
        self.changed = threading.Condition()

    def fail(self, error: BaseException) -> None:
        with self.changed:
            if self.error is None:
                self.error = error
            self.changed.notify_all()


class _Node(Federation):
    """A federation that is this process."""

    def __init__(self, laboratory: _Laboratory, node: str, split: Any) -> None:
        self._laboratory, self._split = laboratory, split
        self.id = node
        self.role = next(p.role for p in laboratory.participants if p.id == node)
        self.analysis, self.project, self.run = "test-analysis", "test-project", "test-run"
        self.participants = tuple(laboratory.participants)
        self.parameters = {}
        self.sources = () if split is None else ("data",)

    def data(self, source: str = "data") -> Table:
        del source
        return self._split if isinstance(self._split, Table) else Table(self._split)

    def send(self, to: str | Iterable[str], value: Any, category: str) -> str:
        encoded = values.encode_bytes(value)
        with self._laboratory.changed:
            for receiver in [to] if isinstance(to, str) else to:
                self._laboratory.mail[receiver].append((self.id, category, encoded))
            self._laboratory.changed.notify_all()
        return "sent"

    def receive(
        self,
        category: str,
        senders: Iterable[str] | None = None,
        timeout: float | None = None,
        *,
        until: str | None = None,
    ) -> Message:
        wanted, mail = frozenset(senders or ()), self._laboratory.mail[self.id]

        def fitting() -> int | None:
            for n, (sender, named, _) in enumerate(mail):
                if (named == category and (not wanted or sender in wanted)) or named == until:
                    return n
            return None

        with self._laboratory.changed:
            self._laboratory.changed.wait_for(
                lambda: self._laboratory.error is not None or fitting() is not None, timeout
            )
            if self._laboratory.error is not None:
                raise RunFailed("Another node of the test has failed.")
            place = fitting()
            if place is None:
                raise NoMessage(f"No message of category '{category}' came within {timeout} seconds.")
            sender, named, encoded = mail.pop(place)
        return Message(f"{self.id}-message", sender, named, values.decode(encoded))

    def log(self, template: str, /, level: str = "info", **fields: object) -> None:
        """Nothing: what the program prints is seen anyway."""

    def progress(self, percent: float) -> None:
        """Nothing."""

    def submit(
        self,
        result: object,
        filename: str | None = None,
        *,
        suffix: str = "",
        noise: tuple[float, float] | None = None,
    ) -> str:
        if noise is not None:
            import numpy as np

            result = repr(float(str(result)) + float(np.random.default_rng().laplace(0.0, noise[1] / noise[0])))
            self._laboratory.handed_in.append(float(result))
        file = result_file(result, filename, suffix=suffix)
        name = (
            file.name if file.name not in self._laboratory.files else f"{len(self._laboratory.files) + 1}-{file.name}"
        )
        self._laboratory.files[name] = file.data
        return name

    def finish(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class _Core(FlameCoreSDK):
    """Gives out the split as the data, whatever was asked for, and keeps what is handed in as it is."""

    def __init__(self, node: _Node, split: Any) -> None:
        super().__init__(federation=node)
        self._node, self._split = node, split

    def get_s3_data(self, keys: Sequence[str] | None = ()) -> Any:
        return self._split

    def get_fhir_data(self, fhir_queries: Sequence[str] | None = None) -> Any:
        return self._split

    def _submit(self, result: Any, output_type: str, filename: str | None) -> dict[str, str]:
        self._node._laboratory.handed_in.append(result)
        return super()._submit(result, output_type, filename)
