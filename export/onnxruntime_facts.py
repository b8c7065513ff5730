"""What the rules of ONNX Runtime's QDQ fusions ask about a node: one predicate for each."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.export.onnxruntime_codes import read_codes, written_codes
from onnxq.export.onnxruntime_view import View, dimensions, value_type
from onnxq.graph import is_weight, read_weight
from onnxq.graph.weights import weight_tensor

__all__ = [
    "bias_is_taken",
    "bias_scale_fits",
    "blocks_fit_nbits",
    "codes_are_alike",
    "codes_fit_nbits",
    "codes_have_eight_bits",
    "factors",
    "gemm_fits_nbits",
    "input_is_unsigned",
    "is_requantized",
    "is_turned_behind",
    "scales_are_by_output",
    "scales_fit_gemm",
    "signs_fit_gemm",
    "weight_is_read_once",
    "zero_points_are_given",
]

_EIGHT = (ir.DataType.UINT8, ir.DataType.INT8)
_NBITS = (*_EIGHT, ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.INT2, ir.DataType.UINT2)
_SCALES = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
_SMALLEST_BLOCK = 16
_BIAS_RTOL, _BIAS_ATOL = 0.01, 1e-6
"""Found by bisection: what QLinearConv is still made of (ONNX Runtime 1.31.1)."""


def codes_have_eight_bits(view: View) -> bool:
    """Whether operands and result are uint8 or int8; a weight in float is not asked."""
    codes = [view.x.codes]
    if view.w.dequantize is not None:
        codes.append(view.w.codes)
    if view.quantize is not None:
        codes.append(written_codes(view.quantize, _last(view), signed=view.signed))
    return all(code in _EIGHT for code in codes)


def input_is_unsigned(view: View) -> bool:
    """Whether the input's codes are uint8, or are made so; on ARM also with int8 weights."""
    if view.signed:
        return signs_fit_gemm(view)
    return read_codes(view.x, signed=view.signed) == ir.DataType.UINT8


def signs_fit_gemm(view: View) -> bool:
    """Whether the weight of a Gemm with int8 inputs is int8 too."""
    is_signed = read_codes(view.x, signed=view.signed) == ir.DataType.INT8
    return not is_signed or view.w.dequantize is None or view.w.codes == ir.DataType.INT8


def codes_are_alike(view: View) -> bool:
    """Whether the result, where it is quantized, has the type of the input's codes."""
    if view.quantize is None:
        return True
    return written_codes(view.quantize, _last(view), signed=view.signed) == read_codes(
        view.x, signed=view.signed
    )


def _last(view: View) -> ir.Value:
    """The value before the QuantizeLinear, or before what only moves it there."""
    return view.result if view.clip is None else view.clip.outputs[0]


def is_requantized(view: View) -> bool:
    """Whether the runtime quantizes a float weight by itself, with one scale for all of it."""
    if view.kind not in ("Conv", "Gemm") or not view.is_constant_weight or view.quantize is None:
        return False
    if view.w.value is None or weight_tensor(view.w.value).dtype != ir.DataType.FLOAT:
        return False
    return _has_one_scale(view.x.dequantize) and (
        not view.bias.exists or _is_float_vector(view.bias.value)
    )


def bias_is_taken(view: View) -> bool:
    """Whether there is no bias, or one in int32, or one that the runtime makes int32."""
    if not view.bias.exists:
        return True
    if view.bias.dequantize is not None:
        return view.bias.codes == ir.DataType.INT32
    if view.quantize is None or not _is_float_vector(view.bias.value):
        return False
    return _has_one_scale(view.x.dequantize) and (
        view.w.dequantize is None or _scales_fit_bias(view)
    )


def _scales_fit_bias(view: View) -> bool:
    """Whether scales of the weight are one number, or one for each number of the bias."""
    node, bias = view.w.dequantize, view.bias.value
    if node is None or bias is None:
        return False
    shape = dimensions(node.inputs[1])
    if shape == () or shape == (1,):
        return True
    axis = _axis(node)
    expected = 0 if view.kind == "Conv" or _is_out_in(view) else 1
    return shape == dimensions(bias) and not _block(node) and axis == expected


def scales_are_by_output(view: View) -> bool:
    """Whether the integer kernel reads the scales of the weight as DequantizeLinear does."""
    node = view.w.dequantize
    if node is None:
        return True
    shape = dimensions(node.inputs[1])
    if shape is None or all(size == 1 for size in shape):
        return True
    rank = len(dimensions(node.inputs[0]) or (0, 0))
    expected = 0 if view.kind == "Conv" or _is_out_in(view) else rank - 1
    return len(shape) == 1 and not _block(node) and _axis(node) == expected


def scales_fit_gemm(view: View) -> bool:
    """Whether QGemm takes the scales of the weight: by number only, not by axis."""
    node = view.w.dequantize
    if node is None:
        return True
    shape = dimensions(node.inputs[1])
    weight = dimensions(node.inputs[0])
    if shape is None or weight is None or all(size == 1 for size in shape):
        return True
    outputs = weight[0] if _is_out_in(view) else weight[-1]
    return len(shape) == 1 and shape[0] == outputs


