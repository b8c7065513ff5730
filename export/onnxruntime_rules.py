"""Which QDQ patterns ONNX Runtime's CPU provider runs in integer or low-bit kernels: a table.

Each kernel has the rules that its fusion asks; the first one that is broken is why a site is
dequantized and multiplied in float, or worse. Read from the sources of onnxruntime/core/optimizer
(qdq_transformer/selectors_actions/qdq_selectors.cc, qdq_transformer/weight_bias_quantization.cc)
and held against the graphs that ONNX Runtime 1.31.1 on x86-64 saves after its optimizations:
tests/export/test_onnxruntime_rules.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from onnxq.export import onnxruntime_facts as facts
from onnxq.export.onnxruntime_view import View
from onnxq.export.target import Execution

__all__ = ["FUSIONS", "Fusion", "Rule", "fusion_for", "kernel_of"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """One condition of a fusion.

    Attributes:
        name: in verdicts, documentation and tests.
        says: what it asks, a sentence.
        kept: whether a node keeps it.
        remedy: what to do when it is broken.
        otherwise: what runs when it is broken.
    """

    name: str
    says: str
    kept: Callable[[View], bool]
    remedy: str
    otherwise: Execution = Execution.DEQUANTIZED


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fusion:
    """A kernel, and what is asked of the graph around a node for it.

    Attributes:
        name: of the rule when all others are kept.
        kernel: the operator that runs; of MatMul, without a QuantizeLinear behind it.
        execution: how.
        rules: in the order in which they are looked at.
    """

    name: str
    kernel: str
    execution: Execution
    rules: tuple[Rule, ...]

    def broken(self, view: View) -> Rule | None:
        """The first rule that the node does not keep."""
        return next((rule for rule in self.rules if not rule.kept(view)), None)


_WEIGHT = Rule(
    name="weight-quantized",
    says="The weight is behind DequantizeLinear.",
    kept=lambda view: view.w.dequantize is not None or facts.is_requantized(view),
    remedy="quantize the weight too, or take the pair before the input away",
    otherwise=Execution.FLOAT,
)
_INPUT = Rule(
    name="input-quantized",
    says="The input is behind DequantizeLinear, or behind what only moves dequantized values.",
    kept=lambda view: view.x.dequantize is not None,
    remedy="quantize the input too (insert_qdq, recipe int8_static): a weight alone is dequantized "
    "on every run; or leave this site in float",
)
_EIGHT_BITS = Rule(
    name="eight-bit-codes",
    says="Input, weight and result are uint8 or int8.",
    kept=facts.codes_have_eight_bits,
    remedy="use 8-bit codes for both operands, or leave the input in float so that the weight "
    "can go to MatMulNBits",
)
_UNSIGNED = Rule(
    name="signed-codes-read-once",
    says="The input is uint8; or int8 that one node alone reads, so that ONNX Runtime makes it "
    "uint8, the only type of inputs that its kernels for x86-64 take. On 64-bit ARM: int8 goes "
    "with int8 weights.",
    kept=facts.input_is_unsigned,
    remedy="use uint8 activations, as insert_qdq does for this target",
)
_GEMM_SIGNS = Rule(
    name="gemm-signs",
    says="With int8 inputs that several nodes read, the weight is int8.",
    kept=facts.signs_fit_gemm,
    remedy="use uint8 activations, as insert_qdq does for this target",
)
_ALIKE = Rule(
    name="same-codes",
    says="Input and result have codes of one type, after int8 that one node alone reads has been "
    "made uint8.",
    kept=facts.codes_are_alike,
    remedy="use uint8 for all activations",
)
_NO_CLIP = Rule(
    name="no-clip-behind",
    says="No Relu or Clip is the only reader of the result, unless the QuantizeLinear behind it "
    "clips at least as much (Relu: zero point at the lowest code).",
    kept=lambda view: view.clip_is_redundant,
    remedy="quantize what the Relu or Clip gives, in its own range",
)
_UNSHARED = Rule(
    name="result-read-by-quantizer-alone",
    says="A QuantizeLinear that reads the result is its only reader, and the result is no output.",
    kept=lambda view: not view.shared,
    remedy="let all readers read the quantized value, or none",
)
_RESULT = Rule(
    name="result-quantized",
    says="The result is read by one QuantizeLinear and nothing else.",
    kept=lambda view: view.quantize is not None,
    remedy="quantize the result for all its readers: the kernel writes 8-bit codes",
)
_BIAS = Rule(
    name="bias-quantized",
    says="The bias is int32 behind DequantizeLinear; or a stored float vector, and a "
    "QuantizeLinear is behind the result, so that ONNX Runtime quantizes it.",
    kept=facts.bias_is_taken,
    remedy="store the bias as int32 with scale s_x·s_w behind DequantizeLinear (insert_qdq does); "
    "what is added and computed must be quantized as an Add of its own",
)
_BIAS_SCALE = "The scale of an int32 bias is s_x·s_w, to within 1 %."
_CONV_BIAS_SCALE = Rule(
    name="bias-scale",
    says=_BIAS_SCALE,
    kept=facts.bias_scale_fits,
    remedy="write the bias with scale s_x·s_w",
)
_GEMM_BIAS_SCALE = Rule(
    name="bias-scale-ignored",
    says=_BIAS_SCALE,
    kept=facts.bias_scale_fits,
    remedy="write the bias with scale s_x·s_w: QGemm adds its codes as if it had it, so that "
    "another bias is added",
    otherwise=Execution.UNSUPPORTED,
)
_LAYOUT = Rule(
    name="weight-scales-by-output",
    says="Scales of the weight are one number, or one for each output along the axis of outputs.",
    kept=facts.scales_are_by_output,
    remedy="write scales by output channel: ONNX Runtime fuses others all the same, and then "
    "fails as it runs or computes something else",
    otherwise=Execution.UNSUPPORTED,
)
_GEMM_ZEROS = Rule(
    name="gemm-zero-points",
    says="DequantizeLinear of input and weight both have their zero point written out.",
    kept=facts.zero_points_are_given,
    remedy="write the zero points out, also where they are 0",
)
_GEMM_FACTORS = Rule(
    name="gemm-factors",
    says="A Gemm with a bias has alpha and beta 1.",
    kept=lambda view: not view.bias.exists or facts.factors(view.node) == (1.0, 1.0),
    remedy="fold alpha into the weight and beta into the bias",
)
_GEMM_SCALES = Rule(
    name="gemm-weight-scales",
    says="Scales of the weight are one number, or a vector with one for each output.",
    kept=facts.scales_fit_gemm,
    remedy="write one scale for each output channel",
)
_GEMM_TURNED = Rule(
    name="gemm-transpose",
    says="No Transpose is the only reader of the result: it would be taken into the Gemm.",
    kept=lambda view: not facts.is_turned_behind(view),
    remedy="write the product as MatMul, or turn the operands yourself",
)
_NBITS = (
    Rule(
        name="nbits-result",
        says="No QuantizeLinear reads the result, and no Relu or Clip is its only reader.",
        kept=lambda view: view.quantize is None and view.clip is None and not view.shared,
        remedy="write the weight as MatMulNBits yourself (quantize_weights with write=auto does)",
    ),
    Rule(
        name="nbits-weight-read-once",
        says="One node reads the dequantized weight.",
        kept=facts.weight_is_read_once,
        remedy="give each reader a weight of its own, or write MatMulNBits",
    ),
    Rule(
        name="nbits-codes",
        says="The weight is a stored matrix [in, out] of 2-, 4- or 8-bit integers.",
        kept=facts.codes_fit_nbits,
        remedy="store 3, 5, 6 and 7 bits in operators of onnxq (write=operator)",
    ),
    Rule(
        name="nbits-blocks",
        says="Scales are one number, one for each output, or by blocks along the inputs (axis 0) "
        "of a size that is a power of two and at least 16, which no Transpose may swap.",
        kept=facts.blocks_fit_nbits,
        remedy="choose groups of 16, 32, 64 or 128 along the inputs",
    ),
    Rule(
        name="nbits-gemm",
        says="A Gemm has alpha 1, nothing transposed, and a bias only with beta 1 and one number "
        "for each output.",
        kept=facts.gemm_fits_nbits,
        remedy="write it as MatMul and Add",
    ),
)

FUSIONS = (
    Fusion(
        name="qdq-conv",
        kernel="QLinearConv",
        execution=Execution.INTEGER,
        rules=(
            *(_INPUT, _WEIGHT, _EIGHT_BITS, _UNSHARED, _RESULT, _NO_CLIP, _UNSIGNED, _ALIKE),
            *(_BIAS, _CONV_BIAS_SCALE, _LAYOUT),
        ),
    ),
    Fusion(
        name="qdq-matmul",
        kernel="MatMulIntegerToFloat",
        execution=Execution.INTEGER,
        rules=(_WEIGHT, _EIGHT_BITS, _NO_CLIP, _UNSHARED, _UNSIGNED, _ALIKE, _LAYOUT),
    ),
    Fusion(
        name="qdq-gemm",
        kernel="QGemm",
        execution=Execution.INTEGER,
        rules=(
            *(_WEIGHT, _EIGHT_BITS, _NO_CLIP, _UNSHARED, _GEMM_SIGNS, _ALIKE, _BIAS),
            *(_GEMM_FACTORS, _GEMM_ZEROS, _GEMM_SCALES, _GEMM_TURNED, _GEMM_BIAS_SCALE, _LAYOUT),
        ),
    ),
    Fusion(
        name="weight-only-nbits",
        kernel="MatMulNBits",
        execution=Execution.LOW_BIT,
        rules=_NBITS,
    ),
)
_BY_NAME = {fusion.name: fusion for fusion in FUSIONS}


def fusion_for(view: View) -> Fusion | None:
    """The kernel that a node's surroundings aim at; None when nothing around it is quantized."""
    if view.kind == "Conv":
        is_meant = view.x.dequantize is not None or view.w.dequantize is not None
        return _BY_NAME["qdq-conv"] if is_meant else None
    if view.x.dequantize is not None:
        return _BY_NAME["qdq-matmul" if view.kind == "MatMul" else "qdq-gemm"]
    return _BY_NAME["weight-only-nbits"] if view.w.dequantize is not None else None


def kernel_of(fusion: Fusion, view: View) -> str:
    """The operator that runs when every rule is kept."""
    if fusion.name == "qdq-matmul" and view.quantize is not None:
        return "QLinearMatMul"
    return fusion.kernel
