"""What a stored weight costs on the calibration data, and the target of asymmetric calibration."""

from __future__ import annotations

from typing import Any

import array_api_compat
import numpy.typing as npt

from onnxq.errors import FormatError
from onnxq.numerics.linalg import factor_hessian
from onnxq.solvers.inputs import check_columns
from onnxq.solvers.statistics import Statistics

__all__ = ["ENTRIES", "moved_target", "objective"]

Array = npt.NDArray[Any]

ENTRIES = 1 << 22
"""Of a weight, in float64 at a time: the wide copies of a large one would be its largest."""


def objective(
    weight: Array, decoded: Array, statistics: Statistics, *, asymmetric: bool = False
) -> Array:
    """The mean squared output error of every row, Σ over rows = tr((W − Ŵ) H (W − Ŵ)ᵀ).

    Args:
        weight: W, ``[rows, columns]``, a float type.
        decoded: Ŵ, what the stored arrays stand for.
        statistics: H, and D when asymmetric.
        asymmetric: compare with the float model, E‖W x̃ − Ŵ x‖², up to the part no Ŵ can change.
            With e = W − Ŵ that is e H eᵀ + 2 e Dᵀ wᵀ, and may be negative; differences between
            two Ŵ are exact.

    Returns:
        float64 ``[rows]``, in the squared units of the output, per token.

    Raises:
        FormatError: shapes that do not fit, or asymmetric without `Statistics.drift`.
    """
    xp = array_api_compat.array_namespace(weight, decoded)
    check_columns(weight, statistics)
    if tuple(decoded.shape) != tuple(weight.shape):
        raise FormatError(
            f"a decoded weight of shape {list(decoded.shape)} is compared with one of shape "
            f"{list(weight.shape)}: decode the arrays with the format they were stored in."
        )
    hessian = xp.astype(statistics.hessian, xp.float64, copy=False)
    drift = None
    if asymmetric:
        drift = xp.astype(_drift(statistics, "the asymmetric objective"), xp.float64, copy=False)
    costs = []
    step = max(1, ENTRIES // int(weight.shape[1]))
    for start in range(0, max(1, int(weight.shape[0])), step):
        wanted = xp.astype(weight[start : start + step], xp.float64)
        error = wanted - xp.astype(decoded[start : start + step], xp.float64)
        cost = xp.sum((error @ hessian) * error, axis=1)
        if drift is not None:
            cost = cost + 2 * xp.sum((wanted @ drift) * error, axis=1)
        costs.append(cost)
    joined: Array = xp.concat(costs)
    return joined


def moved_target(
    weight: Array, statistics: Statistics, *, strength: float = 1.0, damping: float = 0.01
) -> Array:
    """W* = W (I + strength · D (H + λI)⁻¹): see `onnxq.solvers.statistics`.

    Args:
        weight: W, ``[rows, columns]``, a float type.
        statistics: H and D.
        strength: 0 keeps W, 1 moves it all the way to the float model's output. D is estimated
            from finitely many tokens; less than 1 lets what is noise in it count for less. The
            code of GPTAQ has the same factor, 0.25 unless told.
        damping: see `onnxq.numerics.linalg.factor_hessian`; the same λ a solver rounds with.

    Returns:
        ``[rows, columns]``, of the type of ``weight``; computed in float64.

    Raises:
        FormatError: no `Statistics.drift`, or shapes that do not fit.
    """
    xp = array_api_compat.array_namespace(weight)
    check_columns(weight, statistics)
    drift = xp.astype(_drift(statistics, "gptaq"), xp.float64)
    factor = factor_hessian(statistics.hessian, damping=damping)
    # W D (U diag(v) Uᵀ)⁻¹, from the right: two triangular systems.
    pull = xp.astype(weight, xp.float64) @ drift
    pull = xp.linalg.solve(factor.upper, pull.T)
    pull = xp.linalg.solve(factor.upper.T, pull / factor.variances[:, None]).T
    moved: Array = xp.astype(xp.astype(weight, xp.float64) + strength * pull, weight.dtype)
    return moved


def _drift(statistics: Statistics, who: str) -> Array:
    if statistics.drift is None:
        raise FormatError(
            f"{who} needs statistics.drift, E[(x̃ − x) xᵀ] of float and quantized inputs: gather "
            "statistics with inputs of both models (asymmetric calibration), or use gptq."
        )
    return statistics.drift