def zero_points_are_given(view: View) -> bool:
    """Whether DequantizeLinear of input and weight have a third input."""
    nodes = [node for node in (view.x.dequantize, view.w.dequantize) if node is not None]
    return all(len(node.inputs) > 2 and node.inputs[2] is not None for node in nodes)


def factors(node: ir.Node) -> tuple[float, float]:
    """(alpha, beta) of a Gemm; of a MatMul (1, 1)."""
    return (
        node.attributes.get_float("alpha", 1.0),
        node.attributes.get_float("beta", 1.0),
    )


def is_turned_behind(view: View) -> bool:
    """Whether a Transpose is the only reader of a Gemm's result (gemm_transpose_fusion.cc)."""
    uses = list(view.result.uses())
    if len(uses) != 1 or view.result.is_graph_output() or uses[0].node.op_type != "Transpose":
        return False
    behind = list(uses[0].node.outputs[0].uses())
    is_undone = len(behind) == 1 and behind[0].node.op_type == "Transpose"
    return not is_undone or view.quantize is not None


def bias_scale_fits(view: View) -> bool:
    """Whether an int32 bias has the scale of its products, s_x·s_w, where that is stored."""
    nodes = (view.bias.dequantize, view.x.dequantize, view.w.dequantize)
    scales = [None if node is None else node.inputs[1] for node in nodes]
    if not all(is_weight(scale) for scale in scales):
        return True
    own, x, w = (read_weight(scale).astype(np.float64).reshape(-1) for scale in scales if scale)
    wanted = x * w
    if own.size not in (1, wanted.size):
        return False
    return bool(np.isclose(own, wanted, rtol=_BIAS_RTOL, atol=_BIAS_ATOL).all())


def weight_is_read_once(view: View) -> bool:
    """Whether the dequantized weight has one reader, in its own graph."""
    node = view.w.dequantize
    if node is None or len(node.outputs[0].uses()) != 1:
        return False
    return view.w.value is not None and len(view.w.value.uses()) == 1


def codes_fit_nbits(view: View) -> bool:
    """Whether the weight is a stored matrix whose codes MatMulNBits can hold."""
    node = view.w.dequantize
    if node is None:
        return False
    known = all(value is None or is_weight(value) for value in node.inputs)
    shape = dimensions(node.inputs[0])
    scale = node.inputs[1]
    fits = view.w.codes in _NBITS and scale is not None and value_type(scale) in _SCALES
    return known and fits and shape is not None and len(shape) == 2


def blocks_fit_nbits(view: View) -> bool:
    """Whether scales are by tensor, by output, or by blocks of a power of two along axis 0."""
    node = view.w.dequantize
    if node is None:
        return False
    shape, scales = dimensions(node.inputs[0]), dimensions(node.inputs[1])
    if shape is None or scales is None:
        return False
    block = _block(node)
    if block and view.w.turned:
        return False
    if block:
        is_power = block >= _SMALLEST_BLOCK and block & (block - 1) == 0
        return is_power and _axis(node) == 0 and len(scales) == 2
    outputs = 0 if view.w.turned else 1
    return scales == () or (scales == (shape[outputs],) and _axis(node) == outputs)


def gemm_fits_nbits(view: View) -> bool:
    """Whether a Gemm is a MatMul and a bias of one number for each output."""
    if view.kind != "Gemm":
        return True
    node = view.node
    alpha, beta = factors(node)
    is_turned = node.op_type == "Gemm" and (
        _is_out_in(view) or bool(node.attributes.get_int("transA", 0))
    )
    if alpha != 1.0 or is_turned:
        return False
    if not view.bias.exists:
        return True
    weight = None if view.w.dequantize is None else dimensions(view.w.dequantize.inputs[0])
    bias = dimensions(view.bias.value)
    if beta != 1.0 or bias is None or weight is None:
        return False
    return bias == (weight[0 if _is_out_in(view) else 1],)


def _is_out_in(view: View) -> bool:
    """Whether the weight is stored [out, in]: turned by the Gemm or by a Transpose, not by both."""
    return _turned(view.node) != view.w.turned


def _turned(node: ir.Node) -> bool:
    return bool(node.attributes.get_int("transB", 0)) if node.op_type == "Gemm" else False


def _has_one_scale(node: ir.Node | None) -> bool:
    return node is not None and dimensions(node.inputs[1]) in ((), (1,))


def _is_float_vector(value: ir.Value | None) -> bool:
    return is_weight(value) and len(dimensions(value) or ()) == 1


def _block(node: ir.Node) -> int:
    return node.attributes.get_int("block_size", 0)


def _axis(node: ir.Node) -> int:
    """The axis of a DequantizeLinear, from the front."""
    axis = node.attributes.get_int("axis", 1)
    rank = len(dimensions(node.inputs[0]) or ())
    return axis + rank if axis < 0 else axis
