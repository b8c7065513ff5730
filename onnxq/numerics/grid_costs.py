"""What a grid of codes costs a weight, and the sums from which a better grid is fitted.

A grid gives each group of a weight a scale s and a zero point z; the weight is rounded to the
nearest code q in [lowest, highest] and read back as ``(q - z) * s``. With importances h per column
(the diagonal of H = E[x xᵀ], or ones), of each group the kernel sums

- costs: ``Σ h |w - (q - z) s|^p``, p = 2, or p = 3/4 when robust: square roots round alike on every
  CPU, which powers do not;
- moments, with ``u = w / s`` and ``t = q - z``: ``Σ h (q - u)``, ``Σ h t u`` and ``Σ h t t``. While
  the codes stay, ``Σ h (q - u) / Σ h`` is the best real zero point and
  ``s * Σ h t u / Σ h t t`` the best scale in the sense of least squares.

Given NumPy arrays a native multithreaded kernel sums in float32 over at most 512 columns and in
float64 over those; any other array library runs the same formulas in float64 sums.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import array_api_compat
import numpy as np

from onnxq.errors import FormatError
from onnxq.numerics import _native
from onnxq.numerics.rounding import Rounding
from onnxq.numerics.threads import default_threads

__all__ = ["Array", "GridCosts", "kernel_readable", "spread_groups"]

Array = Any
"""An array of NumPy, or of torch on any device."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GridCosts:
    """One weight, and what grids cost it.

    A grid is ``scales`` and ``zeros``, float32 ``[bands, groups]``; zeros hold whole numbers, or
    are None when symmetric.

    Attributes:
        weight: ``[rows, columns]`` float32.
        how: its bits, symmetry and group are used.
        importance: ``[columns]`` float32, at least 0.
        span: rows that share a scale: ``bands = ceil(rows / span)``.
        threads: of the kernel; nothing depends on it.
    """

    weight: Array
    how: Rounding
    importance: Array
    span: int = 1
    threads: int | None = None

    @property
    def groups(self) -> int:
        """How many groups a row has."""
        return -(-int(self.weight.shape[1]) // self.how.group)

    @property
    def weights(self) -> Array:
        """The importances of each group, added up: float64 ``[bands, groups]``."""
        xp = array_api_compat.array_namespace(self.weight)
        rows = int(self.weight.shape[0])
        size = self.how.group
        sums = [
            xp.sum(self.importance[i * size : (i + 1) * size], dtype=xp.float64)
            for i in range(self.groups)
        ]
        return self._by_bands(xp.broadcast_to(xp.stack(sums), (rows, self.groups)))

    def costs(self, scales: Array, zeros: Array | None, *, robust: bool = False) -> Array:
        """The cost of ``count`` grids: float64 ``[count, bands, groups]`` from such arrays."""
        if not isinstance(self.weight, np.ndarray):
            xp = array_api_compat.array_namespace(self.weight)
            each = [
                self.costs_reference(
                    scales[i, ...], None if zeros is None else zeros[i, ...], robust
                )
                for i in range(scales.shape[0])
            ]
            return xp.stack(each)
        scales, zeros = self._by_rows(scales), self._by_rows(zeros)
        costs = np.empty(scales.shape, np.float64)
        _native.group_costs(
            self.weight, scales, zeros, self.importance, costs, *self._kind(), robust,
            self.threads or default_threads(),
        )  # fmt: skip
        return self._by_bands(costs)

    def moments(self, scale: Array, zero: Array | None, *, threshold: float = 0.0) -> Array:
        """The moments of one grid: float64 ``[3, bands, groups]``.

        Args:
            scale: ``[bands, groups]``.
            zero: ``[bands, groups]``, which need not hold whole numbers here.
            threshold: when above 0, errors ``e = u - t`` are first replaced by what the shrinkage
                ``sign(e) max(|e| - threshold |e|^(-1/4), 0)`` takes away, so that large errors
                count for little: u becomes u less the shrunk error.
        """
        if not isinstance(self.weight, np.ndarray):
            return self.moments_reference(scale, zero, threshold)
        scales = self._by_rows(scale[None])
        zeros = self._by_rows(None if zero is None else zero[None])
        moments = np.empty((3, *scales.shape[1:]), np.float64)
        _native.group_moments(
            self.weight, scales, zeros, self.importance, moments, *self._kind(), threshold,
            self.threads or default_threads(),
        )  # fmt: skip
        return self._by_bands(moments)

    def costs_reference(self, scale: Array, zero: Array | None, robust: bool = False) -> Array:
        """The meaning of `costs`, over the array API, for one grid: ``[bands, groups]``."""
        xp, w, importance, step, middle = self._grouped(scale, zero)
        steps = xp.round(xp.clip(w / step, self.how.lowest - middle, self.how.highest - middle))
        gap = w - steps * step
        loss = xp.sqrt(xp.abs(gap)) * xp.sqrt(xp.sqrt(xp.abs(gap))) if robust else gap * gap
        return self._by_bands(xp.sum(loss * importance, axis=-1, dtype=xp.float64))

    def moments_reference(self, scale: Array, zero: Array | None, threshold: float = 0.0) -> Array:
        """The meaning of `moments`, over the array API."""
        xp, w, importance, step, middle = self._grouped(scale, zero)
        target = w / step
        code = xp.round(xp.clip(target + middle, self.how.lowest, self.how.highest))
        steps = code - middle
        if threshold > 0:
            error = target - steps
            size = xp.abs(error)
            cut = threshold / xp.sqrt(xp.sqrt(xp.where(size > 0, size, xp.ones_like(size))))
            target = target - xp.sign(error) * xp.clip(size - cut, 0.0, None)
        sums = [
            xp.sum(term * importance, axis=-1, dtype=xp.float64)
            for term in (code - target, steps * target, steps * steps)
        ]
        return self._by_bands(xp.stack(sums))

    def _grouped(self, scale: Array, zero: Array | None) -> tuple[Any, Array, Array, Array, Array]:
        """Weight ``[rows, groups, group]``, importance, and the grid to broadcast against them."""
        xp, weight, importance = self._cut
        rows = int(self.weight.shape[0])
        scale = spread_groups(scale, rows, self.span)[..., None]
        middle = xp.zeros_like(scale) if zero is None else spread_groups(zero, rows, self.span)
        return xp, weight, importance, scale, middle if zero is None else middle[..., None]

    @functools.cached_property
    def _cut(self) -> tuple[Any, Array, Array]:
        xp = array_api_compat.array_namespace(self.weight)
        rows, columns = self.weight.shape
        shape = (int(rows), self.groups, self.how.group)
        missing = self.groups * self.how.group - int(columns)
        where = array_api_compat.device(self.weight)
        weight, importance = self.weight, self.importance
        if missing:
            filling = xp.zeros((int(rows), missing), dtype=xp.float32, device=where)
            weight = xp.concat([weight, filling], axis=1)
            importance = xp.concat([importance, filling[0, :]])
        return xp, xp.reshape(weight, shape), xp.reshape(importance, shape[1:])

    def _by_rows(self, grid: Array | None) -> Any:
        if grid is None:
            return np.empty((0, 0, 0), np.float32)
        rows = self.weight.shape[0]
        return np.ascontiguousarray(spread_groups(grid, rows, self.span), np.float32)

    def _by_bands(self, sums: Array) -> Array:
        """Adds up rows that share a scale: ``[..., bands, groups]`` of ``[..., rows, groups]``."""
        if self.span == 1:
            return sums
        xp = array_api_compat.array_namespace(sums)
        rows = int(sums.shape[-2])
        bands = [
            xp.sum(sums[..., begin : begin + self.span, :], axis=-2)
            for begin in range(0, rows, self.span)
        ]
        return xp.stack(bands, axis=-2)

    def _kind(self) -> tuple[int, int, bool]:
        return self.how.group, self.how.bits, self.how.symmetric


def spread_groups(grid: Array, rows: int, span: int) -> Array:
    """``[..., bands, groups]`` repeated for each row: ``[..., rows, groups]``."""
    if span == 1:
        return grid
    xp = array_api_compat.array_namespace(grid)
    return xp.repeat(grid, span, axis=-2)[..., :rows, :]


def kernel_readable(weight: Array) -> Array:
    """The weight as float32, where it lies if one axis is contiguous; checked to be a matrix.

    Raises:
        FormatError: not a matrix, or empty.
    """
    if weight.ndim != 2 or 0 in tuple(weight.shape):
        raise FormatError(
            f"a weight of shape {list(weight.shape)} is not a matrix [rows, columns] with "
            "something in it: reshape it so that rows are output features."
        )
    if not isinstance(weight, np.ndarray):
        xp = array_api_compat.array_namespace(weight)
        return xp.astype(weight, xp.float32, copy=False)
    weight = weight.astype(np.float32, copy=False)
    if weight.itemsize in weight.strides and min(weight.strides) > 0:
        return weight
    return np.ascontiguousarray(weight)
