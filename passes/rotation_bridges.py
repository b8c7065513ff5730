"""Products and sums that bring a value into a rotated space, or out of it, as the model runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxq.graph.names import unique_value_name
from onnxq.graph.weights import add_weight
from onnxq.passes.match import home_of
from onnxq.passes.rotation_space import Build

__all__ = ["insert_behind", "matrix_bridge"]


def matrix_bridge(name: str, matrix: npt.NDArray[np.float64]) -> Build:
    """Multiply by the matrix Q [n, n] inwards and by Qᵀ outwards: n² products for each token."""

    def build(model: ir.Model, value: ir.Value, axis: int, inwards: bool) -> ir.Value:
        dtype = value.dtype or ir.DataType.FLOAT
        # What lies along axis −2 are columns: the transpose multiplies them from the left.
        used = matrix if inwards == (axis == -1) else matrix.T
        content: npt.NDArray[Any] = np.ascontiguousarray(used).astype(dtype.numpy())
        beside = value.producer() or next(iter(value.consumers()))
        home = home_of(model, beside)
        weight = add_weight(home, name, shape=used.shape, dtype=dtype, compute=content)
        operands = [value, weight] if axis == -1 else [weight, value]
        return insert_behind(model, value, ir.node("MatMul", operands), name)

    return build


def insert_behind(model: ir.Model, value: ir.Value, node: ir.Node, name: str) -> ir.Value:
    """Put a node that reads ``value`` behind its producer, or first of all for a graph input."""
    result = node.outputs[0]
    result.name = unique_value_name(model.graph, f"{value.name}_{name}")
    node.name = result.name
    result.type, result.shape = value.type, value.shape
    producer = value.producer()
    if producer is not None and producer.graph is not None:
        producer.graph.insert_after(producer, node)
    else:
        model.graph.insert_before(next(iter(model.graph)), node)
    return result
