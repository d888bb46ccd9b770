"""The transparency log's arithmetic: RFC 6962 Merkle trees over hashed leaves.

Proof algorithms are those of RFC 9162, 2.1 (the same trees, the verification written out).

A tree of any size is made of *perfect* subtrees, and a perfect subtree never changes once its last leaf is there.
Whoever keeps their hashes (`Frontier.grow` names those that a new leaf completes) proves anything from a few of them:
a proof over n leaves reads and computes O(log n) hashes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from flame.crypto.keys import IdentityKey, PublicKey
from flame.model.errors import BadSignature, Invalid, Malformed, Refused

EMPTY_ROOT = hashlib.sha256(b"").digest()
MAX_SIZE = 2**53 - 1
_HEAD = b"flame-tree-head-v1\0"


def leaf_hash(leaf: bytes) -> bytes:
    """The hash of a leaf's bytes, 32 bytes."""
    return hashlib.sha256(b"\x00" + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of an inner node over its two children, 32 bytes."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class Frontier:
    """The right edge of a growing tree: enough to append leaves and to know the root, in at most 53 hashes.

    One hash for each perfect subtree, the largest (leftmost) first: one per set bit of the size.
    """

    __slots__ = ("_peaks", "size")

    def __init__(self, size: int = 0, peaks: Sequence[bytes] = ()) -> None:
        if not 0 <= size <= MAX_SIZE or len(peaks) != size.bit_count() or any(len(p) != 32 for p in peaks):
            raise Malformed("The stored state of the log does not fit its size.")
        self.size = size
        self._peaks = list(peaks)

    @classmethod
    def of(cls, leaf_hashes: Iterable[bytes]) -> Frontier:
        frontier = cls()
        for leaf in leaf_hashes:
            frontier.append(leaf)
        return frontier

    @classmethod
    def from_state(cls, state: bytes) -> Frontier:
        """What `state()` wrote; Malformed for anything else."""
        if len(state) < 8 or (len(state) - 8) % 32:
            raise Malformed("The stored state of the log is cut off.")
        return cls(int.from_bytes(state[:8], "big"), [state[i : i + 32] for i in range(8, len(state), 32)])

    def state(self) -> bytes:
        """The size (8 bytes) and the hashes: at most 1.7 KB, whatever the size of the log."""
        return self.size.to_bytes(8, "big") + b"".join(self._peaks)

    def append(self, leaf: bytes) -> int:
        """Add a leaf's hash; returns its index."""
        self.grow(leaf)
        return self.size - 1

    def grow(self, leaf: bytes) -> list[bytes]:
        """Add a leaf's hash; returns the hashes of the perfect subtrees that it completes, of 2 leaves, of 4, of 8 …"""
        _check_hash(leaf)
        node, size, completed = leaf, self.size, []
        while size & 1:
            node = node_hash(self._peaks.pop(), node)
            completed.append(node)
            size >>= 1
        self._peaks.append(node)
        self.size += 1
        return completed

    def root(self) -> bytes:
        """The root over all leaves so far, 32 bytes."""
        if not self._peaks:
            return EMPTY_ROOT
        node = self._peaks[-1]
        for peak in reversed(self._peaks[:-1]):
            node = node_hash(peak, node)
        return node


def root_of(leaf_hashes: Sequence[bytes], size: int | None = None) -> bytes:
    """The root over the first `size` leaf hashes (default: all)."""
    end = len(leaf_hashes) if size is None else size
    _check_range(0, end, len(leaf_hashes))
    return _subtree(leaf_hashes, 0, end) if end else EMPTY_ROOT


Place = tuple[int, int]
"""A perfect subtree: (level, index). It covers the leaves from index * 2**level to (index + 1) * 2**level."""
Span = tuple[int, int]
"""Leaves from … to (exclusive), aligned as the subtrees of RFC 6962 are."""
ReadNodes = Callable[[Sequence[Place]], Mapping[Place, bytes]]
"""Fetches the stored hashes of perfect subtrees, all that are asked for at once."""


def prove_inclusion(read: ReadNodes, index: int, size: int, have: int) -> list[bytes]:
    """The path from leaf `index` to the root of the tree of the first `size` of `have` leaves, lowest sibling first."""
    if not 0 <= index < size <= have:
        raise Invalid(f"There is no leaf {index} in a tree of {size} leaves; the log has {have}.")
    spans: list[Span] = []
    start, end = 0, size
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            spans.append((middle, end))
            end = middle
        else:
            spans.append((start, middle))
            start = middle
    return _hashes_of(read, spans[::-1])


def prove_consistency(read: ReadNodes, old: int, new: int, have: int) -> list[bytes]:
    """Shows that the tree of the first `new` leaves continues that of the first `old`; empty for 0 and for equal."""
    _check_range(old, new, have)
    if old in (0, new):
        return []
    spans: list[Span] = []
    start, end, whole = 0, new, True  # whole: the old tree's part of this subtree is the old root itself
    while old != end:
        middle = start + _split(end - start)
        if old <= middle:
            spans.append((middle, end))
            end = middle
        else:
            spans.append((start, middle))
            start, whole = middle, False
    if not whole:
        spans.append((start, end))
    return _hashes_of(read, spans[::-1])


def root_from(read: ReadNodes, size: int) -> bytes:
    """The root over the first `size` leaves."""
    return _hashes_of(read, [(0, size)])[0] if size else EMPTY_ROOT


def inclusion_proof(leaf_hashes: Sequence[bytes], index: int, size: int) -> list[bytes]:
    """`prove_inclusion` over a list that holds every leaf's hash."""
    return prove_inclusion(_in_memory(leaf_hashes), index, size, len(leaf_hashes))


def consistency_proof(leaf_hashes: Sequence[bytes], old: int, new: int) -> list[bytes]:
    """`prove_consistency` over a list that holds every leaf's hash."""
    return prove_consistency(_in_memory(leaf_hashes), old, new, len(leaf_hashes))


def _hashes_of(read: ReadNodes, spans: Sequence[Span]) -> list[bytes]:
    covers = [_cover(start, end) for start, end in spans]
    nodes = read([place for cover in covers for place in cover])
    hashes = []
    for cover in covers:
        node = nodes[cover[-1]]
        for place in reversed(cover[:-1]):
            node = node_hash(nodes[place], node)
        hashes.append(node)
    return hashes


def _cover(start: int, end: int) -> list[Place]:
    """The perfect subtrees that make up a span, from left to right: one per set bit of its length."""
    places = []
    while start < end:
        level = (end - start).bit_length() - 1
        places.append((level, start >> level))
        start += 1 << level
    return places


def _in_memory(leaf_hashes: Sequence[bytes]) -> ReadNodes:
    def read(places: Sequence[Place]) -> dict[Place, bytes]:
        return {(level, index): _subtree(leaf_hashes, index << level, (index + 1) << level) for level, index in places}

    return read


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Returns when `proof` shows the leaf (its hash) at `index` of the tree (size, root); raises Refused otherwise."""
    _check_proof(proof, leaf, root)
    if not 0 <= index < size <= MAX_SIZE:
        raise Refused(f"There is no leaf {index} in a log of {size} entries.")
    position, last, node = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            raise Refused("The proof of inclusion is longer than the path to the root.")
        if position & 1 or position == last:
            node = node_hash(sibling, node)
            while position and not position & 1:
                position, last = position >> 1, last >> 1
        else:
            node = node_hash(node, sibling)
        position, last = position >> 1, last >> 1
    if last != 0 or node != root:
        raise Refused(
            f"The log does not contain this entry at {index}: the proof does not lead to its root.",
            next_step="Keep the receipt and both tree heads: they show that the entry was left out.",
        )


def verify_consistency(old_size: int, old_root: bytes, new_size: int, new_root: bytes, proof: Sequence[bytes]) -> None:
    """Returns when `proof` shows that (new_size, new_root) continues (old_size, old_root); raises Refused otherwise."""
    _check_proof(proof, old_root, new_root)
    if not 0 <= old_size <= new_size <= MAX_SIZE:
        raise Refused(f"The log went back from {old_size} to {new_size} entries.")
    if old_size in (0, new_size):
        _check_trivial(old_size, old_root, new_size, new_root, proof)
    elif not proof or not _continues(old_size, old_root, new_size, new_root, proof):
        raise Refused(
            f"The log was changed: its {new_size} entries do not continue the {old_size} that were seen before.",
            next_step="Keep both tree heads and show them to the other participants: they prove the change.",
        )


def _continues(old_size: int, old_root: bytes, new_size: int, new_root: bytes, proof: Sequence[bytes]) -> bool:
    path = list(proof)
    if old_size & (old_size - 1) == 0:  # a perfect tree is itself the first node
        path.insert(0, old_root)
    position, last = old_size - 1, new_size - 1
    while position & 1:
        position, last = position >> 1, last >> 1
    old_node = new_node = path[0]
    for sibling in path[1:]:
        if last == 0:
            return False
        if position & 1 or position == last:
            old_node, new_node = node_hash(sibling, old_node), node_hash(sibling, new_node)
            while position and not position & 1:
                position, last = position >> 1, last >> 1
        else:
            new_node = node_hash(new_node, sibling)
        position, last = position >> 1, last >> 1
    return last == 0 and old_node == old_root and new_node == new_root


def _check_trivial(old_size: int, old_root: bytes, new_size: int, new_root: bytes, proof: Sequence[bytes]) -> None:
    if proof:
        raise Refused("The proof of consistency must be empty here.")
    if old_size == 0 and old_root != EMPTY_ROOT:
        raise Refused("The root of an empty log is known, and this is not it.")
    if old_size == new_size and old_root != new_root:
        raise Refused(
            f"The log has been forked: two different roots over {old_size} entries.",
            next_step="Keep both tree heads and show them to the other participants.",
        )


@dataclass(frozen=True, slots=True)
class TreeHead:
    """What the log's keeper signs: how many leaves, their root, when (seconds since 1970)."""

    size: int
    root: bytes
    created: int


def sign_tree_head(key: IdentityKey, head: TreeHead) -> bytes:
    """The signature (64 bytes) of the log's keeper."""
    return key.sign(_head_message(head))


def verify_tree_head(public: PublicKey, signature: bytes, head: TreeHead) -> None:
    """Raises BadSignature unless `public` signed this tree head."""
    try:
        public.verify(signature, _head_message(head))
    except BadSignature as error:
        raise BadSignature("The tree head is not signed by the key of the log's keeper.", size=head.size) from error


def _head_message(head: TreeHead) -> bytes:
    _check_hash(head.root)
    if not 0 <= head.size <= MAX_SIZE or not 0 <= head.created <= MAX_SIZE:
        raise Malformed("A tree head's size and time are integers from 0 to 2**53 - 1.")
    return _HEAD + head.size.to_bytes(8, "big") + head.created.to_bytes(8, "big") + head.root


def _subtree(leaf_hashes: Sequence[bytes], start: int, end: int) -> bytes:
    if end - start == 1:
        return leaf_hashes[start]
    middle = start + _split(end - start)
    return node_hash(_subtree(leaf_hashes, start, middle), _subtree(leaf_hashes, middle, end))


def _split(count: int) -> int:
    """The largest power of two below `count` (at least 2)."""
    return 1 << ((count - 1).bit_length() - 1)


def _check_range(old: int, new: int, have: int) -> None:
    if not 0 <= old <= new <= have:
        raise Invalid(f"There is no step from {old} to {new} entries in a log of {have}.")


def _check_proof(proof: Sequence[bytes], *hashes: bytes) -> None:
    if len(proof) > 2 * MAX_SIZE.bit_length():
        raise Malformed("The proof is longer than that of any possible log.")
    for node in (*proof, *hashes):
        _check_hash(node)


def _check_hash(node: bytes) -> None:
    if len(node) != 32:
        raise Malformed("A hash of the log is 32 bytes.")
