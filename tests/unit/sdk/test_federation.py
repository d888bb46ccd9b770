"""Each call keeps its word, refuses what makes no sense, and gives the interpreter back as it was."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from flame.model.errors import Invalid, Unavailable
from flame.sdk import Federation, NoMessage
from unit.sdk.gateway_in_memory import AGGREGATOR, Run

Join = Callable[[str], Federation]


def test_who_takes_part(join: Join) -> None:
    fed = join("node-a")
    assert (fed.id, fed.role, fed.is_aggregator, fed.aggregator) == ("node-a", "default", False, AGGREGATOR)
    assert fed.data_nodes == ("node-a", "node-b") and fed.others == ("node-b", AGGREGATOR)
    assert fed.parameters == {"outcome": "ill"} and fed.sources == ("data",)
    assert join(AGGREGATOR).is_aggregator


def test_rounds_count_by_themselves_for_each_name(join: Join, run: Run) -> None:
    fed = join("node-a")
    for name in ("x", "y", "x"):
        fed.contribute(name, {"n": 1})
    fed.contribute("x", {"n": 1}, round=7)
    fed.contribute("x", {"n": 1})
    assert list(run.parts) == [("x", 1), ("y", 1), ("x", 2), ("x", 7), ("x", 8)]


def test_a_total_gives_numbers_as_numbers_and_arrays_as_arrays(join: Join) -> None:
    for node in ("node-a", "node-b"):
        join(node).contribute("x", {"n": 2, "mean": 0.5, "v": np.ones(3), "m": np.ones((2, 2), dtype="i4")})
    total, contributors = join(AGGREGATOR).total("x")
    assert contributors == 2
    assert (total["n"], total["mean"], total["v"].tolist()) == (4, 1.0, [2.0, 2.0, 2.0])
    assert type(total["n"]) is int and type(total["mean"]) is float and total["m"].shape == (2, 2)


def test_a_sum_has_a_part_at_data_nodes_only(join: Join) -> None:
    with pytest.raises(Invalid, match="no part of its own"):
        join(AGGREGATOR).sum({"n": 1})
    with pytest.raises(Invalid, match="needs a summary"):
        join("node-a").sum()


@pytest.mark.parametrize("summary", [{"n": "text"}, {"n": [1, 2]}, {"n": None}, [1]])
def test_a_summary_that_is_none_never_leaves(join: Join, run: Run, summary: Any) -> None:
    with pytest.raises(Invalid):
        join("node-a").contribute("x", summary)
    assert not run.requests["node-a", "Contribute"]


def test_gather_takes_one_of_each_and_leaves_the_rest(join: Join) -> None:
    a, b, c = join("node-a"), join("node-b"), join(AGGREGATOR)
    for value in (1, 2):
        a.send(AGGREGATOR, value, "x")
    b.send(AGGREGATOR, 3, "x")
    first = c.gather("x")
    assert {sender: message.value for sender, message in first.items()} == {"node-a": 1, "node-b": 3}
    assert c.receive("x").value == 2
    with pytest.raises(NoMessage):
        c.gather("x", timeout=0.02)


def test_many_threads_may_call_at_once(join: Join, run: Run) -> None:
    """More at the same time than there are slots: all are served, and a gateway never sees more than it bears."""
    fed = join("node-a")
    with ThreadPoolExecutor(40) as pool:
        list(pool.map(lambda i: fed.contribute(f"s{i}", {"n": i}), range(200)))
    assert {name: int(part["node-a"]["n"]) for (name, _), part in run.parts.items()} == {f"s{i}": i for i in range(200)}
    assert run.requests["node-a", "Hello"] <= 12


def test_waiting_for_a_message_keeps_nobody_from_working(join: Join) -> None:
    c, a = join(AGGREGATOR), join("node-a")
    got: list[Any] = []
    waiting = threading.Thread(target=lambda: got.append(c.receive("late").value))
    waiting.start()
    c.progress(10)
    a.send(AGGREGATOR, "here", "late")
    waiting.join(30)
    assert got == ["here"]


def test_until_ends_a_wait_and_loses_no_message(join: Join) -> None:
    c, a = join(AGGREGATOR), join("node-a")
    c.send("node-a", 1, "state")
    c.send("node-a", {}, "end")
    assert a.receive("state", until="end").value == 1
    assert a.receive("state", until="end").category == "end"
    c.send("node-a", 2, "state")
    assert a.receive("state").value == 2
    with pytest.raises(NoMessage):
        a.receive("state", timeout=0.02, until="end")
    c.send("node-a", {}, "end")
    assert a.receive("state", until="end").category == "end"


@pytest.mark.parametrize(
    ("template", "fields"),
    [
        ("{n", {"n": 1}),
        ("{}", {}),
        ("{0}", {}),
        ("{n}", {}),
        ("{n.real}", {"n": 1}),
        ("{n[0]}", {"n": "x"}),
        ("{n!r}", {"n": 1}),
        ("{n:>9}", {"n": 1}),
        ("x" * 2001, {}),
    ],
)
def test_a_log_template_has_plain_fields_only(join: Join, run: Run, template: str, fields: dict[str, object]) -> None:
    with pytest.raises(Invalid):
        join("node-a").log(template, **fields)
    assert not run.logs


def test_a_log_line_hands_template_and_values_over_apart(join: Join, run: Run) -> None:
    fed = join("node-a")
    fed.log("{{braces}} and {text}", text="x" * 5000, unused=1)
    with pytest.raises(Invalid, match="not a level"):
        fed.log("x", level="loud")
    ((_, line),) = run.logs
    assert line.template == "{{braces}} and {text}"
    assert len(line.values["text"]) == 1000 and line.values["unused"] == "1"


@pytest.mark.parametrize("percent", [-1, 100.5, float("nan")])
def test_progress_lies_between_0_and_100(join: Join, percent: float) -> None:
    with pytest.raises(Invalid):
        join("node-a").progress(percent)


def test_the_interpreter_gets_its_error_hook_back(join: Join) -> None:
    before = sys.excepthook
    fed = join("node-a")
    assert sys.excepthook is not before
    fed.close()
    assert sys.excepthook is before


def test_another_hook_set_meanwhile_is_left_alone(join: Join, monkeypatch: pytest.MonkeyPatch) -> None:
    fed = join("node-a")

    def other(*_: object) -> None: ...

    monkeypatch.setattr(sys, "excepthook", other)
    fed.close()
    assert sys.excepthook is other


def test_finishing_is_said_once_and_leaving_says_it(join: Join, run: Run) -> None:
    with join("node-a") as fed:
        fed.finish()
        fed.finish()
    assert run.requests["node-a", "Finish"] == 1


def test_leaving_with_an_error_is_a_failure_and_not_an_end(join: Join, run: Run) -> None:
    with pytest.raises(KeyError), join("node-a"):
        raise KeyError("Erika Mustermann")
    failure = run.failures["node-a"]
    assert failure.error == "KeyError" and "node-a" not in run.finished


def test_leaving_by_exit_0_is_no_failure(join: Join, run: Run) -> None:
    with pytest.raises(SystemExit), join("node-a"):
        sys.exit(0)
    assert not run.failures


def test_a_long_error_text_still_fits(join: Join, run: Run) -> None:
    with pytest.raises(ValueError, match="x"), join("node-a"):
        raise ValueError("\U0001f600x" * 100_000 + "\ud800")
    assert run.failures["node-a"].error == "ValueError"


def test_a_closed_federation_says_so(join: Join) -> None:
    fed = join("node-a")
    fed.close()
    with pytest.raises(Unavailable, match="has closed"):
        fed.progress(1)


def test_a_node_that_goes_away_is_an_error_and_no_hang(join: Join, run: Run) -> None:
    fed = join("node-a")
    run.end()
    with pytest.raises(Unavailable, match="connection to the node was lost"):
        fed.receive("x")
