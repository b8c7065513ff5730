"""Norms, whole or in parts: they see all channels of a token, but not in which order they lie."""

from __future__ import annotations

import onnx_ir as ir

from onnxq.graph.weight_source import stored_weight
from onnxq.graph.weights import is_weight, read_weight
from onnxq.passes.channel_labels import Labels, Leave, Link, named
from onnxq.passes.channel_region import Region
from onnxq.passes.channel_views import dims_of

__all__ = ["NORMS", "REDUCTIONS", "follow_norm", "follow_reduction", "reduced_axes"]

REDUCTIONS = frozenset(["ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL2", "ReduceMax"])
"""Sums, and what else does not depend on the order of what it goes over."""
NORMS = {
    "LayerNormalization": (1, (0,)),
    "RMSNormalization": (1, (0,)),
    "SimplifiedLayerNormalization": (1, (0,)),
    "SkipLayerNormalization": (2, (0, 3)),
    "SkipSimplifiedLayerNormalization": (2, (0, 3)),
}
"""Layer norms: how many activations they read, and which outputs have channels."""


def follow_norm(region: Region, node: ir.Node, value: ir.Value, labels: Labels) -> None:
    """A norm over the last axis takes any order, its factors with it."""
    _across_norms(region, node)
    activations, results = NORMS[node.op_type]
    if labels.axes != (-1,) or node.attributes.get_int("axis", -1) not in (-1, _last(node)):
        raise Leave(f"{named(node)} normalizes over other axes than theirs")
    ours = [node.inputs[i] for i in range(activations)]
    ours += [node.outputs[i] for i in results if i < len(node.outputs) and node.outputs[i].name]
    if value not in ours:
        raise Leave(f"{named(node)} takes a computed factor {value.name!r}")
    for other in ours:
        if other is not None and other is not value and stored_weight(other) is None:
            region.link(node, Link.same(value, other, labels))
    for index, other in enumerate(node.inputs):
        if other is not None and (index >= activations or stored_weight(other) is not None):
            region.weights.ask(node, index, "operand", Labels((-1,), labels.ids))


def _last(node: ir.Node) -> int:
    sizes = dims_of(node.inputs[0]) if node.inputs[0] is not None else None
    return -1 if sizes is None else len(sizes) - 1


def follow_reduction(region: Region, node: ir.Node, value: ir.Value, labels: Labels) -> None:
    """A sum over all channels does not see their order; one beside them keeps it."""
    axes = reduced_axes(node)
    if axes is None or not node.attributes.get_int("keepdims", 1):
        raise Leave(f"{named(node)} is on their way, over axes that are not known")
    if value is node.inputs[0] and set(labels.axes) <= axes:
        _across_norms(region, node)
        return
    if set(labels.axes) & axes or node.inputs[0] is None:
        raise Leave(f"{named(node)} sums over some of their axes")
    region.link(node, Link.same(node.inputs[0], node.outputs[0], labels))


def reduced_axes(node: ir.Node) -> set[int] | None:
    """The axes a reduction goes over, from the end; None when they are not known."""
    attribute = node.attributes.get("axes")
    second = node.inputs[1] if len(node.inputs) > 1 else None
    if attribute is not None:
        axes = list(attribute.as_ints())
    elif second is not None and is_weight(second):
        axes = [int(axis) for axis in read_weight(second).reshape(-1)]
    else:
        return None
    sizes = dims_of(node.inputs[0]) if node.inputs[0] is not None else None
    if any(axis >= 0 for axis in axes) and sizes is None:
        return None
    return {axis if axis < 0 else axis - len(sizes or ()) for axis in axes}


def _across_norms(region: Region, node: ir.Node) -> None:
    if not region.options.across_norms:
        raise Leave(
            f"{named(node)} reads them, which ties every layer to one order: set across_norms "
            "to reorder them together"
        )
