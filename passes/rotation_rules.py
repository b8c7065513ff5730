"""What each operator means for channels that are to be multiplied by an orthogonal matrix.

A rule looks at one node from one of its values that are rotated, x to x Q along some axes: it says
which other values must be rotated with it and which weights take Q or Qᵀ, or raises `Leave`. Only
what is linear and treats all channels alike commutes with Q. A norm without a mean and with one
scale for all channels does: ‖x Q‖ = ‖x‖.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxq.graph.sites import Site
from onnxq.graph.weight_source import stored_weight
from onnxq.graph.weights import is_weight, read_weight
from onnxq.passes.channel_labels import Labels, Leave, Link, named
from onnxq.passes.channel_layers import follow_linear, follow_operand, follow_structure
from onnxq.passes.channel_norms import NORMS, reduced_axes
from onnxq.passes.channel_region import Region
from onnxq.passes.channel_views import dims_of, follow_view

__all__ = [
    "SCALE_OF",
    "follow_mean",
    "follow_rotation",
    "follow_sum",
    "follow_through",
    "is_uniform",
    "tie_norm",
]

_SAME = frozenset(["Cast", "Dropout", "Identity", "Neg"])
_FLOATS = frozenset(
    [ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE]
)
SCALE_OF = {
    "LayerNormalization": 1,
    "RMSNormalization": 1,
    "SimplifiedLayerNormalization": 1,
    "SkipLayerNormalization": 2,
    "SkipSimplifiedLayerNormalization": 2,
}
"""Which input of a norm is its scale."""
_BIAS_OF_SUM = {"SkipLayerNormalization": 4, "SkipSimplifiedLayerNormalization": 3}
"""Which input of the norms that add first is added as well."""


def follow_rotation(region: Region, node: ir.Node, value: ir.Value, labels: Labels) -> None:
    """Carry the rotation of ``value`` over ``node``, which gives or reads it.

    Raises:
        Leave: the node does not commute with it.
    """
    if follow_through(region, node, value, labels):
        return
    if node.op_type not in NORMS:
        raise Leave(f"{named(node)} does not commute with a rotation")
    _norm(region, node, value, labels)


def follow_through(region: Region, node: ir.Node, value: ir.Value, labels: Labels) -> bool:
    """Carry channels that a linear map mixes over operators that know no norm; False for others.

    Raises:
        Leave: the node does not commute with the map.
    """
    kind = node.op_type
    if follow_structure(region, node, value, labels, linear=_linear, view=_view):
        return True
    if kind in _SAME:
        _same(region, node, value, labels)
    elif kind in ("Mul", "Div"):
        _factor(region, node, value, labels)
    elif kind in ("Add", "Sub", "Sum"):
        follow_sum(region, node, value, labels, range(len(node.inputs)))
    elif kind in ("ReduceMean", "ReduceSum"):
        follow_mean(region, node, value, labels)
    else:
        return False
    return True


def is_uniform(value: ir.Value | None) -> bool:
    """Whether an operand is one number for all channels: absent, or constant and all the same."""
    if value is None:
        return True
    stored = stored_weight(value)
    if stored is None:
        return False
    array = read_weight(stored).reshape(-1)
    return bool((array == array[:1]).all())


def follow_sum(
    region: Region, node: ir.Node, value: ir.Value, labels: Labels, operands: range
) -> None:
    """All operands of a sum are rotated with it, constants too."""
    out = node.outputs[0]
    wide: list[int] = []
    for index in operands:
        operand = node.inputs[index]
        if operand is None:
            continue
        if not _is_narrow(operand, labels):
            wide.append(index)
            continue
        stored = stored_weight(operand)
        if stored is None or read_weight(stored).any():
            raise Leave(f"{named(node)} adds {operand.name!r} to all channels alike")
    if value is not out:
        region.link(node, Link.same(value, out, labels))
        return
    for index in wide:
        follow_operand(region, node, index, out, labels)


def _view(region: Region, node: ir.Node, value: ir.Value, labels: Labels) -> None:
    """Elements are moved; a cut along another axis may be at places that vary."""
    axes = _cut_axes(node)
    if axes is None or axes & set(labels.axes):
        follow_view(region, node, value, labels)
        return
    source, target = node.inputs[0], node.outputs[0]
    if source is None or value not in (source, target):
        raise Leave(f"{named(node)} takes its bounds from them")
    region.link(node, Link.same(source, target, labels))


def _cut_axes(node: ir.Node) -> set[int] | None:
    """The axes of a Slice, from the end; None for other views and where they are not known."""
    if node.op_type != "Slice" or len(node.inputs) < 4 or node.inputs[0] is None:
        return None
    axes, sizes = node.inputs[3], dims_of(node.inputs[0])
    if axes is None or sizes is None or not is_weight(axes):
        return None
    given = [int(axis) for axis in read_weight(axes).reshape(-1)]
    return {axis if axis < 0 else axis - len(sizes) for axis in given}


def _linear(region: Region, site: Site, value: ir.Value, labels: Labels) -> None:
    """A weight ends the path."""
    if site.path:
        raise Leave(f"{named(site.node)} is inside {site.path!r}, a body or function")
    if site.groups > 1:
        raise Leave(f"{named(site.node)} works on {site.groups} groups of channels")
    follow_linear(region, site, value, labels)


def _same(region: Region, node: ir.Node, value: ir.Value, labels: Labels) -> None:
    if node.op_type == "Cast" and ir.DataType(node.attributes["to"].as_int()) not in _FLOATS:
        raise Leave(f"{named(node)} makes integers of them")
    source, target = node.inputs[0], node.outputs[0]
    if source is None or value not in (source, target):
        raise Leave(f"{named(node)} takes {value.name!r} as a parameter")
    region.link(node, Link.same(source, target, labels))


def _factor(region: Region, node: ir.Node, value: ir.Value, labels: Labels) -> None:
    """A product with one number for all channels; several factors would not commute."""
    wide = [
        at
        for at, other in enumerate(node.inputs)
        if other is not None and not (_is_narrow(other, labels) or _is_common(other))
    ]
    if len(wide) != 1 or (node.op_type == "Div" and wide[0] == 1):
        raise Leave(f"{named(node)} multiplies or divides channels by numbers that differ")
    source, target = node.inputs[wide[0]], node.outputs[0]
    if source is None or value not in (source, target):
        raise Leave(f"{named(node)} takes {value.name!r} as a factor")
    region.link(node, Link.same(source, target, labels))


def _is_narrow(operand: ir.Value, labels: Labels) -> bool:
    """Whether an operand has the same number at all labelled positions."""
    sizes = dims_of(operand)
    if sizes is None:
        return False
    narrow = all(axis < -len(sizes) or sizes[axis] == 1 for axis in labels.axes)
    return narrow and any(size > 1 for size in labels.ids.shape)


def _is_common(operand: ir.Value) -> bool:
    """Whether a stored factor has a number for each channel, all of them equal."""
    return stored_weight(operand) is not None and is_uniform(operand)


def follow_mean(region: Region, node: ir.Node, value: ir.Value, labels: Labels) -> None:
    """A mean over tokens is linear; one over channels belongs to a norm nobody recognised."""
    axes = reduced_axes(node)
    source, target = node.inputs[0], node.outputs[0]
    keeps = bool(node.attributes.get_int("keepdims", 1))
    apart = axes is not None and not axes & set(labels.axes)
    if axes is None or not apart or (not keeps and max(axes) > min(labels.axes)):
        raise Leave(
            f"{named(node)} sums over them, or over axes that are not known: if it is part of a "
            "norm, run fuse_rms_norm and fuse_layer_norm first"
        )
    if source is None or value not in (source, target):
        raise Leave(f"{named(node)} takes its axes from them")
    region.link(node, Link.same(source, target, labels))


def _norm(region: Region, node: ir.Node, value: ir.Value, labels: Labels) -> None:
    """A root mean square is the same after a rotation; the result is rotated with the input."""
    activations, results = NORMS[node.op_type]
    scale = SCALE_OF[node.op_type]
    if value is node.outputs[0] or value in node.inputs[:activations]:
        if "Simplified" not in node.op_type and node.op_type != "RMSNormalization":
            raise Leave(f"{named(node)} subtracts the mean of all channels: run center_residual")
        if len(node.inputs) > scale and not is_uniform(node.inputs[scale]):
            raise Leave(f"{named(node)} has a scale for each channel: run fold_norm_scales")
    last = len(dims_of(value) or [None]) - 1
    if labels.axes != (-1,) or node.attributes.get_int("axis", -1) not in (-1, last):
        raise Leave(f"{named(node)} normalizes over other axes than theirs")
    ours = [node.inputs[i] for i in range(activations)]
    ours += [node.outputs[i] for i in results if i < len(node.outputs) and node.outputs[i].name]
    if value not in ours:
        raise Leave(f"{named(node)} takes {value.name!r} as a parameter")
    tie_norm(region, node, value, labels, ours)


def tie_norm(
    region: Region, node: ir.Node, value: ir.Value, labels: Labels, ours: list[ir.Value | None]
) -> None:
    """Rotate all of ``ours`` with ``value``, and the bias of a norm that adds first."""
    activations, _ = NORMS[node.op_type]
    for index, other in enumerate(ours):
        if other is None or other is value:
            continue
        if index < activations and stored_weight(other) is not None:
            region.weights.ask(node, index, "operand", Labels((-1,), labels.ids))
        else:
            region.link(node, Link.same(value, other, labels))
    added = _BIAS_OF_SUM.get(node.op_type)
    if added is not None and len(node.inputs) > added and node.inputs[added] is not None:
        region.weights.ask(node, added, "operand", Labels((-1,), labels.ids))
