"""Shapes of every value of a model with fixed inputs, also behind operators ONNX does not know.

ONNX's shape inference stops at operators of com.microsoft and at those of onnxq; so they are
replaced, in a copy, by standard operators that give the same shapes, of weights that are not there.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from onnxq.custom_ops.functions import DOMAIN
from onnxq.export.onnxruntime_view import dimensions
from onnxq.graph import infer_shapes
from onnxq.graph.stage import clone_model

__all__ = ["with_shapes"]

_MICROSOFT = "com.microsoft"
_BYTE = 8


def with_shapes(model: ir.Model) -> ir.Model:
    """A copy of the model whose values have the shapes that can be known.

    Args:
        model: with inputs of fixed shapes.
    """
    standing_in = clone_model(model)
    for node in tuple(standing_in.graph):
        stand_in = _STAND_INS.get((node.domain, node.op_type))
        if stand_in is None and node.domain == DOMAIN:
            stand_in = _product if "rows" in node.attributes else _same
        if stand_in is not None:
            stand_in(standing_in, node)
    infer_shapes(standing_in)
    known = {
        value.name: value for node in standing_in.graph for value in node.outputs if value.name
    }
    shaped = clone_model(model)
    infer_shapes(shaped)
    for node in shaped.graph:
        for value in node.outputs:
            other = known.get(value.name or "")
            if other is not None and (value.shape is None or not value.shape.is_static()):
                value.shape = other.shape
                _set_type(value, other.dtype)
    return shaped


def _replace(node: ir.Node, op: str, inputs: list[ir.Value], index: int = 0, **given: int) -> None:
    """Let a standard operator give one output of a node; the node goes when none is left."""
    graph = node.graph
    output = node.outputs[index]
    if not isinstance(graph, ir.Graph) or not output.name:
        return
    new = ir.node(op, inputs, given)
    new.outputs[0].name, output.name = output.name, f"{output.name}_replaced"
    _set_type(new.outputs[0], inputs[0].dtype)
    graph.insert_before(node, new)
    output.replace_all_uses_with(new.outputs[0], replace_graph_outputs=True)


def _set_type(value: ir.Value, dtype: ir.DataType | None) -> None:
    """Give a value an element type where it is known."""
    if dtype is not None:
        value.dtype = dtype


def _absent(model: ir.Model, shape: tuple[int, ...], dtype: ir.DataType | None) -> ir.Value:
    """A weight that is not there: an input of the copy."""
    name = f"absent_{len(model.graph.inputs)}"
    value = ir.Value(name=name, shape=ir.Shape(shape))
    value.dtype = dtype or ir.DataType.FLOAT
    model.graph.inputs.append(value)
    return value


def _product(model: ir.Model, node: ir.Node) -> None:
    """MatMulNBits and the products of onnxq: [..., K] to [..., N]."""
    source = node.inputs[0]
    names = ("columns", "rows") if node.domain == DOMAIN else ("K", "N")
    if source is not None:
        size = tuple(node.attributes.get_int(name, 1) for name in names)
        _replace(node, "MatMul", [source, _absent(model, size, source.dtype)])


def _same(model: ir.Model, node: ir.Node) -> None:
    """What keeps the shape of its first input, at outputs 0 and 3 (the sum of a skip norm)."""
    source = node.inputs[0]
    for index in (0, 3):
        if source is not None and index < len(node.outputs):
            _replace(node, "Identity", [source], index)


def _lookup(model: ir.Model, node: ir.Node) -> None:
    """GatherBlockQuantized: a row of K numbers for each index."""
    table, indices, scales = (node.inputs[0], node.inputs[1], node.inputs[2])
    shape = dimensions(table)
    if shape is None or indices is None or scales is None or table is None:
        return
    packed = table.dtype == ir.DataType.UINT8
    factor = _BYTE // node.attributes.get_int("bits", 4) if packed else 1
    size = (int(shape[0] or 0), int(shape[1] or 0) * factor)
    _replace(node, "Gather", [_absent(model, size, scales.dtype), indices])


def _attention(model: ir.Model, node: ir.Node) -> None:
    """GroupQueryAttention: [batch, length, heads · size], and caches of fixed length."""
    query, past = node.inputs[0], dimensions(node.inputs[3])
    mask = next((v for v in model.graph.inputs if v.name == "attention_mask"), None)
    total = dimensions(mask)
    if query is None or past is None or not isinstance(past[3], int):
        return
    width = node.attributes.get_int("num_heads", 1) * past[3]
    unknown = ir.Value(name=f"absent_{len(model.graph.inputs)}", shape=ir.Shape([None, width]))
    _set_type(unknown, query.dtype)
    model.graph.inputs.append(unknown)
    _replace(node, "MatMul", [query, unknown])
    for value in node.outputs[1:3]:
        length = total[1] if total is not None else past[2]
        value.shape = ir.Shape([past[0], past[1], length, past[3]])
        _set_type(value, query.dtype)


_STAND_INS: dict[tuple[str, str], Callable[[ir.Model, ir.Node], None]] = {
    (_MICROSOFT, "MatMulNBits"): _product,
    (_MICROSOFT, "GatherBlockQuantized"): _lookup,
    (_MICROSOFT, "GroupQueryAttention"): _attention,
    (_MICROSOFT, "SkipLayerNormalization"): _same,
    (_MICROSOFT, "SkipSimplifiedLayerNormalization"): _same,
    (_MICROSOFT, "RotaryEmbedding"): _same,
    (_MICROSOFT, "QuickGelu"): _same,
    (_MICROSOFT, "FastGelu"): _same,
    (_MICROSOFT, "BiasGelu"): _same,
    (_MICROSOFT, "Gelu"): _same,
}
