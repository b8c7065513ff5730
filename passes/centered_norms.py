"""The pieces of centering: rows without their mean, and a LayerNorm written as RMSNorm."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxq.graph.names import unique_value_name
from onnxq.graph.versions import opset_of
from onnxq.graph.weight_source import stored_weight
from onnxq.graph.weights import add_weight, read_weight
from onnxq.passes.channel_weights import drop_unread
from onnxq.passes.match import home_of
from onnxq.passes.rotation_bridges import insert_behind
from onnxq.passes.site_shift import add_behind

__all__ = ["centering_bridge", "open_skip_norm", "to_rms_norm", "without_mean"]

Array = npt.NDArray[Any]

_AXES_ARE_INPUTS = 18
"""Opset since which ReduceMean takes its axes as an input."""


def without_mean(rows: Array) -> Array:
    """Rows M x = x − mean(x), ``[..., channels]`` float64."""
    centered: Array = rows - rows.mean(axis=-1, keepdims=True)
    return centered


def centering_bridge(model: ir.Model, value: ir.Value, axis: int, inwards: bool) -> ir.Value:
    """Subtract the mean over channels as the model runs; returns what is left."""
    if opset_of(model) < _AXES_ARE_INPUTS:
        mean = ir.node("ReduceMean", [value], {"axes": [axis], "keepdims": 1})
    else:
        home = home_of(model, value.producer() or next(iter(value.consumers())))
        axes = np.array([axis], np.int64)
        given = add_weight(home, "channels", shape=[1], dtype=ir.DataType.INT64, compute=axes)
        mean = ir.node("ReduceMean", [value, given], {"keepdims": 1})
    name = f"{value.name}_mean"
    average = insert_behind(model, value, mean, "mean")
    average.shape = None
    result = insert_behind(model, average, ir.node("Sub", [value, average]), "centered")
    result.name, result.shape = unique_value_name(model.graph, f"{name}_free"), value.shape
    return result


def to_rms_norm(model: ir.Model, node: ir.Node, *, standard: bool) -> None:
    """Write a LayerNorm or Skip LayerNorm of a centered stream as the RMS norm it is.

    Args:
        model: the model the node is in.
        node: of the last axis; only its result and its sum are read.
        standard: write RMSNormalization of opset 23, where there is one.
    """
    skip = node.op_type == "SkipLayerNormalization"
    at = 3 if skip else 2
    bias = node.inputs[at] if len(node.inputs) > at else None
    added = node.inputs[4] if skip and len(node.inputs) > 4 else None
    if bias is not None and not _is_zero(bias):
        add_behind(node.outputs[0], bias, "unshifted")
    inputs = [*node.inputs[:at], added] if skip else list(node.inputs[:2])
    if added is None and skip:
        inputs = inputs[:at]
    node.resize_inputs(len(inputs))
    for index, given in enumerate(inputs):
        node.replace_input_with(index, given)
    drop_unread(bias)
    if skip:
        node.op_type = "SkipSimplifiedLayerNormalization"
        return
    node.resize_outputs(1)
    node.op_type = "RMSNormalization" if standard else "SimplifiedLayerNormalization"


def open_skip_norm(model: ir.Model, node: ir.Node) -> None:
    """Write a Skip norm as an addition, of a bias too where it has one, and a norm."""
    graph = node.graph
    if graph is None:
        return
    layer = node.op_type == "SkipLayerNormalization"
    at = 4 if layer else 3
    terms = [ir.node("Add", [node.inputs[0], node.inputs[1]])]
    if len(node.inputs) > at and node.inputs[at] is not None:
        terms.append(ir.node("Add", [terms[0].outputs[0], node.inputs[at]]))
    for term in terms:
        value = term.outputs[0]
        value.name = unique_value_name(graph, f"{node.outputs[0].name}_sum")
        term.name = value.name
        value.type, value.shape = node.outputs[0].type, node.outputs[0].shape
    graph.insert_before(node, terms)
    total = terms[-1].outputs[0]
    if len(node.outputs) > 3:
        node.outputs[3].replace_all_uses_with(total)
    bias = node.inputs[3] if layer and len(node.inputs) > 3 else None
    scale = node.inputs[2]
    inputs = [total, scale] if bias is None else [total, scale, bias]
    node.resize_inputs(len(inputs))
    for index, given in enumerate(inputs):
        node.replace_input_with(index, given)
    node.resize_outputs(1)
    node.op_type = "LayerNormalization" if layer else "SimplifiedLayerNormalization"
    node.domain = ""
    node.attributes.add(ir.AttrInt64("axis", -1))


def _is_zero(bias: ir.Value) -> bool:
    stored = stored_weight(bias)
    return stored is not None and not read_weight(stored).any()
