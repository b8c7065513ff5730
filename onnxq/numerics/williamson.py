"""Hadamard matrices of order 4n from four symmetric circulants of order n (Williamson 1944).

Where A² + B² + C² + D² = 4n I for symmetric circulant matrices of ±1,

    [[ A,  B,  C,  D],
     [−B,  A, −D,  C],
     [−C,  D,  A, −B],
     [−D, −C,  B,  A]]

is a Hadamard matrix of order 4n (J. Williamson, "Hadamard's determinant theorem and the sum of four
squares", Duke Math. J. 11, 1944; order 92: Baumert, Golomb and Hall, Bull. AMS 68, 1962). The
condition says that the autocorrelations of the four first rows add to 0 at every shift. Rows are
searched among those that a group of multipliers containing −1 leaves as they are, the largest
group first, which leaves a few hundred to try; pairs are met in the middle.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import numpy.typing as npt

__all__ = ["is_williamson_order", "williamson"]

_ODD_PARTS = (23, 43)
"""Sizes of the circulants for orders that Paley's constructions do not give and this one does."""
_MOST_ORBITS = 12


def is_williamson_order(order: int) -> bool:
    """Whether `williamson` makes a Hadamard matrix of that order: 92 and 172."""
    return order % 4 == 0 and order // 4 in _ODD_PARTS


@functools.cache
def williamson(order: int) -> npt.NDArray[np.int8]:
    """The Hadamard matrix ``[order, order]`` int8 with entries ±1; read-only.

    Raises:
        ValueError: `is_williamson_order` is false.
    """
    if not is_williamson_order(order):
        raise ValueError(f"no Williamson matrix of order {order} is looked for")
    size = order // 4
    for group in _groups(size):
        rows = _invariant_rows(size, group)
        found = None if rows is None else _four(rows)
        if found is not None:
            matrix = _array(found)
            matrix.flags.writeable = False
            return matrix
    raise ValueError(f"the search for four circulants of order {size} found none")


def _groups(size: int) -> list[frozenset[int]]:
    """Groups of units modulo ``size`` made by −1 and one or two more, the largest first."""
    units = [unit for unit in range(1, size) if math.gcd(unit, size) == 1]
    groups = {_generated(size, (size - 1, unit)) for unit in units}
    return sorted(groups, key=lambda group: (-len(group), sorted(group)))


def _generated(size: int, generators: tuple[int, ...]) -> frozenset[int]:
    group = {1}
    while True:
        larger = group | {a * b % size for a in group for b in generators}
        if larger == group:
            return frozenset(group)
        group = larger


def _invariant_rows(size: int, group: frozenset[int]) -> npt.NDArray[np.int64] | None:
    """All rows of ±1 that begin with 1 and are constant on the orbits of the group."""
    orbits: list[list[int]] = []
    seen: set[int] = {0}
    for start in range(1, size):
        if start not in seen:
            orbit = sorted({start * unit % size for unit in group})
            seen.update(orbit)
            orbits.append(orbit)
    if len(orbits) > _MOST_ORBITS:
        return None
    rows = np.ones((2 ** len(orbits), size), np.int64)
    choices = np.arange(len(rows))
    for bit, orbit in enumerate(orbits):
        rows[:, orbit] = (1 - 2 * (choices >> bit & 1))[:, None]
    return rows


def _four(rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64] | None:
    """Four of the rows whose autocorrelations add to 0 at every shift but the first."""
    size = rows.shape[1]
    shifts = range(1, size // 2 + 1)
    sums = np.stack([(rows * np.roll(rows, shift, axis=1)).sum(axis=1) for shift in shifts], 1)
    # One number for each pair; equal sums have equal numbers, and candidates are verified below.
    weights = np.random.default_rng(0).integers(1, 2**40, sums.shape[1])
    numbers = sums @ weights
    first, second = np.triu_indices(len(rows))
    pairs = numbers[first] + numbers[second]
    _, left, right = np.intersect1d(pairs, -pairs, return_indices=True)
    for one, other in zip(left, right, strict=True):
        chosen = [first[one], second[one], first[other], second[other]]
        if not sums[chosen].sum(axis=0).any():
            return rows[chosen]
    return None


def _array(rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int8]:
    size = rows.shape[1]
    places = (np.arange(size)[None, :] - np.arange(size)[:, None]) % size
    a, b, c, d = (row[places] for row in rows)
    blocks = [[a, b, c, d], [-b, a, -d, c], [-c, d, a, -b], [-d, -c, b, a]]
    return np.block(blocks).astype(np.int8)
