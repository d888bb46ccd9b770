"""Drive a method: over a federation, or over several tables in one process."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from flame.methods.method import Answer, Method, Question, Summary
from flame.model.errors import FlameError, Invalid, Malformed, RunFailed
from flame.sdk.federation import Federation
from flame.sdk.table import Table
from flame.wire.values import named_arrays

SUM = "sum"
QUESTION = "question"


def run(method: Method[Any, Any, Answer], federation: Federation, *, source: str = "data") -> Answer | None:
    """The result at the aggregator, None at a data node.

    A data node sends one contribution a round, to the sum ``sum``; the aggregator answers with one message of the
    category ``question``, which says what to compute next or that there is nothing more. Raises what the method
    raises; data nodes then end with RunFailed instead of waiting.
    """
    if federation.is_aggregator:
        return _aggregate(method, federation)
    _answer(method, federation, source)
    return None


def run_local(method: Method[Any, Any, Answer], tables: Sequence[Table]) -> Answer:
    """The same over tables in this process, one for each hospital: for trying out, and as the reference in tests."""
    prepared = [method.prepare(table) for table in tables]
    state = method.start()
    while (question := method.question(state)) is not None:
        total = _sum([method.local(data, question) for data in prepared])
        state = method.update(state, total, len(prepared))
    return method.result(state)


def _aggregate(method: Method[Any, Any, Answer], federation: Federation) -> Answer:
    hospitals = federation.data_nodes
    state = method.start()
    try:
        while method.question(state) is not None:
            total, contributors = federation.total(SUM)
            state = method.update(state, total, contributors)
            question = method.question(state)
            if question is not None:
                federation.send(hospitals, {"question": question}, QUESTION)
        result = method.result(state)
    except FlameError as error:
        with contextlib.suppress(FlameError):  # what went wrong first is what must be told
            federation.send(hospitals, {"failed": error.code}, QUESTION)
        raise
    federation.send(hospitals, {"question": None}, QUESTION)
    return result


def _answer(method: Method[Any, Any, Answer], federation: Federation, source: str) -> None:
    data = method.prepare(federation.data(source))
    question = method.question(method.start())
    while question is not None:
        federation.contribute(SUM, method.local(data, question))
        question = _read_question(federation.receive(QUESTION, [federation.aggregator]).value)


def _read_question(value: Any) -> Question | None:
    if not isinstance(value, dict):
        raise Malformed("The aggregator's question is not a dictionary.")
    if "failed" in value:
        raise RunFailed(
            f"The aggregator ended the analysis: {value['failed']}.", next_step="Its own error says what was wrong."
        )
    question = value.get("question")
    if question is not None and not isinstance(question, dict):
        raise Malformed("The aggregator's question is not a dictionary.")
    return question


def _sum(summaries: Sequence[Summary]) -> dict[str, Any]:
    if not summaries:
        raise Invalid("There is no table to sum over.")
    flat = [dict(named_arrays(summary)) for summary in summaries]
    shapes = {name: array.shape for name, array in flat[0].items()}
    for other in flat[1:]:
        if {name: array.shape for name, array in other.items()} != shapes:
            raise Invalid("The summaries differ in names or shapes.")
    totals = {name: np.sum([summary[name] for summary in flat], axis=0) for name in shapes}
    return {name: total.item() if shapes[name] == () else total for name, total in totals.items()}
