"""The best scales of one and of two planes of trits, from sorted magnitudes.

Numbers x with costs h are stored as a·t with t in {-1, 0, 1}, or as a·t₁ + b·t₂ with a ≥ b ≥ 0. The
magnitudes that come out are few, m₀ = 0 < m₁ < ..., and given them each |x| takes the nearest: what
lies between two midpoints takes the same. So once the magnitudes of a span are sorted and h, h·|x|
summed up from the largest on, the error of any scales

    E = Σ h x² − Σ_l m_l (2 S_l − m_l N_l),     N_l, S_l: sums of h and of h·|x| that take m_l,

needs a search for a few midpoints, and no pass over the numbers.

*One plane*: the best trits for any scale are 1 for the largest k magnitudes, and the best scale
for these is their mean; the best of all k is the best of all, E = Σ h x² − max_k S_k² / N_k. It is
found exactly.

*Two planes*: progressive approximation as in PTQTP (Xiao et al., arXiv:2509.16989, section 3): by
turns every number takes the best of its nine pairs, and both scales are set by ridge regression.
The ridge is on the move of the scales, not on the scales: δ solves (A + R) δ = r for A = Σ h t tᵀ
and r = Σ h t e, and changes E by δ A δᵀ − 2 δ r ≤ −δ r ≤ 0, so no step makes E larger, and a
singular A (planes alike, or empty) does no harm. It ends in a local minimum, so it is begun at
several ratios of the scales; on normal weights a ≈ 1.5 b is best, whose magnitudes are near those
of Lloyd and Max.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Spans", "fit_one", "fit_two", "magnitudes", "nearest_codes", "only_magnitudes"]

Array = npt.NDArray[Any]
Doubles = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]

ROUNDS = 50
"""Of the progressive approximation, as in PTQTP, at most."""
_RIDGE = 1e-9
_STILL = 1e-7
# Scales of both planes, in units of the root mean square, at which it is begun.
_STARTS = ((1.40, 0.93), (1.1, 0.6), (1.44, 0.48))


@dataclasses.dataclass(frozen=True)
class Spans:
    """Numbers that share scales, sorted.

    Attributes:
        sorted: magnitudes ``[spans, size]``, the largest first.
        costs: ``[spans, size + 1]``, sums of h over the first 0, 1, ..., size of them.
        sums: ``[spans, size + 1]``, sums of h·|x|.
        power: ``[spans]``, Σ h x².
    """

    sorted: Array
    costs: Doubles
    sums: Doubles
    power: Doubles

    @staticmethod
    def of(values: Array, costs: Array | None = None) -> Spans:
        """Sort the numbers of each span.

        Args:
            values: ``[spans, size]``, finite.
            costs: h, not negative, of a shape that broadcasts to that of ``values``; 1 when None.
        """
        sizes = np.abs(values)
        order = np.argsort(-sizes, axis=1, kind="stable")
        ranked = np.take_along_axis(sizes, order, axis=1)
        if costs is None:
            each = np.ones(values.shape)
        else:
            spread = np.broadcast_to(costs, values.shape)
            each = np.take_along_axis(spread, order, axis=1).astype(np.float64)
        weighted = each * ranked
        return Spans(ranked, _summed(each), _summed(weighted), np.sum(weighted * ranked, axis=1))

    def above(self, rows: Rows, limits: Doubles) -> npt.NDArray[np.int64]:
        """How many magnitudes are larger than each limit, ``[rows, limits]``, by bisection."""
        size = self.sorted.shape[1]
        flat, first = self.sorted.reshape(-1), rows[:, None] * size
        low = np.zeros(limits.shape, np.int64)
        high = np.full(limits.shape, size, np.int64)
        for _ in range(size.bit_length()):
            middle = (low + high) // 2
            larger = flat.take(first + np.minimum(middle, size - 1)) > limits
            larger &= middle < high
            np.copyto(low, middle + 1, where=larger)
            np.copyto(high, middle, where=~larger)
        return low


def only_magnitudes(values: Array) -> tuple[Array, npt.NDArray[np.bool_]]:
    """The one magnitude beside 0 of each span, and whether it is the only one.

    Args:
        values: ``[spans, size]``, finite.

    Returns:
        The largest magnitudes ``[spans]``, of the type of ``values``, and whether all others are
        the same or 0: then the span is of trits already.
    """
    sizes = np.abs(values)
    most = sizes.max(axis=1)
    return most, ((sizes == 0) | (sizes == most[:, None])).all(axis=1)


def fit_one(spans: Spans) -> Doubles:
    """The best scale of one plane, ``[spans, 1]``: no other scale has a smaller error."""
    costs, sums = spans.costs[:, 1:], spans.sums[:, 1:]
    gains = np.divide(sums**2, costs, out=np.zeros_like(sums), where=costs > 0)
    best = np.argmax(gains, axis=1)[:, None]
    total = np.take_along_axis(costs, best, axis=1)
    chosen = np.take_along_axis(sums, best, axis=1)
    return np.divide(chosen, total, out=np.zeros_like(chosen), where=total > 0)


def fit_two(spans: Spans, *, rounds: int = ROUNDS) -> tuple[Doubles, list[Doubles]]:
    """Good scales of two planes.

    Args:
        spans: the numbers.
        rounds: at most.

    Returns:
        Scales ``[spans, 2]``, the larger first, and the errors ``[spans]`` before the first round
        and after every round from the best start, none of them larger than the one before.
    """
    total = spans.costs[:, -1]
    root = np.sqrt(np.divide(spans.power, total, out=np.zeros_like(total), where=total > 0))
    starts = [np.multiply.outer(root, start) for start in _STARTS]
    one = fit_one(spans)
    starts.append(np.concatenate([one, np.zeros_like(one)], axis=1))
    found = [_approximate(spans, start, rounds) for start in starts]
    least = np.stack([errors[-1] for _, errors in found])
    best = np.argmin(least, axis=0)
    scales = np.stack([scales for scales, _ in found])[best, np.arange(len(best))]
    # Starts that are still earlier keep their last errors.
    longest = max(len(errors) for _, errors in found)
    told = np.stack(
        [np.stack(errors + [errors[-1]] * (longest - len(errors))) for _, errors in found]
    )
    return scales, list(told[best, :, np.arange(len(best))].T)


def magnitudes(scales: Array) -> tuple[Array, npt.NDArray[np.int8]]:
    """What trits with these scales come to, in ascending order.

    Args:
        scales: ``[spans, planes]``, not negative, those of two planes in descending order.

    Returns:
        Magnitudes ``[spans, 2 or 5]``, of the type of ``scales``, and the codes that stand for
        them, int8: t, or 3·t₁ + t₂.
    """
    large = scales[:, 0]
    zero = np.zeros_like(large)
    if scales.shape[1] == 1:
        single = np.broadcast_to(np.array([0, 1], np.int8), (len(large), 2))
        return np.stack([zero, large], axis=1), single
    small = scales[:, 1]
    less = large - small
    is_first = small <= less
    found = [zero, np.where(is_first, small, less), np.where(is_first, less, small)]
    first = np.where(is_first, 1, 2)
    codes = np.empty((len(large), 5), np.int8)
    codes[:, 0], codes[:, 1], codes[:, 2], codes[:, 3:] = 0, first, 3 - first, (3, 4)
    return np.stack([*found, large, large + small], axis=1), codes


def nearest_codes(values: Array, scales: Array) -> npt.NDArray[np.int8]:
    """Codes of the nearest sums of trits.

    Args:
        values: ``[spans, size]``.
        scales: ``[spans, planes]``, see `magnitudes`.
    """
    found, codes = magnitudes(scales)
    limits = _limits(found)
    sizes = np.abs(values)
    place = np.zeros(values.shape, np.int8)
    for at in range(limits.shape[1]):
        place += sizes > limits[:, at, None]
    row = np.arange(len(values))[:, None]
    signs = np.where(values < 0, np.int8(-1), np.int8(1))
    nearest: npt.NDArray[np.int8] = codes[row, place] * signs
    return nearest


def _limits(ascending: Array) -> Array:
    """Midpoints, ascending as well."""
    return 0.5 * (ascending[:, 1:] + ascending[:, :-1])


def _summed(values: Doubles) -> Doubles:
    sums = np.zeros((values.shape[0], values.shape[1] + 1))
    np.cumsum(values, axis=1, out=sums[:, 1:])
    return sums


def _taken(spans: Spans, rows: Rows, scales: Doubles) -> tuple[Doubles, Doubles, Doubles, Array]:
    """Sums of h and of h·|x| that take each magnitude but 0; the magnitudes, and their codes."""
    found, codes = magnitudes(scales)
    place = rows[:, None] * spans.costs.shape[1] + spans.above(rows, _limits(found))
    costs, sums = spans.costs.reshape(-1).take(place), spans.sums.reshape(-1).take(place)
    costs[:, :-1] -= costs[:, 1:]
    sums[:, :-1] -= sums[:, 1:]
    return costs, sums, found[:, 1:], codes[:, 1:]


def _approximate(spans: Spans, scales: Doubles, rounds: int) -> tuple[Doubles, list[Doubles]]:
    """Progressive approximation from ``scales`` on: scales, and the error after each round."""
    scales = scales.copy()
    errors: list[Doubles] = []
    going = np.arange(len(scales))
    while True:
        costs, sums, found, codes = _taken(spans, going, scales[going])
        now = spans.power[going] - np.sum(found * (2 * sums - found * costs), axis=1)
        errors.append(errors[-1].copy() if errors else np.empty(len(scales)))
        moves = np.ones(len(going), np.bool_)
        if len(errors) > 1:
            moves = errors[-1][going] - now > _STILL * spans.power[going]
        errors[-1][going] = now
        going = going[moves]
        if len(errors) > rounds or not len(going):
            return scales, errors
        lack = sums - found * costs
        scales[going] = _moved(scales[going], costs[moves], lack[moves], codes[moves])


def _moved(scales: Doubles, costs: Doubles, lack: Doubles, codes: Array) -> Doubles:
    """Scales after a step of ridge regression, for sums Σ h and Σ h e of each magnitude."""
    first = (codes + 1) // 3
    second = codes - 3 * first
    a, b, c = (np.sum(costs * one * two, axis=1) for one, two in _pairs(first, second))
    ridge = _RIDGE * (a + c)
    a, c = a + ridge, c + ridge
    r, s = np.sum(lack * first, axis=1), np.sum(lack * second, axis=1)
    determinant = a * c - b * b
    moves = np.stack([c * r - b * s, a * s - b * r], axis=1)
    moves = np.divide(moves, determinant[:, None], out=np.zeros_like(moves), where=moves != 0)
    return -np.sort(-np.abs(scales + moves), axis=1)


def _pairs(first: Array, second: Array) -> tuple[tuple[Array, Array], ...]:
    return (first, first), (first, second), (second, second)
