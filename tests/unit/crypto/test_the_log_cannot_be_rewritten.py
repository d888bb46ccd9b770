"""RFC 6962: known answers, and proofs that hold for the truth alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flame.crypto.keys import IdentityKey
from flame.crypto.translog import (
    EMPTY_ROOT,
    Frontier,
    TreeHead,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    node_hash,
    prove_consistency,
    prove_inclusion,
    root_from,
    root_of,
    sign_tree_head,
    verify_consistency,
    verify_inclusion,
    verify_tree_head,
)
from flame.model.errors import BadSignature, FlameError, Invalid, Malformed, Refused

# The leaves and roots of Certificate Transparency's own tests (certificate-transparency-go, merkletree).
KNOWN_LEAVES = [
    leaf_hash(bytes.fromhex(text))
    for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
KNOWN_ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def leaves(count: int) -> list[bytes]:
    return [leaf_hash(str(i).encode()) for i in range(count)]


def naive_root(hashes: list[bytes]) -> bytes:
    """RFC 6962, 2.1, word for word."""
    if len(hashes) == 1:
        return hashes[0]
    k = 1
    while k * 2 < len(hashes):
        k *= 2
    return hashlib.sha256(b"\x01" + naive_root(hashes[:k]) + naive_root(hashes[k:])).digest()


def test_known_roots() -> None:
    assert EMPTY_ROOT.hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert Frontier().root() == root_of([]) == EMPTY_ROOT
    for size, root in enumerate(KNOWN_ROOTS, start=1):
        assert root_of(KNOWN_LEAVES, size).hex() == root
        assert Frontier.of(KNOWN_LEAVES[:size]).root().hex() == root


def test_known_inclusion_proof() -> None:
    assert [h.hex() for h in inclusion_proof(KNOWN_LEAVES, 0, 8)] == [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ]


def test_known_consistency_proof() -> None:
    assert [h.hex() for h in consistency_proof(KNOWN_LEAVES, 6, 8)] == [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ]


def test_the_paths_of_rfc_6962() -> None:
    """The seven leaves of RFC 6962, 2.1.3, and every path and proof that is written out there."""
    d = [leaf_hash(f"d{number}".encode()) for number in range(7)]
    a, b, c, d3, e, f, j = d
    g, h, i = node_hash(a, b), node_hash(c, d3), node_hash(e, f)
    k, left = node_hash(i, j), node_hash(g, h)
    root = node_hash(left, k)
    assert root_of(d) == Frontier.of(d).root() == root
    assert inclusion_proof(d, 0, 7) == [b, h, k]
    assert inclusion_proof(d, 3, 7) == [c, g, k]
    assert inclusion_proof(d, 4, 7) == [f, j, left]
    assert inclusion_proof(d, 6, 7) == [i, left]
    assert consistency_proof(d, 3, 7) == [c, d3, g, k]
    assert consistency_proof(d, 4, 7) == [k]
    assert consistency_proof(d, 6, 7) == [i, j, left]


# Certificate Transparency's own tests, of the eight leaves above: (leaf, size, path) and (old, new, proof); trillian and
# certificate-transparency-go, merkletree.
KNOWN_PATHS = [
    (0, 1, []),
    (
        5,
        8,
        [
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        ],
    ),
    (2, 3, ["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"]),
    (
        1,
        5,
        [
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        ],
    ),
]
KNOWN_PROOFS = [
    (1, 1, []),
    (
        1,
        8,
        [
            "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
        ],
    ),
    (
        2,
        5,
        [
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        ],
    ),
]


@pytest.mark.parametrize(("index", "size", "path"), KNOWN_PATHS)
def test_the_paths_of_certificate_transparency(index: int, size: int, path: list[str]) -> None:
    proof = inclusion_proof(KNOWN_LEAVES, index, size)
    assert [h.hex() for h in proof] == path
    verify_inclusion(KNOWN_LEAVES[index], index, size, proof, bytes.fromhex(KNOWN_ROOTS[size - 1]))


@pytest.mark.parametrize(("old", "new", "path"), KNOWN_PROOFS)
def test_the_proofs_of_certificate_transparency(old: int, new: int, path: list[str]) -> None:
    proof = consistency_proof(KNOWN_LEAVES, old, new)
    assert [h.hex() for h in proof] == path
    roots = bytes.fromhex(KNOWN_ROOTS[old - 1]), bytes.fromhex(KNOWN_ROOTS[new - 1])
    verify_consistency(old, roots[0], new, roots[1], proof)


class Kept:
    """What a hub keeps: the hashes that `Frontier.grow` names, by (level, index). Counts what is read."""

    def __init__(self, hashes: list[bytes]) -> None:
        self.nodes: dict[tuple[int, int], bytes] = {}
        self.reads: list[int] = []
        frontier = Frontier()
        for place, leaf in enumerate(hashes):
            for level, node in enumerate([leaf, *frontier.grow(leaf)]):
                self.nodes[level, place >> level] = node

    def __call__(self, places: Sequence[tuple[int, int]]) -> dict[tuple[int, int], bytes]:
        self.reads.append(len(places))
        return {place: self.nodes[place] for place in places}


@given(st.integers(1, 130), st.data())
def test_kept_subtrees_prove_the_same(size: int, data: st.DataObject) -> None:
    log = leaves(size)
    index, old = data.draw(st.integers(0, size - 1)), data.draw(st.integers(0, size))
    kept = Kept(log)
    assert prove_inclusion(kept, index, size, size) == inclusion_proof(log, index, size)
    assert prove_consistency(kept, old, size, size) == consistency_proof(log, old, size)
    assert root_from(kept, size) == root_of(log)


def test_a_proof_over_a_hundred_thousand_leaves_reads_a_few_hashes() -> None:
    """And what is kept is one hash a leaf beside the leaf's own."""
    size = 100_003
    log = leaves(size)
    kept, root = Kept(log), Frontier.of(log).root()
    assert len(kept.nodes) < 2 * size
    for index in (0, 1, 65_535, 65_536, 99_999, size - 1):
        verify_inclusion(log[index], index, size, prove_inclusion(kept, index, size, size), root)
    for old in (1, 2, 65_536, 65_537, 99_999, size - 1):
        proof = prove_consistency(kept, old, size, size)
        verify_consistency(old, root_from(kept, old), size, root, proof)
    assert max(kept.reads) <= 2 * size.bit_length()


