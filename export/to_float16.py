"""A float32 model rewritten to compute in float16; its inputs and outputs stay as they are.

TensorRT builds strongly typed networks: they compute in the types that the model states, so this is
how a model is made to run in half precision. Weights beyond ±65504 are cut to that (masks of
−3.4e38 mean the same there), smaller ones than 6e-8 become 0.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from onnxq.errors import UnsupportedGraph
from onnxq.graph import (
    ensure_opset,
    infer_shapes,
    replace_weight,
    site_name,
    unique_value_name,
    walk_graphs,
    walk_nodes,
)

__all__ = ["to_float16"]

_FLOAT, _HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
_LARGEST = float(np.finfo(np.float16).max)
_TYPES = frozenset({"to", "dtype", "output_dtype"})
_STAY_FLOAT = {"Resize": (1, 2), "Upsample": (1,), "Range": (0, 1, 2)}
"""Inputs that ONNX takes in float32 only."""

_GIVE_FLOAT = frozenset({"Range"})
_HALF_SCALES = 19
"""The opset since which QuantizeLinear and DequantizeLinear take scales in float16."""


def to_float16(model: ir.Model) -> None:
    """Rewrite ``model`` in place: weights, constants, casts, and the types of values.

    Raises:
        UnsupportedGraph: an operator of another domain than ONNX's has no function in the model,
            so that nothing is known of the types it takes.
    """
    for path, node in walk_nodes(model):
        if node.domain not in ("", "ai.onnx", "onnxq") and (
            node.op_identifier() not in model.functions
        ):
            raise UnsupportedGraph(
                f"{node.domain}.{node.op_type} {site_name(path, node)!r} is no standard operator, "
                "so it is not known to take float16. Write the model in standard operators."
            )
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for _, node in walk_nodes(model)):
        ensure_opset(model, _HALF_SCALES)
    infer_shapes(model)
    outside = [value for value in model.graph.inputs if value.dtype is _FLOAT]
    results = [value for value in model.graph.outputs if value.dtype is _FLOAT]
    for _, graph in walk_graphs(model):
        for value in graph.inputs:
            _retype(value)
        if isinstance(graph, ir.Graph):
            for value in list(graph.initializers.values()):
                _convert_weight(value)
        for node in tuple(graph):
            _convert_attributes(node)
            for value in node.outputs:
                _retype(value)
        for node in tuple(graph):
            _keep_float(graph, node)
    _cast_interface(model.graph, outside, results)


def _retype(value: ir.Value) -> None:
    if value.dtype is _FLOAT:
        value.dtype = _HALF


def _half(array: np.ndarray) -> np.ndarray:
    return np.clip(np.asarray(array, np.float32), -_LARGEST, _LARGEST).astype(np.float16)


def _convert_weight(value: ir.Value) -> None:
    tensor = value.const_value
    if tensor is not None and tensor.dtype is _FLOAT:
        replace_weight(value, shape=tensor.shape.numpy(), dtype=_HALF, compute=_reader(tensor))


def _reader(tensor: ir.TensorProtocol) -> Callable[[], np.ndarray]:
    return lambda: np.array(_half(tensor.numpy()), order="C", ndmin=0)


def _convert_attributes(node: ir.Node) -> None:
    for name, attribute in list(node.attributes.items()):
        if attribute.is_ref():
            continue
        if attribute.type is ir.AttributeType.TENSOR and attribute.as_tensor().dtype is _FLOAT:
            tensor = ir.tensor(_half(attribute.as_tensor().numpy()))
            node.attributes[name] = ir.AttrTensor(name, tensor)
        elif name in _TYPES and attribute.type is ir.AttributeType.INT:
            if attribute.as_int() == int(_FLOAT):
                node.attributes[name] = ir.AttrInt64(name, int(_HALF))
        elif node.op_type == "Constant" and name in ("value_float", "value_floats"):
            node.attributes.pop(name)
            array = _half(np.array(attribute.value, np.float32))
            node.attributes["value"] = ir.AttrTensor("value", ir.tensor(array))
    if node.op_type == "ConstantOfShape" and "value" not in node.attributes:
        zero = ir.tensor(np.zeros(1, np.float16))
        node.attributes["value"] = ir.AttrTensor("value", zero)


def _keep_float(graph: ir.Graph | ir.Function, node: ir.Node) -> None:
    """Put casts around an operator that takes or gives float32 only."""
    if node.domain not in ("", "ai.onnx"):
        return
    for index in _STAY_FLOAT.get(node.op_type, ()):
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is not None and value.name and value.dtype is _HALF:
            cast = _cast(graph, value, _FLOAT)
            graph.insert_before(node, cast)
            node.replace_input_with(index, cast.outputs[0])
    if node.op_type in _GIVE_FLOAT and node.outputs[0].dtype is _HALF:
        output = node.outputs[0]
        cast = _cast(graph, output, _HALF)
        graph.insert_after(node, cast)
        output.replace_all_uses_with(cast.outputs[0], replace_graph_outputs=True)
        cast.replace_input_with(0, output)
        output.dtype = _FLOAT


def _cast(graph: ir.Graph | ir.Function, value: ir.Value, dtype: ir.DataType) -> ir.Node:
    name = unique_value_name(graph, f"{value.name}_{dtype.name.lower()}")
    node = ir.node("Cast", [value], {"to": int(dtype)}, name=name)
    node.outputs[0].name, node.outputs[0].dtype = name, dtype
    node.outputs[0].shape = value.shape
    return node


def _cast_interface(graph: ir.Graph, inputs: list[ir.Value], outputs: list[ir.Value]) -> None:
    """Give inputs and outputs of the model their float32 back."""
    first = next(iter(graph), None)
    for value in inputs:
        value.dtype = _FLOAT
        uses = tuple(value.uses())
        if first is None or not uses:
            continue
        cast = _cast(graph, value, _HALF)
        graph.insert_before(first, cast)
        for node, index in uses:
            node.replace_input_with(index, cast.outputs[0])
    for position, value in enumerate(graph.outputs):
        if value not in outputs or value.dtype is not _HALF:
            continue
        name = value.name
        value.name = unique_value_name(graph, f"{name}_half")
        cast = _cast(graph, value, _FLOAT)
        cast.outputs[0].name = name
        graph.append(cast)
        graph.outputs[position] = cast.outputs[0]
