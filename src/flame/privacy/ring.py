"""Numbers as integers of a ring, so that masks cancel exactly and a sum has one value in whatever order it is added.

Statistics live in the ring of 2^128: two u64 limbs (low, high) with carry; reals in fixed point, whole numbers as they
are. Model updates live in the ring of 2^32 with 22 fractional bits, clipped, and rounded at random so that the error
has no direction. Integer arithmetic only; whatever could leave the ring is refused before it is masked.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from flame.model.errors import Invalid, ReleaseRefused

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Limbs = NDArray[np.uint64]
    """Shape (size, 2): low and high half of each number."""

MODEL_BITS: Final = 22
_MOST_BITS: Final = 80
_MANTISSA: Final = 53
_ONE: Final = np.uint64(1)


@dataclass(frozen=True, slots=True)
class FixedPoint:
    """Reals of at most ``bound`` at each of at most ``contributors`` sites, weights included, in the ring of 2^128.

    Equal at all sites, because bound and number stand in the manifest. The sum's error is at most
    ``contributors * 2**-(bits + 1)``, absolute.
    """

    bound: float
    contributors: int

    def __post_init__(self) -> None:
        if not (math.isfinite(self.bound) and self.bound > 0):
            raise Invalid("The bound of a sum is a finite number greater than zero.", field="bound")
        if self.contributors < 1:
            raise Invalid("A sum has at least one contributor.", field="contributors")
        if self.bits < 0:
            raise Invalid(
                f"A bound of {self.bound} leaves no room for a fraction.",
                next_step="Scale the numbers down, or declare the bound that they really have.",
                field="bound",
            )

    @property
    def bits(self) -> int:
        """Fractional bits: as many as fit, 80 at most."""
        largest = Fraction(self.bound) * self.contributors
        digits = largest.numerator.bit_length() - largest.denominator.bit_length()
        while Fraction(2) ** digits < largest:
            digits += 1
        return min(_MOST_BITS, 126 - digits)

    def encode(self, values: NDArray[np.float64]) -> Limbs:
        """Rounded to the nearest multiple of ``2**-bits``, ties to even. Raises ReleaseRefused beyond the bound."""
        flat = np.ascontiguousarray(values, dtype=np.float64).reshape(-1)
        _refuse_beyond(flat, self.bound)
        mantissa, exponent = np.frexp(flat)
        whole = np.ldexp(mantissa, _MANTISSA).astype(np.int64)  # exact: a float64 has 53 digits
        magnitude = np.abs(whole).astype(np.uint64)
        return _signed(_shifted(magnitude, exponent.astype(np.int64) - _MANTISSA + self.bits), whole < 0)

    def decode(self, total: Limbs) -> NDArray[np.float64]:
        """The nearest float64 of each number."""
        negative, (low, high) = _split(total)
        zeros = _leading_zeros(low, high)
        up = _left(low, high, zeros)
        rest = up[0] != 0  # a digit beyond the 64 that are rounded: only whether there is one matters
        nearest = (up[1] | rest.astype(np.uint64)).astype(np.float64)
        size = np.ldexp(nearest, (64 - zeros - self.bits).astype(np.int32))
        found: NDArray[np.float64] = np.where(negative, -size, size) + 0.0  # no negative zero
        return found


def encode_whole(values: NDArray[Any]) -> Limbs:
    """Whole numbers of up to 64 bits, exactly. Raises Invalid for others."""
    flat = np.ascontiguousarray(values).reshape(-1)
    if flat.dtype.kind not in "iub":
        raise Invalid(f"{flat.dtype} are not whole numbers.")
    limbs = np.zeros((flat.size, 2), dtype="<u8")
    limbs[:, 0] = flat.astype(np.uint64) if flat.dtype.kind != "i" else flat.astype(np.int64).view(np.uint64)
    if flat.dtype.kind == "i":
        limbs[:, 1] = np.where(flat < 0, ~np.uint64(0), np.uint64(0))
    return limbs


def decode_whole(total: Limbs) -> NDArray[np.int64]:
    """Raises ReleaseRefused for a sum beyond 64 bits."""
    low, high = total[:, 0], total[:, 1]
    sign = np.where(low >> np.uint64(63) == _ONE, ~np.uint64(0), np.uint64(0))
    if bool(np.any(high != sign)):
        raise ReleaseRefused("A sum of whole numbers does not fit into 64 bits.", rule="overflow")
    return low.astype(np.uint64).view(np.int64).copy()


def add(total: Limbs, part: Limbs) -> None:
    """``total += part`` in the ring of 2^128, in place."""
    low = total[:, 0] + part[:, 0]
    carry = low < part[:, 0]
    total[:, 1] += part[:, 1]
    total[:, 1] += carry
    total[:, 0] = low


def subtract(total: Limbs, part: Limbs) -> None:
    """``total -= part`` in the ring of 2^128, in place."""
    borrow = total[:, 0] < part[:, 0]
    total[:, 0] -= part[:, 0]
    total[:, 1] -= part[:, 1]
    total[:, 1] -= borrow


@dataclass(frozen=True, slots=True)
class Clipped:
    """Model updates of at most ``bound`` per number, of at most ``contributors`` sites, in the ring of 2^32."""

    bound: float
    contributors: int

    def __post_init__(self) -> None:
        if not (self.bound > 0 and self.contributors >= 1) or not (
            self.contributors * (self.bound * 2**MODEL_BITS + 1) < 2**31
        ):
            largest = (2**31 / max(1, self.contributors) - 1) / 2**MODEL_BITS
            raise Invalid(
                f"Updates of {self.contributors} sites, each at most {self.bound}, do not fit into 32 bits.",
                next_step=f"Clip at {largest:.3g} or less.",
                field="bound",
            )

    def encode(self, values: NDArray[Any], random: bytes) -> NDArray[np.uint32]:
        """Clipped to the bound; rounded up or down with the probability that makes the mean right.

        random: four secret bytes for each number. Raises ReleaseRefused for what is not finite.
        """
        flat = np.ascontiguousarray(values, dtype=np.float64).reshape(-1)
        if not bool(np.isfinite(flat).all()):
            raise ReleaseRefused("A number of the update is not finite.", rule="finite")
        chance = np.frombuffer(random, dtype="<u4", count=flat.size) * 2.0**-32
        scaled = np.clip(flat, -self.bound, self.bound) * 2.0**MODEL_BITS
        down = np.floor(scaled)
        return (down + (chance < scaled - down)).astype(np.int64).astype(np.uint32)

    def decode(self, total: NDArray[np.uint32]) -> NDArray[np.float32]:
        return (total.view(np.int32) * 2.0**-MODEL_BITS).astype(np.float32)


# --- limbs ----------------------------------------------------------------------------------------------------------


def _refuse_beyond(flat: NDArray[np.float64], bound: float) -> None:
    if not bool(np.isfinite(flat).all()):
        raise ReleaseRefused("A number of the sum is not finite.", rule="finite")
    if bool(np.any(np.abs(flat) > bound)):
        raise ReleaseRefused(
            f"A number of the sum lies beyond the declared bound of {bound:g}.",
            next_step="Declare the bound that the numbers really have, or scale them.",
            rule="bound",
        )


def _shifted(magnitude: NDArray[np.uint64], by: NDArray[np.int64]) -> Limbs:
    """``magnitude * 2**by`` in two limbs, rounded to the nearest, ties to even."""
    limbs = np.zeros((magnitude.size, 2), dtype="<u8")
    up = _left(magnitude, np.zeros_like(magnitude), np.maximum(by, 0))
    limbs[:, 0], limbs[:, 1] = up
    down = np.minimum(-by, 63)
    small = by < 0
    if bool(small.any()):
        by_ = down[small].astype(np.uint64)
        value = magnitude[small]
        kept = value >> by_
        rest = value & ((_ONE << by_) - _ONE)
        half = _ONE << (by_ - _ONE)
        kept += (rest > half) | ((rest == half) & (kept & _ONE == _ONE))
        limbs[small, 0] = kept
    return limbs


def _left(
    low: NDArray[np.uint64], high: NDArray[np.uint64], by: NDArray[np.int64]
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Shift left by 0 to 127 digits; what falls out is lost."""
    near = (by & 63).astype(np.uint64)
    carried = np.where(near > 0, low >> ((np.uint64(64) - near) & np.uint64(63)), np.uint64(0))
    within = (low << near, (high << near) | carried)
    beyond = by >= 64
    return np.where(beyond, np.uint64(0), within[0]), np.where(beyond, low << near, within[1])


