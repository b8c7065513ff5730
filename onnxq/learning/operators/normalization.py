"""Normalizations, the fused ones of ONNX Runtime among them."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from onnxq.learning.operators.table import Call, Result, Tensor, operator
from onnxq.learning.operators.types import as_float

__all__: list[str] = []


def _axes(call: Call, x: Tensor) -> tuple[int, ...]:
    return tuple(range(call.attribute("axis", -1) % x.ndim, x.ndim))


@operator("LayerNormalization")
def _layer_norm(call: Call, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Result:
    axes = _axes(call, x)
    wide = as_float(x)
    mean = wide.mean(axes, keepdim=True)
    centred = wide - mean
    inverse = torch.rsqrt((centred * centred).mean(axes, True) + call.attribute("epsilon", 1e-5))
    result = (centred * inverse).to(x.dtype) * scale
    return result if bias is None else result + bias, mean, inverse


@operator("RMSNormalization", "SimplifiedLayerNormalization")
@operator("SimplifiedLayerNormalization", domain="com.microsoft")
def _rms_norm(call: Call, x: Tensor, scale: Tensor) -> Result:
    result, inverse = _rms(x, scale, _axes(call, x), call.attribute("epsilon", 1e-5))
    return result, inverse


def _rms(x: Tensor, scale: Tensor, axes: tuple[int, ...], epsilon: float) -> tuple[Tensor, Tensor]:
    wide = as_float(x)
    inverse = torch.rsqrt((wide * wide).mean(axes, keepdim=True) + epsilon)
    return (wide * inverse).to(x.dtype) * scale, inverse


@operator("SkipSimplifiedLayerNormalization", domain="com.microsoft")
def _skip_rms_norm(
    call: Call, x: Tensor, skip: Tensor, scale: Tensor, bias: Tensor | None = None
) -> Result:
    total = x + skip if bias is None else x + skip + bias
    result, inverse = _rms(total, scale, (-1,), call.attribute("epsilon", 1e-12))
    return result, None, inverse, total


@operator("SkipLayerNormalization", domain="com.microsoft")
def _skip_layer_norm(
    call: Call,
    x: Tensor,
    skip: Tensor,
    scale: Tensor,
    shift: Tensor | None = None,
    bias: Tensor | None = None,
) -> Result:
    total = x + skip if bias is None else x + skip + bias
    wide = as_float(total)
    mean = wide.mean(-1, keepdim=True)
    centred = wide - mean
    spread = (centred * centred).mean(-1, keepdim=True)
    inverse = torch.rsqrt(spread + call.attribute("epsilon", 1e-12))
    result = (centred * inverse).to(x.dtype) * scale
    return result if shift is None else result + shift, mean, inverse, total


@operator("BatchNormalization")
def _batch_norm(
    call: Call, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor
) -> Result:
    if call.attribute("training_mode", 0) or any(call.wanted[1:]):
        raise call.refusal("its training mode is not computed")
    shape = [1, -1] + [1] * (x.ndim - 2)
    factor = (scale * torch.rsqrt(variance + call.attribute("epsilon", 1e-5))).reshape(shape)
    return x * factor + (bias.reshape(shape) - mean.reshape(shape) * factor)


@operator("InstanceNormalization")
def _instance_norm(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Result:
    return F.group_norm(x, x.shape[1], scale, bias, call.attribute("epsilon", 1e-5))


@operator("GroupNormalization")
def _group_norm(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Result:
    groups = call.attribute("num_groups")
    if call.opset < 21:  # scale and bias were one number per group
        scale, bias = (p.repeat_interleave(x.shape[1] // groups) for p in (scale, bias))
    return F.group_norm(x, groups, scale, bias, call.attribute("epsilon", 1e-5))


@operator("LpNormalization")
def _lp_norm(call: Call, x: Tensor) -> Result:
    size = torch.linalg.vector_norm(
        x, call.attribute("p", 2), call.attribute("axis", -1), keepdim=True
    )
    return torch.where(size == 0, torch.zeros_like(x), x / torch.where(size == 0, 1.0, size))


@operator("MeanVarianceNormalization")
def _mean_variance_norm(call: Call, x: Tensor) -> Result:
    axes = tuple(call.attribute("axes", (0, 2, 3)))
    centred = x - x.mean(axes, keepdim=True)
    return centred / (torch.sqrt((centred * centred).mean(axes, keepdim=True)) + 1e-9)


@operator("LRN")
def _lrn(call: Call, x: Tensor) -> Result:
    size = call.attribute("size")
    before = (size - 1) // 2
    squares = F.pad((x * x).movedim(1, -1), (before, size - 1 - before)).unfold(-1, size, 1).sum(-1)
    scale = call.attribute("bias", 1.0) + call.attribute("alpha", 1e-4) / size * squares
    return x / scale.movedim(-1, 1) ** call.attribute("beta", 0.75)
