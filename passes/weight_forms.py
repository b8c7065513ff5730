"""Which of the written forms can hold a format at a site, and why not."""

from __future__ import annotations

from typing import Literal

import onnx_ir as ir

from onnxq.custom_ops.catalog import spec_of
from onnxq.formats import Format, IntFormat, PerBlock, PerGroup, VectorFormat
from onnxq.graph.sites import Site
from onnxq.passes.weight_layout import storage_bits, weight_type

Form = Literal["operator", "matmul_nbits", "dequantize", "gather"]
"""How a weight is written: see `onnxq.passes.quantize_weights`."""

LINEAR = ("MatMul", "Gemm", "Conv", "ConvTranspose")
"""Operators that are a linear layer of one weight."""

_CONVOLUTIONS = ("Conv", "ConvTranspose")
_NBITS = (2, 4, 8)
_DEQUANTIZE_OPSET = {2: 25, 4: 21, 8: 13}


def site_refusal(site: Site, fmt: Format | None, write: str) -> str | None:
    """Why a site is left in float, whatever its weight is rounded to; None when it is not."""
    if site.already is not None:
        return f"it is already quantized ({site.already})"
    if site.refusal is not None:
        return site.refusal
    if site.node.graph is None or isinstance(site.node.graph, ir.Function):
        return "it is inside a function, which cannot hold weights: inline functions first"
    if fmt is None:
        return "the recipe leaves it in float"
    if site.kind == "Gather":
        return gather_refusal(site, fmt)
    if site.kind not in LINEAR:
        return f"{site.kind} takes float weights only, and is no MatMul, Gemm or convolution"
    if not isinstance(fmt, IntFormat) or _is_operator(site, write):
        return operator_refusal(site, fmt)
    if write == "matmul_nbits":
        return matmul_nbits_refusal(site, fmt)
    if site.kind in _CONVOLUTIONS and isinstance(fmt.granularity, PerGroup):
        return f"{fmt} groups inputs, and a {site.kind} takes one scale per channel or tensor"
    if isinstance(fmt.granularity, PerBlock):
        return f"{fmt} shares a scale among rows, and DequantizeLinear has one for each"
    return None


def written_form(site: Site, fmt: Format, write: str, *, is_tied: bool = False) -> Form:
    """The form that a site takes which is not left in float.

    Args:
        site: the site.
        fmt: its format.
        write: what the recipe asks for.
        is_tied: an embedding in the same format shares its codes.
    """
    if site.kind == "Gather":
        return "gather"
    if not isinstance(fmt, IntFormat) or _is_operator(site, write):
        return "operator"
    if (write != "dequantize" or is_tied) and matmul_nbits_refusal(site, fmt) is None:
        return "matmul_nbits"
    return "dequantize"


def minimum_opset(site: Site, fmt: Format, write: str) -> int:
    """The opset that ``fmt`` needs as it will be written; 1 when it needs none in particular."""
    if not isinstance(fmt, IntFormat) or _is_operator(site, write):
        spec = spec_of(fmt, (site.shape[site.out_axis], site.shape[site.in_axis]))
        return 1 if isinstance(spec, str) or operator_refusal(site, fmt) else spec.lowest_opset
    blocked = isinstance(fmt.granularity, PerGroup)
    refusal = _block_refusal(fmt) or _scale_refusal(site, fmt)
    if write == "matmul_nbits" or (write == "auto" and refusal is None):
        return 1
    return max(_DEQUANTIZE_OPSET[storage_bits(fmt)], 21 if blocked else 13)


def _is_operator(site: Site, write: str) -> bool:
    """Whether integers become an operator of onnxq, which there is none of for convolutions."""
    return write == "operator" and site.kind not in _CONVOLUTIONS


def operator_refusal(site: Site, fmt: Format) -> str | None:
    """Why a site cannot become an operator of onnxq; None when it can."""
    reason = _product_refusal(site, "an operator of onnxq")
    if reason is not None:
        return reason
    shape = site.shape[site.out_axis], site.shape[site.in_axis]
    reason = fmt.refusal(*shape) if isinstance(fmt, VectorFormat) else None
    if reason is not None:
        return f"{fmt} cannot store it: {reason}"
    spec = spec_of(fmt, shape)
    return spec if isinstance(spec, str) else None


def matmul_nbits_refusal(site: Site, fmt: IntFormat) -> str | None:
    """Why a site cannot become MatMulNBits; None when it can."""
    return _product_refusal(site, "MatMulNBits") or _block_refusal(fmt) or _scale_refusal(site, fmt)


def _product_refusal(site: Site, what: str) -> str | None:
    """Why a site is no product A · W that ``what`` can stand for; None when it is."""
    if site.kind not in ("MatMul", "Gemm"):
        return f"{what} replaces MatMul and Gemm, and this is a {site.kind}"
    if len(site.shape) != 2:
        return f"{what} takes a 2-D weight, and this one has shape {site.shape}"
    if site.weight_index != 1:
        return f"{what} takes the weight on the right, and here it is on the left"
    if site.kind == "Gemm" and site.node.attributes.get_int("transA"):
        return f"{what} cannot transpose its activations, and this Gemm does (transA=1)"
    if weight_type(site) not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
        return f"{what} takes float or float16, and this weight is {weight_type(site).name}"
    return None


def gather_refusal(site: Site, fmt: Format) -> str | None:
    """Why an embedding cannot become GatherBlockQuantized; None when it can."""
    if not isinstance(fmt, IntFormat):
        return f"GatherBlockQuantized gathers integers, and {fmt} has none"
    reason = _block_refusal(fmt)
    if reason is not None:
        return reason
    if len(site.shape) != 2:
        return f"GatherBlockQuantized takes a 2-D table, and this one is {site.shape}"
    if site.node.attributes.get_int("axis", 0) != 0:
        return "GatherBlockQuantized gathers rows, and this Gather takes another axis"
    columns = site.shape[site.in_axis]
    if isinstance(fmt.granularity, PerGroup) and columns % fmt.granularity.size:
        return f"rows of {columns} are not a whole number of groups of {fmt.granularity.size}"
    return _scale_refusal(site, fmt)


def _scale_refusal(site: Site, fmt: IntFormat) -> str | None:
    """Why block-quantized operators cannot have the scales; None when they can.

    Behind a Cast that nobody has folded, ONNX Runtime's MatMulNBits returned zeros.
    """
    if fmt.scale_dtype == "float16" and weight_type(site) != ir.DataType.FLOAT16:
        return f"{fmt} has float16 scales, and the operator takes those of the model's type"
    return None


def _block_refusal(fmt: IntFormat) -> str | None:
    """Why MatMulNBits and GatherBlockQuantized cannot hold the format; None when they can."""
    if fmt.bits not in _NBITS:
        return f"{fmt} has {fmt.bits} bits, and block-quantized operators take 2, 4 or 8"
    if not isinstance(fmt.granularity, PerGroup):
        return f"{fmt} has no groups, and block-quantized operators need one scale per group"
    size = fmt.granularity.size
    if size < 16 or size & (size - 1):
        return f"{fmt} has groups of {size}, and blocks must be a power of two of at least 16"
    return None
