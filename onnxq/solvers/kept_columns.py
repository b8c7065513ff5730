"""Input columns kept in full precision beside the codes, and what the others then minimise.

Let K be k input columns with a free float correction S added to what their codes stand for. Given
the errors E = W − Ŵ of all codes, the best S solves a least-squares problem in closed form,

    S = (E H)_K (H_KK)⁻¹,

and with it put in, tr((E − S) H (E − S)ᵀ) = tr(E_R H' E_Rᵀ) over the other columns R, with

    H' = H_RR − H_RK (H_KK)⁻¹ H_KR,

the covariance of what x_K cannot predict of x_R. So any solver that takes a Hessian finds codes
that count on the columns kept: it is given H' and W without the columns K, whose large weights no
longer widen the range of their groups.

Columns matter for two reasons: the others cannot make up for what their own rounding loses (loud
activations), or they widen the range of the columns around them (large weights). So two sets are
tried: the columns with the largest ‖w_i − Q(w_i)‖² / [(H + λI)⁻¹]_ii, Q rounding to nearest, which
is the cost of rounding column i alone, and those with the largest ‖w_i‖² / [(H + λI)⁻¹]_ii, that of
zeroing it (Hassibi et al., Optimal Brain Surgeon, 1993). The set taken is the one after which
nearest rounding of the others costs less.

The outlier-aware problem is that of QuantEase (Behdin et al., arXiv:2309.01885, section 4),
whose outliers are single weights or whole columns, found by iterative hard thresholding; here they
are columns, because no runtime multiplies by a sparse matrix and all of them gather columns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from onnxq.errors import FormatError
from onnxq.formats import Arrays, Format
from onnxq.solvers.inputs import checked_inputs
from onnxq.solvers.nearest import nearest
from onnxq.solvers.objective import objective
from onnxq.solvers.statistics import Statistics

__all__ = ["KeptColumns", "solve_keeping"]

Array = npt.NDArray[np.floating]

_DAMPING = 1e-6
"""λ as a part of the mean diagonal: enough to invert a singular H."""


@dataclasses.dataclass(frozen=True)
class KeptColumns:
    """A correction in full precision: W ≈ Ŵ + S at these columns.

    Attributes:
        columns: int64 ``[k]``, ascending.
        correction: S, float32 ``[rows, k]``.
    """

    columns: npt.NDArray[np.int64]
    correction: npt.NDArray[np.float32]

    def added_to(self, decoded: Array) -> Array:
        """Ŵ + S: what the codes and the columns kept stand for together, ``[rows, columns]``."""
        total = decoded.copy()
        total[:, self.columns] += self.correction
        return total


def solve_keeping(
    count: int,
    solve: Callable[[Array, Statistics], Arrays],
    weight: Array,
    fmt: Format,
    statistics: Statistics,
) -> tuple[Arrays, KeptColumns]:
    """Choose columns to keep, codes that count on them, and their correction.

    Args:
        count: k, how many columns; fewer than the weight has.
        solve: gives the codes of a weight for a Hessian, such as `gptq` with its options bound.
        weight: ``[rows, columns]`` = ``[out, in]``, float32.
        fmt: the format of the codes, of all columns.
        statistics: of the inputs of the layer; H is used.

    Returns:
        The arrays of ``fmt.encode``, and the correction. The objective of the two together is not
        above that of the arrays alone, by more than rounding of S to float32.

    Raises:
        FormatError: as `solve` does, or ``count`` leaves no column.
    """
    weight, hessian = checked_inputs("keep_columns", weight, statistics)
    width = int(weight.shape[1])
    if not 0 < count < width:
        raise FormatError(
            f"{count} of {width} columns cannot be kept in full precision: keep at least one, and "
            "fewer than there are."
        )
    known = _damped(np.asarray(hessian, np.float64))
    tried = (_without(chosen, weight, known) for chosen in _candidates(count, weight, fmt, known))
    problem = min(tried, key=lambda one: one.nearest_cost(fmt))
    arrays = solve(
        problem.weight, dataclasses.replace(problem.statistics, weight=statistics.weight)
    )
    error = weight - fmt.decode(arrays)
    correction = (error @ problem.prediction.T).astype(np.float32)
    return arrays, KeptColumns(problem.columns, correction)


@dataclasses.dataclass(frozen=True)
class _Rest:
    """What is left to round once ``columns`` are kept."""

    columns: npt.NDArray[np.int64]
    weight: Array
    statistics: Statistics
    prediction: Array

    def nearest_cost(self, fmt: Format) -> float:
        rounded = fmt.decode(nearest(self.weight, fmt))
        return float(objective(self.weight, rounded, self.statistics).sum())


def _without(columns: npt.NDArray[np.int64], weight: Array, hessian: Array) -> _Rest:
    rest = np.setdiff1d(np.arange(weight.shape[1]), columns)
    # H_KK⁻¹ H_K·: what the columns kept predict of every column
    prediction = np.linalg.solve(hessian[np.ix_(columns, columns)], hessian[columns])
    left = np.zeros_like(hessian)
    within = np.ix_(rest, rest)
    left[within] = hessian[within] - hessian[np.ix_(rest, columns)] @ prediction[:, rest]
    bare = weight.copy()
    bare[:, columns] = 0.0
    return _Rest(columns, bare, Statistics(hessian=(left + left.T) / 2), prediction)


def _damped(hessian: Array) -> Array:
    """H + λI, symmetric; the identity where there is nothing in it."""
    if not np.isfinite(hessian).all():
        raise FormatError(
            "the Hessian holds NaN or infinity: an activation of the calibration run did; "
            "run the model on the same samples and look for the first value that is not finite."
        )
    symmetric = (hessian + hessian.T) / 2
    mean = float(np.mean(np.diagonal(symmetric)))
    return symmetric + (_DAMPING * mean if mean > 0 else 1.0) * np.eye(len(symmetric))


def _candidates(
    count: int, weight: Array, fmt: Format, hessian: Array
) -> Iterator[npt.NDArray[np.int64]]:
    """Sets of columns to try, each ascending: costly to round, and costly to zero."""
    conditional = 1.0 / np.diagonal(np.linalg.inv(hessian))
    wide = weight.astype(np.float64)
    for lost in (wide - fmt.decode(nearest(weight, fmt)), wide):
        cost = (lost**2).sum(axis=0) * conditional
        yield np.sort(np.argsort(-cost, kind="stable")[:count])
