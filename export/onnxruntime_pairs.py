"""Pairs of QuantizeLinear and DequantizeLinear that ONNX Runtime runs for nothing.

A pair rounds a value. It is worth its time when a kernel reads or writes the codes: when the node
before the QuantizeLinear writes them, or a node behind a DequantizeLinear reads them. Other pairs
run as two more operators, and all that they change is the accuracy.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnxq.export.onnxruntime_codes import read_codes, written_codes
from onnxq.export.onnxruntime_rules import fusion_for
from onnxq.export.onnxruntime_view import (
    MOVERS,
    View,
    constant_scalars,
    is_standard,
    operand,
    quantizer_of,
)
from onnxq.export.target import Execution, SiteVerdict
from onnxq.graph import is_weight, read_weight
from onnxq.graph.walk import is_operator_body, site_name, walk_nodes

__all__ = ["reads_codes", "wasted_pairs"]

_ONE = ("AveragePool", "LeakyRelu", "GlobalAveragePool", "Sigmoid", "Softmax")
_TWO = ("Add", "Mul")
_ALL = ("Concat",)
_DROPPED = frozenset(
    ["Expand", "Flatten", "Gather", "GatherElements", "Reshape", "Slice", "Squeeze", "Tile"]
).union(["Transpose", "Unsqueeze", "Resize", "MaxPool", "ReduceMax", "ReduceMin"])
_EIGHT = (ir.DataType.UINT8, ir.DataType.INT8)


def wasted_pairs(model: ir.Model, *, signed: bool = False) -> Iterator[SiteVerdict]:
    """A verdict for each QuantizeLinear of an activation whose codes no kernel reads or writes."""
    for path, node in walk_nodes(model):
        if node.op_type != "QuantizeLinear" or not is_standard(node) or is_operator_body(path):
            continue
        source = node.inputs[0]
        if source is None or is_weight(source):
            continue
        backs = [use.node for use in node.outputs[0].uses()]
        if node.outputs[0].is_graph_output() or not backs:
            continue
        if any(back.op_type != "DequantizeLinear" for back in backs):
            continue
        if _is_written(source, node, signed):
            continue
        if any(_is_read(back.outputs[0], signed) for back in backs):
            continue
        readers = sorted({use.node.op_type for back in backs for use in back.outputs[0].uses()})
        yield SiteVerdict(
            site=site_name(path, node),
            execution=Execution.DEQUANTIZED,
            rule="pair-without-kernel",
            kernel="QuantizeLinear, DequantizeLinear",
            reason=f"no integer kernel reads or writes these codes (read by "
            f"{', '.join(readers) or 'an output'}): take the pair away",
        )


def _is_written(value: ir.Value, quantize: ir.Node, signed: bool) -> bool:
    """Whether the node before a QuantizeLinear writes the codes itself."""
    here = value
    producer = here.producer()
    while producer is not None and producer.op_type in ("Relu", "Clip", *MOVERS):
        if producer.inputs[0] is None:
            return False
        if reads_codes(producer, signed=signed):
            return True
        here = producer.inputs[0]
        producer = here.producer()
    if written_codes(quantize, here, signed=signed) != written_codes(
        quantize, value, signed=signed
    ):
        return False  # the copy of the pair behind the kernel has other codes
    return (
        producer is not None
        and reads_codes(producer, signed=signed)
        and _quantized_result(producer)
    )


def _quantized_result(node: ir.Node) -> bool:
    if node.op_type in ("MatMul", "Gemm", "Conv"):
        return View.of(node).quantize is not None
    if node.op_type == "Add" and _product_before(node) is not None:
        return True
    return quantizer_of(node.outputs[0]) is not None


def _is_read(value: ir.Value, signed: bool, depth: int = 8) -> bool:
    """Whether any reader of a dequantized value reads its codes instead."""
    for use in value.uses():
        node = use.node
        if reads_codes(node, signed=signed):
            return True
        moves = node.op_type in MOVERS and is_standard(node) and use.idx == 0
        if (
            moves
            and depth
            and not value.is_graph_output()
            and _is_read(node.outputs[0], signed, depth - 1)
        ):
            return True
    return False


def reads_codes(node: ir.Node, *, signed: bool = False) -> bool:
    """Whether the runtime makes an integer kernel of a node and the pairs around it."""
    if not is_standard(node):
        return False
    if node.op_type in ("MatMul", "Gemm", "Conv"):
        view = View.of(node, signed=signed)
        fusion = fusion_for(view)
        if fusion is None or fusion.execution is not Execution.INTEGER:
            return False
        rule = fusion.broken(view)
        return rule is None or rule.otherwise is Execution.UNSUPPORTED
    product = _product_before(node)
    if product is not None:
        return reads_codes(product, signed=signed)
    quantize = quantizer_of(node.outputs[0]) if len(node.outputs) == 1 else None
    if quantize is None:
        return node.op_type == "ArgMax" and operand(node.inputs[0]).dequantize is not None
    kind = node.op_type
    if kind in _ONE or kind in _DROPPED:
        sources = [operand(node.inputs[0], moved=kind not in _DROPPED)]
    elif kind in _TWO or kind in _ALL:
        sources = [operand(value) for value in node.inputs]
    else:
        return False
    if any(source.dequantize is None or source.codes not in _EIGHT for source in sources):
        return False
    codes = {read_codes(source, signed=signed) for source in sources}
    codes.add(written_codes(quantize, node.outputs[0], signed=signed))
    same = kind not in _DROPPED or _same_grid(sources[0].dequantize, quantize)
    return same and len(codes) == 1


def _product_before(add: ir.Node) -> ir.Node | None:
    """The MatMul that takes an Add in as its bias."""
    if add.op_type != "Add":
        return None
    for value in add.inputs:
        producer = None if value is None else value.producer()
        if producer is None or producer.op_type != "MatMul":
            continue
        if View.of(producer).result is add.outputs[0]:
            return producer
    return None


def _same_grid(dequantize: ir.Node | None, quantize: ir.Node) -> bool:
    """Whether codes come out with the scale and zero point they went in with."""
    if dequantize is None or not (constant_scalars(dequantize) and constant_scalars(quantize)):
        return False
    pairs = zip(dequantize.inputs[1:], quantize.inputs[1:], strict=False)
    return len(dequantize.inputs) == len(quantize.inputs) and all(
        a is b or (a is not None and b is not None and read_weight(a) == read_weight(b))
        for a, b in pairs
    )
