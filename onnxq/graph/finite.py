"""NaN and infinity in weights: found by reading one weight at a time, when somebody asks."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.errors import UnsupportedGraph
from onnxq.graph.weights import walk_weights, weight_tensor

__all__ = ["check_finite", "non_finite"]

_FINITE_CHUNK = 4 << 20
_MULTIPLIERS = {
    *("MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum", "Gather", "LSTM", "GRU", "RNN"),
    *("Mul", "Div", "LayerNormalization", "RMSNormalization", "BatchNormalization"),
}


def non_finite(value: ir.Value) -> str | None:
    """Why the content of a floating-point weight cannot be trusted, or None when all is finite.

    NaN is always a reason. Infinity is one only where it would be multiplied: a mask of -inf that
    is added or selected is how attention is commonly written.
    """
    tensor = weight_tensor(value)
    if not tensor.dtype.is_floating_point() or tensor.size == 0:
        return None
    array = tensor.numpy().reshape(-1)
    nan = inf = 0
    for start in range(0, array.size, _FINITE_CHUNK):
        chunk = array[start : start + _FINITE_CHUNK]
        if chunk.dtype.itemsize < 2 or chunk.dtype.kind == "V":
            chunk = chunk.astype(np.float32)
        if not np.isfinite(chunk).all():
            nan += int(np.isnan(chunk).sum())
            inf += int(np.isinf(chunk).sum())
    if nan == 0 and (inf == 0 or not _is_multiplied(value)):
        return None
    return f"weight {value.name!r} holds {nan} NaN and {inf} infinite of {array.size} values"


def check_finite(model: ir.Model) -> None:
    """Read every floating-point weight, one at a time, and refuse NaN and harmful infinity.

    Raises:
        UnsupportedGraph: names the weight, its graph, and how many of its values are bad.
    """
    for path, value in walk_weights(model):
        reason = non_finite(value)
        if reason is not None:
            where = f" (in {path})" if path else ""
            raise UnsupportedGraph(f"{reason}{where}. Repair the model before quantizing it.")


def _is_multiplied(value: ir.Value) -> bool:
    return any(node.op_type in _MULTIPLIERS for node in value.consumers())
