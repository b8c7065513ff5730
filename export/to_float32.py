"""A model in float16, bfloat16 or float64 rewritten to compute in float32 throughout.

Exact for weights of half precision: every float16 and bfloat16 number is a float32 number.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from onnxq.errors import UnsupportedGraph
from onnxq.graph import is_weight, replace_weight, walk_graphs, walk_weights, weight_tensor

__all__ = ["is_float32", "to_float32"]

_OTHERS = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
_TYPE_ATTRIBUTES = {"to", "dtype", "output_dtype", "stash_type"}


def is_float32(model: ir.Model) -> bool:
    """Whether neither an input, an output nor a weight has another float type."""
    values = [*model.graph.inputs, *model.graph.outputs]
    values.extend(value for _, value in walk_weights(model))
    return not any(_dtype(value) in _OTHERS for value in values)


def to_float32(model: ir.Model) -> None:
    """Rewrite ``model`` in place: weights, constants, casts, inputs and outputs.

    Raises:
        UnsupportedGraph: a weight is quantized with scales of half precision, whose operators
            tie the output type to the scale; such a model stays as it is.
    """
    for path, graph in walk_graphs(model):
        for node in graph:
            if node.op_type in ("DequantizeLinear", "QuantizeLinear", "MatMulNBits"):
                where = f" in {path}" if path else ""
                raise UnsupportedGraph(
                    f"Node {node.name!r}{where} is a {node.op_type}: the model is quantized "
                    "already, and is not turned into a float32 one. Give the float model."
                )
    for _, graph in walk_graphs(model):
        if isinstance(graph, ir.Graph):
            for value in list(graph.initializers.values()):
                _convert_weight(value)
        for node in graph:
            _convert_attributes(node)
            for value in node.outputs:
                _retype(value)
        for value in graph.inputs:
            _retype(value)


def _dtype(value: ir.Value) -> ir.DataType | None:
    return weight_tensor(value).dtype if is_weight(value) else value.dtype


def _retype(value: ir.Value) -> None:
    if value.dtype in _OTHERS:
        value.dtype = ir.DataType.FLOAT


def _convert_weight(value: ir.Value) -> None:
    tensor = value.const_value
    if tensor is None or tensor.dtype not in _OTHERS:
        return
    replace_weight(
        value, shape=tensor.shape.numpy(), dtype=ir.DataType.FLOAT, compute=_reader(tensor)
    )


def _reader(tensor: ir.TensorProtocol) -> Callable[[], np.ndarray]:
    return lambda: np.ascontiguousarray(tensor.numpy(), dtype=np.float32)


def _convert_attributes(node: ir.Node) -> None:
    for name, attribute in list(node.attributes.items()):
        if attribute.type == ir.AttributeType.TENSOR:
            tensor = attribute.as_tensor()
            if tensor.dtype in _OTHERS:
                array = np.array(tensor.numpy(), dtype=np.float32)
                node.attributes[name] = ir.AttrTensor(name, ir.tensor(array, name=tensor.name))
        elif (
            attribute.type == ir.AttributeType.INT
            and name in _TYPE_ATTRIBUTES
            and attribute.as_int() in [int(dtype) for dtype in _OTHERS]
        ):
            node.attributes[name] = ir.AttrInt64(name, int(ir.DataType.FLOAT))
