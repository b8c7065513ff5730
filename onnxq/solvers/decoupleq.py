"""decoupleQ: integer part and float part of a weight are fitted in turn, each in its own best way.

Guo et al., "decoupleQ: Towards 2-bit Post-Training Uniform Quantization via Decoupling Parameters
into Integer and Floating Points" (arXiv:2404.12759): a weight (codes − zero) · scale is not a
rounded one but the solution of

    min tr((Ŵ − W)(H + λI)(Ŵ − W)ᵀ)   over whole codes within their range, and scales and zeros,

found by alternating between

- the integer part, scales and zeros given: coordinate descent on the codes, down to where no code
  can be improved (`onnxq.numerics.coordinate_descent`); the paper projects gradient descent or
  runs GPTQ;
- the float part, codes given: least squares. The paper's zero is real; the stored one is a whole
  number in the range of codes, so it takes the best such value group after group, all else given,
  which is least squares on its own lattice, and the scales follow in closed form (`refit_scales`).
  Symmetric formats have scales alone.

Neither part raises the objective.
"""

from __future__ import annotations

import array_api_compat

from onnxq.errors import FormatError
from onnxq.formats import Arrays, IntFormat
from onnxq.numerics.coordinate_descent import SLACK
from onnxq.numerics.grid_costs import Array, spread_groups
from onnxq.solvers.coordinate_descent import (
    CodeStep,
    Descent,
    Start,
    alternate,
    check_descent,
    damped,
    start_from,
)
from onnxq.solvers.grids import Search, rows_per_scale
from onnxq.solvers.inputs import checked_inputs, require_integers
from onnxq.solvers.refit_scales import refit_scales
from onnxq.solvers.shrinkage import enough_damping
from onnxq.solvers.statistics import Statistics

__all__ = ["decoupleq", "fit_float_part", "refit_zeros"]


def decoupleq(
    weight: Array,
    fmt: IntFormat,
    statistics: Statistics | None = None,
    *,
    seed: int = 0,
    threads: int | None = None,
    start: Start = "nearest",
    order: Descent = "greedy",
    rounds: int = 4,
    sweeps: int = 20,
    damping: float = 0.01,
    search: Search = "neuqi",
) -> Arrays:
    """Fit integer part and float part in turn.

    Args:
        weight: ``[rows, columns]`` = ``[out, in]``, a float type; NumPy, or torch on any device.
        fmt: the format to store it in.
        statistics: of the inputs of the layer; only the Hessian is used.
        seed: not used, nothing is random; every solver takes it.
        threads: of the kernel; the result does not depend on it.
        start: the solver of the first codes and scales, ``nearest`` or ``gptq``.
        order: of the integer part, see `coordinate_descent`.
        rounds: how often the float part is fitted, at most; it stops when no code changes any more.
        sweeps: of each integer part, at most.
        damping: λ as a part of the mean diagonal of H.
        search: how ``start`` chooses scales, see `nearest`.

    Returns:
        The arrays of ``fmt.encode``.

    Raises:
        FormatError: no statistics, statistics of another layer, an option that does not exist, or
            a weight that cannot be stored (see `IntFormat.encode`).
    """
    del seed
    require_integers("decoupleq", fmt)
    check_descent("decoupleq", order, sweeps)
    if rounds < 0:
        raise FormatError(f"decoupleq was given {rounds} rounds; it needs 0 or more.")
    weight, hessian = checked_inputs("decoupleq", weight, statistics)
    damping = enough_damping(statistics, damping)
    known = Statistics(hessian=damped(hessian, damping))
    arrays = start_from(
        start, weight, fmt, statistics, search=search, damping=damping, threads=threads
    )
    codes = CodeStep(weight, fmt, known, order=order, sweeps=sweeps, threads=threads)

    def float_part(arrays: Arrays) -> Arrays:
        return fit_float_part(weight, arrays, fmt, known)

    return alternate(arrays, codes, float_part, rounds)


def fit_float_part(weight: Array, arrays: Arrays, fmt: IntFormat, statistics: Statistics) -> Arrays:
    """The arrays with better zeros, where the format has any, and then better scales."""
    return refit_scales(weight, refit_zeros(weight, arrays, fmt, statistics), fmt, statistics)


def refit_zeros(weight: Array, arrays: Arrays, fmt: IntFormat, statistics: Statistics) -> Arrays:
    """Set every zero point in turn to the best whole number, codes and scales given.

    With S ``[columns, groups]`` telling which columns are in which group and e = ŵ − w, a zero
    point that grows by d adds −d·scale to the whole group, and the objective is a parabola in d
    with its least value at d = (e H S)_g / (scale · (Sᵀ H S)_gg).

    Args:
        weight: ``[rows, columns]``, a float type; NumPy or torch.
        arrays: ``codes``, ``scales`` and ``zeros`` of that weight; returned as they are without
            zeros.
        fmt: their format.
        statistics: of the input.

    Returns:
        The arrays with new zeros; tr((W − Ŵ) H (W − Ŵ)ᵀ) is not larger than before.
    """
    if "zeros" not in arrays:
        return arrays
    xp = array_api_compat.array_namespace(weight)
    rows, columns = (int(size) for size in weight.shape)
    span, size = rows_per_scale(fmt, rows), min(fmt.group_size(columns), columns)
    scales = spread_groups(xp.astype(arrays["scales"], xp.float64), rows, span)
    zeros = spread_groups(xp.astype(arrays["zeros"], xp.float64), rows, span)
    device = array_api_compat.device(weight)
    group = xp.arange(columns, device=device) // size
    member = xp.astype(group[:, None] == xp.arange(scales.shape[1], device=device), xp.float64)
    reach = xp.astype(statistics.hessian, xp.float64) @ member
    between = member.T @ reach
    steps = xp.astype(arrays["codes"], xp.float64) - xp.take(zeros, group, axis=1)
    error = steps * xp.take(scales, group, axis=1) - xp.astype(weight, xp.float64)
    slope = error @ reach
    for index in range(scales.shape[1]):
        power, scale = float(between[index, index]), scales[:, index]
        if power <= 0:
            continue
        wanted = _mean_of_bands(slope[:, index] / (scale * power), span)
        best = xp.clip(zeros[:, index] + wanted, fmt.lowest, fmt.highest)
        moves = xp.abs(best - zeros[:, index]) > 0.5 + SLACK
        best = xp.where(moves, xp.round(best), zeros[:, index])
        slope = slope - ((best - zeros[:, index]) * scale)[:, None] * between[index, :][None, :]
        zeros[:, index] = best
    return {**arrays, "zeros": xp.astype(zeros[::span, :], arrays["zeros"].dtype)}


def _mean_of_bands(values: Array, span: int) -> Array:
    """The mean over every ``span`` rows that share a scale, the last of which may be fewer."""
    if span == 1:
        return values
    xp = array_api_compat.array_namespace(values)
    means = [
        xp.mean(values[begin : begin + span], keepdims=True)
        for begin in range(0, values.shape[0], span)
    ]
    return xp.repeat(xp.concat(means), span)[: values.shape[0]]
