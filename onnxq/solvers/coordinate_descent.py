"""Coordinate descent: every code is set to the best one given all others, until none can improve.

Minimizes tr((W − Ŵ)(H + λI)(W − Ŵ)ᵀ) over the codes, from those of another solver, and with
``scales="refit"`` over the scales too, each in closed form (`refit_scales`) between sweeps. No step
raises the objective, so the result is never worse than its start: Behdin et al., "QuantEase"
(arXiv:2309.01885); Zhang et al., "COMQ" (arXiv:2403.07134), which re-fits scales
in the loop and orders columns greedily. `onnxq.numerics.coordinate_descent` has the algebra.

QuantEase's outlier-aware variant keeps outliers in full precision beside the codes: columns of the
weight are kept so around this or any other solver by `onnxq.solvers.kept_columns`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import array_api_compat

from onnxq.errors import FormatError
from onnxq.formats import Arrays, IntFormat
from onnxq.numerics.coordinate_descent import CodeGrid, descend
from onnxq.numerics.grid_costs import Array, spread_groups
from onnxq.solvers.gptq import gptq
from onnxq.solvers.grids import Search, rows_per_scale
from onnxq.solvers.inputs import checked_inputs, require_integers
from onnxq.solvers.nearest import nearest
from onnxq.solvers.refit_scales import refit_scales
from onnxq.solvers.shrinkage import enough_damping
from onnxq.solvers.statistics import Statistics

__all__ = [
    "CodeStep",
    "Descent",
    "Fitting",
    "Start",
    "alternate",
    "check_descent",
    "code_grid",
    "coordinate_descent",
    "damped",
    "start_from",
]

Start = Literal["nearest", "gptq"]
Descent = Literal["cyclic", "greedy"]
Fitting = Literal["fixed", "refit"]


def coordinate_descent(
    weight: Array,
    fmt: IntFormat,
    statistics: Statistics | None = None,
    *,
    seed: int = 0,
    threads: int | None = None,
    start: Start = "gptq",
    order: Descent = "greedy",
    scales: Fitting = "refit",
    rounds: int = 3,
    sweeps: int = 20,
    damping: float = 0.05,
    search: Search = "neuqi",
) -> Arrays:
    """Improve the codes of ``start`` one at a time.

    Args:
        weight: ``[rows, columns]`` = ``[out, in]``, a float type; NumPy, or torch on any device.
        fmt: the format to store it in.
        statistics: of the inputs of the layer; only the Hessian is used.
        seed: not used, nothing is random; every solver takes it.
        threads: of the kernel; the result does not depend on it.
        start: the solver that chooses scales and first codes, ``nearest`` or ``gptq``.
        order: ``cyclic`` goes over the columns in turn; ``greedy`` first takes, in every row, the
            single step that gains most, until none gains.
        scales: ``fixed`` keeps those of ``start``; ``refit`` fits them to the codes, and the codes
            to them, in turn.
        rounds: how often scales are fitted, at most; it stops when no code changes any more.
        sweeps: over all columns, at most, for each fit of the codes; it stops when no code changes.
        damping: λ as a part of the mean diagonal of H, here and in ``gptq``. More than there:
            descent goes on until it fits the noise of H too, and on text not seen 0.01 lost to it.
        search: how ``start`` chooses scales, see `nearest`.

    Returns:
        The arrays of ``fmt.encode``.

    Raises:
        FormatError: no statistics, statistics of another layer, an option that does not exist, or
            a weight that cannot be stored (see `IntFormat.encode`).
    """
    del seed
    require_integers("coordinate_descent", fmt)
    check_descent("coordinate_descent", order, sweeps)
    if scales not in ("fixed", "refit"):
        raise FormatError(f"scales is {scales!r}; choose 'fixed' or 'refit'.")
    weight, hessian = checked_inputs("coordinate_descent", weight, statistics)
    damping = enough_damping(statistics, damping)
    known = Statistics(hessian=damped(hessian, damping))
    arrays = start_from(
        start, weight, fmt, statistics, search=search, damping=damping, threads=threads
    )
    codes = CodeStep(weight, fmt, known, order=order, sweeps=sweeps, threads=threads)

    def fit_scales(arrays: Arrays) -> Arrays:
        return refit_scales(weight, arrays, fmt, known, threads=threads)

    return alternate(arrays, codes, fit_scales, rounds if scales == "refit" else 0)


@dataclasses.dataclass(frozen=True)
class CodeStep:
    """The best codes for given scales, one at a time: a step that never raises the objective."""

    weight: Array
    fmt: IntFormat
    statistics: Statistics
    _: dataclasses.KW_ONLY
    order: Descent
    sweeps: int
    threads: int | None

    def __call__(self, arrays: Arrays) -> Arrays:
        """The arrays with new codes."""
        codes, _ = descend(
            self.weight,
            self.statistics.hessian,
            arrays["codes"],
            code_grid(self.fmt, arrays, int(self.weight.shape[0])),
            sweeps=self.sweeps,
            greedy=self.order == "greedy",
            threads=self.threads,
        )
        return {**arrays, "codes": codes}


def alternate(
    arrays: Arrays,
    fit_codes: Callable[[Arrays], Arrays],
    fit_scales: Callable[[Arrays], Arrays],
    rounds: int,
) -> Arrays:
    """Codes, then ``rounds`` times scales and codes; ends early when the codes stay the same."""
    arrays = fit_codes(arrays)
    xp = array_api_compat.array_namespace(arrays["codes"])
    for _ in range(rounds):
        before = arrays["codes"]
        arrays = fit_codes(fit_scales(arrays))
        if bool(xp.all(arrays["codes"] == before)):
            break
    return arrays


def start_from(
    start: Start,
    weight: Array,
    fmt: IntFormat,
    statistics: Statistics | None,
    *,
    search: Search,
    damping: float,
    threads: int | None,
) -> Arrays:
    """Codes and scales of ``start``.

    Raises:
        FormatError: ``start`` is neither of the two, or as the solver says.
    """
    if start == "gptq":
        return gptq(weight, fmt, statistics, search=search, damping=damping, threads=threads)
    if start == "nearest":
        return nearest(weight, fmt, statistics, search=search, threads=threads)
    raise FormatError(f"start is {start!r}; choose 'nearest' or 'gptq'.")


def check_descent(solver: str, order: Descent, sweeps: int) -> None:
    """Raise `FormatError` for an order or a number of sweeps that does not exist."""
    if order not in ("cyclic", "greedy"):
        raise FormatError(f"order of {solver} is {order!r}; choose 'cyclic' or 'greedy'.")
    if sweeps < 1:
        raise FormatError(f"{solver} was given {sweeps} sweeps; it needs 1 or more.")


def damped(hessian: Array, damping: float) -> Array:
    """H + λI in float32, λ = ``damping`` times the mean diagonal of H.

    Raises:
        FormatError: NaN or infinity in H.
    """
    xp = array_api_compat.array_namespace(hessian)
    if not bool(xp.all(xp.isfinite(hessian))):
        raise FormatError(
            "the Hessian holds NaN or infinity: the calibration run overflowed; look for infinite "
            "activations of this layer, or gather the statistics in float32 or float64."
        )
    added = damping * float(xp.mean(xp.linalg.diagonal(hessian)))
    plain = xp.astype(hessian, xp.float32)
    size = hessian.shape[0]
    device = array_api_compat.device(hessian)
    return plain + added * xp.eye(size, dtype=xp.float32, device=device)


def code_grid(fmt: IntFormat, arrays: Arrays, rows: int) -> CodeGrid:
    """What the codes of ``arrays`` stand for, with scales and zeros of its own for every row."""
    xp = array_api_compat.array_namespace(arrays["codes"])
    span = rows_per_scale(fmt, rows)
    zeros = arrays.get("zeros")
    return CodeGrid(
        scales=spread_groups(xp.astype(arrays["scales"], xp.float32), rows, span),
        zeros=None if zeros is None else spread_groups(zeros, rows, span),
        group=fmt.group_size(arrays["codes"].shape[1]),
        lowest=fmt.lowest,
        highest=fmt.highest,
    )
