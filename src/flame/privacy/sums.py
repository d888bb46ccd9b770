"""Sums of summaries, in clear. The order of addition is the caller's, so equal input gives equal bits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flame.model.errors import Invalid, ReleaseRefused
from flame.privacy.release import check_summary

if TYPE_CHECKING:
    from numpy.typing import NDArray


class ClearSum:
    """Adds summaries, one contributor after the other.

    A summary is a mapping of names to arrays (numbers as 0-d arrays) with the same names, shapes and types at every
    contributor. Integers of up to 64 bits are summed exactly in int64 (uint64 stays uint64); float32 and float64 in
    their own type, float16 in float32. What cannot be added exactly because it overflows is refused. An error leaves
    the sum as it was.
    """

    def __init__(self) -> None:
        self._total: dict[str, NDArray[Any]] = {}
        self._layout: dict[str, tuple[str, tuple[int, ...]]] = {}
        self._contributors: list[str] = []

    @property
    def contributors(self) -> tuple[str, ...]:
        return tuple(self._contributors)

    def add(self, contributor: str, summary: Mapping[str, NDArray[Any]]) -> None:
        """Add one summary; its arrays are not kept.

        Raises Invalid (other names, shapes or types than the first contributor's; a second summary of one
        contributor) or ReleaseRefused (not finite, overflow); each names the contributor and the entry.
        """
        if contributor in self._contributors:
            raise Invalid(f"{contributor} has contributed to this sum before.", contributor=contributor)
        try:
            check_summary(summary)
        except (Invalid, ReleaseRefused) as error:
            raise type(error)(
                f"{contributor}: {error.message}",
                next_step=error.next_step,
                **{**error.fields, "contributor": contributor},
            ) from None
        if not self._contributors:
            self._layout = {name: (array.dtype.str, array.shape) for name, array in summary.items()}
            self._total = {name: _widened(array) for name, array in summary.items()}
        else:
            self._check_layout(contributor, summary)
            self._add(contributor, summary)
        self._contributors.append(contributor)

    def result(self) -> dict[str, NDArray[Any]]:
        """The sum so far, by name. Raises Invalid without a contributor, ReleaseRefused for a sum that overflowed."""
        import numpy as np

        if not self._contributors:
            raise Invalid("The sum has no contributors.")
        for name, array in self._total.items():
            if array.dtype.kind == "f" and not bool(np.isfinite(array).all()):
                raise _overflow("The contributors", name, str(array.dtype))
        return self._total

    def _check_layout(self, contributor: str, summary: Mapping[str, NDArray[Any]]) -> None:
        first = self._contributors[0]
        for name in sorted(self._layout.keys() ^ summary.keys()):
            who, lacks = (first, contributor) if name in self._layout else (contributor, first)
            raise Invalid(
                f"'{name}' was contributed by {who} and not by {lacks}.",
                next_step="Make the same entries at every site, with zeros where a site has nothing.",
                contributor=contributor,
                entry=name,
            )
        for name, (dtype, shape) in self._layout.items():
            array = summary[name]
            if array.shape != shape:
                what, mine, theirs = "shape", str(array.shape), str(shape)
            elif array.dtype.str != dtype:
                what, mine, theirs = "type", array.dtype.str, dtype
            else:
                continue
            raise Invalid(
                f"'{name}' has the {what} {mine} at {contributor} and {theirs} at {first}.",
                next_step=f"Make every site send the same {what}.",
                contributor=contributor,
                entry=name,
            )

    def _add(self, contributor: str, summary: Mapping[str, NDArray[Any]]) -> None:
        import numpy as np

        sums = {
            n: _exact(contributor, n, self._total[n], a) for n, a in summary.items() if self._total[n].dtype.kind != "f"
        }
        self._total.update(sums)
        with np.errstate(over="ignore"):  # an overflow is found and refused in result(), whatever the order
            for name, array in summary.items():
                if self._total[name].dtype.kind == "f":
                    np.add(self._total[name], array, out=self._total[name])


def _widened(array: NDArray[Any]) -> NDArray[Any]:
    """A copy to add into, in the type of the sum."""
    import numpy as np

    kind = array.dtype.kind
    if kind == "f":
        wide = np.dtype("f4") if array.dtype.itemsize < 4 else array.dtype.newbyteorder("=")
    else:
        wide = np.dtype("u8") if kind == "u" and array.dtype.itemsize == 8 else np.dtype("i8")
    return np.array(array, dtype=wide)


def _exact(contributor: str, name: str, total: NDArray[Any], array: NDArray[Any]) -> NDArray[Any]:
    """The sum of integers. Raises ReleaseRefused when one does not fit into 64 bits."""
    import numpy as np

    part = array.astype(total.dtype)
    with np.errstate(over="ignore"):
        total_after = np.asarray(np.add(total, part))
    wrapped = total_after < total if total.dtype.kind == "u" else ((total ^ total_after) & (part ^ total_after)) < 0
    if bool(np.any(wrapped)):
        raise _overflow(contributor, name, str(total.dtype))
    return total_after


def _overflow(contributor: str, name: str, dtype: str) -> ReleaseRefused:
    return ReleaseRefused(
        f"{contributor}: the sum of '{name}' does not fit into {dtype}.",
        next_step="Scale the numbers down, or send them as float64.",
        rule="overflow",
        contributor=contributor,
        entry=name,
    )
