"""Values as they travel: a typed tree with raw arrays beside it. No pickle, nothing is executed on reading.

    value = u32 head_len | head (msgpack) | padding to 64 | array bytes, each padded to 64
    head  = {"tree": ..., "arrays": [[dtype, shape, offset, bytes], ...]}

In the tree, an array stands as ``{"$array": i}``, bytes as msgpack bin. Dictionaries have string keys; a key that
begins with ``$`` is refused, so that a tree cannot be mistaken. Decoding returns views on the buffer: no copy.

A value has one form: arrays lie one after the other in the order of the tree, padding is zero, the head is what msgpack
writes for it. Anything else is refused, so that nothing can be hidden between the numbers that a guard looks at.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgspec

from flame.model.errors import Invalid, Malformed

if TYPE_CHECKING:
    from numpy.typing import NDArray

DTYPES = ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
"""What an array may hold: little-endian numbers, nothing else. Text is a list of strings in the tree."""

MAX_HEAD = 8 << 20
MAX_DEPTH = 32
MAX_ARRAYS = 4096
_ALIGN = 64

Scalar = None | bool | int | float | str | bytes
Value = Any  # a tree of Scalar, list, dict[str, Value] and numpy arrays

Buffer = bytes | bytearray | memoryview


class _Array(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    dtype: str
    shape: list[int]
    offset: int
    nbytes: int


class _Head(msgspec.Struct, forbid_unknown_fields=True):
    tree: Any
    arrays: list[_Array]


def encode(value: Value) -> list[Buffer]:
    """Turn a tree into buffers to be written one after the other; arrays are not copied.

    Raises Invalid when the tree holds something that cannot travel, naming where it stands.
    """
    arrays: list[_Array] = []
    bodies: list[memoryview] = []
    tree = _flatten(value, "value", 0, arrays, bodies)
    head = _encode_head(tree, arrays)
    out: list[Buffer] = [len(head).to_bytes(4, "big") + head + bytes(_padding(4 + len(head)))]
    for body in bodies:
        if len(body):
            out.append(body)
        if pad := _padding(len(body)):
            out.append(bytes(pad))
    return out


def _encode_head(tree: Any, arrays: list[_Array]) -> bytes:
    try:
        head = msgspec.msgpack.encode(_Head(tree, arrays))
    except UnicodeEncodeError:
        raise Invalid("The value holds text with half a character in it (a lone surrogate).") from None
    if len(head) > MAX_HEAD:
        raise Invalid(
            f"The value's structure takes {len(head)} bytes; at most {MAX_HEAD} are allowed.",
            next_step='Put numbers into arrays; large bytes travel as np.frombuffer(data, "u1").',
        )
    return head


def encode_bytes(value: Value) -> bytes:
    """The same as one block of bytes."""
    return b"".join(encode(value))


def decode(data: Buffer) -> Value:
    """Read a value back; arrays are read-only views on ``data``.

    Raises Malformed for anything that ``encode`` would not have written.
    """
    view = memoryview(data).cast("B").toreadonly()
    head, start = _read_head(view)
    end = _check_layout(view, head.arrays, start)
    if end != len(view):
        raise Malformed(f"The value is {len(view)} bytes long; its head describes {end}.")
    found = [_view_array(view, start, array) for array in head.arrays]
    used: list[int] = []
    value = _restore(head.tree, found, used, 0)
    if used != list(range(len(found))):
        raise Malformed("The value carries arrays that its structure does not name in their order.")
    return value


def named_arrays(value: Value) -> Iterator[tuple[str, NDArray[Any]]]:
    """The arrays of a flat dictionary of arrays and numbers, numbers as 0-d arrays, in the order of names."""
    import numpy as np

    if not isinstance(value, dict):
        raise Invalid(f"A summary is a dictionary of arrays and numbers, not {type(value).__name__}.")
    if not all(isinstance(name, str) for name in value):
        raise Invalid("The names in a summary are text.")
    for name in sorted(value):
        item = value[name]
        if isinstance(item, bool | int) and not -(2**63) <= item < 2**63:
            raise Invalid(f"'{name}' is an integer of more than 63 bits.", next_step="Send it as a float.")
        if isinstance(item, bool | int | float):
            item = np.asarray(item, dtype="f8" if isinstance(item, float) else "i8")
        if isinstance(item, np.number | np.bool_):
            item = np.asarray(item)
        if not isinstance(item, np.ndarray):
            raise Invalid(f"'{name}' is {type(item).__name__}; a summary holds arrays and numbers only.")
        yield name, item


def _padding(length: int) -> int:
    return -length % _ALIGN


def _padded(length: int) -> int:
    return length + _padding(length)


def _flatten(value: Value, where: str, depth: int, arrays: list[_Array], bodies: list[memoryview]) -> Any:
    if depth > MAX_DEPTH:
        raise Invalid(f"{where} is nested deeper than {MAX_DEPTH} levels.")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)  # msgpack writes exact types only; np.str_ is a subclass
    if isinstance(value, bytes):
        return bytes(value)
    if type(value) is float:
        return value
    if type(value) is int:
        if not -(2**63) <= value < 2**64:
            raise Invalid(f"{where} is an integer of more than 64 bits.", next_step="Send it as text.")
        return value
    if isinstance(value, list | tuple):
        return [_flatten(item, f"{where}[{i}]", depth + 1, arrays, bodies) for i, item in enumerate(value)]
    if isinstance(value, dict):
        return {_key(k, where): _flatten(v, f"{where}.{k}", depth + 1, arrays, bodies) for k, v in value.items()}
    return _flatten_array(value, where, arrays, bodies)


def _key(key: object, where: str) -> str:
    if not isinstance(key, str) or key.startswith("$"):
        raise Invalid(f"{where} has the key {key!r}; keys are text and do not begin with '$'.")
    return key


def _flatten_array(value: object, where: str, arrays: list[_Array], bodies: list[memoryview]) -> Any:
    import numpy as np

    if isinstance(value, np.bool_ | np.integer | np.float64 | np.float32 | np.float16):
        return value.item()
    if not isinstance(value, np.ndarray) or hasattr(value, "mask"):
        raise Invalid(
            f"{where} is a {type(value).__module__}.{type(value).__qualname__}, which cannot travel.",
            next_step="Send numbers, text, bytes, lists, dictionaries and NumPy arrays of numbers.",
        )
    kind = value.dtype.newbyteorder("=").str.lstrip("<>=|").replace("b1", "?")
    if kind not in DTYPES:
        raise Invalid(f"{where} is an array of {value.dtype}, which cannot travel.", next_step="Convert it to numbers.")
    if len(arrays) >= MAX_ARRAYS:
        raise Invalid(f"The value holds more than {MAX_ARRAYS} arrays.")
    data = np.ascontiguousarray(value, dtype=value.dtype.newbyteorder("<"))
    offset = arrays[-1].offset + _padded(arrays[-1].nbytes) if arrays else 0
    arrays.append(_Array(kind, list(value.shape), offset, data.nbytes))
    bodies.append(data.reshape(-1).view("u1").data)
    return {"$array": len(arrays) - 1}


def _read_head(view: memoryview) -> tuple[_Head, int]:
    if len(view) < 4:
        raise Malformed("The value is shorter than its own length field.")
    size = int.from_bytes(view[:4], "big")
    if size > MAX_HEAD or 4 + size > len(view):
        raise Malformed("The value's head is longer than the value.")
    raw = view[4 : 4 + size]
    try:
        head = msgspec.msgpack.decode(raw, type=_Head)
        canonical = msgspec.msgpack.encode(head) == raw
    except (msgspec.DecodeError, RecursionError, TypeError, ValueError) as error:
        raise Malformed(f"The value's head cannot be read: {error}") from None
    if not canonical:
        raise Malformed("The value's head is not in the one form that a sender of ours writes.")
    if len(head.arrays) > MAX_ARRAYS:
        raise Malformed(f"The value holds more than {MAX_ARRAYS} arrays.")
    return head, 4 + size + _padding(4 + size)


def _check_layout(view: memoryview, arrays: list[_Array], start: int) -> int:
    """Arrays stand one after the other with zeros between them; returns where the last one ends."""
    if any(view[4 + int.from_bytes(view[:4], "big") : start]):
        raise Malformed("The value's padding is not zero.")
    end = start
    for array in arrays:
        if start + array.offset != end or array.nbytes < 0:
            raise Malformed("The value's arrays do not follow one another.")
        end += _padded(array.nbytes)
        if end > len(view):
            raise Malformed("An array reaches beyond the value.")
        if any(view[end - _padding(array.nbytes) : end]):
            raise Malformed("The value's padding is not zero.")
    return end


def _view_array(view: memoryview, start: int, array: _Array) -> NDArray[Any]:
    import numpy as np

    if array.dtype not in DTYPES:
        raise Malformed(f"An array of '{array.dtype[:16]}' cannot be read.")
    if len(array.shape) > 32 or any(n < 0 for n in array.shape):
        raise Malformed("An array has an impossible shape.")
    dtype = np.dtype(array.dtype).newbyteorder("<")
    if math.prod(array.shape) * dtype.itemsize != array.nbytes:
        raise Malformed("An array's shape and size do not agree.")
    begin = start + array.offset
    try:
        return np.frombuffer(view[begin : begin + array.nbytes], dtype=dtype).reshape(array.shape)
    except ValueError:  # an empty array with sides too long for any machine
        raise Malformed("An array has an impossible shape.") from None


def _restore(tree: Any, found: list[NDArray[Any]], used: list[int], depth: int) -> Value:
    if depth > MAX_DEPTH:
        raise Malformed(f"The value is nested deeper than {MAX_DEPTH} levels.")
    if isinstance(tree, list):
        return [_restore(item, found, used, depth + 1) for item in tree]
    if isinstance(tree, dict):
        if "$array" in tree:
            return _resolve(tree, found, used)
        for key in tree:
            if not isinstance(key, str) or key.startswith("$"):
                raise Malformed("The value has a key that is not allowed.")
        return {key: _restore(item, found, used, depth + 1) for key, item in tree.items()}
    if tree is None or isinstance(tree, bool | int | float | str | bytes):
        return tree
    raise Malformed(f"The value holds a {type(tree).__name__}, which no sender of ours writes.")


def _resolve(tree: dict[str, Any], found: list[NDArray[Any]], used: list[int]) -> NDArray[Any]:
    index = tree["$array"]
    if len(tree) != 1 or type(index) is not int or not 0 <= index < len(found) or index in used:
        raise Malformed("The value names an array that is not there.")
    used.append(index)
    return found[index]
