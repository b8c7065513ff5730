"""What layers, attention and moves of elements mean for channels, whatever is done to them.

The rules of permutations, of factors and of rotations begin with these, and add what only their
change goes through.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from onnxq.graph.sites import Site
from onnxq.graph.weight_source import stored_weight
from onnxq.passes.channel_attention import ATTENTION, follow_attention
from onnxq.passes.channel_labels import Labels, Leave, Link, along, named
from onnxq.passes.channel_picks import follow_pick
from onnxq.passes.channel_region import Region
from onnxq.passes.channel_views import VIEWS, dims_of, follow_view

__all__ = ["follow_linear", "follow_operand", "follow_product", "follow_structure"]

_UNTOUCHED = frozenset(["Shape", "Size"])
"""Operators that do not see in which order channels lie."""
_LINEAR = frozenset(["MatMul", "Gemm", "FusedMatMul", "Conv", "ConvTranspose", "Gather"])


def follow_linear(region: Region, site: Site, value: ir.Value, labels: Labels) -> None:
    """A weight ends the path: its inputs or its outputs are reordered instead."""
    node = site.node
    if site.already is not None:
        raise Leave(f"the weight of {named(node)} is already quantized ({site.already})")
    if site.refusal is not None or site.weight is None:
        raise Leave(f"{named(node)} is on their way: {site.refusal}")
    axis = _channel_axis(site)
    ids = along(labels, axis, node)
    labels = Labels((axis,), ids)
    if site.kind in ("Conv", "ConvTranspose") and site.groups > 1:
        _depthwise(region, site, axis, value, labels)
        return
    if value is node.outputs[0]:
        # The width of an embedding, which it gives, is where a product would sum.
        across = site.in_axis if site.is_embedding else site.out_axis
        region.weights.ask_stored(
            site.weight, node, site.weight_index, "out", Labels((across,), ids)
        )
        if site.is_embedding and node.attributes.get_int("axis", 0) not in (0, -2):
            raise Leave(f"{named(node)} looks up columns, not rows")
        _bias(region, site, value, labels)
    elif value is site.input and not site.is_embedding:
        region.weights.ask_stored(
            site.weight, node, site.weight_index, "in", Labels((site.in_axis,), ids)
        )
        region.read(site, axis)
    else:
        _bias(region, site, value, labels)


def _channel_axis(site: Site) -> int:
    """The axis of input and output, from the end, that the weight works along."""
    node = site.node
    if site.kind in ("Conv", "ConvTranspose"):
        return 1 - len(site.shape)
    if node.attributes.get_int("transA", 0) or node.attributes.get_int("transBatchA", 0):
        raise Leave(f"{named(node)} transposes its input")
    if node.attributes.get_int("transBatchB", 0):
        raise Leave(f"{named(node)} transposes batches")
    return -2 if site.weight_index == 0 and not site.is_embedding else -1


def _bias(region: Region, site: Site, value: ir.Value, labels: Labels) -> None:
    """The operator's own bias: one number per channel, or for Gemm whatever broadcasts."""
    node = site.node
    if site.kind == "Gather" or len(node.inputs) < 3 or node.inputs[2] is None:
        return
    if site.kind == "Gemm":
        follow_operand(region, node, 2, node.outputs[0], labels)
    elif site.kind in ("Conv", "ConvTranspose"):
        if value is not node.outputs[0]:
            raise Leave(f"{named(node)} computes its bias {value.name!r}")
        region.weights.ask(node, 2, "bias", Labels((-1,), labels.ids))


def _depthwise(region: Region, site: Site, axis: int, value: ir.Value, labels: Labels) -> None:
    """A filter for each channel moves with it; other groups of channels stay."""
    node, groups = site.node, site.groups
    shape = site.shape
    if site.kind != "Conv" or shape[1] != 1 or site.weight is None or site.input is None:
        raise Leave(f"{named(node)} works on {groups} groups of several channels")
    each = shape[0] // groups
    if value is not site.input and value is not node.outputs[0]:
        raise Leave(f"{named(node)} computes its bias {value.name!r}")
    index = np.arange(shape[0]) // each
    region.link(
        node,
        Link(site.input, (axis,), (groups,), node.outputs[0], (axis,), (shape[0],), index),
    )
    if value is node.outputs[0]:
        out = Labels((0,), labels.ids)
        region.weights.ask_stored(site.weight, node, site.weight_index, "out", out)
        _bias(region, site, value, labels)


