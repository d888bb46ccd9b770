"""A program that dies of a refusal is named to the others: in words of the node and the approved code, never in its own."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest

import node_world
from flame.model.errors import FlameError
from flame.node.egress.guard import Guard
from flame.node.egress.policy import Policy
from flame.node.egress.text import CodeText
from flame.node.supervisor.side import Outlets, Side
from flame.wire.gateway import Fail
from flame.wire.values import encode_bytes

CANARY = "Mueller_HIV_positive"
CODE = CodeText(frozenset({"literal"}), {"main.py": 10})


class Told:
    def __init__(self) -> None:
        self.left: list[tuple[str, str]] = []
        self.kept: list[str] = []

    def side(self, node: str) -> Side:
        manifest = node_world.manifest()
        outlets = Outlets(
            log=lambda level, line: None,
            keep=self.kept.append,
            progress=lambda percent: None,
            submitted=lambda *_: None,
            finished=lambda: None,
            failed=lambda reason, code: self.left.append((reason, code)),
        )
        return Side(
            manifest=manifest, run="ab" * 32, node=node, parameters={}, channel=cast("Any", None),
            guard=Guard(manifest, node, Policy(), code=CODE), snapshots={}, outlets=outlets,
        )  # fmt: skip


def body(**arrays: Any) -> bytearray:
    return bytearray(encode_bytes({name: np.asarray(value) for name, value in arrays.items()}))


ATTEMPTS = {
    "a source": (node_world.DATA_NODES[0], lambda side: side.table(CANARY)),
    "a sum": (node_world.DATA_NODES[0], lambda side: side.contribute(CANARY, 1, body(a=1.0))),
    "an entry of a sum": (node_world.DATA_NODES[0], lambda side: side.contribute("beta", 1, body(**{CANARY: np.nan}))),
    "an entry that cannot be summed": (
        node_world.DATA_NODES[0], lambda side: side.contribute("beta", 1, body(**{CANARY: np.array([True])})),
    ),
    "a category": (node_world.DATA_NODES[0], lambda side: side.send([node_world.AGGREGATOR], CANARY, bytearray(9999))),
    "a file": (node_world.AGGREGATOR, lambda side: side.submit(CANARY, "text/plain", bytearray(9999))),
}  # fmt: skip


def told_of(column: str, code: str = "not_numeric") -> tuple[str, str]:
    told = Told()
    told.side(node_world.DATA_NODES[0]).fail(
        Fail("flame.model.errors.NotNumeric", [("main.py", 3)], CANARY, code, column)
    )
    ((reason, said),) = told.left
    return reason, said


def test_a_column_that_the_code_names_is_told_with_what_is_wrong_and_what_to_do() -> None:
    reason, code = told_of("literal")
    assert reason.startswith("The column 'literal' holds text where numbers are needed. Code it as numbers")
    assert code == "not_numeric"


@pytest.mark.parametrize(("column", "code"), [(CANARY, "not_numeric"), (CANARY, "unfit_data"), ("literal", CANARY)])
def test_a_column_or_a_cause_that_was_made_up_stays(column: str, code: str) -> None:
    reason, said = told_of(column, code)
    assert CANARY not in reason + said
    assert "main.py, line 3" in reason


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_a_program_cannot_write_into_a_refusal(attempt: str) -> None:
    node, ask = ATTEMPTS[attempt]
    told = Told()
    side = told.side(node)
    with pytest.raises(FlameError) as caught:
        ask(side)
    assert CANARY in str(caught.value) or attempt in ("a category", "a file"), "the program itself may read it"
    side.fail(Fail(code=caught.value.code, error="flame.model.errors.FlameError", frames=[], text=CANARY))
    ((reason, code),) = told.left
    assert CANARY not in reason
    assert code == caught.value.code
    assert "steward can read why" in reason
    assert any(CANARY in line for line in told.kept)


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda side: side.table("literal"), "no data source 'literal'"),
        (lambda side: side.contribute("beta", 1, bytearray(body(a=np.zeros(1000)))), "beta"),
    ],
    ids=["a literal of the code", "a name of the manifest"],
)
def test_words_that_the_program_could_only_choose_leave(ask: Any, words: str) -> None:
    told = Told()
    side = told.side(node_world.DATA_NODES[0])
    with pytest.raises(FlameError) as caught:
        ask(side)
    side.fail(Fail(code=caught.value.code, error="x", frames=[], text=""))
    assert words in told.left[0][0]


def test_an_error_of_the_program_leaves_as_type_and_place() -> None:
    told = Told()
    told.side(node_world.DATA_NODES[0]).fail(
        Fail(code="x", error=f"{CANARY}.Error", frames=[("main.py", 3), (CANARY, 1), ("main.py", 11)], text=CANARY)
    )
    ((reason, _),) = told.left
    assert CANARY not in reason
    assert "main.py, line 3" in reason
