"""Frames of the control channel: each reads back; one of the other direction, or noise, is refused."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flame.model.errors import Malformed
from flame.protocol import control

UP: list[Any] = [control.Hello(1, "0.1"), control.Put("envelope", b"m" * 16, b"r" * 32, b"body"), control.Ack([1, 2])]
DOWN: list[Any] = [
    control.Welcome(1, "0.1", 3, b"h" * 32),
    control.Stored(b"m" * 16),
    control.Rejected(b"m" * 16, "refused", "no", "ask"),
    control.Deliver(1, "envelope", b"r" * 32, "n1", b"m" * 16, 4, b"body"),
    control.Changed("analysis", "a1"),
]


@pytest.mark.parametrize("frame", UP, ids=lambda f: type(f).__name__)
def test_a_frame_to_the_hub_is_read_by_the_hub_alone(frame: Any) -> None:
    assert control.decode_to_hub(control.encode(frame)) == frame
    with pytest.raises(Malformed):
        control.decode_to_node(control.encode(frame))


@pytest.mark.parametrize("frame", DOWN, ids=lambda f: type(f).__name__)
def test_a_frame_to_a_node_is_read_by_a_node_alone(frame: Any) -> None:
    assert control.decode_to_node(control.encode(frame)) == frame
    with pytest.raises(Malformed):
        control.decode_to_hub(control.encode(frame))


def test_a_newer_hub_may_say_more() -> None:
    data = msgspec.msgpack.encode({"t": "stored", "msg_id": b"m" * 16, "later": 1})
    assert control.decode_to_node(data) == control.Stored(b"m" * 16)


@given(st.binary(max_size=100))
def test_noise_is_malformed(data: bytes) -> None:
    for decode in (control.decode_to_hub, control.decode_to_node):
        with pytest.raises(Malformed):
            decode(data)


@pytest.mark.parametrize("change", [{"seq": "1"}, {"seq": 1.5}, {"sender": b"x"}, {"body": "text"}, {"size": None}])
def test_a_field_of_another_type_is_malformed(change: dict[str, Any]) -> None:
    frame = {
        "t": "deliver",
        "seq": 1,
        "kind": "envelope",
        "run": b"",
        "sender": "n",
        "msg_id": b"",
        "size": 1,
        "body": b"",
    }
    with pytest.raises(Malformed):
        control.decode_to_node(msgspec.msgpack.encode({**frame, **change}))
