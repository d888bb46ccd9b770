"""``StarModel(MyAnalyzer, MyAggregator, data_type="s3")``: analyse at the data, aggregate in the middle, repeat.

As in FLAME's own SDK the model runs in its constructor and the same program runs at every node. What differs: the
programs end by themselves, nothing of the data reaches a log, and values travel typed (see ``flame.sdk.core``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from flame.model.errors import Invalid
from flame.sdk.core import FlameCoreSDK, LocalDifferentialPrivacyParams

DataType = Literal["s3", "fhir", "table"]


class _Participant:
    def __init__(self, flame: FlameCoreSDK, role: str) -> None:
        if flame.get_role() != role:
            raise Invalid(f"{type(self).__name__} works in the role '{role}'; this node is '{flame.get_role()}'.")
        self.flame = flame
        self.id = flame.get_id()
        self.role = role
        self.finished = False
        self.latest_result: Any = None
        self.partner_node_ids = flame.get_participant_ids()
        self.num_iterations = 0


class StarAnalyzer(_Participant):
    """Runs at each data node. Implement ``analysis_method``."""

    def __init__(self, flame: FlameCoreSDK) -> None:
        super().__init__(flame, "default")

    def analysis_method(self, data: Any, aggregator_results: Any) -> Any:
        """One round: what this node tells the aggregator. ``aggregator_results`` is None in the first round."""
        raise NotImplementedError(f"{type(self).__name__} has no analysis_method(data, aggregator_results).")

    def run(self, data: Any, simple_analysis: bool) -> None:
        """All rounds, until the aggregator has finished."""
        aggregator = self.flame.get_aggregator_id()
        assert aggregator is not None  # an analyzer is never the aggregator
        while not self.finished:
            result = self.analysis_method(data, self.latest_result)
            self.flame.send_intermediate_data([aggregator], result)
            self.num_iterations += 1
            if simple_analysis:
                self.finished = True
                continue
            answer = self.flame.await_intermediate_data([aggregator])[aggregator]
            self.finished = self.flame.config.finished
            self.latest_result = self.latest_result if self.finished else answer


class StarAggregator(_Participant):
    """Runs at the aggregator. Implement ``aggregation_method`` and ``has_converged``."""

    def __init__(self, flame: FlameCoreSDK) -> None:
        super().__init__(flame, "aggregator")
        self.delta_criteria = False

    def aggregation_method(self, analysis_results: list[Any]) -> Any:
        """One round: the analyzers' results, in the order of the participants, become one."""
        raise NotImplementedError(f"{type(self).__name__} has no aggregation_method(analysis_results).")

    def has_converged(self, result: Any, last_result: Any) -> bool:
        """Asked in every round; the answer counts from the second round on (``last_result`` is None in the first)."""
        raise NotImplementedError(f"{type(self).__name__} has no has_converged(result, last_result).")

    def run(self, simple_analysis: bool) -> Any:
        """All rounds; returns the final result."""
        analyzers = [p["nodeId"] for p in self.flame.get_participants() if p["nodeType"] == "default"]
        while True:
            answers = self.flame.await_intermediate_data(analyzers)
            result, self.finished = self._aggregate([answers[node] for node in analyzers], simple_analysis)
            if self.finished:
                return result
            self.flame.send_intermediate_data(analyzers, result)

    def _aggregate(self, answers: list[Any], simple_analysis: bool) -> tuple[Any, bool]:
        result = self.aggregation_method(answers)
        self.delta_criteria = bool(self.has_converged(result, self.latest_result))
        finished = simple_analysis or (self.num_iterations > 0 and self.delta_criteria)
        self.latest_result = result
        self.num_iterations += 1
        return result, finished