def _signed(limbs: Limbs, negative: NDArray[np.bool_]) -> Limbs:
    """Two's complement where negative."""
    low, high = ~limbs[:, 0] + _ONE, ~limbs[:, 1]
    high = high + (low == 0)
    limbs[:, 0] = np.where(negative, low, limbs[:, 0])
    limbs[:, 1] = np.where(negative, high, limbs[:, 1])
    return limbs


def _split(limbs: Limbs) -> tuple[NDArray[np.bool_], tuple[NDArray[np.uint64], NDArray[np.uint64]]]:
    negative = limbs[:, 1] >> np.uint64(63) == _ONE
    size = _signed(limbs.copy(), negative)
    return negative, (size[:, 0].astype(np.uint64), size[:, 1].astype(np.uint64))


def _leading_zeros(low: NDArray[np.uint64], high: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Of the 128 digits; 127 for zero."""
    zeros = np.zeros(low.size, dtype=np.int64)
    rest = _left(low, high, zeros)
    for step in (64, 32, 16, 8, 4, 2, 1):
        empty = rest[1] >> np.uint64(64 - step) == 0 if step < 64 else rest[1] == 0
        by = np.where(empty, step, 0)
        zeros += by
        rest = _left(rest[0], rest[1], by)
    return np.minimum(zeros, 127)