def follow_product(region: Region, node: ir.Node, value: ir.Value, labels: Labels) -> None:
    """Attention probabilities times values: the columns of the values are independent."""
    values, out = node.inputs[1], node.outputs[0]
    if node.attributes.get_int("transB", 0) or node.attributes.get_int("transBatchB", 0):
        raise Leave(f"{named(node)} transposes what it multiplies")
    if values is None or value is node.inputs[0] or -2 in labels.axes or -1 not in labels.axes:
        raise Leave(f"{named(node)} sums over them with computed factors")
    if value is values:
        region.link(node, Link.same(values, out, labels))
    else:
        follow_operand(region, node, 1, out, labels)
    for axis in labels.axes:
        if axis != -1:
            region.hold(value, axis)


def follow_operand(
    region: Region, node: ir.Node, index: int, out: ir.Value, labels: Labels
) -> None:
    """An input that broadcasts to an output with these labels."""
    operand = node.inputs[index]
    if operand is None:
        return
    sizes = dims_of(operand)
    if sizes is None and _is_sole(node, index):
        region.link(node, Link.same(operand, out, labels))
        return
    if sizes is None:
        raise Leave(f"the shape of {operand.name!r} is unknown: run fold_constants first")
    shape = tuple(sizes[axis] if axis >= -len(sizes) else 1 for axis in labels.axes)
    if any(size not in (1, full) for size, full in zip(shape, labels.ids.shape, strict=True)):
        raise Leave(f"the shape of {operand.name!r} is not known along their axes: {sizes}")
    known = tuple(size or 1 for size in shape)
    if math.prod(known) == 1 and labels.ids.size > 1:
        return
    grid = np.broadcast_to(np.arange(math.prod(known)).reshape(known), labels.ids.shape)
    kept = [axis for axis, size in zip(labels.axes, known, strict=True) if size > 1]
    kept = kept or [labels.axes[-1]]
    link = Link(
        operand,
        tuple(kept),
        tuple(size for axis, size in zip(labels.axes, known, strict=True) if axis in kept),
        out,
        labels.axes,
        labels.ids.shape,
        grid.reshape(-1),
    )
    if stored_weight(operand) is not None:
        region.constant(node, index, link, link.backward(labels), of=operand)
    else:
        region.link(node, link)


def _is_sole(node: ir.Node, index: int) -> bool:
    """Whether no other input is computed, so that the output has the shape of this one."""
    others = [other for at, other in enumerate(node.inputs) if at != index and other is not None]
    return all(stored_weight(other) is not None for other in others)


def follow_structure(
    region: Region,
    node: ir.Node,
    value: ir.Value,
    labels: Labels,
    *,
    linear: Callable[[Region, Site, ir.Value, Labels], None] = follow_linear,
    view: Callable[[Region, ir.Node, ir.Value, Labels], None] = follow_view,
) -> bool:
    """Carry channels over what means the same for every change of them; False for other nodes.

    Args:
        region: what they are followed in.
        node: gives or reads ``value``.
        value: holds the channels.
        labels: where.
        linear: the rule of weights.
        view: that of operators that only move elements.

    Raises:
        Leave: they end here.
    """
    kind = node.op_type
    if node.domain not in ("", "ai.onnx", "com.microsoft"):
        raise Leave(f"{named(node)} is on their way, an operator of the domain {node.domain!r}")
    site = region.site_of(node)
    if kind in _UNTOUCHED:
        return True
    if kind in ATTENTION:
        follow_attention(region, node, value, labels)
    elif kind in VIEWS:
        view(region, node, value, labels)
    elif site is not None and site.weight is not None and (kind in _LINEAR or site.already):
        linear(region, site, value, labels)
    elif kind == "Gather":
        follow_pick(region, node, value, labels)
    elif kind in ("MatMul", "FusedMatMul"):
        follow_product(region, node, value, labels)
    else:
        return False
    return True
