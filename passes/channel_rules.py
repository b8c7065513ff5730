"""What each operator means for channels that lie in its inputs or outputs.

A rule looks at one node from one of its labelled values and tells the region where else the
channels lie, which weights must be reordered with them, or raises `Leave`. An operator without a
rule ends the search: nothing is assumed of it.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxq.passes.channel_labels import Labels, Leave, Link, along, named
from onnxq.passes.channel_layers import follow_operand, follow_structure
from onnxq.passes.channel_norms import NORMS, REDUCTIONS, follow_norm, follow_reduction
from onnxq.passes.channel_region import Region
from onnxq.passes.channel_views import dims_of

__all__ = ["follow", "follow_channelwise"]

_UNARY = frozenset(
    [
        "Abs",
        "Cast",
        "Ceil",
        "Celu",
        "Clip",
        "Dropout",
        "Elu",
        "Erf",
        "Exp",
        "Floor",
        "Gelu",
        "HardSigmoid",
        "HardSwish",
        "Identity",
        "LeakyRelu",
        "Log",
        "Mish",
        "Neg",
        "Not",
        "QuickGelu",
        "Reciprocal",
        "Relu",
        "Round",
        "Selu",
        "Sigmoid",
        "Sign",
        "Softplus",
        "Softsign",
        "Sqrt",
        "Swish",
        "Tanh",
        "ThresholdedRelu",
    ]
)
_BROADCASTING = frozenset(
    [
        "Add",
        "And",
        "BiasGelu",
        "Div",
        "Equal",
        "FastGelu",
        "Greater",
        "GreaterOrEqual",
        "Less",
        "LessOrEqual",
        "Max",
        "Min",
        "Mul",
        "Or",
        "PRelu",
        "Pow",
        "Sub",
        "Sum",
        "Where",
    ]
)
_SPATIAL = frozenset(
    ["AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool"]
)


def follow(region: Region, node: ir.Node, value: ir.Value, labels: Labels) -> None:
    """Carry the channels of ``value`` over ``node``, which gives or reads it.

    Raises:
        Leave: the node does not take them in another order.
    """
    kind = node.op_type
    if follow_structure(region, node, value, labels):
        return
    if kind in _UNARY or kind in _BROADCASTING:
        _elementwise(region, node, value, labels)
    elif kind in _SPATIAL or kind in ("BatchNormalization", "InstanceNormalization"):
        follow_channelwise(region, node, value, labels)
    elif kind in NORMS:
        follow_norm(region, node, value, labels)
    elif kind in REDUCTIONS:
        follow_reduction(region, node, value, labels)
    else:
        raise Leave(f"{named(node)} is on their way, and it may mix channels")


def _elementwise(region: Region, node: ir.Node, value: ir.Value, labels: Labels) -> None:
    """Every output takes the order of the inputs, constants too, with the rules of broadcasting."""
    unary = node.op_type in _UNARY
    if value not in node.outputs:
        if unary and value is not node.inputs[0]:
            raise Leave(f"{named(node)} takes a parameter from them")
        region.link(node, Link.same(value, node.outputs[0], labels))
        return
    for other in node.outputs:
        if other is not value and (other.uses() or other.is_graph_output()):
            region.link(node, Link.same(value, other, labels))
    for index in range(1 if unary else len(node.inputs)):
        follow_operand(region, node, index, value, labels)


def follow_channelwise(region: Region, node: ir.Node, value: ir.Value, labels: Labels) -> None:
    """Each channel of axis 1 is worked on alone: batch norm and pooling."""
    first, out = node.inputs[0], node.outputs[0]
    sizes = dims_of(first) if first is not None else None
    if first is None or sizes is None:
        raise Leave(f"{named(node)} is on their way, and the rank of its input is unknown")
    axis = 1 - len(sizes)
    labels = Labels((axis,), along(labels, axis, node))
    if value not in (first, out) or any(other.uses() for other in node.outputs[1:]):
        raise Leave(f"{named(node)} gives more than one result, or takes computed factors")
    region.link(node, Link.same(first, out, labels))
    for index in range(1, len(node.inputs)):
        if node.inputs[index] is not None:
            region.weights.ask(node, index, "operand", Labels((-1,), labels.ids))
