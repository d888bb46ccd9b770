"""The tester and the star with noise: the right result, the same form of values as between hospitals, noise in any case."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flame.model.errors import Invalid
from flame.star import StarAggregator, StarAnalyzer, StarLocalDPModel, StarModelTester


class Sum(StarAnalyzer):
    def analysis_method(self, data: Any, aggregator_results: Any) -> Any:
        return {"sum": float(np.sum(data)), "seen": aggregator_results}


class Total(StarAggregator):
    def aggregation_method(self, analysis_results: list[Any]) -> Any:
        return sum(result["sum"] for result in analysis_results) + self.num_iterations

    def has_converged(self, result: Any, last_result: Any) -> bool:
        return self.num_iterations >= 2


class Never(Total):
    def has_converged(self, result: Any, last_result: Any) -> bool:
        return False


class Two(Never):
    def aggregation_method(self, analysis_results: list[Any]) -> Any:
        return [b"raw", super().aggregation_method(analysis_results)]


SPLITS = [[1.0, 2.0], [3.0]]


def test_a_simple_analysis_gives_the_aggregators_result(tmp_path: Path) -> None:
    tester = StarModelTester(SPLITS, Sum, Never, "s3", result_filepath=tmp_path / "r.txt")
    assert tester.result == 6.0
    assert (tmp_path / "r.txt").read_text() == "6.0"


def test_iterations_end_with_convergence_and_testers_share_nothing() -> None:
    for _ in range(2):
        assert StarModelTester(SPLITS, Sum, Total, "fhir", simple_analysis=False).result == 8.0


def test_roles_and_several_results() -> None:
    tester = StarModelTester(
        [None, *SPLITS],
        Sum,
        Two,
        "s3",
        ["aggregator", "default", "default"],
        output_type=["bytes", "str"],
        multiple_results=True,
    )
    assert tester.result == [b"raw", 6.0]
    assert list(tester.results.values()) == [b"raw", b"6.0"]
    with pytest.raises(Invalid, match="node_roles"):
        StarModelTester(SPLITS, Sum, Two, "s3", ["default", "default"])


class Untravelling(Sum):
    def analysis_method(self, data: Any, aggregator_results: Any) -> Any:
        return {1, 2}


def test_what_cannot_travel_between_hospitals_fails_here_too() -> None:
    with pytest.raises(Invalid):
        StarModelTester(SPLITS, Untravelling, Total, "s3")


def test_noise_is_added_although_nothing_converges() -> None:
    found = {StarModelTester(SPLITS, Sum, Never, "s3", epsilon=1.0, sensitivity=1.0).result for _ in range(3)}
    assert len(found) == 3 and 6.0 not in found


@pytest.mark.parametrize("privacy", [{}, {"epsilon": 1.0}, {"epsilon": 0.0, "sensitivity": 1.0}])
def test_a_star_without_its_noise_does_not_begin(privacy: dict[str, float]) -> None:
    with pytest.raises(Invalid, match="epsilon"):
        StarLocalDPModel(Sum, Total, "s3", **privacy)
