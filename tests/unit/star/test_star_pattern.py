"""The star pattern's rounds: who is asked what, when it ends, and what is refused."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from flame.model.errors import Invalid
from flame.sdk import Federation, FlameCoreSDK, Table
from flame.star import StarAggregator, StarAnalyzer, StarModel
from unit.sdk.gateway_in_memory import AGGREGATOR, Run

Join = Callable[[str], Federation]


class Ages(StarAnalyzer):
    def __init__(self, flame: FlameCoreSDK, seen: list[Any]) -> None:
        super().__init__(flame)
        self.seen = seen

    def analysis_method(self, data: Any, aggregator_results: Any) -> Any:
        self.seen.append((self.id, self.num_iterations, aggregator_results))
        return [self.id, float(data["age"].sum())]


class Rounds(StarAggregator):
    """Has converged from the start, and after ``rounds`` more."""

    def __init__(self, flame: FlameCoreSDK, rounds: int = 0) -> None:
        super().__init__(flame)
        self.rounds = rounds
        self.asked: list[Any] = []

    def aggregation_method(self, analysis_results: list[Any]) -> Any:
        assert [name for name, _ in analysis_results] == ["node-a", "node-b"]
        return self.num_iterations + sum(age for _, age in analysis_results)

    def has_converged(self, result: Any, last_result: Any) -> bool:
        self.asked.append(last_result)
        return self.num_iterations >= self.rounds


def play(join: Join, aggregator_kwargs: dict[str, Any] | None = None, **options: Any) -> list[Any]:
    seen: list[Any] = []
    programs = [FlameCoreSDK(federation=join(node)) for node in ("node-a", "node-b", AGGREGATOR)]
    threads = [
        threading.Thread(
            target=StarModel,
            args=(Ages, Rounds, "table"),
            kwargs={
                "flame": program,
                "analyzer_kwargs": {"seen": seen},
                "aggregator_kwargs": aggregator_kwargs,
                **options,
            },
        )
        for program in programs
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    return sorted(seen, key=lambda entry: (entry[1], entry[0]))


def test_a_simple_analysis_is_one_round(join: Join, run: Run) -> None:
    assert play(join) == [("node-a", 0, None), ("node-b", 0, None)]
    assert run.results["result.txt"][1] == b"150.0"
    assert run.finished == {"node-a", "node-b", AGGREGATOR}


def test_convergence_counts_from_the_second_round_on(join: Join, run: Run) -> None:
    seen = play(join, simple_analysis=False)
    assert seen == [("node-a", 0, None), ("node-b", 0, None), ("node-a", 1, 150.0), ("node-b", 1, 150.0)]
    assert run.results["result.txt"][1] == b"151.0"


def test_iterations_count_as_in_the_original(join: Join, run: Run) -> None:
    """``num_iterations >= 3`` is asked before the count rises: four rounds."""
    seen = play(join, {"rounds": 3}, simple_analysis=False, filename="ages.txt")
    assert [entry for entry in seen if entry[0] == "node-a"] == [
        ("node-a", 0, None),
        ("node-a", 1, 150.0),
        ("node-a", 2, 151.0),
        ("node-a", 3, 152.0),
    ]
    assert run.results["ages.txt"][1] == b"153.0"
    assert run.finished == {"node-a", "node-b", AGGREGATOR}


def test_no_line_of_a_log_is_written_about_the_data(join: Join, run: Run) -> None:
    play(join, simple_analysis=False)
    assert run.logs == []


def test_roles_are_checked(join: Join) -> None:
    with pytest.raises(Invalid, match="'default'"):
        StarAnalyzer(FlameCoreSDK(federation=join(AGGREGATOR)))
    with pytest.raises(Invalid, match="'aggregator'"):
        StarAggregator(FlameCoreSDK(federation=join("node-a")))


def test_a_method_that_was_forgotten_is_named(join: Join) -> None:
    with pytest.raises(NotImplementedError, match=r"StarAnalyzer has no analysis_method"):
        StarAnalyzer(FlameCoreSDK(federation=join("node-a"))).analysis_method(Table({}), None)


def test_a_kind_of_data_that_is_none_is_refused_before_anything_runs(join: Join, run: Run) -> None:
    with pytest.raises(Invalid, match="data_type"):
        StarModel(Ages, Rounds, "sql", flame=FlameCoreSDK(federation=join("node-a")))  # type: ignore[arg-type]
    assert set(run.requests) == {("node-a", "Hello")}
