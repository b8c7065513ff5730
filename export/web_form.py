"""The form of a model that onnxruntime-web is fast on: MatMulNBits spelled out.

WebAssembly has no kernel for MatMulNBits: it dequantizes the whole weight in every run, fifty
times the time of the product in float32. In standard operators the same weight is constant, and
ONNX Runtime folds it when it loads the model. Codes stay as they are stored, also where an
embedding reads them too.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.custom_ops.functions import DOMAIN, add_function
from onnxq.graph import add_weight, is_weight, walk_nodes
from onnxq.graph.names import unique_value_name
from onnxq.graph.site_slots import integer
from onnxq.graph.versions import opset_of
from onnxq.graph.weights import weight_tensor

__all__ = ["blocks_refusal", "spell_out_blocks"]

_OPSET = 18
_NAME = "DequantizeBlocks"
_BODY = f"""
{_NAME} <K, bits> (B, scales, zeros) => (W) {{
    column_count = Constant<value_int: int = @K>()
    code_bits = Constant<value_int: int = @bits>()
    zero = Constant<value = int64 {{0}}>()
    eight = Constant<value = int64 {{8}}>()
    one = Constant<value = int64 {{1}}>()
    two = Constant<value = int64 {{2}}>()
    first = Constant<value = int64[1] {{0}}>()
    second = Constant<value = int64[1] {{1}}>()
    third = Constant<value = int64[1] {{2}}>()
    last = Constant<value = int64[1] {{-1}}>()
    shift_wide = Range(zero, eight, code_bits)
    shift = Cast<to = 2>(shift_wide)
    code_count = Pow(two, code_bits)
    mask_wide = Sub(code_count, one)
    mask = Cast<to = 2>(mask_wide)
    B_bytes = Unsqueeze(B, last)
    B_shifted = BitShift<direction = "RIGHT">(B_bytes, shift)
    B_codes = BitwiseAnd(B_shifted, mask)
    B_shape = Shape<start = 0, end = 2>(B)
    code_shape = Concat<axis = 0>(B_shape, last)
    codes = Reshape(B_codes, code_shape)
    zero_bytes = Unsqueeze(zeros, last)
    zero_shifted = BitShift<direction = "RIGHT">(zero_bytes, shift)
    zero_codes = BitwiseAnd(zero_shifted, mask)
    zero_rows = Shape<start = 0, end = 1>(zeros)
    zero_shape = Concat<axis = 0>(zero_rows, last)
    zero_flat = Reshape(zero_codes, zero_shape)
    blocks = Shape<start = 1, end = 2>(B)
    zero_cut = Slice(zero_flat, first, blocks, second)
    zero_column = Unsqueeze(zero_cut, third)
    zero_values = Cast<to = 1>(zero_column)
    code_values = Cast<to = 1>(codes)
    steps = Sub(code_values, zero_values)
    steps_shape = Concat<axis = 0>(B_shape, second)
    scale_column = Reshape(scales, steps_shape)
    blocked = Mul(steps, scale_column)
    rows = Shape<start = 0, end = 1>(B)
    flat_shape = Concat<axis = 0>(rows, last)
    flat = Reshape(blocked, flat_shape)
    columns = Unsqueeze(column_count, first)
    weight = Slice(flat, first, columns, second)
    W = Transpose<perm = [1, 0]>(weight)
}}
"""
_SYMMETRIC = {2: 0xAA, 4: 0x88, 8: 0x80}
"""A byte of zero points 2^(bits - 1), which stand where none are given."""


def blocks_refusal(model: ir.Model, node: ir.Node) -> str | None:
    """Why a MatMulNBits stays as it is, as a clause; None when it can be spelled out."""
    inputs = [*node.inputs, *[None] * (6 - len(node.inputs))]
    if opset_of(model) < _OPSET:
        return f"the model is in opset {opset_of(model)}, and bits are cut out from {_OPSET} on"
    if integer(node, "bits", 4) not in _SYMMETRIC:
        return f"it has {integer(node, 'bits', 4)} bits"
    if inputs[4] is not None:
        return "it has an order of columns (g_idx)"
    codes, scales = inputs[1], inputs[2]
    if codes is None or scales is None or not (is_weight(codes) and is_weight(scales)):
        return "its codes or scales are computed"
    if weight_tensor(scales).dtype != ir.DataType.FLOAT:
        return "its scales are not float32"
    if inputs[3] is not None and (
        not is_weight(inputs[3]) or weight_tensor(inputs[3]).dtype != ir.DataType.UINT8
    ):
        return "its zero points are not uint8 constants"
    if not isinstance(node.graph, ir.Graph):
        return "it is inside a function"
    return None


def spell_out_blocks(model: ir.Model) -> int:
    """Write every MatMulNBits that allows it in standard operators, in place; how many."""
    count = 0
    for _, node in walk_nodes(model):
        if (node.domain, node.op_type) != ("com.microsoft", "MatMulNBits"):
            continue
        if blocks_refusal(model, node) is None:
            _spell_out(model, node)
            count += 1
    return count


def _spell_out(model: ir.Model, node: ir.Node) -> None:
    add_function(model, _NAME, _BODY, lowest_opset=_OPSET)
    graph, bits = node.graph, integer(node, "bits", 4)
    if not isinstance(graph, ir.Graph):
        raise ValueError("check blocks_refusal first")
    inputs = [*node.inputs, *[None] * (6 - len(node.inputs))]
    zeros = inputs[3] or _symmetric_zeros(graph, inputs[1], bits)
    weight = ir.node(
        _NAME,
        [inputs[1], inputs[2], zeros],
        attributes={"K": integer(node, "K"), "bits": bits},
        domain=DOMAIN,
        name=f"{node.name}_weight",
    )
    product = ir.node("MatMul", [inputs[0], weight.outputs[0]], name=node.name)
    nodes = [weight, product]
    if inputs[5] is not None:
        nodes.append(ir.node("Add", [product.outputs[0], inputs[5]], name=f"{node.name}_bias"))
    for made in nodes[:-1]:
        made.outputs[0].name = unique_value_name(model.graph, f"{made.name}_value")
    old, new = node.outputs[0], nodes[-1].outputs[0]
    new.name, new.shape, new.type = old.name, old.shape, old.type
    ir.convenience.replace_nodes_and_values(graph, node, [node], nodes, [old], [new])


def _symmetric_zeros(graph: ir.Graph, codes: ir.Value | None, bits: int) -> ir.Value:
    if codes is None:
        raise ValueError("check blocks_refusal first")
    blocks = int(weight_tensor(codes).shape.numpy()[1])
    array = np.full((1, -(-blocks * bits // 8)), _SYMMETRIC[bits], np.uint8)
    name = f"{codes.name}_no_zeros"
    if name in graph.initializers:
        return graph.initializers[name]
    return add_weight(graph, name, shape=array.shape, dtype=ir.DataType.UINT8, compute=array)
