"""Types of activation codes as ONNX Runtime's kernels meet them: on x86-64 int8 is made uint8.

On 64-bit ARM (``signed``) int8 stays as it is: QDQIsInt8Allowed in
onnxruntime/core/optimizer/qdq_transformer/selectors_actions/qdq_selector_action_transformer.h.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxq.export.onnxruntime_view import Operand, is_read_once, value_type

__all__ = ["read_codes", "written_codes"]


def written_codes(quantize: ir.Node, result: ir.Value, *, signed: bool = False) -> ir.DataType:
    """The type of codes that a QuantizeLinear gives, after int8 has been made uint8.

    On x86-64 that is done where one node alone reads them (qdq_s8_to_u8.cc); when only moves are
    between, the pair has a copy right behind the result, which has one reader.
    """
    zero = quantize.inputs[2] if len(quantize.inputs) > 2 else None
    told = quantize.attributes.get_int("output_dtype", 0)
    codes = ir.DataType(told) if told else ir.DataType.UINT8
    if zero is not None:
        codes = value_type(zero) or codes
    near = quantize.inputs[0] is result
    once = not near or _codes_are_read_once(quantize)
    made = codes == ir.DataType.INT8 and once and not signed
    return ir.DataType.UINT8 if made else codes


def read_codes(found: Operand, *, signed: bool = False) -> ir.DataType | None:
    """The type of codes that a node reads, after int8 has been made uint8."""
    codes, node = found.codes, found.dequantize
    if codes != ir.DataType.INT8 or signed or node is None or node.inputs[0] is None:
        return codes
    quantize = node.inputs[0].producer()
    if quantize is None or quantize.op_type != "QuantizeLinear" or len(node.inputs) < 3:
        return codes
    if found.value is node.outputs[0]:
        once = _codes_are_read_once(quantize)
    else:
        once = found.value is not None and is_read_once(found.value)
    return ir.DataType.UINT8 if once else codes


def _codes_are_read_once(quantize: ir.Node) -> bool:
    """Whether one node reads the codes: every reader has a DequantizeLinear of its own by then."""
    if quantize.outputs[0].is_graph_output():
        return False
    edges = 0
    for use in quantize.outputs[0].uses():
        back = use.node
        readers = len(back.outputs[0].uses()) if back.op_type == "DequantizeLinear" else 1
        edges += max(1, readers + int(readers > 0 and back.outputs[0].is_graph_output()))
    return edges == 1
