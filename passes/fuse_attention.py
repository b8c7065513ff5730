"""Recognise scaled dot-product attention that an exporter wrote out, and write it as one node.

``softmax(s · q kᵀ + mask) v`` → ``Attention(q, k, v, mask)`` of opset 23 on [batch, heads,
sequence, head size] (Vaswani et al., "Attention Is All You Need", arXiv:1706.03762, equation 1).
The scale may be on the scores, on the query, on the key, or split over both.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxq.graph.versions import opset_of
from onnxq.graph.weights import add_weight
from onnxq.passes.base import Context, Pass, PassReport, Promise
from onnxq.passes.match import (
    Any,
    Either,
    Found,
    Number,
    Op,
    Pattern,
    as_number,
    find,
    fuse_sites,
    home_of,
    read_elsewhere,
    replace,
)

__all__ = ["FuseAttention"]

_STANDARD_SINCE = 23


def _scaled(of: Pattern, name: str) -> Either:
    return Either(
        (
            Op("Mul", (of, Any(f"{name}_times"))),
            Op("Div", (of, Any(f"{name}_over"))),
            of,
        )
    )


def _pattern() -> Either:
    key = Any("k")
    flat = Op("Transpose", (Op("Reshape", (key, Any("flat"))),), name="flat_transpose")
    turned = Either(
        (Op("Reshape", (flat, Any("unflat"))), Op("Transpose", (key,), name="transpose"))
    )
    scores = Op("MatMul", (_scaled(Any("q"), "q"), _scaled(turned, "k")))
    scaled = _scaled(scores, "s")
    weights = Op("Softmax", (Either((Op("Add", (scaled, Any("mask"))), scaled)),), name="softmax")
    guarded = Op("Where", (Op("IsNaN", (weights,)), Number(0.0), weights), name="guard")
    return Either((Op("MatMul", (guarded, Any("v"))), Op("MatMul", (weights, Any("v")))))


_PATTERN = _pattern()


@dataclasses.dataclass(frozen=True, kw_only=True)
class FuseAttention(Pass):
    """Write decomposed attention as ``Attention`` (opset 23).

    Matches: ``softmax(scale · q kᵀ + mask) v`` with constant scales, with or without a mask.
    Writes: Attention with the product of the scales; an Expand of a mask without query rows.
        Heads that were repeated for grouped queries stay repeated.
    Leaves: matches of which an inner value is a graph output or read elsewhere; computed scales;
        a guard against NaN rows where the mask may exclude a whole row with −inf; models below
        opset 23.
    """

    promise: ClassVar[Promise] = Promise.SAME_FUNCTION

    def call(self, model: ir.Model, context: Context) -> PassReport:
        """Fuse every site that can be; the report says why the others were left."""
        opset = opset_of(model)
        return fuse_sites(model, frozenset(["MatMul"]), lambda node: _fuse(model, node, opset))


def _fuse(model: ir.Model, node: ir.Node, opset: int) -> ir.Node | str | None:
    found = find(node, _PATTERN)
    if found is None:
        return None
    if opset < _STANDARD_SINCE:
        return f"Attention needs opset 23, the model has {opset}: run convert_opset first"
    scale = _scale(found)
    if isinstance(scale, str):
        return scale
    reason = _shape_reason(found) or _guard_reason(found) or read_elsewhere(found)
    if reason is not None:
        return reason
    key = found.values["k"]
    transpose = found.nodes.get("transpose")
    if transpose is not None and _order(transpose) == (0, 2, 3, 1):
        turn = ir.node("Transpose", [key], {"perm": [0, 2, 1, 3]}, name=f"{node.name}_key")
        turn.outputs[0].name = f"{key.name}_by_head"
        turn.outputs[0].type = key.type
        if node.graph is not None:
            node.graph.insert_before(node, turn)
        key = turn.outputs[0]
    inputs = [found.values["q"], key, found.values["v"]]
    if "mask" in found.values:
        inputs.append(_full_mask(model, found))
    return replace(found, "Attention", inputs, {"scale": scale})


def _scale(found: Found) -> float | str:
    """The product of all scales of a match, or which of them is not a constant number."""
    scale = 1.0
    for name, value in found.values.items():
        if not name.endswith(("_times", "_over")):
            continue
        number = as_number(value)
        if number is None:
            return f"its scale {value.name!r} is not a constant number"
        scale = scale * number if name.endswith("_times") else scale / number
    if not math.isfinite(scale) or scale == 0.0:
        return f"its scale is {scale}"
    return scale


def _shape_reason(found: Found) -> str | None:
    for name in ("q", "k", "v"):
        value = found.values[name]
        if value.shape is None or len(value.shape) != 4:
            return f"{value.name!r} is not known to have the axes batch, heads, sequence, size"
        if value.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
            return f"{value.name!r} is not known to be float32 or float16"
    mask = found.values.get("mask")
    if mask is not None and (mask.shape is None or len(mask.shape) != 4):
        return f"its mask {mask.name!r} is not known to have four axes"
    axis = found.nodes["softmax"].attributes.get("axis")
    if axis is not None and axis.as_int() not in (-1, 3):
        return "its Softmax is not over the last axis"
    transpose = found.nodes.get("transpose")
    if transpose is not None and _order(transpose) not in ((0, 1, 3, 2), (0, 2, 3, 1)):
        return f"its key is transposed as {_order(transpose)}"
    if transpose is None and not _swaps_last(found):
        return "its key is reshaped in a way that is not a plain transpose"
    return None


def _swaps_last(found: Found) -> bool:
    """Whether Reshape, Transpose, Reshape swap the last two axes, as torch's exporter does.

    The flat shape is (−1, sequence, size), the final one (the leading axes, size, sequence), all
    sliced from the shape of the key itself.
    """
    if _order(found.nodes["flat_transpose"]) != (0, 2, 1):
        return False
    flat, final = (found.values[name].producer() for name in ("flat", "unflat"))
    if flat is None or final is None or flat.op_type != "Concat" or final.op_type != "Concat":
        return False
    if len(flat.inputs) != 3 or len(final.inputs) != 3 or as_number(flat.inputs[0]) != -1.0:
        return False
    lead, size, sequence = final.inputs
    if flat.inputs[1] is not sequence or flat.inputs[2] is not size:
        return False
    bounds = [_slice_of_shape(value, found.values["k"]) for value in (lead, sequence, size)]
    return (
        bounds[0] in ((0, -2), (-(2**63), -2))
        and bounds[1] == (-2, -1)
        and (bounds[2] is not None and bounds[2][0] == -1 and bounds[2][1] >= 4)
    )


def _full_mask(model: ir.Model, found: Found) -> ir.Value:
    """The mask with one row for each query, which ONNX Runtime's kernel does not spread itself."""
    mask, query, graph = found.values["mask"], found.values["q"], found.root.graph
    if graph is None or mask.shape is None or query.shape is None:
        return mask
    rows, wanted = mask.shape[2], query.shape[2]
    named = isinstance(rows, int) or rows.value is not None
    if named and rows == wanted:
        return mask
    base = f"{found.root.name}_mask"
    one = add_weight(
        home_of(model, found.root),
        f"{base}_one",
        shape=[1],
        dtype=ir.DataType.INT64,
        compute=np.array([1]),
    )
    length = ir.node("Shape", [query], {"start": 2, "end": 3}, name=f"{base}_rows")
    parts = [one, one, length.outputs[0], one]
    shape = ir.node("Concat", parts, {"axis": 0}, name=f"{base}_shape")
    spread = ir.node("Expand", [mask, shape.outputs[0]], name=f"{base}_spread")
    for node in (length, shape, spread):
        node.outputs[0].name = f"{node.name}_output"
        graph.insert_before(found.root, node)
    spread.outputs[0].type = mask.type
    return spread.outputs[0]


