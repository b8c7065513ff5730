"""LDLQ: round columns in turn, each given the errors of those before it, on any grid.

With H = U D Uᵀ (`onnxq.numerics.linalg`) and e = w − ŵ, columns are taken ``width`` at a time,

    ŵ_B = round(w_B + Σ_{A<B} e_A Ū_AB),      Ū = U · blockdiag(U_BB)⁻¹,

and the objective is exactly Σ_B η_B (U_BB D_B U_BBᵀ) η_Bᵀ, η_B the rounding error of the grid at B:
LDLQ for scalar grids (Chee et al., QuIP, arXiv:2307.13304, section 3) and block LDLQ for vector
grids (Tseng et al., QuIP#, arXiv:2402.04396, section 4.1). With scalar grids it is GPTQ.

A vector grid is told that metric, U_BB D_B U_BBᵀ, and may look for the point that is nearest in it:
what feedback does between blocks then happens inside them too.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import array_api_compat
import numpy as np
import numpy.typing as npt

from onnxq.errors import FormatError
from onnxq.formats import Arrays, Grid, VectorFormat
from onnxq.numerics.column_rounding import columns_of
from onnxq.numerics.linalg import Factor, factor_hessian
from onnxq.solvers.column_order import Order, column_order
from onnxq.solvers.inputs import to_numpy

__all__ = ["ScalarGrid", "ldlq", "ldlq_points"]

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True)
class ScalarGrid:
    """(code − zero) · scale with integer codes: `Grid` of width 1, which has a native kernel.

    Attributes:
        limits: lowest and highest code.
        scales: ``[rows, groups]`` float32, not 0.
        zeros: ``[rows, groups]``, None when symmetric.
        group: int32 ``[columns]``, the column of ``scales`` that each column takes.
    """

    limits: tuple[int, int]
    scales: Array
    zeros: Array | None
    group: Array

    @property
    def width(self) -> int:
        """One column at a time."""
        return 1

    def round(self, values: Array, start: int, metric: Array | None = None) -> tuple[Array, Array]:
        """See `Grid`."""
        del metric  # one column
        xp = array_api_compat.array_namespace(values)
        at, (lowest, highest) = int(self.group[start]), self.limits
        scale = xp.astype(self.scales[:, at], values.dtype)
        zero = xp.zeros_like(scale)
        if self.zeros is not None:
            zero = xp.astype(self.zeros[:, at], values.dtype)
        steps = xp.minimum(xp.maximum(values[:, 0] / scale, lowest - zero), highest - zero)
        steps = xp.round(steps)
        codes = xp.astype(steps + zero, xp.int8 if lowest < 0 else xp.uint8)
        return codes[:, None], (steps * scale)[:, None]


def ldlq(
    weight: Array, factor: Factor, grid: Grid, *, threads: int | None = None, block: int = 128
) -> Array:
    """Round ``weight`` to ``grid`` column after column, first to last.

    Args:
        weight: ``[rows, columns]``, finite, a float type; columns in the order of rounding.
        factor: of the Hessian in the same order.
        grid: where to round to; with a `ScalarGrid` NumPy weights take the native kernel.
        threads: of the kernel; the result does not depend on it.
        block: columns between two matrix products; native results do not depend on it.

    Returns:
        Codes, those of the grid side by side: ``[rows, columns / width · codes per round]``.
    """
    if isinstance(grid, ScalarGrid):
        columns = columns_of(weight, factor.upper, grid.limits, threads=threads)
        for begin in range(0, weight.shape[1], block):
            end = min(weight.shape[1], begin + block)
            columns.feed(0, begin, begin, end)
            columns.round(begin, end, grid.scales, grid.zeros, grid.group[begin:end])
        return columns.codes()
    return _on_any_grid(weight, factor, grid, block)


def ldlq_points(
    weight: Array,
    fmt: VectorFormat,
    hessian: Array,
    *,
    damping: float,
    order: Order,
    seed: int = 0,
    threads: int | None = None,
    block: int = 128,
) -> Arrays:
    """Round to the points of a format: GPTQ where points are numbers, QuIP#'s LDLQ where vectors.

    Args:
        weight: ``[rows, columns]``, finite, float32; NumPy or torch, rounded by NumPy.
        fmt: chooses what codes share from the weight, with the variances D as weights of squared
            errors.
        hessian: H, ``[columns, columns]``.
        damping: see `factor_hessian`.
        order: of runs of as many columns as the grid rounds together, which stay together.
        seed: of what the format chooses at random.
        threads: of kernels; the result does not depend on it.
        block: columns between two matrix products.

    Returns:
        The arrays of ``fmt.encode``.

    Raises:
        FormatError: the format refuses the shape, or an order that does not exist.
    """
    weight, hessian = fmt.checked(to_numpy(weight)), to_numpy(hessian)
    natural = factor_hessian(hessian, damping=damping, exact=False, threads=threads)
    grid = fmt.grid(weight, importance=natural.variances, seed=seed, threads=threads)
    places = _runs(np.diagonal(hessian), order, grid.width)
    factor = natural
    if order != "natural":
        factor = factor_hessian(
            hessian, damping=damping, places=places, exact=False, threads=threads
        )
    codes = _on_any_grid(weight[:, places], factor, _Placed(grid, places), block)
    each = codes.shape[1] * grid.width // weight.shape[1]
    runs = codes.reshape(len(weight), -1, each)[:, np.argsort(places[:: grid.width])]
    return grid.arrays(np.ascontiguousarray(runs.reshape(codes.shape)))


@dataclasses.dataclass(frozen=True)
class _Placed:
    """A grid that is told where its columns are stored, not when they are rounded."""

    grid: Grid
    places: npt.NDArray[np.int64]

    @property
    def width(self) -> int:
        return self.grid.width

    def round(self, values: Array, start: int, metric: Array | None = None) -> tuple[Array, Array]:
        place = int(self.places[start])
        codes, points = self.grid.round(np.ascontiguousarray(values), place, metric)
        return codes, points


def _runs(power: Array, order: Order, width: int) -> npt.NDArray[np.int64]:
    """The order of columns, runs of ``width`` moved as wholes."""
    if len(power) % width:
        raise FormatError(f"{len(power)} columns are not a whole number of runs of {width}.")
    runs = column_order(power.reshape(-1, width).mean(axis=1), order, 1)
    return (runs[:, None] * width + np.arange(width)).ravel()


def _on_any_grid(weight: Array, factor: Factor, grid: Grid, block: int) -> Array:
    xp = array_api_compat.array_namespace(weight)
    width, size = grid.width, weight.shape[1]
    block = max(width, block // width * width)
    weight = xp.astype(weight, xp.float32)
    upper = xp.astype(_block_unit(xp, factor.upper, width), xp.float32)
    errors, codes = xp.zeros_like(weight), []
    for begin in range(0, size, block):
        end = min(size, begin + block)
        before = errors[:, :begin] @ upper[:begin, begin:end]
        for start in range(begin, end, width):
            here = slice(start, start + width)
            feedback = before[:, start - begin : start - begin + width]
            feedback = feedback + errors[:, begin:start] @ upper[begin:start, here]
            metric = None if width == 1 else _metric(xp, factor, here)
            found, points = grid.round(weight[:, here] + feedback, start, metric)
            errors[:, here] = weight[:, here] - xp.astype(points, xp.float32)
            codes.append(found)
    joined: Array = xp.concat(codes, axis=1)
    return joined


def _metric(xp: Any, factor: Factor, block: slice) -> Array:
    """U_BB D_B U_BBᵀ: what errors of a block cost when all after it make up for them."""
    inner = factor.upper[block, block]
    metric: Array = (inner * factor.variances[block]) @ inner.T
    return metric


def _block_unit(xp: Any, upper: Array, width: int) -> Array:
    """Ū: the factor whose diagonal blocks of ``width`` columns are identities."""
    if width == 1:
        return upper
    count = upper.shape[0] // width
    split = xp.reshape(upper, (upper.shape[0], count, width))
    unit = []
    for index in range(count):
        inner = upper[index * width : (index + 1) * width, index * width : (index + 1) * width]
        unit.append(xp.linalg.solve(inner.T, split[:, index, :].T).T)
    joined: Array = xp.concat(unit, axis=1)
    return joined
