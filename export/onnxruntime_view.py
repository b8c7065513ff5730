"""One linear node as ONNX Runtime's QDQ fusions see it, after its first optimizations.

Those are, of onnxruntime/core/optimizer: MatMulAddFusion (a MatMul and the Add behind it become a
Gemm), QDQPropagationTransformer (what only moves values is passed by DequantizeLinear and
QuantizeLinear), EnsureUniqueDQForNodeUnit (every reader gets a DequantizeLinear of its own), and
the removal of a Relu or Clip that the QuantizeLinear behind it does already.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import onnx_ir as ir

from onnxq.graph import is_weight, read_weight
from onnxq.graph.weights import weight_tensor

__all__ = [
    "MOVERS",
    "Operand",
    "View",
    "constant_scalars",
    "dimensions",
    "is_read_once",
    "is_standard",
    "operand",
    "quantizer_of",
    "value_type",
    "weight_operand",
]

MOVERS = frozenset({"MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice"})
"""What QDQPropagationTransformer moves the pair over (CanNodePropagate in qdq_propagation.cc)."""

_CLIPS = frozenset({"Relu", "Clip"})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operand:
    """What a node reads.

    Attributes:
        value: as the node reads it.
        dequantize: the DequantizeLinear that gives it; None when there is none.
        turned: whether a Transpose swaps the axes of a dequantized matrix.
    """

    value: ir.Value | None
    dequantize: ir.Node | None
    turned: bool = False

    @property
    def codes(self) -> ir.DataType | None:
        """Type of the codes that are dequantized."""
        source = None if self.dequantize is None else self.dequantize.inputs[0]
        return None if source is None else value_type(source)

    @property
    def exists(self) -> bool:
        """Whether the input is there at all."""
        return self.value is not None


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
    """A linear node and what is around it.

    Attributes:
        node: as the model has it.
        kind: MatMul, Gemm or Conv: what the runtime makes of it before it looks for QDQ.
        x: the first operand: the activation.
        w: the second operand: the weight as a rule.
        bias: of Conv or Gemm, or the other operand of the Add that was taken in.
        result: the last value that it computes, behind the Add.
        quantize: the QuantizeLinear behind it, when it is the only reader; None otherwise.
        clip: a Relu or Clip that is the only reader of the result, and read once itself.
        shared: whether a QuantizeLinear reads the result and others do too.
        signed: whether int8 activations stay int8, as on 64-bit ARM.
    """

    node: ir.Node
    kind: str
    x: Operand
    w: Operand
    bias: Operand
    result: ir.Value
    quantize: ir.Node | None
    clip: ir.Node | None
    shared: bool
    signed: bool = False

    @classmethod
    def of(cls, node: ir.Node, *, signed: bool = False) -> View:
        """Look around a MatMul, Gemm or Conv."""
        kind, result, bias = node.op_type, node.outputs[0], None
        add = _taken_in(node)
        if add is not None:
            kind, result = "Gemm", add.outputs[0]
            bias = next(v for v in add.inputs if v is not node.outputs[0])
        elif node.op_type != "MatMul" and len(node.inputs) > 2:
            bias = node.inputs[2]
        clip = _clip_behind(result)
        behind = result if clip is None else clip.outputs[0]
        return cls(
            node=node,
            kind=kind,
            x=operand(node.inputs[0]),
            w=weight_operand(node.inputs[1]),
            bias=operand(bias, moved=False),
            result=result,
            quantize=quantizer_of(behind),
            clip=clip,
            shared=any(_quantizes(use) for use in result.uses()) and not is_read_once(result),
            signed=signed,
        )

    @property
    def clip_is_redundant(self) -> bool:
        """Whether the QuantizeLinear behind a Relu or Clip clips at least as much."""
        return self.clip is None or (
            self.quantize is not None and _does_nothing(self.clip, self.quantize)
        )

    @property
    def is_constant_weight(self) -> bool:
        """Whether the second operand is a weight that is stored in float."""
        return self.w.dequantize is None and is_weight(self.w.value)


def operand(value: ir.Value | None, *, moved: bool = True) -> Operand:
    """What a node reads; ``moved`` looks behind operators that only move values."""
    here = value
    while here is not None:
        producer = here.producer()
        if producer is None or not is_standard(producer):
            break
        if producer.op_type == "DequantizeLinear":
            if here is not value and not constant_scalars(producer):
                break
            return Operand(value=value, dequantize=producer)
        if not moved or producer.op_type not in MOVERS or here.is_graph_output():
            break
        here = producer.inputs[0]
    return Operand(value=value, dequantize=None)


def weight_operand(value: ir.Value | None) -> Operand:
    """The second operand: dequantized codes, as they are or with swapped axes."""
    found = operand(value)
    turn = None if value is None else value.producer()
    if turn is None or turn.op_type != "Transpose" or not is_standard(turn):
        return found
    order = turn.attributes.get("perm")
    source = operand(turn.inputs[0], moved=False)
    stored = None if source.dequantize is None else source.dequantize.inputs[0]
    if not is_weight(stored) or (order is not None and list(order.as_ints()) != [1, 0]):
        return found
    return Operand(value=value, dequantize=source.dequantize, turned=True)


def quantizer_of(value: ir.Value) -> ir.Node | None:
    """The QuantizeLinear that is the only reader of a value, behind what only moves values."""
    here = value
    while is_read_once(here):
        use = next(iter(here.uses()))
        if not is_standard(use.node) or use.idx != 0:
            return None
        if use.node.op_type == "QuantizeLinear":
            return use.node if here is value or constant_scalars(use.node) else None
        if use.node.op_type not in MOVERS:
            return None
        here = use.node.outputs[0]
    return None


def _clip_behind(result: ir.Value) -> ir.Node | None:
    if not is_read_once(result):
        return None
    use = next(iter(result.uses()))
    known = use.node.op_type in _CLIPS and is_standard(use.node) and use.idx == 0
    return use.node if known and is_read_once(use.node.outputs[0]) else None


def is_read_once(value: ir.Value) -> bool:
    """Whether a value has one reader and is no output."""
    return len(value.uses()) == 1 and not value.is_graph_output()


def _quantizes(use: Any) -> bool:
    return bool(use.node.op_type == "QuantizeLinear" and is_standard(use.node) and use.idx == 0)


def constant_scalars(node: ir.Node) -> bool:
    """Whether scale and zero point of a Q or DQ are known single numbers."""
    given = [value for value in node.inputs[1:] if value is not None]
    return all(is_weight(value) and weight_tensor(value).size == 1 for value in given)


def is_standard(node: ir.Node) -> bool:
    """Whether a node is of the standard domain (ONNX Runtime's QDQ also of its own)."""
    return node.domain in ("", "ai.onnx") or (
        node.domain == "com.microsoft" and node.op_type in ("QuantizeLinear", "DequantizeLinear")
    )


def value_type(value: ir.Value) -> ir.DataType | None:
    """The element type of a value, from its tensor when it is a weight."""
    return weight_tensor(value).dtype if is_weight(value) else value.dtype


def _taken_in(node: ir.Node) -> ir.Node | None:
    """The Add that becomes the bias of a Gemm with this MatMul (matmul_add_fusion.cc)."""
    output = node.outputs[0]
    if node.op_type != "MatMul" or output.is_graph_output() or len(output.uses()) != 1:
        return None
    add = next(iter(output.uses())).node
    if add.op_type != "Add" or not is_standard(add):
        return None
    a, b = (dimensions(value) for value in node.inputs[:2])
    other = next((value for value in add.inputs if value is not output), None)
    c = dimensions(other)
    if a is None or b is None or c is None or len(b) != 2:
        return None
    if len(a) != 2 and not all(isinstance(size, int) for size in (*a, *b)):
        return None
    flat = len(a) == 2
    fits = len(c) == 1 and c[0] == b[1]
    if flat and len(c) == 2:
        fits = (c[0] == 1 and c[1] == b[1]) or (c[0] == a[0] and c[1] in (1, b[1]))
    return add if fits else None


def dimensions(value: ir.Value | None) -> tuple[int | str | None, ...] | None:
    """The shape of a value: numbers, names, and None for what is not known."""
    if value is None:
        return None
    if is_weight(value):
        return tuple(int(size) for size in weight_tensor(value).shape.numpy())
    if value.shape is None:
        return None
    return tuple(
        size if isinstance(size, int) else getattr(size, "value", None) for size in value.shape
    )


def _does_nothing(clip: ir.Node, quantize: ir.Node) -> bool:
    """Whether the codes alone keep values within what a Relu or Clip lets through."""
    if len(quantize.inputs) < 3 or not constant_scalars(quantize):
        return False
    scale, zero = quantize.inputs[1], quantize.inputs[2]
    if scale is None or zero is None:
        return False
    limits = _LIMITS.get(value_type(zero) or ir.DataType.UNDEFINED)
    if limits is None:
        return False
    origin = int(read_weight(zero).reshape(()))
    step = float(read_weight(scale).reshape(()))
    if clip.op_type == "Relu":
        return origin == limits[0]
    low, high = (_bound(clip, index, name) for index, name in ((1, "min"), (2, "max")))
    least, most = step * (limits[0] - origin), step * (limits[1] - origin)
    return (low is None or low <= least + _EPSILON) and (high is None or high >= most - _EPSILON)


_LIMITS = {ir.DataType.UINT8: (0, 255), ir.DataType.INT8: (-128, 127)}
_EPSILON = 2.0**-23


def _bound(clip: ir.Node, index: int, name: str) -> float | None:
    """A bound of a Clip; NaN, which is within nothing, when it is computed."""
    value = clip.inputs[index] if len(clip.inputs) > index else None
    if value is not None:
        return float(read_weight(value).reshape(())) if is_weight(value) else math.nan
    attribute = clip.attributes.get(name)
    return None if attribute is None else attribute.as_float()
