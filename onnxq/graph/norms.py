"""Layer norms and RMS norms, as one operator or as the arithmetic exporters write instead.

LayerNorm (Ba et al. 2016) gives ``(x - mean(x)) / sqrt(var(x) + eps) * scale + bias``, RMSNorm
(Zhang and Sennrich 2019) gives ``x / sqrt(mean(x²) + eps) * scale``, over the last axis.
"""

from __future__ import annotations

import dataclasses
import math

import onnx_ir as ir

from onnxq.graph.flow import SAME_VALUES, origin
from onnxq.graph.walk import site_name, walk_nodes
from onnxq.graph.weight_source import scalar, stored_weight
from onnxq.graph.weights import weight_tensor

__all__ = ["Norm", "find_norms"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Norm:
    """One normalization over the last axis.

    Attributes:
        name: of the node, with its path; of the last node of a decomposed norm.
        kind: ``"LayerNorm"`` or ``"RMSNorm"``.
        node: the fused operator; None when the norm is decomposed.
        nodes: all its nodes, in no particular order.
        inputs: what is normalized: one value, or for the Skip operators the two that are added.
        output: the normalized, scaled and shifted value.
        scale: stored scale, one value per feature; None when there is none or it is computed.
        bias: stored shift; None when there is none or it is computed.
        sum: the sum of the inputs as the Skip operators give it; None otherwise.
    """

    name: str
    kind: str
    node: ir.Node | None
    nodes: tuple[ir.Node, ...]
    inputs: tuple[ir.Value, ...]
    output: ir.Value
    scale: ir.Value | None
    bias: ir.Value | None
    sum: ir.Value | None = None

    @property
    def is_decomposed(self) -> bool:
        """Whether the norm is written as arithmetic."""
        return self.node is None


@dataclasses.dataclass(frozen=True)
class _Fused:
    kind: str
    scale: int
    bias: int | None
    inputs: int = 1
    sum: int | None = None


_FUSED = {
    "LayerNormalization": _Fused("LayerNorm", 1, 2),
    "SimplifiedLayerNormalization": _Fused("RMSNorm", 1, None),
    "RMSNormalization": _Fused("RMSNorm", 1, None),
    "SkipLayerNormalization": _Fused("LayerNorm", 2, 3, inputs=2, sum=3),
    "SkipSimplifiedLayerNormalization": _Fused("RMSNorm", 2, None, inputs=2, sum=3),
}


def find_norms(model: ir.Model) -> list[Norm]:
    """List every norm over the last axis, in graph order."""
    norms = []
    for path, node in walk_nodes(model):
        found = None
        if node.op_type in _FUSED and node.domain in ("", "com.microsoft"):
            found = _fused(path, node, _FUSED[node.op_type])
        elif node.op_type == "ReduceMean":
            found = _decomposed(path, node)
        if found is not None:
            norms.append(found)
    return norms


def _fused(path: str, node: ir.Node, form: _Fused) -> Norm | None:
    inputs = [value for value in node.inputs[: form.inputs] if value is not None]
    if len(inputs) != form.inputs:
        return None
    total = None
    if form.sum is not None and len(node.outputs) > form.sum and node.outputs[form.sum].uses():
        total = node.outputs[form.sum]
    return Norm(
        name=site_name(path, node),
        kind=form.kind,
        node=node,
        nodes=(node,),
        inputs=tuple(inputs),
        output=node.outputs[0],
        scale=_constant(node, form.scale),
        bias=None if form.bias is None else _constant(node, form.bias),
        sum=total,
    )


def _constant(node: ir.Node, index: int) -> ir.Value | None:
    return stored_weight(node.inputs[index]) if index < len(node.inputs) else None


def _decomposed(path: str, mean: ir.Node) -> Norm | None:
    """A norm around the ReduceMean of the squares."""
    squared = _producer(mean.inputs[0])
    base = None if squared is None else _squared(squared)
    divided = _divided(mean.outputs[0], base)
    if squared is None or base is None or divided is None:
        return None
    nodes = [squared, mean, *divided]
    centred = base.producer()
    before: ir.Value | None
    if centred is not None and _is_centring(centred):
        kind, before = "LayerNorm", centred.inputs[0]
        subtracted = _producer(origin(centred.inputs[1]))
        nodes.extend(node for node in (centred, subtracted) if node is not None)
    else:
        kind, before = "RMSNorm", origin(base)
    if before is None:
        return None
    scale, bias, tail = _scale_and_bias(divided[-1].outputs[0])
    nodes.extend(tail)
    last = tail[-1] if tail else divided[-1]
    return Norm(
        name=site_name(path, last),
        kind=kind,
        node=None,
        nodes=tuple(nodes),
        inputs=(before,),
        output=last.outputs[0],
        scale=scale,
        bias=bias,
    )


def _is_centring(node: ir.Node) -> bool:
    """Whether the node is x - ReduceMean(x)."""
    if node.op_type != "Sub":
        return False
    mean = _producer(origin(node.inputs[1]))
    if mean is None or mean.op_type != "ReduceMean":
        return False
    return origin(mean.inputs[0]) is origin(node.inputs[0])


def _squared(node: ir.Node) -> ir.Value | None:
    """Give x of Pow(x, 2) or Mul(x, x)."""
    left, right = (*node.inputs, None, None)[:2]
    if node.op_type == "Mul" and left is right:
        return left
    if node.op_type == "Pow" and right is not None and scalar(right) == 2.0:
        return left
    return None


def _divided(mean: ir.Value, base: ir.Value | None) -> list[ir.Node] | None:
    """The nodes from the mean of squares to base / sqrt(mean + eps): last the division."""
    nodes: list[ir.Node] = []
    here, inverse = mean, False
    for _ in range(6):
        uses = [use for use in here.uses() if use.node.op_type != "Shape"]
        if len(uses) != 1:
            return None
        node, index = uses[0].node, uses[0].idx
        nodes.append(node)
        other = node.inputs[1 - index] if len(node.inputs) == 2 else None
        if node.op_type == "Pow" and other is not None and index == 0:
            power = scalar(other)
            if power not in (0.5, -0.5):
                return None
            inverse = power < 0
        elif node.op_type == "Reciprocal" or (
            node.op_type == "Div" and index == 1 and other is not None and scalar(other) == 1.0
        ):
            inverse = True
        elif node.op_type in ("Mul", "Div") and origin(other) is origin(base):
            return nodes if (node.op_type == "Mul") == inverse else None
        elif node.op_type not in ("Add", "Sqrt", "Max", "Clip") and node.op_type not in SAME_VALUES:
            return None
        here = node.outputs[0]
    return None


def _scale_and_bias(
    value: ir.Value,
) -> tuple[ir.Value | None, ir.Value | None, list[ir.Node]]:
    """The Mul and Add by one constant per feature that follow, and the nodes up to them."""
    found: dict[str, ir.Value | None] = {"Mul": None, "Add": None}
    tail: list[ir.Node] = []
    pending: list[ir.Node] = []
    for wanted in ("Mul", "Add"):
        here, pending = value, []
        while True:
            uses = list(here.uses())
            if len(uses) != 1 or here.is_graph_output():
                return found["Mul"], found["Add"], tail
            node, index = uses[0].node, uses[0].idx
            pending.append(node)
            if node.op_type not in ("Cast", "Identity"):
                break
            here = node.outputs[0]
        if node.op_type == wanted:
            constant = stored_weight(node.inputs[1 - index])
            if constant is not None and _is_vector(constant):
                found[wanted] = constant
                tail.extend(pending)
                value = node.outputs[0]
    return found["Mul"], found["Add"], tail


def _is_vector(value: ir.Value) -> bool:
    shape = weight_tensor(value).shape.numpy()
    return len(shape) > 0 and math.prod(shape) == shape[-1] and shape[-1] > 1


def _producer(value: ir.Value | None) -> ir.Node | None:
    return None if value is None else value.producer()
