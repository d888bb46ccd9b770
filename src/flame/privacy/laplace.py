"""Laplace noise for one number, drawn exactly: on a grid of integers, without logarithms of floating point numbers.

A sampler in floating point leaves holes in what it can return, and the holes tell the number (Mironov 2012). Here the
number is rounded to a fine grid, discrete Laplace noise is drawn with integers alone (Canonne, Kamath and Steinke 2020),
and the sum is one multiple of the grid.
"""

from __future__ import annotations

import hashlib
import math
from fractions import Fraction
from typing import Final

from flame.model.errors import Invalid

_FINENESS: Final = 40
"""Binary digits of the scale that the grid resolves."""
_LARGEST: Final = 2.0**900
_BLOCK: Final = 4096


def add_laplace(value: float, epsilon: float, sensitivity: float, seed: bytes) -> float:
    """``value`` with Laplace noise of the scale ``sensitivity / epsilon``; the same seed gives the same noise.

    seed: secret, and of its own for every release. Raises Invalid for numbers that are not finite and positive.
    """
    for name, number in (("epsilon", epsilon), ("sensitivity", sensitivity)):
        if not (math.isfinite(number) and 2.0**-900 < number < _LARGEST):
            raise Invalid(f"{name} is a finite number greater than zero.", next_step="Correct local_dp.", field=name)
    if not (math.isfinite(value) and abs(value) < _LARGEST):
        raise Invalid("Noise can be added to one finite number only.", next_step="Submit a single number.")
    wanted = Fraction(sensitivity) / Fraction(epsilon)
    grid = Fraction(2) ** (_exponent(wanted) - _FINENESS)
    scale = (Fraction(sensitivity) + grid) / Fraction(epsilon) / grid  # rounding moves a number by a step at most
    steps = round(Fraction(value) / grid) + _discrete_laplace(scale, _Bits(seed))
    return float(steps * grid)


def _exponent(number: Fraction) -> int:
    return number.numerator.bit_length() - number.denominator.bit_length()


class _Bits:
    """Uniform integers out of a seed."""

    def __init__(self, seed: bytes) -> None:
        self._seed, self._block, self._ahead = seed, 0, b""

    def below(self, bound: int) -> int:
        size = (bound.bit_length() + 7) // 8
        mask = (1 << bound.bit_length()) - 1
        while True:
            found = int.from_bytes(self._take(size), "big") & mask
            if found < bound:
                return found

    def _take(self, size: int) -> bytes:
        while len(self._ahead) < size:
            self._ahead += hashlib.shake_256(self._seed + self._block.to_bytes(8, "big")).digest(_BLOCK)
            self._block += 1
        taken, self._ahead = self._ahead[:size], self._ahead[size:]
        return taken


def _happens(numerator: int, denominator: int, bits: _Bits) -> bool:
    """True with the probability exp(-numerator / denominator)."""
    while numerator > denominator:
        if not _happens_small(1, 1, bits):
            return False
        numerator -= denominator
    return _happens_small(numerator, denominator, bits)


def _happens_small(numerator: int, denominator: int, bits: _Bits) -> bool:
    """As ``_happens`` for at most one: the series of the exponential, decided term by term."""
    k = 1
    while bits.below(denominator * k) < numerator:
        k += 1
    return k % 2 == 1


def _discrete_laplace(scale: Fraction, bits: _Bits) -> int:
    """An integer x with the probability proportional to exp(-abs(x) / scale)."""
    t, s = scale.numerator, scale.denominator
    while True:
        u = bits.below(t)
        if not _happens_small(u, t, bits):
            continue
        v = 0
        while _happens(1, 1, bits):
            v += 1
        magnitude = (u + t * v) // s
        negative = bits.below(2) == 1
        if not (negative and magnitude == 0):
            return -magnitude if negative else magnitude
