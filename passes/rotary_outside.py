"""Take the rotary embedding out of GroupQueryAttention, so that something can follow it.

The fused operator splits a packed input into queries, keys and values, turns queries and keys by
their positions, and attends. Written out, the first two steps are a Split and two RotaryEmbedding
nodes of the same domain, with the tables the operator had. Token s of sequence b stands at position
s when the whole sequence is given at once, and otherwise behind what is in the cache; the operator
counts both as::

    position[b, s] = max(seqlens_k[b] + 1 - sequence, 0) + s

``seqlens_k`` is the number of valid tokens less one. With padding on the right of a prompt it is
smaller than the sequence, and positions start at 0.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.graph.names import unique_value_name
from onnxq.graph.site_slots import integer
from onnxq.graph.weights import add_weight

__all__ = ["separate_packed", "take_rotary_out"]

_QUERY, _KEY, _VALUE, _LENGTHS, _COS, _SIN, _POSITIONS = 0, 1, 2, 5, 7, 8, 9
_POSITION_MARK = "onnxq.positions_of"


def take_rotary_out(model: ir.Model, node: ir.Node, head_dim: int) -> str | None:
    """Leave the operator separate queries, keys and values, and no rotary embedding of its own.

    Args:
        model: edited in place.
        node: a GroupQueryAttention of its main graph.
        head_dim: channels of one head.

    Returns:
        Why it cannot be done, with nothing changed; None when it was, or nothing was to do.
    """
    rotary = bool(integer(node, "do_rotary"))
    query, cos = node.inputs[_QUERY], _input(node, _COS)
    packed = _input(node, _KEY) is None
    if query is None:
        return "it has no queries"
    width = _turned_width(cos) if rotary else 0
    if width is None:
        return "the width of its rotary embedding is not in the graph"
    if rotary and query.dtype is not None and cos is not None and cos.dtype != query.dtype:
        return f"its rotary tables are {cos.dtype}, and its queries {query.dtype}"
    if packed:
        separate_packed(model, node, query, head_dim)
    if not rotary:
        return None
    positions = _input(node, _POSITIONS)
    if positions is None:
        positions = _positions(model, node)
    heads = integer(node, "num_heads")
    counts = {_QUERY: heads, _KEY: integer(node, "kv_num_heads") or heads}
    for index, count in counts.items():
        _turn(node, index, positions, count, 0 if width == head_dim else width)
    node.attributes["do_rotary"] = ir.AttrInt64("do_rotary", 0)
    node.attributes.pop("rotary_interleaved", None)
    for index in (_COS, _SIN, _POSITIONS):
        if index < len(node.inputs):
            node.replace_input_with(index, None)
    return None


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _turned_width(cos: ir.Value | None) -> int | None:
    """Channels of a head that the embedding turns: two for each column of its tables."""
    columns = None if cos is None or cos.shape is None else cos.shape.dims[-1]
    return 2 * columns if isinstance(columns, int) else None


def separate_packed(model: ir.Model, node: ir.Node, packed: ir.Value, head_dim: int) -> None:
    """Cut the queries, keys and values that GroupQueryAttention reads side by side, by a Split."""
    heads = integer(node, "num_heads")
    keys = integer(node, "kv_num_heads") or heads
    widths = [heads * head_dim, keys * head_dim, keys * head_dim]
    name = f"onnxq_packed_{'_'.join(map(str, widths))}"
    sizes = model.graph.initializers.get(name)
    if sizes is None:
        array = np.array(widths, np.int64)
        sizes = add_weight(
            model.graph, name, shape=array.shape, dtype=ir.DataType.INT64, compute=array
        )
    split = _before(node, "Split", [packed, sizes], {"axis": -1}, "split", outputs=3)
    lead = [] if packed.shape is None else list(packed.shape.dims[:-1])
    for index, (value, width) in enumerate(zip(split.outputs, widths, strict=True)):
        value.type = packed.type
        value.shape = ir.Shape([*lead, width]) if lead else None
        node.replace_input_with(index, value)


def _turn(node: ir.Node, index: int, positions: ir.Value, heads: int, width: int) -> None:
    """Put a RotaryEmbedding before an input; ``width`` is 0 where it turns whole heads."""
    value = node.inputs[index]
    attributes = {"interleaved": integer(node, "rotary_interleaved")}
    if width:
        attributes |= {"num_heads": heads, "rotary_embedding_dim": width}
    role = "query" if index == _QUERY else "key"
    tables = [positions, node.inputs[_COS], node.inputs[_SIN]]
    turned = _before(
        node, "RotaryEmbedding", [value, *tables], attributes, f"{role}_rotary",
        domain="com.microsoft",
    )  # fmt: skip
    if value is not None:
        turned.outputs[0].type = value.type
        turned.outputs[0].shape = None if value.shape is None else value.shape.copy()
    node.replace_input_with(index, turned.outputs[0])


def _positions(model: ir.Model, node: ir.Node) -> ir.Value:
    """Positions int64 [batch, sequence], computed once for all operators of one sequence."""
    lengths, query = node.inputs[_LENGTHS], node.inputs[_QUERY]
    if lengths is None or query is None:  # required inputs of the operator
        raise ValueError(f"GroupQueryAttention {node.name!r} has no seqlens_k")
    mark = lengths.name or ""
    for other in model.graph:
        if other.metadata_props.get(_POSITION_MARK) == mark:
            return other.outputs[0]
    number = {
        at: add_weight(
            model.graph, f"onnxq_position_{at}", shape=(), dtype=ir.DataType.INT64,
            compute=np.array(at, np.int64),
        )
        for at in (0, 1)
    }  # fmt: skip
    axis = add_weight(
        model.graph, "onnxq_position_axis", shape=(1,), dtype=ir.DataType.INT64,
        compute=np.array([1], np.int64),
    )  # fmt: skip
    shape = _before(node, "Shape", [query], {"start": 1, "end": 2}, "sequence_shape")
    sequence = _before(node, "Squeeze", [shape.outputs[0]], {}, "sequence")
    wide = _before(node, "Cast", [lengths], {"to": int(ir.DataType.INT64)}, "lengths")
    valid = _before(node, "Add", [wide.outputs[0], number[1]], {}, "valid")
    behind = _before(node, "Sub", [valid.outputs[0], sequence.outputs[0]], {}, "cached")
    start = _before(node, "Max", [behind.outputs[0], number[0]], {}, "start")
    column = _before(node, "Unsqueeze", [start.outputs[0], axis], {}, "starts")
    steps = _before(node, "Range", [number[0], sequence.outputs[0], number[1]], {}, "steps")
    total = _before(node, "Add", [column.outputs[0], steps.outputs[0]], {}, "positions")
    total.metadata_props[_POSITION_MARK] = mark
    total.outputs[0].dtype = ir.DataType.INT64
    return total.outputs[0]


def _before(
    node: ir.Node,
    op_type: str,
    inputs: list[ir.Value | None],
    attributes: dict[str, int],
    suffix: str,
    *,
    outputs: int = 1,
    domain: str = "",
) -> ir.Node:
    """A new node right before another one, with unique names made from it."""
    new = ir.node(
        op_type, inputs, attributes, domain=domain, num_outputs=outputs,
        name=f"{node.name}_{suffix}",
    )  # fmt: skip
    graph = node.graph
    if not isinstance(graph, ir.Graph):
        raise ValueError(f"node {node.name!r} is in no graph")
    for place, value in enumerate(new.outputs):
        wished = f"{node.name}_{suffix}_output" + (f"_{place}" if outputs > 1 else "")
        value.name = unique_value_name(graph, wished)
    graph.insert_before(node, new)
    return new
