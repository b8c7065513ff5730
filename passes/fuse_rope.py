"""Recognise rotary position embedding that an exporter wrote out, and write it as one node.

``y = x · cos(θ) + rotate_half(x) · sin(θ)`` with ``rotate_half(x) = (−x₂, x₁)`` and θ = (φ, φ)
→ ``RotaryEmbedding(x, cos φ, sin φ)`` of opset 23 (Su et al., "RoFormer", arXiv:2104.09864,
section 3.4.2; halves as Llama stores them). Both halves of θ must be seen to be the same: it is
a Concat of one value with itself, followed by element-wise operators only.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxq.graph.versions import opset_of
from onnxq.graph.weights import add_weight
from onnxq.passes.base import Context, Pass, PassReport, Promise
from onnxq.passes.match import (
    Any,
    Found,
    Op,
    as_number,
    find,
    fuse_sites,
    home_of,
    read_elsewhere,
    replace,
)

__all__ = ["FuseRope"]

_STANDARD_SINCE = 23
_X = Any("x")
_LOW = Op("Slice", (_X, Any("low_start"), Any("low_end"), Any("low_axis")), name="low")
_HIGH = Op("Slice", (_X, Any("high_start"), Any("high_end"), Any("high_axis")), name="high")
_ROTATED = Op("Concat", (Op("Neg", (_HIGH,)), _LOW), name="concat")
_PATTERN = Op("Add", (Op("Mul", (_X, Any("cos"))), Op("Mul", (_ROTATED, Any("sin")))))
_ELEMENTWISE = frozenset(["Cos", "Sin", "Cast", "Identity"])

Halves = dict[ir.Value, ir.Value]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FuseRope(Pass):
    """Write a decomposed rotary embedding as ``RotaryEmbedding`` (opset 23).

    Matches: ``x · cos + rotate_half(x) · sin`` on ``x`` of [batch, heads, sequence, head size].
    Writes: RotaryEmbedding, and one Slice and Expand for each cosine and sine, which all layers
        share.
    Leaves: matches of which an inner value is a graph output or read elsewhere; angles whose
        halves are not seen to be equal; computed splits; models below opset 23.
    """

    promise: ClassVar[Promise] = Promise.SAME_FUNCTION

    def call(self, model: ir.Model, context: Context) -> PassReport:
        """Fuse every site that can be; the report says why the others were left."""
        opset = opset_of(model)
        halves: Halves = {}
        return fuse_sites(model, frozenset(["Add"]), lambda node: _fuse(model, node, opset, halves))


def _fuse(model: ir.Model, node: ir.Node, opset: int, halves: Halves) -> ir.Node | str | None:
    found = find(node, _PATTERN)
    if found is None:
        return None
    if opset < _STANDARD_SINCE:
        return f"RotaryEmbedding needs opset 23, the model has {opset}: run convert_opset first"
    reason = _split_reason(found) or read_elsewhere(found)
    if reason is not None:
        return reason
    angles = []
    for name in ("cos", "sin"):
        value = found.values[name]
        source = _before_unsqueeze(value)
        if source is None or not _halves_equal(source):
            return f"the two halves of its {name} {value.name!r} are not seen to be equal"
        angles.append(source)
    x = found.values["x"]
    half = int(as_number(found.values["low_end"]) or 0)
    inputs = [x, *(_half(model, angle, half, x, found.root, halves) for angle in angles)]
    return replace(found, "RotaryEmbedding", inputs, {"interleaved": 0})


def _split_reason(found: Found) -> str | None:
    """Why the two slices are not the lower and the upper half of the last axis of ``x``."""
    x = found.values["x"]
    if x.shape is None or len(x.shape) != 4:
        return f"{x.name!r} is not known to have the axes batch, heads, sequence, head size"
    names = ("low_start", "low_end", "high_start", "high_end", "low_axis", "high_axis")
    numbers = [as_number(found.values[name]) for name in names]
    if any(number is None for number in numbers):
        return "the point at which it splits the head is computed: fold constants first"
    low, middle, high, end, low_axis, high_axis = (int(number or 0) for number in numbers)
    concat = found.nodes["concat"].attributes.get("axis")
    axes = {low_axis, high_axis, concat.as_int() if concat is not None else 0}
    size = x.shape[3]
    if not axes <= {-1, 3}:
        return "it does not rotate along the last axis"
    if not isinstance(size, int):
        return f"the head size of {x.name!r} is not known"
    if low != 0 or middle != high or 2 * middle != size or end < size:
        return f"it does not split the head of size {size} into two halves"
    for name in ("low", "high"):
        steps = found.nodes[name].inputs[4] if len(found.nodes[name].inputs) > 4 else None
        if steps is not None and as_number(steps) != 1.0:
            return "it slices with a step other than 1"
    return None


def _before_unsqueeze(value: ir.Value) -> ir.Value | None:
    """[batch or 1, sequence, head size] behind an Unsqueeze of axis 1."""
    node = value.producer()
    if node is None or node.op_type != "Unsqueeze" or len(node.inputs) < 2:
        return None
    source = node.inputs[0]
    if as_number(node.inputs[1]) != 1.0 or source is None or source.shape is None:
        return None
    return source if len(source.shape) == 3 else None


def _halves_equal(value: ir.Value) -> bool:
    """Whether the value is element-wise of a Concat of something with itself on the last axis."""
    node = value.producer()
    while node is not None and node.domain == "":
        if node.op_type == "Concat":
            axis = node.attributes["axis"].as_int()
            return len(node.inputs) == 2 and node.inputs[0] is node.inputs[1] and axis in (-1, 2)
        if node.op_type not in _ELEMENTWISE and not _scales(node):
            return False
        source = node.inputs[0]
        node = None if source is None else source.producer()
    return False


def _scales(node: ir.Node) -> bool:
    return node.op_type in ("Mul", "Div") and as_number(node.inputs[1]) is not None


def _half(
    model: ir.Model, angle: ir.Value, half: int, x: ir.Value, before: ir.Node, halves: Halves
) -> ir.Value:
    """The first half of the last axis, once for each sequence of the batch; made only once."""
    graph = before.graph
    known = halves.get(angle)
    if graph is None or (known is not None and _in_graph(known, graph)):
        return known if known is not None else angle
    base = angle.name or "angle"
    numbers = {
        name: add_weight(
            home_of(model, before),
            f"{base}_{name}",
            shape=[1],
            dtype=ir.DataType.INT64,
            compute=np.array([number]),
        )
        for name, number in (("start", 0), ("end", half), ("axis", 2), ("one", 1))
    }
    slicing = ir.node(
        "Slice", [angle, numbers["start"], numbers["end"], numbers["axis"]], name=f"{base}_half"
    )
    batch = ir.node("Shape", [x], {"start": 0, "end": 1}, name=f"{base}_batch")
    shape = ir.node(
        "Concat",
        [batch.outputs[0], numbers["one"], numbers["one"]],
        {"axis": 0},
        name=f"{base}_shape",
    )
    spread = ir.node("Expand", [slicing.outputs[0], shape.outputs[0]], name=f"{base}_spread")
    for node in (slicing, batch, shape, spread):
        node.outputs[0].name = f"{node.name}_output"
        graph.insert_before(before, node)
    result = spread.outputs[0]
    result.type = angle.type
    if angle.shape is not None:
        result.shape = ir.Shape([None, angle.shape[1], half])
    halves[angle] = result
    return result


def _in_graph(value: ir.Value, graph: ir.Graph | ir.Function) -> bool:
    producer = value.producer()
    return producer is not None and producer.graph is graph
