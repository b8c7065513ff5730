"""What ``onnxq.MatMulTernary`` computes, in NumPy, as plainly as it can be said."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from onnxq.custom_ops.matmul_int import rounded_tokens
from onnxq.formats.ternary import TernaryFormat

__all__ = ["matmul_ternary_reference"]


def matmul_ternary_reference(
    a: npt.NDArray[Any], fmt: TernaryFormat, arrays: dict[str, npt.NDArray[Any]]
) -> npt.NDArray[np.float64]:
    """A · Wᵀ with tokens rounded to int8, plane by plane and group by group, in float64.

    Args:
        a: ``[..., columns]``, float32 or float16, finite.
        fmt: the format of the weight.
        arrays: ``codes`` and ``scales`` of the weight, see `TernaryFormat`.
    """
    tokens, token_scales = rounded_tokens(a)
    rows, columns = arrays["codes"].shape
    group = fmt.group_size(columns)
    scales = fmt.split(arrays["scales"]).astype(np.float64)
    y = np.zeros((*a.shape[:-1], rows))
    for plane, trits in enumerate(fmt.trits(arrays["codes"])):
        for at, first in enumerate(range(0, columns, group)):
            here = slice(first, first + group)
            sums = tokens[..., here].astype(np.int64) @ trits[:, here].astype(np.int64).T
            y += sums * scales[:, plane, at]
    return y * token_scales.astype(np.float64)