def _slice_of_shape(value: ir.Value | None, of: ir.Value) -> tuple[int, int] | None:
    """(start, end) of a Slice of the shape of ``of``; None when it is anything else."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "Slice" or len(node.inputs) < 3:
        return None
    shape = node.inputs[0].producer() if node.inputs[0] is not None else None
    if shape is None or shape.op_type != "Shape" or shape.inputs[0] is not of:
        return None
    start, end = as_number(node.inputs[1]), as_number(node.inputs[2])
    if start is None or end is None or (shape.attributes and _starts_late(shape)):
        return None
    return int(start), int(end)


def _starts_late(shape: ir.Node) -> bool:
    start, end = shape.attributes.get("start"), shape.attributes.get("end")
    return end is not None or (start is not None and start.as_int() != 0)


def _guard_reason(found: Found) -> str | None:
    """Why rows that are excluded entirely could differ: Attention has no guard against NaN."""
    mask = found.values.get("mask")
    if "guard" not in found.nodes or mask is None:
        return None
    producer = mask.producer()
    if producer is not None and producer.op_type == "Where":
        numbers = [as_number(value) for value in producer.inputs[1:]]
        if all(number is not None and math.isfinite(number) for number in numbers):
            return None
    return f"it guards against rows that its mask {mask.name!r} may exclude entirely"


def _order(node: ir.Node) -> tuple[int, ...]:
    perm = node.attributes.get("perm")
    return tuple(perm.as_ints()) if perm is not None else ()
