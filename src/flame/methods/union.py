"""The union of sets by a sum: what the hospitals have between them, and not who has what.

Each hospital puts its distinct keys into a table of cells; a cell holds how many keys fell into it, the sum of their
chunks and the sum of their check values. Such tables add up, so a secure sum carries them as it carries any integers.
In the total a cell that holds one key only, however many hospitals put it there, gives it away; taking it out of its
other cells uncovers more (an invertible Bloom look-up table: Goodrich & Mitzenmacher 2011).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flame.model.errors import Malformed

Chunks = NDArray[np.int64]
"""Keys, shape (keys, chunks); each chunk from 0 to 2**56 - 1, so that 127 hospitals fit into 63 bits."""

HASHES = 3
CHUNK_BYTES = 7
_CHECK_BITS = 48
_U = np.uint64


def sketch(keys: Chunks, cells: int) -> NDArray[np.int64]:
    """The table of a set of distinct keys, shape (HASHES * cells, 2 + chunks): count, check, chunks."""
    width = keys.shape[1]
    table = np.zeros((HASHES * cells, 2 + width), dtype=np.int64)
    if len(keys):
        rows = _rows_of(keys)
        for place in _places(keys, cells):
            np.add.at(table, place, rows)
    return table


def union(total: NDArray[np.int64]) -> Chunks | None:
    """The keys in a sum of tables, each once, sorted; None when they are too many for the table's size."""
    rest = np.array(total, dtype=np.int64)
    cells = len(rest) // HASHES
    found: list[Chunks] = []
    for _ in range(len(rest) + 1):
        pure = _pure(rest)
        if not len(pure):
            break
        keys, first = np.unique(rest[pure, 2:] // rest[pure, :1], axis=0, return_index=True)
        times = rest[pure[first], :1]
        rows = _rows_of(keys) * times
        for place in _places(keys, cells):
            np.subtract.at(rest, place, rows)
        found.append(keys)
    if rest.any():
        return None
    if not found:
        return np.zeros((0, total.shape[1] - 2), dtype=np.int64)
    return np.asarray(np.unique(np.concatenate(found), axis=0))


def text_chunks(texts: list[bytes], chunks: int) -> Chunks:
    """Byte strings of up to ``chunks * 7`` bytes without zero bytes at the end, as keys."""
    width = chunks * CHUNK_BYTES
    raw = np.frombuffer(b"".join(text.ljust(width, b"\0") for text in texts), dtype=np.uint8)
    parts = raw.reshape(len(texts), chunks, CHUNK_BYTES).astype(np.int64)
    return np.asarray(parts @ (np.int64(1) << np.arange(0, 8 * CHUNK_BYTES, 8, dtype=np.int64)))


def chunks_text(keys: Chunks) -> list[bytes]:
    if keys.size and (keys.min() < 0 or keys.max() >= 1 << 8 * CHUNK_BYTES):
        raise Malformed("The union of the hospitals' levels cannot be read.")
    return [b"".join(int(c).to_bytes(CHUNK_BYTES, "little") for c in key).rstrip(b"\0") for key in keys]


def number_chunks(numbers: NDArray[np.float64]) -> Chunks:
    """Finite numbers, bit by bit."""
    bits = (np.asarray(numbers, dtype=np.float64) + 0.0).view(_U)  # adding zero makes -0 the same key as 0
    return np.column_stack([bits >> _U(32), bits & _U(0xFFFFFFFF)]).astype(np.int64)


def chunks_number(keys: Chunks) -> NDArray[np.float64]:
    bits = (keys[:, 0].astype(_U) << _U(32)) | keys[:, 1].astype(_U)
    return np.asarray(bits.view(np.float64), dtype=np.float64)


def _rows_of(keys: Chunks) -> NDArray[np.int64]:
    check = (_hash(keys, 97) & _U((1 << _CHECK_BITS) - 1)).astype(np.int64)
    return np.column_stack([np.ones(len(keys), dtype=np.int64), check, keys])


def _pure(table: NDArray[np.int64]) -> NDArray[np.intp]:
    """Cells that hold one key, some number of times."""
    held = np.flatnonzero(table[:, 0] > 0)
    count, rest = table[held, :1], table[held, 1:]
    whole = (rest % count == 0).all(axis=1) & (rest >= 0).all(axis=1)
    held = np.asarray(held[whole])
    if not len(held):
        return held
    single = table[held, 1:] // table[held, :1]
    right = (_hash(single[:, 1:], 97) & _U((1 << _CHECK_BITS) - 1)).astype(np.int64) == single[:, 0]
    return np.asarray(held[right])


def _places(keys: Chunks, cells: int) -> list[NDArray[np.intp]]:
    """One cell in each third of the table, so that a key never falls twice into one cell."""
    return [(_hash(keys, seed) % _U(cells)).astype(np.intp) + seed * cells for seed in range(HASHES)]


def _hash(keys: Chunks, seed: int) -> NDArray[np.uint64]:
    """splitmix64 over the chunks: the same everywhere, and no more than evenly spread."""
    state = np.full(len(keys), _U(0x9E3779B97F4A7C15) ^ _U(seed * 0x2545F491), dtype=_U)
    with np.errstate(over="ignore"):
        for chunk in keys.astype(_U).T:
            state = (state ^ chunk) + _U(0x9E3779B97F4A7C15)
            state = (state ^ (state >> _U(30))) * _U(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> _U(27))) * _U(0x94D049BB133111EB)
            state ^= state >> _U(31)
    return state