class StarModel:
    """Runs the analysis in the constructor, at an analyzer as at the aggregator.

    ``data_type``: 's3' gives the analyzer a list of ``{file name: bytes}`` (tables as CSV), 'table' a
    ``flame.sdk.Table``, 'fhir' the answers to searches. ``query``: file names, searches, or the table's source.
    ``simple_analysis``: one round. ``output_type``, ``multiple_results``, ``filename``: see
    ``FlameCoreSDK.submit_final_result``.
    """

    def __init__(
        self,
        analyzer: type[StarAnalyzer],
        aggregator: type[StarAggregator],
        data_type: DataType,
        query: str | Sequence[str] | None = None,
        simple_analysis: bool = True,
        output_type: str | Sequence[str] = "str",
        multiple_results: bool = False,
        analyzer_kwargs: Mapping[str, Any] | None = None,
        aggregator_kwargs: Mapping[str, Any] | None = None,
        filename: str | Sequence[str] | None = None,
        *,
        flame: FlameCoreSDK | None = None,
        test_mode: bool = False,
        test_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        del test_mode, test_kwargs  # of the original's own tester; see StarModelTester
        if data_type not in ("s3", "fhir", "table"):
            raise Invalid(f"data_type is 's3', 'fhir' or 'table', not {data_type!r}.")
        self.flame = flame or FlameCoreSDK()
        if self.flame.get_role() == "aggregator":
            middle = aggregator(self.flame, **(aggregator_kwargs or {}))
            result = middle.run(simple_analysis)
            self._submit(result, output_type, multiple_results, filename)
            self.flame.analysis_finished()
        else:
            side = analyzer(self.flame, **(analyzer_kwargs or {}))
            side.run(_data(self.flame, data_type, query), simple_analysis)
            self.flame.federation.finish()

    def _submit(
        self,
        result: Any,
        output_type: str | Sequence[str],
        multiple_results: bool,
        filename: str | Sequence[str] | None,
    ) -> None:
        self.flame.submit_final_result(result, output_type, multiple_results, filename)


class StarLocalDPModel(StarModel):
    """A ``StarModel`` whose final result is one number, to which the aggregator's node adds Laplace noise.

    Noise is never skipped: not in a simple analysis, and not because of what ``has_converged`` says. Raises Invalid
    before anything runs when epsilon or sensitivity is missing.
    """

    def __init__(
        self,
        analyzer: type[StarAnalyzer],
        aggregator: type[StarAggregator],
        data_type: DataType,
        query: str | Sequence[str] | None = None,
        simple_analysis: bool = True,
        output_type: str | Sequence[str] = "str",
        multiple_results: bool = False,
        analyzer_kwargs: Mapping[str, Any] | None = None,
        aggregator_kwargs: Mapping[str, Any] | None = None,
        epsilon: float | None = None,
        sensitivity: float | None = None,
        filename: str | Sequence[str] | None = None,
        *,
        flame: FlameCoreSDK | None = None,
    ) -> None:
        if epsilon is None or sensitivity is None or not (epsilon > 0 and sensitivity > 0):
            raise Invalid(
                "StarLocalDPModel needs an epsilon and a sensitivity greater than zero.",
                next_step="Give both, or use StarModel when the result may leave without noise.",
            )
        self._privacy = LocalDifferentialPrivacyParams(epsilon=float(epsilon), sensitivity=float(sensitivity))
        super().__init__(
            analyzer,
            aggregator,
            data_type,
            query,
            simple_analysis,
            output_type,
            multiple_results,
            analyzer_kwargs,
            aggregator_kwargs,
            filename,
            flame=flame,
        )

    def _submit(
        self,
        result: Any,
        output_type: str | Sequence[str],
        multiple_results: bool,
        filename: str | Sequence[str] | None,
    ) -> None:
        self.flame.submit_final_result(result, output_type, multiple_results, filename, local_dp=self._privacy)


def _data(flame: FlameCoreSDK, data_type: DataType, query: str | Sequence[str] | None) -> Any:
    if data_type == "table":
        source = query if isinstance(query, str) else next(iter(query or ()), "data")
        return flame.federation.data(source)
    queries = [query] if isinstance(query, str) else query
    return flame.get_s3_data(queries) if data_type == "s3" else flame.get_fhir_data(queries)
