"""Rotation of queries and keys inside an attention block: where it goes, and when it cannot."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from onnxq.custom_ops.hadamard import hadamard_node, is_hadamard
from onnxq.graph.attention import AttentionBlock
from onnxq.graph.sites import Site
from onnxq.graph.weight_source import scalar
from onnxq.numerics.hadamard import factor_size
from onnxq.passes.base import SiteReport
from onnxq.passes.rotary_outside import take_rotary_out

__all__ = ["kept_keys", "rotate_attention"]

_SEPARATE = frozenset(["GroupQueryAttention", "MultiHeadAttention", "Attention"])
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
_PAST_KEY = {"GroupQueryAttention": 3, "MultiHeadAttention": 6, "Attention": 4}

Operand = tuple[ir.Node, int]
"""A node and the input of it that is to be rotated along its last axis."""


def rotate_attention(
    model: ir.Model, block: AttentionBlock, *, rotate_cache: bool, filled: Collection[str] = ()
) -> SiteReport:
    """Rotate the queries and keys of one block, or say why not; nothing is half done.

    Args:
        model: edited in place.
        block: one of its attention blocks.
        rotate_cache: whether keys that are cached may be rotated.
        filled: inputs of the model that the samples put numbers into.
    """
    inner = block.node.graph is not model.graph
    operands = "it is inside a body or function" if inner else _operands(block)
    if isinstance(operands, str):
        return SiteReport(site=block.name, reason=operands)
    cached = _is_cached(block)
    if cached and not rotate_cache:
        reason = "its keys go to a cache, which would hold them rotated: set rotate_cache"
        return SiteReport(site=block.name, reason=reason)
    past = _past_keys(block)
    if past is not None and past.name in filled:
        reason = f"the samples hold keys in {past.name!r} that are not rotated: empty the cache"
        return SiteReport(site=block.name, reason=reason)
    width = _width(block, operands[0][0].inputs[operands[0][1]])
    if width is None:
        return SiteReport(site=block.name, reason="the size of its heads is not in the graph")
    if block.kind == "GroupQueryAttention":
        left = take_rotary_out(model, block.node, width)
        if left is not None:
            return SiteReport(site=block.name, reason=left)
    for role, (node, index) in zip(("query", "key"), operands, strict=True):
        value = node.inputs[index]
        if value is None:  # `_operands` and `take_rotary_out` see to it
            continue
        new = hadamard_node(model, value, width, name=f"{block.node.name}_{role}_hadamard")
        if node.graph is not None:
            node.graph.insert_before(node, new)
        node.replace_input_with(index, new.outputs[0])
    note = f"queries and keys are rotated by {factor_size(width)}"
    return SiteReport(site=block.name, note=note + (", in the cache too" if cached else ""))


def _operands(block: AttentionBlock) -> tuple[Operand, Operand] | str:
    """What to rotate, or why it cannot be."""
    found = _fused_operands(block) if block.kind != "decomposed" else _written_operands(block)
    if isinstance(found, str):
        return found
    for node, index in found:
        value = node.inputs[index]
        if value is not None and is_hadamard(value.producer()):
            return "its queries and keys are rotated already"
        known = _type_of(block.q)
        if value is not None and value.dtype is None and known is not None:
            value.dtype = known  # inference does not know every operator before it
        if value is not None and value.dtype not in _FLOATS:
            return f"its {value.name!r} is {value.dtype}, not float32 or float16"
    return found


def _type_of(query: Site | None) -> ir.DataType | None:
    """The type of activations, that of the float weights they meet."""
    if query is None or query.weight is None or query.already is not None:
        return None
    return query.weight.dtype


def _fused_operands(block: AttentionBlock) -> tuple[Operand, Operand] | str:
    node = block.node
    if block.kind not in _SEPARATE or (block.kind == "Attention" and node.domain != ""):
        return f"{block.kind} projects queries and keys inside, where nothing can be inserted"
    if node.inputs[0] is None:
        return "it has no queries"
    has_key = len(node.inputs) > 1 and node.inputs[1] is not None
    if block.kind == "MultiHeadAttention":
        if not has_key:
            return "its queries, keys and values are packed in one input"
        if len(node.inputs) > 3 and node.inputs[3] is not None:
            return "it adds biases to queries and keys inside, behind the place for a rotation"
        if len(node.inputs) < 3 or node.inputs[2] is None:
            return "its keys and values are packed in one input"
    if block.kind == "GroupQueryAttention":
        kind = node.attributes.get("k_quant_type")
        if kind is not None and kind.as_string() != "NONE":
            return "its key cache is quantized with scales of unrotated keys"
    return (node, 0), (node, 1)


def _written_operands(block: AttentionBlock) -> tuple[Operand, Operand] | str:
    """The MatMul of the scores, and the Transpose that turns the keys."""
    scores = block.scores
    if scores is None or scores.op_type != "MatMul":
        return "its scores are no plain product of queries and keys"
    turning = _turned_by(scores.inputs[1])
    if turning is not None:
        return (scores, 0), (turning, 0)
    return "its keys are not turned by a Transpose right before the product with the queries"


def _turned_by(value: ir.Value | None) -> ir.Node | None:
    """The Transpose that makes channels the last axis but one, over what leaves them there."""
    node = None if value is None else value.producer()
    while node is not None and len(node.outputs[0].uses()) == 1:  # nobody else reads what is turned
        inner = node.inputs[0]
        if node.op_type == "Transpose" and inner is not None:
            perm = node.attributes.get("perm")
            order = [] if perm is None else list(perm.as_ints())
            return node if len(order) > 1 and order[-2] == len(order) - 1 else None
        if inner is None or not (_is_scaled(node) or _keeps_matrices(node)):
            return None
        node = inner.producer()
    return None


def _is_scaled(node: ir.Node) -> bool:
    return node.op_type in ("Mul", "Div") and scalar(node.inputs[1]) is not None


def _keeps_matrices(node: ir.Node) -> bool:
    """Whether a Reshape only splits or joins the axes before the last two."""
    inner = node.inputs[0]
    if node.op_type != "Reshape" or inner is None or inner.shape is None:
        return False
    before, after = inner.shape.dims[-2:], (node.outputs[0].shape or ir.Shape([])).dims[-2:]
    known = all(isinstance(dim, int) or dim.value is not None for dim in (*before, *after))
    return known and len(before) == 2 and before == after


def _width(block: AttentionBlock, value: ir.Value | None) -> int | None:
    """Channels of one head of the queries; None when it is not known."""
    dims = () if value is None or value.shape is None else value.shape.dims
    last = dims[-1] if dims else None
    if len(dims) >= 4 or block.kind == "decomposed":
        return last if isinstance(last, int) else block.head_dim
    if block.heads and isinstance(last, int) and block.kind != "GroupQueryAttention":
        return last // block.heads
    return block.head_dim


def _past_keys(block: AttentionBlock) -> ir.Value | None:
    """Where a fused block takes the keys of earlier tokens from."""
    past = _PAST_KEY.get(block.kind)
    return block.node.inputs[past] if past is not None and past < len(block.node.inputs) else None


def _is_cached(block: AttentionBlock) -> bool:
    """Whether keys come from a cache, or leave the block for one; written out, that is before."""
    if block.kind == "decomposed":
        return False
    present = block.node.outputs[1:2]
    leave = any(value.uses() or value.is_graph_output() for value in present)
    return leave or _past_keys(block) is not None


def kept_keys(block: AttentionBlock) -> tuple[str, ...]:
    """The graph outputs that hold the keys of a fused block, for a cache."""
    present = [] if block.kind == "decomposed" else block.node.outputs[1:2]
    return tuple(value.name or "" for value in present if value.is_graph_output())
