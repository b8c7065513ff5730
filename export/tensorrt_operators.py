"""Which operators TensorRT's parser imports, and rules about those it does not.

`UNPARSED` is what ``OnnxParser.supports_operator`` of TensorRT-RTX 1.7 denies among the operators
of ONNX 1.23; a test asks the parser again.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnxq.custom_ops.functions import DOMAIN
from onnxq.export.tensorrt_codes import CODES, Finding, finding
from onnxq.export.tensorrt_plugins import HOW_TO_BUILD, is_plugged
from onnxq.export.tensorrt_reading import DYNAMIC, Reading, is_standard, type_of
from onnxq.graph import is_weight

__all__ = [
    "FOREIGN",
    "INTEGER",
    "UNPARSED",
    "bare_codes",
    "integer_operators",
    "known_operators",
    "q_readers",
]

_ORDINARY = ("", "ai.onnx")
_DEQUANTIZE = "quantize to int8, int4 or FP4 with write=dequantize"

INTEGER = frozenset(
    ["ConvInteger", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul"]
)
"""Operators on codes."""

UNPARSED = INTEGER | frozenset(
    [
        "AffineGrid",
        "Bernoulli",
        "BitCast",
        "BitShift",
        "BitwiseAnd",
        "BitwiseNot",
        "BitwiseOr",
        "BitwiseXor",
        "CenterCropPad",
        "Col2Im",
        "Compress",
        "ConcatFromSequence",
        "CumProd",
        "DFT",
        "DeformConv",
        "Det",
        "ImageDecoder",
        "MaxRoiPool",
        "MaxUnpool",
        "MelWeightMatrix",
        "Multinomial",
        "NegativeLogLikelihoodLoss",
        "Optional",
        "OptionalGetElement",
        "OptionalHasElement",
        "RegexFullMatch",
        "SequenceAt",
        "SequenceConstruct",
        "SequenceEmpty",
        "SequenceErase",
        "SequenceInsert",
        "SequenceLength",
        "SequenceMap",
        "SoftmaxCrossEntropyLoss",
        "SplitToSequence",
        "StringConcat",
        "StringNormalizer",
        "StringSplit",
        "SwiGLU",
        "TfIdfVectorizer",
        "Unique",
    ]
)

FOREIGN = frozenset(
    [
        "DequantizeLinear",
        "Gelu",
        "MultiHeadAttention",
        "QuantizeLinear",
        "SkipSimplifiedLayerNormalization",
    ]
)
"""Operators of com.microsoft that the parser imports itself. It knows MatMulNBits and
GroupQueryAttention too, and wants a plugin of TensorRT's for them, which TensorRT-RTX has not."""


def q_readers(reading: Reading) -> Iterator[Finding]:
    """Codes of a QuantizeLinear that something else than DequantizeLinear computes with."""
    for coded in reading.coded:
        if not coded.quantizes:
            continue
        for node, index in reading.readers(coded.output, casts=False):
            other = reading.of(node)
            if index == 0 and other is not None and not other.quantizes:
                continue
            if is_standard(node, *INTEGER):
                continue
            yield finding(
                coded,
                f"its codes are read by {node.op_type} {reading.name(node)!r}",
                "put a DequantizeLinear between them",
                coded.output,
            )


def integer_operators(reading: Reading) -> Iterator[Finding]:
    """Operators on codes, which ONNX has beside Q/DQ and TensorRT does not take."""
    for name, node in reading.nodes:
        if is_standard(node, *INTEGER):
            yield _operator(
                node,
                name,
                f"{node.op_type} computes with codes",
                "quantize the float model for target tensorrt, which writes Q/DQ pairs",
            )


def known_operators(reading: Reading) -> Iterator[Finding]:
    """Operators that TensorRT's parser has no importer for, and the model no usable body."""
    functions = reading.model.functions
    for name, node in reading.nodes:
        if is_plugged(node, reading.plugins):
            continue
        if node.op_identifier() in functions:
            missing = _unparsed(functions[node.op_identifier()])
            if missing:
                yield _operator(
                    node,
                    name,
                    f"its function uses {', '.join(missing)}, which TensorRT's parser has not",
                    _DEQUANTIZE + _or_plugins(reading),
                )
        elif node.domain in _ORDINARY and node.op_type in UNPARSED - INTEGER:
            yield _operator(
                node,
                name,
                f"TensorRT's parser has no {node.op_type}",
                "replace it on export, or run this part elsewhere",
            )
        elif node.domain not in _ORDINARY and node.op_type not in FOREIGN | DYNAMIC:
            yield _operator(
                node,
                name,
                f"TensorRT's parser has no {node.domain}.{node.op_type}, and the model has no "
                "function for it",
                "quantize with write=dequantize, or from a model in standard operators",
            )


def _or_plugins(reading: Reading) -> str:
    """How an operator of onnxq runs after all, where the runtime takes plugins."""
    if reading.runtime != "tensorrt":
        return ""
    return f", or set plugins=onnxq, for which {HOW_TO_BUILD}"


def _unparsed(function: ir.Function) -> list[str]:
    """Operators of a function that the parser does not have."""
    return sorted({node.op_type for node in function if node.op_type in UNPARSED})


def bare_codes(reading: Reading) -> Iterator[Finding]:
    """A constant of int8 or less that something else than DequantizeLinear reads."""
    for name, node in reading.nodes:
        if reading.of(node) is not None or node.op_type in INTEGER:
            continue
        if is_plugged(node, reading.plugins):
            continue
        body = reading.model.functions.get(node.op_identifier())
        for index, value in enumerate(node.inputs):
            kind = type_of(value) if value is not None and is_weight(value) else None
            if value is None or kind is None or kind not in CODES:
                continue
            if body is not None and _only_dequantized(body.inputs[index]):
                continue
            yield Finding(
                node=node,
                name=name,
                tensor=value.name or "",
                found=f"it reads the {kind.name} constant {value.name!r} itself",
                remedy=_DEQUANTIZE + _or_plugins(reading)
                if node.domain == DOMAIN
                else "put a DequantizeLinear between them, or store it in float or int32",
            )


def _only_dequantized(value: ir.Value) -> bool:
    return all(node.op_type == "DequantizeLinear" for node, _ in value.uses())


def _operator(node: ir.Node, name: str, found: str, remedy: str) -> Finding:
    tensor = (node.outputs[0].name or "") if node.outputs else ""
    return Finding(node=node, name=name, tensor=tensor, found=found, remedy=remedy)
