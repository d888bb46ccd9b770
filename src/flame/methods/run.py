"""Drive a method: over a federation, or over several tables in one process."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
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


def run_local(
    method: Method[Any, Any, Answer],
    tables: Sequence[Table] | Mapping[str, Table],
    add: Callable[[Sequence[Summary]], Summary] | None = None,
) -> Answer:
    """The same over tables in this process, one for each hospital: for trying out, and as the reference in tests.

    With names, what a hospital's data do not fit is told with its name. The order of the tables changes no bit.
    ``add``: another way to take the sum of a round.
    """
    names = list(tables) if isinstance(tables, Mapping) else [""] * len(tables)
    given = list(tables.values()) if isinstance(tables, Mapping) else list(tables)
    prepared = []
    for name, table in zip(names, given, strict=True):
        with _at(name):
            prepared.append(method.prepare(table))
    course = drive(method)
    question = next(course)
    while True:
        answers = []
        for name, data in zip(names, prepared, strict=True):
            with _at(name):
                answers.append(method.local(data, question))
        try:
            question = course.send(((add or sum_of)(answers), len(prepared)))
        except StopIteration as end:
            answer: Answer = end.value
            return answer


def drive(method: Method[Any, Any, Answer]) -> Generator[Question, tuple[Summary, int], Answer]:
    """Gives questions, takes (sum, contributors), returns the result.

    Sums over different sets of hospitals do not fit together: when a hospital has left, the method begins anew with
    those who remain, and its result is the exact one for them. The result says how many they were.
    """
    state, known = method.start(), None
    while (question := method.question(state)) is not None:
        total, contributors = yield question
        if known is not None and contributors != known:
            state = method.start()
        else:
            state = method.update(state, total, contributors)
        known = contributors
    return method.result(state)


@contextlib.contextmanager
def _at(site: str) -> Iterator[None]:
    """What goes wrong at a hospital names it."""
    try:
        yield
    except FlameError as error:
        if site:
            error.message = f"{site}: {error.message}"
            error.fields = {**error.fields, "site": site}
        raise


def _aggregate(method: Method[Any, Any, Answer], federation: Federation) -> Answer:
    hospitals = federation.data_nodes
    course = drive(method)
    try:
        next(course)  # the first question follows from the parameters: everyone knows it
        while True:
            question = course.send(federation.total(SUM))
            federation.send(hospitals, {"question": question}, QUESTION)
    except StopIteration as end:
        result: Answer = end.value
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


def sum_of(summaries: Sequence[Summary]) -> dict[str, Any]:
    """The sum of summaries. Floating-point parts are added by size, so that the order they came in changes no bit."""
    if not summaries:
        raise Invalid("There is no table to sum over.")
    flat = [dict(named_arrays(summary)) for summary in summaries]
    shapes = {name: array.shape for name, array in flat[0].items()}
    for other in flat[1:]:
        if {name: array.shape for name, array in other.items()} != shapes:
            raise Invalid("The summaries differ in names or shapes.")
    totals = {name: np.sum(np.sort([summary[name] for summary in flat], axis=0), axis=0) for name in shapes}
    return {name: total.item() if shapes[name] == () else total for name, total in totals.items()}
