"""What each operator means for channels that are to be divided by positive factors.

A rule looks at one node from one of its labelled values: every labelled position of that value is
to hold x / s. It tells the region which other values are then divided too, and which weights must
be divided (they give the channels) or multiplied (they read them), so that nothing else changes::

    MatMul(x / s, s W) = MatMul(x, W)      norm(x) · (g / s) + b / s      relu(x / s) = relu(x) / s
    (a / s) · b = (a · b) / s              Σ p_t (v_t / s) = (Σ p_t v_t) / s
    (x / s) · (s c) = x · c, for a constant c with one number for each channel
    min(x / s, c / s) = min(x, c) / s

An operator without a rule ends the search: nothing is assumed of it.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxq.graph.flow import VIEWS as SAME_ELEMENTS
from onnxq.graph.sites import Site
from onnxq.graph.weight_source import scalar, stored_weight
from onnxq.graph.weights import read_weight
from onnxq.passes.channel_labels import Labels, Leave, Link, along, named
from onnxq.passes.channel_layers import follow_linear, follow_operand, follow_structure
from onnxq.passes.channel_norms import NORMS
from onnxq.passes.channel_region import Region
from onnxq.passes.channel_rules import follow_channelwise
from onnxq.passes.channel_views import dims_of

__all__ = ["FACTORS_OF", "follow_scale"]

_HOMOGENEOUS = frozenset(
    ["Abs", "Cast", "Clip", "Dropout", "Identity", "LeakyRelu", "Neg", "PRelu", "Relu"]
)
"""f(x / s) = f(x) / s for every s > 0; Cast and Clip under conditions."""
_POOLS = frozenset(
    ["AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool"]
)
FACTORS_OF = {
    "BatchNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "RMSNormalization": (1,),
    "SimplifiedLayerNormalization": (1,),
    "SkipLayerNormalization": (2, 3),
    "SkipSimplifiedLayerNormalization": (2,),
}
"""Inputs of the norms that act on their result: scale, and bias where there is one."""
_FLOATS = frozenset(
    [ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE]
)
_ARM = 16
"""How many operators before a product are looked at for a projection."""


def follow_scale(region: Region, node: ir.Node, value: ir.Value, labels: Labels) -> None:
    """Carry the factors of the channels of ``value`` over ``node``, which gives or reads it.

    Raises:
        Leave: the node does not commute with them.
    """
    kind = node.op_type
    if follow_structure(region, node, value, labels, linear=_linear):
        return
    if kind in _HOMOGENEOUS:
        _homogeneous(region, node, value, labels)
    elif kind in ("Mul", "Div"):
        _factor(region, node, value, labels)
    elif kind in ("Add", "Sub", "Min", "Max"):
        _sum(region, node, value, labels)
    elif kind in NORMS or kind == "BatchNormalization":
        _norm(region, node, value, labels)
    elif kind in _POOLS:
        follow_channelwise(region, node, value, labels)
    else:
        raise Leave(f"{named(node)} is on their way, and f(x / s) is not f(x) / s there")


def _linear(region: Region, site: Site, value: ir.Value, labels: Labels) -> None:
    """A weight ends the path; the filters of a depthwise convolution too."""
    node = site.node
    if value is not site.input and value is not node.outputs[0]:
        raise Leave(f"{named(node)} computes its bias {value.name!r}")
    if site.kind not in ("Conv", "ConvTranspose") or site.groups == 1:
        follow_linear(region, site, value, labels)
        return
    shape, axis = site.shape, 1 - len(site.shape)
    if site.already or site.refusal or site.weight is None:
        raise Leave(f"{named(node)} is on their way: {site.already or site.refusal}")
    if site.kind != "Conv" or shape[1] != 1:
        raise Leave(f"{named(node)} works on {site.groups} groups of several channels")
    ids = along(labels, axis, node)
    if value is node.outputs[0]:
        out = Labels((0,), ids)
        region.weights.ask_stored(site.weight, node, site.weight_index, "out", out)
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            region.weights.ask(node, 2, "bias", Labels((-1,), ids))
        return
    rows = Labels((0,), ids.repeat(shape[0] // site.groups))
    region.weights.ask_stored(site.weight, node, site.weight_index, "in", rows)
    region.read(site, axis)


def _homogeneous(region: Region, node: ir.Node, value: ir.Value, labels: Labels) -> None:
    if node.op_type == "Cast" and ir.DataType(node.attributes["to"].as_int()) not in _FLOATS:
        raise Leave(f"{named(node)} makes integers of them")
    if node.op_type == "Clip" and not _is_relu(node):
        raise Leave(f"{named(node)} clips them at values that are not 0")
    if value is node.outputs[0]:
        follow_operand(region, node, 0, value, labels)
    elif value is node.inputs[0]:
        region.link(node, Link.same(value, node.outputs[0], labels))
    else:
        raise Leave(f"{named(node)} takes {value.name!r} as a parameter or gives it besides")


def _is_relu(clip: ir.Node) -> bool:
    """Whether the bounds are 0 and nothing, or nothing and 0: others would have to be scaled."""
    if clip.attributes:
        return False
    bounds = [clip.inputs[at] if at < len(clip.inputs) else None for at in (1, 2)]
    return all(bound is None or scalar(bound) == 0.0 for bound in bounds)


def _factor(region: Region, node: ir.Node, value: ir.Value, labels: Labels) -> None:
    """One factor of a product is divided, or the numerator of a quotient."""
    out = node.outputs[0]
    first, second = node.inputs[0], node.inputs[1]
    if first is second:
        raise Leave(f"{named(node)} multiplies them by themselves")
    if value is out:
        index = _arm(region, node, labels)
        arm = node.inputs[index]
        if arm is not None and dims_of(arm) is None and _is_straight(region, arm):
            # If it had one channel for all of them, the weight before it would not fit.
            region.link(node, Link.same(arm, out, labels))
        else:
            follow_operand(region, node, index, out, labels)
        return
    other = second if value is first else first
    if other in region.labels:
        raise Leave(f"{named(node)} multiplies two of them")
    if node.op_type == "Div" and value is second:
        raise Leave(f"{named(node)} divides by them")
    at = 1 if value is first else 0
    if node.op_type == "Mul" and other is not None and _is_own_factor(other, labels):
        region.weights.ask(node, at, "in", labels)  # (x / s) · (s c): the path ends
        return
    region.link(node, Link.same(value, out, labels))


def _arm(region: Region, node: ir.Node, labels: Labels) -> int:
    """Which operand of a product takes the factors of its result.

    A constant with a number for each channel does; else the operand already known to, else the
    one that comes straight from a projection or norm: up, where the gate goes through SiLU.
    """
    operands = [(at, v) for at, v in enumerate(node.inputs) if v is not None]
    if node.op_type == "Div":
        operands = operands[:1]
    known = [at for at, operand in operands if operand in region.labels]
    if len(known) > 1:
        raise Leave(f"{named(node)} multiplies two of them")
    if known:
        return known[0]
    for at, operand in operands:
        if _is_own_factor(operand, labels):
            return at
    computed = [(at, v) for at, v in operands if stored_weight(v) is None]
    if not computed:
        raise Leave(f"{named(node)} multiplies constants: run fold_constants first")
    straight = [at for at, operand in computed if _is_straight(region, operand)]
    return (straight or [at for at, _ in computed])[-1]


def _is_own_factor(operand: ir.Value, labels: Labels) -> bool:
    """Whether a constant has one number for each position, and so can take the factors."""
    return stored_weight(operand) is not None and _covers(operand, labels)


def _covers(operand: ir.Value, labels: Labels) -> bool:
    """Whether a constant has an element of its own for every labelled position."""
    sizes = dims_of(operand) or []
    return all(axis >= -len(sizes) and sizes[axis] == n for axis, n in labels.sizes.items())


def _is_straight(region: Region, value: ir.Value) -> bool:
    """Whether only views, biases and constant factors lie between a weight and the value."""
    here: ir.Value | None = value
    for _ in range(_ARM):
        node = None if here is None else here.producer()
        if node is None:
            return False
        site = region.site_of(node)
        if (site is not None and site.weight is not None) or node.op_type in NORMS:
            return True
        computed = [v for v in node.inputs if v is not None and stored_weight(v) is None]
        steps = SAME_ELEMENTS | {"Add", "Sub", "Mul", "Split", "Slice"}
        if node.op_type not in steps or len(computed) != 1:
            return False
        here = computed[0]
    return False


def _sum(region: Region, node: ir.Node, value: ir.Value, labels: Labels) -> None:
    """A constant that is added or compared with is divided too; another activation is not."""
    out = node.outputs[0]
    constant = [stored_weight(operand) is not None for operand in node.inputs]
    if sum(constant) != 1:
        raise Leave(f"{named(node)} joins them with another activation")
    if value is not out:
        region.link(node, Link.same(value, out, labels))
        return
    for index, operand in enumerate(node.inputs):
        if operand is not None and constant[index] and not _can_take(operand, labels):
            verb = "adds" if node.op_type in ("Add", "Sub") else "compares with"
            raise Leave(f"{named(node)} {verb} one number for several of them: {operand.name!r}")
        follow_operand(region, node, index, out, labels)


def _can_take(operand: ir.Value, labels: Labels) -> bool:
    """Whether an added constant can be divided channel by channel; zero need not be."""
    sizes = dims_of(operand) or []
    has_own = any(axis >= -len(sizes) and sizes[axis] == n for axis, n in labels.sizes.items())
    return has_own or not read_weight(stored_weight(operand) or operand).any()


def _norm(region: Region, node: ir.Node, value: ir.Value, labels: Labels) -> None:
    """The scale and the bias of a norm give its result."""
    if value is not node.outputs[0]:
        raise Leave(f"{named(node)} normalizes them together")
    sizes = dims_of(value)
    if node.op_type == "BatchNormalization":
        if sizes is None:
            raise Leave(f"{named(node)} is on their way, and the rank of its input is unknown")
        labels = Labels((-1,), along(labels, 1 - len(sizes), node))
    last = -1 if sizes is None else len(sizes) - 1
    if labels.axes != (-1,) or node.attributes.get_int("axis", -1) not in (-1, last):
        raise Leave(f"{named(node)} normalizes over other axes than theirs")
    for index in FACTORS_OF[node.op_type]:
        if index < len(node.inputs) and node.inputs[index] is not None:
            region.weights.ask(node, index, "operand", labels)
