"""Quantizers, with the straight-through estimator as gradient.

Rounding has no slope, so its gradient is taken as that of the identity inside the range and zero
outside (Bengio et al. 2013, "Estimating or propagating gradients through stochastic neurons").

Codes are kept as float when a gradient may pass through them: QuantizeLinear gives a float tensor
whose elements are the integers, which DequantizeLinear and every comparison take as they are.
"""

from __future__ import annotations

import onnx_ir as ir
import torch

from onnxq.learning.operators.table import Call, Result, Tensor, operator
from onnxq.learning.operators.types import integer_range, torch_type
from onnxq.learning.quantizers import round_through

__all__: list[str] = []


def _spread(call: Call, parameter: Tensor, like: Tensor) -> Tensor:
    """A scale or zero point, of the tensor, a channel or a block, in a shape that broadcasts."""
    if parameter.ndim == 0 or (parameter.numel() == 1 and parameter.ndim <= 1):
        return parameter.reshape(())
    axis = call.attribute("axis", 1) % like.ndim
    if parameter.ndim == 1:
        return parameter.reshape([-1 if i == axis else 1 for i in range(like.ndim)])
    size = call.attribute("block_size", 0)
    if not size:
        raise call.refusal("its scale is neither one number, one row, nor blocks")
    return parameter.repeat_interleave(size, axis).narrow(axis, 0, like.shape[axis])


@operator("QuantizeLinear")
def _quantize(call: Call, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Result:
    number = call.attribute("output_dtype", 0)
    dtype = ir.DataType(number) if number else call.type_of(2) or ir.DataType.UINT8
    bounds = integer_range(dtype)
    if bounds is None:
        raise call.refusal(f"codes of type {dtype.name} are not computed")
    shift = 0 if zero is None else _spread(call, zero, x).to(x.dtype)
    codes = torch.clamp(round_through(x / _spread(call, scale, x)) + shift, *bounds)
    return codes if codes.requires_grad else codes.to(torch_type(dtype))


@operator("DequantizeLinear")
def _dequantize(call: Call, codes: Tensor, scale: Tensor, zero: Tensor | None = None) -> Result:
    centred = codes.to(scale.dtype)
    if zero is not None:
        centred = centred - _spread(call, zero, codes).to(scale.dtype)
    return centred * _spread(call, scale, codes)


@operator("DynamicQuantizeLinear")
def _dynamic_quantize(call: Call, x: Tensor) -> Result:
    low, high = x.min().clamp(max=0), x.max().clamp(min=0)
    scale = (high - low) / 255
    zero = torch.clamp(torch.round(-low / scale), 0, 255)
    codes = torch.clamp(round_through(x / scale) + zero, 0, 255)
    return codes if codes.requires_grad else codes.to(torch.uint8), scale, zero.to(torch.uint8)
