"""What solvers that need statistics ask of their inputs, and arrays brought to NumPy."""

from __future__ import annotations

from typing import Any

import array_api_compat
import numpy as np
import numpy.typing as npt

from onnxq.errors import FormatError
from onnxq.formats import Format, IntFormat
from onnxq.formats.base import check_weight
from onnxq.solvers.statistics import Statistics

__all__ = ["check_columns", "checked_inputs", "require_integers", "to_numpy"]

Array = npt.NDArray[Any]


def checked_inputs(
    solver: str, weight: Array, statistics: Statistics | None
) -> tuple[Array, Array]:
    """The weight in float32 and the Hessian, once they are known to fit.

    Args:
        solver: who asks, for the message.
        weight: ``[rows, columns]``, a float type; NumPy or torch.
        statistics: of the inputs of the layer.

    Raises:
        FormatError: no statistics, statistics of another layer, not a matrix of floats, empty, NaN
            or infinity.
    """
    if statistics is None:
        raise FormatError(
            f"{solver} needs the statistics of what the weight multiplies, and none were given: "
            "gather E[x xᵀ] on calibration data, or use nearest, which needs none."
        )
    if isinstance(weight, np.ndarray):
        check_weight(weight)
    check_columns(weight, statistics)
    xp = array_api_compat.array_namespace(weight)
    weight = xp.astype(weight, xp.float32, copy=False)
    if not bool(xp.all(xp.isfinite(weight))):
        raise FormatError(
            "the weight holds NaN or infinity, which no integer code can stand for: "
            "look at how the model was trained or exported, or leave this weight in float"
        )
    return weight, statistics.hessian


def require_integers(solver: str, fmt: Format) -> IntFormat:
    """The format, known to be of integers.

    Raises:
        FormatError: it is another; the message says which solvers take it.
    """
    if isinstance(fmt, IntFormat):
        return fmt
    raise FormatError(
        f"{solver} chooses integer codes, and {fmt} has none: use nearest, gptq or gptaq, which "
        "take every format, or the solver of its family (see docs/solvers.md)."
    )


def check_columns(weight: Array, statistics: Statistics) -> None:
    """Raise `FormatError` unless the Hessian has the columns of ``weight``."""
    size = statistics.hessian.shape[0]
    if len(weight.shape) != 2 or weight.shape[1] != size:
        raise FormatError(
            f"a weight of shape {list(weight.shape)} does not fit a Hessian of {size} columns: "
            "statistics are of the input of the very layer, and rows are its output features."
        )


def to_numpy(values: Array) -> Array:
    """The values as a NumPy array: themselves, or a copy in the memory of the CPU."""
    return values if isinstance(values, np.ndarray) else np.asarray(values.detach().cpu())