@given(st.integers(1, 200))
def test_the_frontier_grows_like_the_tree(size: int) -> None:
    assert Frontier.of(leaves(size)).root() == naive_root(leaves(size)) == root_of(leaves(size))


@given(st.integers(0, 100), st.integers(0, 100))
def test_the_frontier_goes_on_from_its_state(before: int, after: int) -> None:
    frontier = Frontier.from_state(Frontier.of(leaves(before)).state())
    for leaf in leaves(before + after)[before:]:
        frontier.append(leaf)
    assert frontier.root() == root_of(leaves(before + after))
    assert frontier.size == before + after


@pytest.mark.parametrize(
    "state", [b"", bytes(7), bytes(8) + bytes(32), (3).to_bytes(8, "big") + bytes(32), b"\xff" * 40]
)
def test_a_state_that_does_not_fit_is_refused(state: bytes) -> None:
    with pytest.raises(Malformed):
        Frontier.from_state(state)


@given(st.integers(1, 130), st.data())
def test_each_leaf_is_shown_to_be_in_the_log(size: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, size - 1))
    log = leaves(size + 3)
    verify_inclusion(log[index], index, size, inclusion_proof(log, index, size), root_of(log, size))


@given(st.integers(0, 130), st.data())
def test_each_log_is_shown_to_continue_its_past(new: int, data: st.DataObject) -> None:
    old = data.draw(st.integers(0, new))
    log = leaves(new + 2)
    verify_consistency(old, root_of(log, old), new, root_of(log, new), consistency_proof(log, old, new))


def spoiled(proof: list[bytes], how: str, place: int) -> list[bytes]:
    at = place % max(1, len(proof))
    if how == "longer":
        return [*proof, b"\0" * 32]
    if how == "doubled" and proof:
        return proof[: at + 1] + proof[at:]
    if how == "shorter" and proof:
        return proof[:at] + proof[at + 1 :]
    if proof:
        return [*proof[:at], bytes([proof[at][0] ^ 1]) + proof[at][1:], *proof[at + 1 :]]
    return [b"\0" * 32]


