"""Choosing scales and zero points: how wide the grid of each group is, and where it lies.

Every method returns a grid on which rounding to nearest has a small error; they differ in what is
minimised and how far they look. With importances h (the diagonal of H = E[x xᵀ]; ones when not
given) and Q the rounding of `onnxq.numerics.rounding`:

- ``minmax``: the plain range of the group, bit for bit what `round_groups` chooses.
- ``mse``: the best factor of `MSE_GRID` on the scale of the plain range, by Σ h (w - Q(w))²;
  without importances bit for bit the search of `round_groups`.
- ``neuqi``: scale and whole zero point together, by the same sum: a coarse grid over both, a fine
  one around the best, then least squares for the scale with the codes fixed, next to the
  neighbouring zero points, until nothing improves. Scales of symmetric grids are tried with both
  signs, because the codes reach one step further on one side. Lin et al., "NeUQI: Near-Optimal
  Uniform Quantization Parameter Initialization" (arXiv:2505.17595), which searches more scales, and
  real zero points as well; the least-squares step stands for the fine end of its search.
- ``hqq``: half-quadratic splitting for Σ h |w - Q(w)|^p with p = 3/4, so that a few large errors do
  not widen the grid for all. Errors e are shrunk (a proximal step), then the zero point is the
  mean of q - (w - e)/s, and with it fixed the scale is the least-squares one for w - e. Badri &
  Shaji, "Half-Quadratic Quantization of Large Machine Learning Models" (2023). Theirs keeps a real
  zero point, leaves the scale of the plain range and has p = 0.7; stored zero points are whole
  here, so the mean is rounded and its neighbours are tried, the scale moves too, and the errors
  that are shrunk are measured in steps, which makes the result independent of the unit of the
  weight (β starts at 10 and grows by 1 % a round as theirs).

A grid is only ever replaced by one that costs less in the method's own sum: ``neuqi`` is never
worse than ``mse``, nor that than ``minmax``; ``hqq`` is never worse than ``minmax`` in its sum.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args

import array_api_compat
import numpy as np

from onnxq.errors import FormatError
from onnxq.numerics import _native
from onnxq.numerics.grid_costs import Array, GridCosts, kernel_readable, spread_groups
from onnxq.numerics.grid_search import BestGrid, half_quadratic, near_optimal
from onnxq.numerics.rounding import (
    MINMAX,
    MSE_GRID,
    Rounding,
    round_groups,
)
from onnxq.numerics.threads import default_threads

__all__ = ["ScaleGrid", "Search", "checked_importance", "round_to", "search_scales"]

Search = Literal["minmax", "mse", "neuqi", "hqq"]
"""How scales are chosen, see the module docstring."""


@dataclasses.dataclass(frozen=True)
class ScaleGrid:
    """Scales float32 and zeros uint8 (None when symmetric), ``[bands, groups]``."""

    scales: Array
    zeros: Array | None


def search_scales(
    weight: Array,
    how: Rounding,
    *,
    method: Search = "minmax",
    importance: Array | None = None,
    threads: int | None = None,
    span: int = 1,
) -> ScaleGrid:
    """Choose the grid of every group of ``weight``.

    Args:
        weight: ``[rows, columns]`` float32, NumPy (any strides) or torch.
        how: bits, symmetry, group, and what scales may be; ``shrink`` is not looked at.
        method: see the module docstring.
        importance: ``[columns]``, at least 0: what a squared error of each column counts, such as
            the diagonal of H. ``minmax`` does not use it.
        threads: of the kernel; the result does not depend on it.
        span: rows that share a scale, 1 as a rule.

    Returns:
        Scales ``[ceil(rows / span), groups]`` as stored (rounded to float16 if ``half_scales``).

    Raises:
        FormatError: NaN or infinity in the weight, a scale too large for float16, an unknown
            method, or importances that are not ``[columns]``, finite and at least 0.
    """
    if method not in get_args(Search):
        names = ", ".join(repr(name) for name in get_args(Search))
        raise FormatError(f"search is {method!r}; choose one of {names}.")
    weight = kernel_readable(weight)
    if method == "mse" and importance is None and span == 1 and isinstance(weight, np.ndarray):
        rounded = round_groups(weight, dataclasses.replace(how, shrink=MSE_GRID), threads=threads)
        return ScaleGrid(rounded.scales, rounded.zeros)
    scale, zero = _plain_grid(weight, how, span, threads)
    if method != "minmax":
        problem = GridCosts(
            weight=weight,
            how=how,
            importance=checked_importance(importance, weight),
            span=span,
            threads=threads,
        )
        with np.errstate(all="ignore"):
            best = BestGrid(problem, scale, zero, robust=method == "hqq")
            if method == "hqq":
                half_quadratic(best)
            else:
                full = dataclasses.replace(how, half_scales=False)
                base = _plain_grid(weight, full, span, threads)[0] if how.half_scales else scale
                best.offer_scaled(base, zero, MSE_GRID[1:])
            if method == "neuqi":
                near_optimal(best, scale, zero)
        scale, zero = best.scale, best.zero
    if zero is None:
        return ScaleGrid(scale, None)
    xp = array_api_compat.array_namespace(zero)
    return ScaleGrid(scale, xp.astype(zero, xp.uint8))


def round_to(
    weight: Array, how: Rounding, grid: ScaleGrid, *, threads: int | None = None, span: int = 1
) -> Array:
    """The nearest codes of ``weight`` [rows, columns] on a given grid.

    Returns:
        int8 (symmetric) or uint8 ``[rows, columns]`` in ``[how.lowest, how.highest]``; the codes
        of `round_groups` when the grid is the one it chose.

    Raises:
        FormatError: NaN or infinity in the weight.
    """
    weight = kernel_readable(weight)
    rows, columns = weight.shape
    scales = spread_groups(grid.scales, rows, span)
    zeros = None if grid.zeros is None else spread_groups(grid.zeros, rows, span)
    if not isinstance(weight, np.ndarray):
        return _round_to_reference(weight, how, scales, zeros)
    codes = np.empty((rows, columns), np.uint8)
    finite = _native.round_to(
        weight,
        np.ascontiguousarray(scales, np.float32)[None],
        np.empty((0, 0, 0), np.float32)
        if zeros is None
        else np.ascontiguousarray(zeros, np.float32)[None],
        codes,
        how.group,
        how.bits,
        how.symmetric,
        threads or default_threads(),
    )
    if not finite:
        raise _not_finite()
    return codes.view(np.int8) if how.symmetric else codes


def _round_to_reference(weight: Array, how: Rounding, scales: Array, zeros: Array | None) -> Array:
    """The meaning of `round_to`, over the array API, scales and zeros ``[rows, groups]``."""
    xp = array_api_compat.array_namespace(weight)
    columns = int(weight.shape[1])
    if not bool(xp.all(xp.isfinite(weight))):
        raise _not_finite()
    step = xp.repeat(scales, how.group, axis=1)[:, :columns]
    zero = xp.zeros_like(scales) if zeros is None else xp.astype(zeros, xp.float32)
    zero = xp.repeat(zero, how.group, axis=1)[:, :columns]
    steps = xp.round(xp.clip(weight / step, how.lowest - zero, how.highest - zero))
    return xp.astype(steps + zero, xp.int8 if how.symmetric else xp.uint8)


def _plain_grid(
    weight: Array, how: Rounding, span: int, threads: int | None
) -> tuple[Array, Array | None]:
    """Scale and zero point of the plain range, float32 ``[bands, groups]``."""
    plain = dataclasses.replace(how, shrink=MINMAX)
    if span == 1 and isinstance(weight, np.ndarray):
        rounded = round_groups(weight, plain, threads=threads)
        zeros = rounded.zeros
        return rounded.scales, None if zeros is None else zeros.astype(np.float32)
    xp = array_api_compat.array_namespace(weight)
    rows, columns = weight.shape
    bands = [slice(begin, begin + span) for begin in range(0, rows, span)]
    pieces = [slice(begin, begin + how.group) for begin in range(0, columns, how.group)]
    ends = []
    for choose in (xp.min, xp.max):
        # Rows first when they are shared: what is left is then small.
        tall: Any = weight
        if span > 1:
            tall = xp.stack([choose(weight[band, :], axis=0) for band in bands])
        ends.append(xp.stack([choose(tall[:, piece], axis=1) for piece in pieces], axis=1))
    both = xp.stack(ends, axis=-1)
    here = np.asarray(array_api_compat.to_device(both, "cpu"), np.float32).reshape(-1, 2)
    rounded = round_groups(here, dataclasses.replace(plain, group=2))
    where = array_api_compat.device(weight)
    shape = (len(bands), len(pieces))
    scale = xp.reshape(xp.asarray(rounded.scales, device=where), shape)
    if rounded.zeros is None:
        return scale, None
    zero = xp.asarray(rounded.zeros.astype(np.float32), device=where)
    return scale, xp.reshape(zero, shape)


def checked_importance(importance: Array | None, weight: Array) -> Array:
    """Importances ``[columns]`` as float32 of at most 1, for only their ratios matter to a search.

    Raises:
        FormatError: they are not ``[columns]``, finite and at least 0.
    """
    xp = array_api_compat.array_namespace(weight)
    columns = int(weight.shape[1])
    where = array_api_compat.device(weight)
    if importance is None:
        return xp.ones((columns,), dtype=xp.float32, device=where)
    if tuple(importance.shape) != (columns,):
        raise FormatError(
            f"importances of shape {list(importance.shape)} do not fit a weight of {columns} "
            "columns: give one for each column, such as the diagonal of its Hessian."
        )
    if not bool(xp.all(xp.isfinite(importance))) or bool(xp.any(importance < 0)):
        raise FormatError(
            "the importances hold NaN, infinity or a negative number: look at the statistics of "
            "this weight's input, or search without them."
        )
    top = float(xp.max(importance))
    importance = xp.astype(importance, xp.float64) / (top if top > 0 else 1.0)
    return xp.asarray(xp.astype(importance, xp.float32), device=where)


def _not_finite() -> FormatError:
    return FormatError(
        "the weight holds NaN or infinity, which no integer code can stand for: "
        "look at how the model was trained or exported, or leave this weight in float"
    )
