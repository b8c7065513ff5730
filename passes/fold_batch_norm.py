"""Fold a BatchNormalization into the convolution or Gemm before it.

With s = γ / √(σ² + ε): ``BN(W x + b) = (s W) x + (s (b − μ) + β)``, per output channel (Ioffe,
Szegedy, arXiv:1502.03167, section 3.1; Jacob et al., arXiv:1712.05877, equation 14). The new weight
and bias are computed in float64 when the model is saved; nothing is read before.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from onnxq.graph.weights import add_weight, is_weight, read_weight, weight_tensor
from onnxq.passes.base import Context, Pass, PassReport, Promise
from onnxq.passes.match import fuse_sites, home_of

__all__ = ["FoldBatchNorm"]

Array = np.ndarray[Any, Any]
_LINEAR = frozenset(["Conv", "ConvTranspose", "Gemm"])


@dataclasses.dataclass(frozen=True, kw_only=True)
class FoldBatchNorm(Pass):
    """Fold BatchNormalization at inference into Conv, ConvTranspose or Gemm.

    Matches: a BatchNormalization that is the only reader of one of them, all numbers constant.
    Writes: the same operator with another weight and bias; the normalization is gone.
    Leaves: training mode; weights that other nodes read too; outputs that are graph outputs.
    """

    promise: ClassVar[Promise] = Promise.SAME_FUNCTION

    def call(self, model: ir.Model, context: Context) -> PassReport:
        """Fold every site that can be; the report says why the others were left."""
        return fuse_sites(model, frozenset(["BatchNormalization"]), lambda node: _fold(model, node))


def _fold(model: ir.Model, norm: ir.Node) -> ir.Node | str | None:
    source = norm.inputs[0]
    linear = source.producer() if source is not None else None
    if source is None or linear is None or linear.op_type not in _LINEAR:
        return f"what it normalizes, {source.name if source else ''!r}, is no Conv or Gemm output"
    reason = _why_not(norm, source, linear)
    weight = linear.inputs[1]
    if reason is not None or weight is None:
        return reason or "it has no weight"
    graph = home_of(model, linear)
    bias = linear.inputs[2] if len(linear.inputs) > 2 else None
    tensor = weight_tensor(weight)
    channels = int(weight_tensor(_input(norm, 1)).size)
    scale, shift = _affine(norm)
    stored = ir.Value(name=weight.name, const_value=tensor)
    before = None if bias is None else ir.Value(name=bias.name, const_value=weight_tensor(bias))
    dtype = tensor.dtype

    def new_weight() -> Array:
        return _scale_channels(linear, read_weight(stored), scale()).astype(dtype.numpy())

    def new_bias() -> Array:
        start = 0.0 if before is None else read_weight(before).astype(np.float64).reshape(-1)
        return (scale() * start + shift()).astype(dtype.numpy())

    name = weight.name or f"{linear.name}_weight"
    folded = add_weight(
        graph, f"{name}_folded", shape=list(tensor.shape.numpy()), dtype=dtype, compute=new_weight
    )
    added = add_weight(graph, f"{name}_bias", shape=[channels], dtype=dtype, compute=new_bias)
    linear.resize_inputs(3)
    linear.replace_input_with(1, folded)
    linear.replace_input_with(2, added)
    _take_output(linear, norm)
    _drop_unread(weight, bias)
    return linear


def _why_not(norm: ir.Node, source: ir.Value, linear: ir.Node) -> str | None:
    training = norm.attributes.get("training_mode")
    if training is not None and training.as_int() != 0:
        return "it is in training mode: export the model in evaluation mode"
    if any(value.uses() or value.is_graph_output() for value in norm.outputs[1:]):
        return "its running statistics are read"
    if linear.graph is not norm.graph:
        return f"{linear.op_type} {linear.name!r} is outside of its body"
    if source.is_graph_output():
        return f"what it normalizes, {source.name!r}, is also a graph output"
    if len(source.uses()) != 1:
        return f"what it normalizes, {source.name!r}, is also read elsewhere"
    if not all(is_weight(value) for value in norm.inputs[1:5]):
        return "its scale, bias, mean or variance is not constant"
    weight = linear.inputs[1]
    if weight is None or not is_weight(weight):
        return f"the weight of {linear.op_type} {linear.name!r} is not constant"
    if len(weight.uses()) != 1:
        return f"the weight {weight.name!r} is shared: run untie_weights first"
    bias = linear.inputs[2] if len(linear.inputs) > 2 else None
    if bias is not None and not is_weight(bias):
        return f"the bias {bias.name!r} of {linear.op_type} {linear.name!r} is not constant"
    channels = weight_tensor(_input(norm, 1)).size
    if bias is not None and weight_tensor(bias).size not in (1, channels):
        return f"the bias {bias.name!r} is not one number for each channel"
    beta = linear.attributes.get("beta")
    if linear.op_type == "Gemm" and beta is not None and beta.as_float() != 1.0:
        return f"Gemm {linear.name!r} scales its bias by {beta.as_float()}"
    return None


def _affine(norm: ir.Node) -> tuple[Callable[[], Array], Callable[[], Array]]:
    """Functions that compute s and β − s μ in float64."""
    tensors = [weight_tensor(_input(norm, index)) for index in range(1, 5)]
    gamma, beta, average, variance = (ir.Value(name=t.name, const_value=t) for t in tensors)
    attribute = norm.attributes.get("epsilon")
    epsilon = 1e-5 if attribute is None else attribute.as_float()

    def scale() -> Array:
        spread = np.sqrt(read_weight(variance).astype(np.float64) + epsilon)
        return np.asarray(read_weight(gamma).astype(np.float64) / spread)

    def shift() -> Array:
        moved = scale() * read_weight(average).astype(np.float64)
        return np.asarray(read_weight(beta).astype(np.float64) - moved)

    return scale, shift


def _scale_channels(linear: ir.Node, weight: Array, scale: Array) -> Array:
    """Multiply the output channels of the weight of a Conv, ConvTranspose or Gemm."""
    wide = weight.astype(np.float64)
    if linear.op_type == "ConvTranspose":
        attribute = linear.attributes.get("group")
        groups = 1 if attribute is None else attribute.as_int()
        each = scale.reshape(groups, 1, -1, *([1] * (wide.ndim - 2)))
        return np.asarray((wide.reshape(groups, -1, *wide.shape[1:]) * each).reshape(wide.shape))
    turned = linear.attributes.get("transB")
    if linear.op_type == "Gemm" and (turned is None or turned.as_int() == 0):
        return np.asarray(wide * scale)
    return np.asarray(wide * scale.reshape(-1, *([1] * (wide.ndim - 1))))


def _take_output(linear: ir.Node, norm: ir.Node) -> None:
    """Let the linear node give the value that the normalization gave, under its name."""
    new, old, graph = linear.outputs[0], norm.outputs[0], norm.graph
    name, old.name = old.name, None
    new.name, new.shape, new.type = name, old.shape, old.type
    new.meta.update(old.meta)
    new.metadata_props.update(old.metadata_props)
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    if graph is not None:
        graph.remove(norm, safe=True)


def _drop_unread(*values: ir.Value | None) -> None:
    for value in values:
        if value is None or value.uses() or value.is_graph_output() or value.name is None:
            continue
        if isinstance(value.graph, ir.Graph) and value.is_initializer():
            del value.graph.initializers[value.name]


def _input(node: ir.Node, index: int) -> ir.Value:
    """An input whose presence `_why_not` has checked."""
    value = node.inputs[index]
    return ir.Value(name="") if value is None else value
