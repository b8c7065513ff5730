"""Which inputs of which operators are weights of a linear map, and along which axes they act.

One row per operator. Axes are those of the operand as the node reads it, negative from the end:
``MatMul`` multiplies the last axis of ``x`` with axis -2 of ``W`` and gives axis -1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import onnx_ir as ir

from onnxq.graph.weight_source import stored_weight, trace

__all__ = ["Slot", "integer", "slots_of"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slot:
    """One weight operand of one node.

    Attributes:
        weight: index of the weight among the inputs of the node.
        axes: (in, out) axes of the operand.
        input: index of the activation.
        bias: index of the node's own bias; None when the operator has none.
        groups: of a grouped convolution.
        label: tells apart several weights of one node; empty when there is one.
        already: how the operator itself stores its weight; None for float operators.
        refusal: why no pass can work on this operator's weight.
    """

    weight: int
    axes: tuple[int, int]
    input: int = 0
    bias: int | None = None
    groups: int = 1
    label: str = ""
    already: str | None = None
    refusal: str | None = None


_Reader = Callable[[ir.Node], list[Slot]]
_DOMAINS = ("", "ai.onnx", "com.microsoft")


def slots_of(node: ir.Node) -> list[Slot]:
    """The weight operands of ``node``; empty for an operator that is not a linear map."""
    if node.domain not in _DOMAINS:
        return []
    reader = _READERS.get(node.op_type)
    return reader(node) if reader is not None else []


def integer(node: ir.Node, name: str, default: int = 0) -> int:
    """An integer attribute, or ``default`` when it is absent or bound to a function argument."""
    attribute = node.attributes.get(name)
    return default if attribute is None or attribute.is_ref() else attribute.as_int()


def _matmul(left: int = 0, right: int = 1, already: str | None = None) -> _Reader:
    def read(node: ir.Node) -> list[Slot]:
        flip_left = bool(integer(node, "transA"))
        flip_right = bool(integer(node, "transB"))
        on_right = Slot(
            weight=right,
            axes=(-1, -2) if flip_right else (-2, -1),
            input=left,
            already=already,
        )
        if len(node.inputs) <= right:
            return []
        known_left = stored_weight(node.inputs[left]) is not None
        if stored_weight(node.inputs[right]) is not None:
            both = "both its operands are constant: fold constants first"
            return [dataclasses.replace(on_right, refusal=both if known_left else None)]
        if known_left:
            axes = (-2, -1) if flip_left else (-1, -2)
            return [Slot(weight=left, axes=axes, input=right, already=already)]
        return [on_right]

    return read


def _gemm(node: ir.Node) -> list[Slot]:
    slot = _matmul()(node)[0]
    return [dataclasses.replace(slot, bias=2 if slot.weight == 1 else None)]


def _right(
    weight: int, *, bias: int | None = None, already: str | None = None, transposed: bool = False
) -> _Reader:
    """A weight that is always at the same input, stored [in, out] unless transposed."""

    def read(node: ir.Node) -> list[Slot]:
        flip = transposed != bool(integer(node, "transB"))
        axes = (-1, -2) if flip else (-2, -1)
        return [Slot(weight=weight, axes=axes, bias=bias, already=already)]

    return read


def _conv(weight: int = 1, bias: int | None = 2, already: str | None = None) -> _Reader:
    def read(node: ir.Node) -> list[Slot]:
        axes = (0, 1) if node.op_type == "ConvTranspose" else (1, 0)
        groups = integer(node, "group", 1)
        return [Slot(weight=weight, axes=axes, bias=bias, groups=groups, already=already)]

    return read


def _blocked(node: ir.Node) -> list[Slot]:
    """MatMulNBits: ``B`` is [out, blocks, bytes]."""
    how = f"MatMulNBits {integer(node, 'bits', 4)} bits, blocks of {integer(node, 'block_size')}"
    return [Slot(weight=1, axes=(1, 0), bias=5, already=how)]


def _embedding(node: ir.Node) -> list[Slot]:
    """Gather along one axis of a real-valued matrix, by indices that are not constant."""
    source = trace(node.inputs[0])
    if source.value is None or len(source.axes) != 2 or stored_weight(node.inputs[1]) is not None:
        return []
    if not _holds_reals(source.value, source.already):
        return []
    entry = integer(node, "axis") % 2
    refusal = None
    if _only_scales(node.outputs[0]):
        refusal = "it looks up factors of a product (such as rotary tables), not an embedding"
    return [Slot(weight=0, axes=(1 - entry, entry), input=1, refusal=refusal)]


def _embedding_blocked(node: ir.Node) -> list[Slot]:
    how = f"GatherBlockQuantized {integer(node, 'bits', 4)} bits, "
    how += f"blocks of {integer(node, 'block_size', 128)}"
    return [Slot(weight=0, axes=(-1, 0), input=1, already=how)]


def _holds_reals(value: ir.Value, already: str | None) -> bool:
    dtype = value.dtype if value.const_value is None else value.const_value.dtype
    return already is not None or dtype is None or dtype.is_floating_point()


_PASSING = frozenset(
    ["Unsqueeze", "Squeeze", "Reshape", "Cast", "Concat", "Slice", "Split", "Transpose", "Identity"]
)


def _only_scales(value: ir.Value, depth: int = 6) -> bool:
    """Whether all that is ever done to the value is multiplying a computed value by it."""
    uses = value.uses()
    if not uses or depth == 0 or value.is_graph_output():
        return False
    for node, index in uses:
        if node.op_type in _PASSING and index == 0 and node.op_type != "Concat":
            if not all(_only_scales(out, depth - 1) for out in node.outputs if out.uses()):
                return False
        elif node.op_type == "Concat":
            if not _only_scales(node.outputs[0], depth - 1):
                return False
        elif node.op_type == "RotaryEmbedding":
            continue
        elif node.op_type != "Mul" or stored_weight(node.inputs[1 - index]) is not None:
            return False
    return True


def _several(refusal: str, **indices: int) -> _Reader:
    """Operators that hold several weights in one tensor each, [stack, out, in]."""

    def read(node: ir.Node) -> list[Slot]:
        given = {label: i for label, i in indices.items() if i < len(node.inputs)}
        return [
            Slot(weight=i, axes=(2, 1), label=label, refusal=refusal)
            for label, i in given.items()
            if node.inputs[i] is not None
        ]

    return read


_GATES = "it is a recurrent layer: its gates are kept in float"
_EXPERTS = "it holds the weights of several experts in one tensor"


def _einsum(node: ir.Node) -> list[Slot]:
    for index, value in enumerate(node.inputs):
        if stored_weight(value) is not None:
            why = "it is an Einsum: write it as MatMul first"
            return [Slot(weight=index, axes=(-2, -1), input=0 if index else 1, refusal=why)]
    return []


def _deformable(node: ir.Node) -> list[Slot]:
    why = "it is a deformable convolution, which no runtime quantizes"
    return [dataclasses.replace(_conv(bias=3)(node)[0], refusal=why)]


_READERS: dict[str, _Reader] = {
    "MatMul": _matmul(),
    "FusedMatMul": _matmul(),
    "FusedMatMulActivation": _matmul(),
    "Gemm": _gemm,
    "FusedGemm": _gemm,
    "GemmFastGelu": _right(1, bias=2),
    "Conv": _conv(),
    "FusedConv": _conv(),
    "NhwcFusedConv": _conv(),
    "ConvTranspose": _conv(),
    "DeformConv": _deformable,
    "Gather": _embedding,
    "Einsum": _einsum,
    # com.microsoft's Attention projects with one weight [hidden, q + k + v]; the standard
    # operator of the same name takes q, k and v that are already projected.
    "Attention": lambda node: _right(1, bias=2)(node) if node.domain == "com.microsoft" else [],
    "PackedAttention": _right(1, bias=2),
    "DecoderMaskedSelfAttention": _right(1, bias=2),
    "QAttention": _right(1, bias=2, already="QAttention"),
    "MatMulNBits": _blocked,
    "MatMulBnb4": _right(1, already="MatMulBnb4", transposed=True),
    "GatherBlockQuantized": _embedding_blocked,
    "MatMulInteger": _matmul(already="MatMulInteger"),
    "MatMulInteger16": _matmul(already="MatMulInteger16"),
    "MatMulIntegerToFloat": _right(1, bias=6, already="MatMulIntegerToFloat"),
    "DynamicQuantizeMatMul": _right(1, bias=4, already="DynamicQuantizeMatMul"),
    "QLinearMatMul": _matmul(0, 3, already="QLinearMatMul"),
    "QGemm": _right(3, bias=6, already="QGemm"),
    "ConvInteger": _conv(bias=None, already="ConvInteger"),
    "QLinearConv": _conv(3, 8, already="QLinearConv"),
    "LSTM": _several(_GATES, W=1, R=2),
    "GRU": _several(_GATES, W=1, R=2),
    "RNN": _several(_GATES, W=1, R=2),
    "MoE": _several(_EXPERTS, fc1=2, fc2=4, fc3=6),
    "QMoE": _several(_EXPERTS, fc1=2, fc2=5, fc3=8),
    "DynamicQuantizeLSTM": _several(_GATES, W=1, R=2),
}
