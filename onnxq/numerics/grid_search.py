"""The searches that improve a grid step by step; `onnxq.numerics.scale_search` tells what they do.

All are written over the array API, on arrays with one element per group: the passes over the
weight are those of `onnxq.numerics.grid_costs`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import array_api_compat

from onnxq.numerics.grid_costs import Array, GridCosts
from onnxq.numerics.rounding import Rounding

T = TypeVar("T")

__all__ = ["BATCH", "BestGrid", "half_quadratic", "near_optimal", "settle"]

BATCH = 16
"""Grids that are compared in one pass over the weight."""
_FINE_ROUNDS = 3
_HQQ_ROUNDS = 20
_HQQ_BETA = 10.0
_HQQ_GROWTH = 1.01


class BestGrid:
    """The cheapest grid so far of every group; it is only ever replaced by a cheaper one."""

    def __init__(self, problem: GridCosts, scale: Array, zero: Array | None, *, robust: bool):
        self.problem, self.robust = problem, robust
        self.xp: Any = array_api_compat.array_namespace(scale)
        self.scale, self.zero = scale, zero
        first = None if zero is None else zero[None, ...]
        self.cost = problem.costs(scale[None, ...], first, robust=robust)[0, ...]

    def offer(self, scales: Array, zeros: Array | None) -> None:
        """Take over, group by group, whatever of these scales and zero points costs less.

        Args:
            scales: ``[count, bands, groups]``; not more than `BATCH` of them.
            zeros: the same shape; None when the grid is symmetric.
        """
        xp = self.xp
        scales = settle(scales, self.problem.how)
        costs = self.problem.costs(scales, zeros, robust=self.robust)
        costs = xp.where(xp.isnan(costs), xp.inf, costs)
        least = xp.argmin(costs, axis=0)
        cost = self._picked(costs, least)
        better = cost < self.cost
        self.cost = xp.where(better, cost, self.cost)
        self.scale = xp.where(better, self._picked(scales, least), self.scale)
        if zeros is not None:
            self.zero = xp.where(better, self._picked(zeros, least), self.zero)

    def offer_scaled(self, scale: Array, zero: Array | None, factors: Sequence[float]) -> None:
        """Offer multiples of a scale, with one zero point."""
        for some in _batches(factors):
            scales = scale * self.column(some)
            same = None if zero is None else self.xp.broadcast_to(zero, scales.shape)
            self.offer(scales, same)

    def column(self, numbers: Sequence[float]) -> Array:
        """Numbers as ``[count, 1, 1]``, to go with ``[bands, groups]``."""
        device = array_api_compat.device(self.scale)
        values = self.xp.asarray(numbers, dtype=self.xp.float32, device=device)
        column: Array = self.xp.reshape(values, (-1, 1, 1))
        return column

    def clipped(self, zeros: Array) -> Array:
        """Zero points where codes are."""
        inside: Array = self.xp.clip(zeros, 0.0, float(self.problem.how.highest))
        return inside

    def _picked(self, stack: Array, least: Array) -> Array:
        """Of ``[count, bands, groups]`` one of the count for each group."""
        xp, size = self.xp, math.prod(least.shape)
        places = xp.reshape(least, (-1,)) * size
        places = places + xp.arange(size, device=array_api_compat.device(least))
        return xp.reshape(xp.take(xp.reshape(stack, (-1,)), places), least.shape)

    def refit(self, scale: Array, zero: Array | None, threshold: float = 0.0) -> Array:
        """The least-squares scale for the codes that this grid gives."""
        moments = self.problem.moments(scale, zero, threshold=threshold)
        cross, square = moments[1, ...], moments[2, ...]
        usable = (square > 0) & (cross != 0)
        ratio = self.xp.where(usable, cross, 1.0) / self.xp.where(usable, square, 1.0)
        if self.problem.how.positive or self.problem.how.bits == 8:
            ratio = self.xp.abs(ratio)
        return scale * self.xp.astype(ratio, self.xp.float32)


def settle(scale: Array, how: Rounding) -> Array:
    """The scale that is stored: in its stored precision, and never 0 or subnormal."""
    xp = array_api_compat.array_namespace(scale)
    tiny = 2.0**-126
    if how.half_scales:
        tiny = 2.0**-24
        scale = xp.astype(xp.astype(scale, xp.float16), xp.float32)
    floor = xp.full_like(scale, tiny)
    return xp.where(xp.abs(scale) < tiny, floor, scale)


def near_optimal(best: BestGrid, scale: Array, zero: Array | None) -> None:
    """Scale and zero point together, from coarse to fine, starting at those of the plain range."""
    how = best.problem.how
    if zero is None:
        signs = (1.0,) if how.positive or how.bits == 8 else (1.0, -1.0)
        best.offer_scaled(scale, None, [sign * f for sign in signs for f in _factors(16)])
    else:
        _offer_wide(best, scale, zero)
    offsets = (0.0,) if zero is None else (0.0, -1.0, 1.0)
    steps = [2.0 ** (j / 48) for j in (-3, -2, -1, 0, 1, 2, 3)]
    for _ in range(_FINE_ROUNDS):
        _offer_near(best, list(itertools.product(offsets, steps)))
        near = [_moved(best, offset) for offset in offsets]
        refitted = best.xp.stack([best.refit(best.scale, z) for z in near])
        best.offer(refitted, None if zero is None else best.xp.stack(near))
    for _ in range(_FINE_ROUNDS):
        best.offer_scaled(best.refit(best.scale, best.zero), best.zero, (1.0,))


def _offer_near(best: BestGrid, moves: Sequence[tuple[float, float]]) -> None:
    """The best grid with its zero point moved and its scale multiplied."""
    scale, zero = best.scale, best.zero
    for some in _batches(moves):
        zeros = None
        if zero is not None:
            zeros = best.clipped(zero + best.column([offset for offset, _ in some]))
        best.offer(scale * best.column([step for _, step in some]), zeros)


def _moved(best: BestGrid, offset: float) -> Array | None:
    return None if best.zero is None else best.clipped(best.zero + offset)


def _batches(items: Sequence[T]) -> Iterator[Sequence[T]]:
    yield from (items[i : i + BATCH] for i in range(0, len(items), BATCH))


def _factors(per_octave: int) -> list[float]:
    """From 1.7, for weights that lie on a grid they do not fill, down to 0.2, in equal ratios."""
    return [2.0 ** (-i / per_octave) for i in range(-3 * per_octave // 4, 9 * per_octave // 4)]


def _offer_wide(best: BestGrid, scale: Array, zero: Array) -> None:
    """Coarse scales, with zero points that keep the origin or the middle, or all there are."""
    xp, how = best.xp, best.problem.how
    if how.bits <= 3:
        values = range(how.highest + 1)
        for some in _batches(list(itertools.product(_factors(8), values))):
            scales = scale * best.column([factor for factor, _ in some])
            zeros = best.column([float(value) for _, value in some])
            best.offer(scales, xp.broadcast_to(zeros, scales.shape))
        return
    top = float(how.highest)
    choices = itertools.product(_factors(12), (False, True), (0.0, -1.0, 1.0))
    for chosen in _batches(list(choices)):
        factors = best.column([factor for factor, _, _ in chosen])
        middles = best.column([(1 - 1 / factor) * top / 2 for factor, _, _ in chosen])
        is_centred = best.column([float(centred) for _, centred, _ in chosen]) > 0
        middle = xp.where(is_centred, xp.round(zero / factors + middles), zero)
        zeros = best.clipped(middle + best.column([offset for _, _, offset in chosen]))
        best.offer(scale * factors, zeros)


def half_quadratic(best: BestGrid) -> None:
    """Zero point, then scale, by half-quadratic splitting of the robust cost."""
    xp, how = best.xp, best.problem.how
    betas = [_HQQ_BETA * _HQQ_GROWTH**i for i in range(_HQQ_ROUNDS)]
    if best.zero is not None:
        zero, total = best.zero, best.problem.weights
        top = float(how.highest)
        for beta in betas:
            shift = best.problem.moments(best.scale, zero, threshold=1 / beta)[0, ...]
            mean = xp.astype(shift / xp.where(total > 0, total, 1.0), xp.float32)
            zero = xp.where(total > 0, xp.clip(mean, 0.0, top), zero)
        whole = xp.round(zero)
        zeros = best.clipped(whole + best.column((0.0, -1.0, 1.0)))
        best.offer(xp.broadcast_to(best.scale, zeros.shape), zeros)
    scale = best.scale
    for beta in betas:
        scale = settle(best.refit(scale, best.zero, 1 / beta), how)
        best.offer_scaled(scale, best.zero, (1.0,))
