"""Scales fitted to codes in closed form: what any solver leaves, by least squares on H.

With the codes fixed, let T_g be the row's ``code - zero`` inside group g and 0 elsewhere, so that
Ŵ = Σ_g s_g T_g, and e = w − Ŵ. The objective e H eᵀ is a quadratic in the scales, and moving them
by δ changes it by

    δ A δᵀ − 2 δ r,    A_gk = T_g H T_kᵀ,    r_g = T_g H eᵀ,

so the best move solves the small system A δ = r of a row (summed over the rows that share scales).
It is solved with unit diagonal and a ridge of 1e-9: as it is the *move* that is damped, what the
data do not determine keeps its old scale, a singular A does no harm, and no ridge can make the
objective rise, since δ A δᵀ ≤ δ (A + R) δᵀ = δ r. Moves are cut short where a scale would change
its sign, and taken only where the objective still falls with scales as they are stored. Zhang et
al., "COMQ" (arXiv:2403.07134) and Guo et al., "decoupleQ" (arXiv:2404.12759) fit scales so too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import array_api_compat
import numpy as np

from onnxq.errors import FormatError
from onnxq.formats import Arrays, Format, IntFormat, TernaryFormat, VectorFormat
from onnxq.numerics.grid_costs import Array
from onnxq.solvers.grids import rows_per_scale
from onnxq.solvers.inputs import check_columns, require_integers, to_numpy
from onnxq.solvers.statistics import Statistics

__all__ = ["refit_scales"]

_RIDGE = 1e-9
_ELEMENTS = 1 << 21  # of rows worked on at a time, or of their systems: stays near the CPU


def refit_scales(
    weight: Array,
    arrays: Mapping[str, Array],
    fmt: Format,
    statistics: Statistics,
    *,
    asymmetric: bool = False,
    threads: int | None = None,
) -> Arrays:
    """Choose the best scales for given codes and zero points.

    Args:
        weight: W, ``[rows, columns]``, a float type; NumPy or torch.
        arrays: ``codes``, ``scales`` and, when asymmetric, ``zeros`` of that weight.
        fmt: their format.
        statistics: of the input; H is used, and D when ``asymmetric``.
        asymmetric: fit to the output of the float model, E‖W x̃ − Ŵ x‖².
        threads: not used, the work is matrix products; every step of a recipe takes it.

    Returns:
        The arrays with new scales, of ``fmt.scale_dtype``; codes and zeros are the same objects.
        tr((W − Ŵ) H (W − Ŵ)ᵀ) is not larger than before, of each row (or block of rows) alone.

    Raises:
        FormatError: statistics of another layer, without D when ``asymmetric``, or codes of
            another weight.
    """
    del threads
    xp = array_api_compat.array_namespace(weight)
    check_columns(weight, statistics)
    if isinstance(fmt, TernaryFormat):
        fmt = fmt.as_integers() or fmt
    if isinstance(fmt, VectorFormat):
        return _refit_rows(weight, arrays, fmt, statistics, asymmetric=asymmetric)
    fmt = require_integers("refit_scales", fmt)
    if tuple(arrays["codes"].shape) != tuple(weight.shape):
        raise FormatError(
            f"codes of shape {list(arrays['codes'].shape)} are fitted to a weight of shape "
            f"{list(weight.shape)}: pass the arrays that a solver returned for this very weight."
        )
    if asymmetric and statistics.drift is None:
        raise FormatError(
            "an asymmetric fit of scales needs the drift E[(x̃ - x) xᵀ], and the statistics have "
            "none: gather them with the float model run beside, or pass asymmetric=False."
        )
    hessian = xp.astype(statistics.hessian, xp.float64)
    drift = xp.astype(statistics.drift, xp.float64) if asymmetric else None
    moved = []
    for rows, bands in _portions(weight, fmt):
        old = xp.astype(arrays["scales"][bands, :], xp.float64)
        zeros = arrays["zeros"][bands, :] if "zeros" in arrays else None
        steps = _steps(xp, arrays["codes"][rows, :], zeros, fmt)
        part = xp.astype(weight[rows, :], xp.float64)
        error = part - steps * _spread(xp, old, steps.shape, fmt)
        extra = None if drift is None else part @ drift
        system, slope = _system(xp, steps, error, extra, hessian, fmt)
        if rows_per_scale(fmt, int(weight.shape[0])) > 1:  # these rows share their scales
            system, slope = xp.sum(system, axis=0)[None, ...], xp.sum(slope, axis=0)[None, ...]
        moved.append(_move(xp, old, system, slope, fmt))
    return {**arrays, "scales": xp.concat(moved, axis=0)}


def _refit_rows(
    weight: Array,
    arrays: Mapping[str, Array],
    fmt: VectorFormat,
    statistics: Statistics,
    *,
    asymmetric: bool,
) -> Arrays:
    """One scale for a row: s · (T H W*ᵀ) / (T H Tᵀ) where that is finite and the error falls."""
    scales = arrays.get("scales")
    rows = int(weight.shape[0])
    if scales is None or tuple(scales.shape) != (rows, 1):
        raise FormatError(f"{fmt} has no scale for each row: leave refit_scales out.")
    points = fmt.decode(arrays).astype(np.float64)
    wanted, hessian = to_numpy(weight).astype(np.float64), to_numpy(statistics.hessian)
    slope = ((wanted @ hessian) * points).sum(axis=1)
    if asymmetric and statistics.drift is not None:
        slope = slope + ((wanted @ to_numpy(statistics.drift)) * points).sum(axis=1)
    power = ((points @ hessian) * points).sum(axis=1)
    fits = np.divide(slope, power, out=np.ones(rows), where=(power > 0) & (slope > 0))
    moved = (scales[:, 0] * fits).astype(scales.dtype)
    stored = np.divide(moved, scales[:, 0], out=np.ones(rows), where=scales[:, 0] != 0)
    better = power * (stored - fits) ** 2 < power * (1 - fits) ** 2
    return {**arrays, "scales": np.where(better, moved, scales[:, 0])[:, None]}


def _portions(weight: Array, fmt: IntFormat) -> Iterator[tuple[slice, slice]]:
    """Rows, and the rows of their scales, that are worked on together."""
    rows, columns = (int(size) for size in weight.shape)
    span = rows_per_scale(fmt, rows)
    groups = fmt.granularity.scales_shape(rows, columns)[1]
    count = 1 if span > 1 else max(1, _ELEMENTS // (groups * max(groups, columns // groups)))
    bands = fmt.granularity.scales_shape(rows, columns)[0]
    for first in range(0, bands, count):
        last = min(first + count, bands)
        yield slice(first * span, min(last * span, rows)), slice(first, last)


def _spread(xp: Any, grid: Array, shape: tuple[int, ...], fmt: IntFormat) -> Array:
    """Scales or zeros ``[1 or rows, groups]`` repeated for each of their columns."""
    columns = int(shape[1])
    return xp.repeat(grid, fmt.group_size(columns), axis=1)[:, :columns]


def _steps(xp: Any, codes: Array, zeros: Array | None, fmt: IntFormat) -> Array:
    steps = xp.astype(codes, xp.float64)
    if zeros is None:
        return steps
    return steps - _spread(xp, xp.astype(zeros, xp.float64), codes.shape, fmt)


def _system(
    xp: Any, steps: Array, error: Array, extra: Array | None, hessian: Array, fmt: IntFormat
) -> tuple[Array, Array]:
    """A ``[rows, groups, groups]`` and r ``[rows, groups]``; ``extra`` is W D when asymmetric."""
    columns = int(steps.shape[1])
    size = fmt.group_size(columns)
    lines, slopes = [], []
    for begin in range(0, columns, size):
        group = slice(begin, min(begin + size, columns))
        reached = steps[:, group] @ hessian[group, :]
        slopes.append(xp.sum(reached * error, axis=1))
        if extra is not None:
            slopes[-1] = slopes[-1] + xp.sum(steps[:, group] * extra[:, group], axis=1)
        lines.append(_sum_groups(xp, reached * steps, size))
    return xp.stack(lines, axis=1), xp.stack(slopes, axis=1)


def _sum_groups(xp: Any, values: Array, size: int) -> Array:
    """``[rows, groups]``: sums over groups of columns, the last of which may be short."""
    rows, columns = (int(length) for length in values.shape)
    whole = columns // size * size
    sums = xp.sum(xp.reshape(values[:, :whole], (rows, -1, size)), axis=2) if whole else None
    if whole == columns:
        return sums
    rest = xp.sum(values[:, whole:], axis=1)[:, None]
    return rest if sums is None else xp.concat([sums, rest], axis=1)


def _move(xp: Any, old: Array, system: Array, slope: Array, fmt: IntFormat) -> Array:
    """The stored scales after the best move, or as they were where it does not pay."""
    diagonal = xp.linalg.diagonal(system)
    unit = xp.where(diagonal > 0, 1 / xp.sqrt(xp.where(diagonal > 0, diagonal, 1.0)), 0.0)
    eye = xp.eye(int(old.shape[1]), dtype=xp.float64, device=array_api_compat.device(old))
    scaled = system * unit[:, :, None] * unit[:, None, :]
    # A group without data has an empty line: 1 on its diagonal leaves its scale alone.
    scaled = scaled + eye * (_RIDGE + xp.where(diagonal > 0, 0.0, 1.0))[:, :, None]
    move = xp.linalg.solve(scaled, (slope * unit)[..., None])[..., 0] * unit
    # Along the move the objective falls all the way: stop before the first change of sign.
    falling = move * xp.sign(old) < 0
    room = xp.where(falling, 0.9 * xp.abs(old) / xp.where(falling, xp.abs(move), 1.0), 1.0)
    move = move * xp.clip(xp.min(room, axis=1), 0.0, 1.0)[:, None]
    stored = fmt.stored_scales(old + move)
    taken = xp.astype(stored, xp.float64) - old
    change = xp.sum(taken * ((system @ taken[..., None])[..., 0] - 2 * slope), axis=1)
    pays = (change < 0) & xp.all(stored != 0, axis=1) & xp.all(xp.isfinite(stored), axis=1)
    return xp.where(pays[:, None], stored, xp.astype(old, stored.dtype))
