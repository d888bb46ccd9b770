"""What stands inside an envelope: a small label (the hub never sees names or categories) and the body.

payload = u32 len | label (msgpack) | padding to 64 | body
"""

from __future__ import annotations

import msgspec

from flame.model.errors import Malformed
from flame.wire.values import Buffer

_ALIGN = 64
MAX_LABEL = 1 << 12


class Label(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    name: str
    """The sum's name, the message's category, the result's file name."""
    media_type: str = ""


def prefix(label: Label) -> bytes:
    """Everything before the body."""
    encoded = msgspec.msgpack.encode(label)
    if len(encoded) > MAX_LABEL:
        raise Malformed("The name of a release is too long.")
    head = len(encoded).to_bytes(4, "big") + encoded
    return head + bytes(-len(head) % _ALIGN)


def split(payload: Buffer) -> tuple[Label, memoryview]:
    """Label and body of a payload. Raises Malformed."""
    view = memoryview(payload)
    size = int.from_bytes(view[:4], "big")
    if len(view) < 4 or size > MAX_LABEL or 4 + size > len(view):
        raise Malformed("A payload's label is longer than the payload.")
    try:
        label = msgspec.msgpack.decode(view[4 : 4 + size], type=Label)
    except msgspec.DecodeError as error:
        raise Malformed(f"A payload's label cannot be read: {error}") from None
    start = 4 + size + (-(4 + size) % _ALIGN)
    if start > len(view):
        raise Malformed("A payload ends inside its label.")
    return label, view[start:]
