"""TensorRT's rules of explicit quantization, as a table that is run on a model.

Each rule is a sentence, the section of TensorRT's documentation that says it, what TensorRT does
with a model that breaks it, and a function that finds where. The rules that say *refused* were
tried on TensorRT-RTX 1.7, whose parser and builder need no GPU: a test builds a graph that keeps
and one that breaks each.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Iterator

import onnx_ir as ir

from onnxq.export import tensorrt_codes as codes
from onnxq.export import tensorrt_operators as operators
from onnxq.export import tensorrt_places as places
from onnxq.export import tensorrt_weights as weights
from onnxq.export.tensorrt_codes import Finding
from onnxq.export.tensorrt_reading import Reading

__all__ = ["RULES", "Effect", "Rule", "Violation", "find_violations"]

_TYPES = "Working with Quantized Types, Introduction to Quantization"
_GRANULARITY = "Working with Quantized Types, Quantization Granularities"
_WEIGHTS = "Working with Quantized Types, Quantized Weights"
_ONNX = "Working with Quantized Types, ONNX Support"
_NETWORKS = "Working with Quantized Types, TensorRT Processing of Q/DQ Networks"
_PLACES = "Working with Quantized Types, Q/DQ Layer-Placement Recommendations"
_LIMITS = "Working with Quantized Types, Q/DQ Limitations"
_WOQ = "Working with Quantized Types, Weight-Only Quantization"
_LAYERS = "Operators, Quantize and Dequantize"
_PARSER = "ONNX operator support matrix of the parser"
_MATRIX = "Support Matrix, precision modes by compute capability"


class Effect(enum.Enum):
    """What TensorRT does with a model that breaks a rule."""

    REFUSED = "refused by the parser or the builder"
    MISREAD = "taken, and computed otherwise than ONNX means it"
    UNFUSED = "dequantized, then float"
    UNDOCUMENTED = "not documented, though some version may take it"
    WASTED = "the Q/DQ pair costs time and gains nothing"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """One rule.

    Attributes:
        name: the name in verdicts, documentation and tests.
        sentence: what it asks for.
        source: section of TensorRT's documentation.
        effect: what happens where it is broken.
        find: yields where a model breaks it.
    """

    name: str
    sentence: str
    source: str
    effect: Effect
    find: Callable[[Reading], Iterator[Finding]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Violation:
    """One place where a model breaks a rule.

    Attributes:
        rule: the rule.
        finding: where and how, and what to do.
    """

    rule: Rule
    finding: Finding

    @property
    def node(self) -> ir.Node:
        """The node that breaks it."""
        return self.finding.node

    def __str__(self) -> str:
        """A sentence: where, what, what to do."""
        at = f" (tensor {self.finding.tensor!r})" if self.finding.tensor else ""
        return (
            f"{self.finding.node.op_type} {self.finding.name!r}{at}: {self.finding.found}; "
            f"{self.finding.remedy} [{self.rule.name}: {self.rule.effect.value}]"
        )


_REFUSED, _UNFUSED, _WASTED = Effect.REFUSED, Effect.UNFUSED, Effect.WASTED


def _rule(
    name: str,
    effect: Effect,
    source: str,
    find: Callable[[Reading], Iterator[Finding]],
    sentence: str,
) -> Rule:
    return Rule(name=name, sentence=sentence, source=source, effect=effect, find=find)


RULES: tuple[Rule, ...] = (
    _rule(
        "code-type",
        _REFUSED,
        _TYPES,
        codes.code_type,
        "Codes are INT8, FP8 E4M3, INT4 or FP4 E2M1: not uint8, int16, uint4 or 2 bits.",
    ),
    _rule(
        "symmetric",
        _REFUSED,
        _TYPES,
        codes.symmetric,
        "Quantization is symmetric: a zero point is a constant 0.",
    ),
    _rule(
        "scale-constant",
        _UNFUSED,
        _LAYERS,
        codes.scale_constant,
        "A scale is a build-time constant.",
    ),
    _rule(
        "scale-type",
        _REFUSED,
        _LAYERS,
        codes.scale_type,
        "A scale is float32, float16 or bfloat16.",
    ),
    _rule(
        "scale-positive",
        _REFUSED,
        _LAYERS,
        codes.scales_positive,
        "Every scale is positive and finite.",
    ),
    _rule(
        "scale-shape",
        _REFUSED,
        _GRANULARITY,
        codes.scale_shape,
        "There is one scale, one for each channel, or one for each block along a single axis.",
    ),
    _rule(
        "whole-blocks",
        Effect.MISREAD,
        _GRANULARITY,
        codes.whole_blocks,
        "Blocks divide their axis: TensorRT infers their size from the shapes of data and scales.",
    ),
    _rule(
        "opset",
        Effect.UNDOCUMENTED,
        _ONNX,
        codes.opset,
        "Scales for each channel need opset 13, FP8 19, INT4 and blocks 21, FP4 23.",
    ),
    _rule(
        "weights-only",
        Effect.UNDOCUMENTED,
        _WOQ,
        weights.weights_only,
        "INT4, and FP4 with calibrated scales, is for weights only.",
    ),
    _rule(
        "int4-blocks",
        _UNFUSED,
        _GRANULARITY,
        weights.int4_blocks,
        "INT4 weights are GEMM operands in blocks of 64 or 128 along the inputs (TensorRT-RTX: in "
        "several blocks of any size).",
    ),
    _rule(
        "fp4-scales",
        Effect.UNDOCUMENTED,
        _GRANULARITY,
        weights.fp4_scales,
        "FP4 weights are GEMM operands in blocks of 16 along the inputs, with FP8 scales that one "
        "float32 scale stretches.",
    ),
    _rule(
        "gpu-generation",
        _REFUSED,
        _MATRIX,
        codes.gpu_generation,
        "FP8 runs from compute capability 8.9 on, FP4 from 10.0 (TensorRT-RTX: 12.0).",
    ),
    _rule(
        "weight-axis",
        _UNFUSED,
        _GRANULARITY,
        weights.weight_axis,
        "Scales for each channel of a weight are along its output features: axis 0 of Conv, axis 1 "
        "of ConvTranspose, the columns of a matrix on the right.",
    ),
    _rule(
        "activation-per-tensor",
        _UNFUSED,
        _PLACES,
        places.activation_per_tensor,
        "Activations have one scale for the whole tensor.",
    ),
    _rule(
        "both-inputs",
        _UNFUSED,
        _PLACES,
        places.both_inputs,
        "All inputs of a weighted operator are quantized, or none; INT4 weights of a GEMM may "
        "stand alone, in TensorRT-RTX those in INT8 and FP8 too, but never FP4.",
    ),
    _rule(
        "float-bias",
        _REFUSED,
        _LAYERS,
        weights.float_bias,
        "A bias stays in float: DequantizeLinear takes no int32.",
    ),
    _rule(
        "output-in-float",
        _WASTED,
        _PLACES,
        places.output_in_float,
        "What a weighted operator gives to its activation function is not quantized.",
    ),
    _rule(
        "residual",
        _WASTED,
        _PLACES,
        places.residual,
        "Of the Add behind a quantized convolution the skip branch is quantized, and not the "
        "convolution's own.",
    ),
    _rule(
        "concat",
        _WASTED,
        _LIMITS,
        places.concat_scales,
        "The inputs of a Concat are quantized with one and the same scale, or none is.",
    ),
    _rule(
        "int8-in-and-out",
        _WASTED,
        _PLACES,
        places.int8_in_and_out,
        "An operator without a weight that reads int8 also gives int8: pooling between two pairs.",
    ),
    _rule(
        "no-kernel",
        _WASTED,
        _PARSER,
        places.no_kernel,
        "A quantized value has a reader with a kernel for it: softmax, normalization and the like "
        "have none.",
    ),
    _rule(
        "weight-kernel",
        _UNFUSED,
        _WEIGHTS,
        weights.weight_kernel,
        "Codes of a weight are read by a convolution or a GEMM.",
    ),
    _rule(
        "bare-codes",
        _REFUSED,
        _WEIGHTS,
        operators.bare_codes,
        "A constant of codes is read by DequantizeLinear: no Gather, no Cast.",
    ),
    _rule(
        "q-readers",
        _UNFUSED,
        _NETWORKS,
        operators.q_readers,
        "What a QuantizeLinear wrote is read by DequantizeLinear.",
    ),
    _rule(
        "integer-operators",
        _REFUSED,
        _ONNX,
        operators.integer_operators,
        "Operators on codes (QLinearConv, MatMulInteger, ...) are not taken: quantization is "
        "written as Q/DQ pairs.",
    ),
    _rule(
        "parser",
        _REFUSED,
        _PARSER,
        operators.known_operators,
        "Every operator is one the parser imports, or a function of such operators.",
    ),
)
"""All rules, in the order in which they are told."""


def find_violations(reading: Reading) -> list[Violation]:
    """Where a model breaks which rule, rule by rule; the model is only read."""
    return [Violation(rule=rule, finding=found) for rule in RULES for found in rule.find(reading)]