@given(st.integers(1, 64), st.data(), st.sampled_from(["longer", "doubled", "shorter", "changed"]))
def test_a_spoiled_proof_shows_nothing(size: int, data: st.DataObject, how: str) -> None:
    index, old = data.draw(st.integers(0, size - 1)), data.draw(st.integers(0, size))
    place, log = data.draw(st.integers(0, 10)), leaves(size)
    with pytest.raises(FlameError):
        path = spoiled(inclusion_proof(log, index, size), how, place)
        verify_inclusion(log[index], index, size, path, root_of(log))
    with pytest.raises(FlameError):
        path = spoiled(consistency_proof(log, old, size), how, place)
        verify_consistency(old, root_of(log, old), size, root_of(log), path)


@given(st.integers(2, 64), st.data())
def test_an_edited_entry_is_found_by_whoever_kept_an_earlier_head(size: int, data: st.DataObject) -> None:
    old = data.draw(st.integers(1, size))
    victim = data.draw(st.integers(0, old - 1))
    honest, edited = leaves(size), leaves(size)
    edited[victim] = leaf_hash(b"something else")
    with pytest.raises(Refused):
        verify_consistency(old, root_of(honest, old), size, root_of(edited), consistency_proof(edited, old, size))
    with pytest.raises(Refused):
        verify_inclusion(honest[victim], victim, size, inclusion_proof(edited, victim, size), root_of(edited))


def test_a_leaf_is_not_shown_at_another_place() -> None:
    log = leaves(7)
    for wrong in (1, 3, 6):
        with pytest.raises(Refused):
            verify_inclusion(log[2], wrong, 7, inclusion_proof(log, 2, 7), root_of(log))
    with pytest.raises(Refused):
        verify_inclusion(log[2], 7, 7, inclusion_proof(log, 2, 7), root_of(log))
    with pytest.raises(Refused):
        verify_inclusion(log[0], 0, 0, [], EMPTY_ROOT)


def test_a_proof_for_another_size_is_refused() -> None:
    """The right hashes under a false size: the path ends before, or after, the root."""
    log = leaves(5)
    with pytest.raises(Refused):
        verify_inclusion(log[0], 0, 2, [], log[0])
    with pytest.raises(Refused):
        verify_inclusion(log[0], 0, 5, inclusion_proof(log, 0, 4), root_of(log, 4))
    proof = consistency_proof(log, 2, 3)
    verify_consistency(2, root_of(log, 2), 3, root_of(log, 3), proof)
    with pytest.raises(Refused):
        verify_consistency(2, root_of(log, 2), 5, root_of(log, 3), proof)


def test_a_log_that_went_back_or_forked_is_refused() -> None:
    log = leaves(4)
    with pytest.raises(Refused, match="went back"):
        verify_consistency(4, root_of(log), 3, root_of(log, 3), [])
    with pytest.raises(Refused, match="forked"):
        verify_consistency(4, root_of(log), 4, root_of(leaves(5)[1:]), [])
    with pytest.raises(Refused):
        verify_consistency(0, root_of(log), 4, root_of(log), [])
    with pytest.raises(Refused):
        verify_consistency(2, root_of(log, 2), 4, root_of(log), [])


def test_a_leaf_is_never_taken_for_an_inner_node() -> None:
    left, right = leaves(2)
    assert leaf_hash(left + right) != node_hash(left, right)


def test_impossible_ranges_are_refused() -> None:
    for wrong in (
        lambda: inclusion_proof(leaves(3), 3, 3),
        lambda: inclusion_proof(leaves(3), 0, 4),
        lambda: inclusion_proof(leaves(3), -1, 3),
        lambda: consistency_proof(leaves(3), 2, 4),
        lambda: consistency_proof(leaves(3), 3, 2),
        lambda: root_of(leaves(3), 4),
    ):
        with pytest.raises(Invalid):
            wrong()
    with pytest.raises(Malformed):
        Frontier().append(b"not a hash")
    with pytest.raises(Malformed):
        verify_inclusion(leaves(1)[0], 0, 1, [b"x"], leaves(1)[0])


def test_a_tree_head_is_signed_as_a_whole() -> None:
    key, head = IdentityKey.generate(), TreeHead(3, root_of(leaves(3)), 1_000_000)
    signature = sign_tree_head(key, head)
    verify_tree_head(key.public, signature, head)
    for other in (replace(head, size=4), replace(head, root=root_of(leaves(4))), replace(head, created=1)):
        with pytest.raises(BadSignature):
            verify_tree_head(key.public, signature, other)
    with pytest.raises(BadSignature):
        verify_tree_head(IdentityKey.generate().public, signature, head)
    with pytest.raises(Malformed):
        sign_tree_head(key, replace(head, size=-1))
