"""Pooling: windows laid out as an axis of their own, then reduced.

That costs memory of the window's size more than a pooling kernel would, and takes every form that
ONNX has (rounding up, padding of either side, dilation) by one rule.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from onnxq.learning.operators.convolution import paddings, per_axis
from onnxq.learning.operators.table import Call, Result, Tensor, operator

__all__: list[str] = []


@operator("GlobalAveragePool")
def _global_average(call: Call, x: Tensor) -> Result:
    return x.mean(tuple(range(2, x.ndim)), keepdim=True)


@operator("GlobalMaxPool")
def _global_max(call: Call, x: Tensor) -> Result:
    return x.amax(tuple(range(2, x.ndim)), keepdim=True)


@operator("MaxPool")
def _max_pool(call: Call, x: Tensor) -> Result:
    if call.wants(1):
        raise call.refusal("the indices it gives as its second output are not computed")
    low = -math.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
    return _windows(call, x, low, low).amax(-1)


@operator("AveragePool")
def _average_pool(call: Call, x: Tensor) -> Result:
    # The padding counts where asked; what lies beyond it, where a size was rounded up, never.
    counted = 1.0 if call.attribute("count_include_pad", 0) else 0.0
    number = _windows(call, torch.ones_like(x), counted, 0.0).sum(-1)
    return _windows(call, x, 0.0, 0.0).sum(-1) / number


def _windows(call: Call, x: Tensor, padding: float, beyond: float) -> Tensor:
    """Windows [batch, channels, *places, elements] of the padded input.

    Args:
        call: the pooling.
        x: its input.
        padding: what the padding holds.
        beyond: what lies behind the padding, where windows reach further.
    """
    kernel = [int(width) for width in call.attribute("kernel_shape")]
    rank, pads = len(kernel), paddings(call, x.shape[2:], kernel)
    strides, dilations = per_axis(call, "strides", rank), per_axis(call, "dilations", rank)
    for i, (before, after) in enumerate(pads):
        axis, span = i + 2, (kernel[i] - 1) * dilations[i] + 1
        room = x.shape[axis] + before + after - span
        steps = -(-room // strides[i]) if call.attribute("ceil_mode", 0) else room // strides[i]
        if steps * strides[i] >= x.shape[axis] + before:  # a window wholly behind the input
            steps -= 1
        more = max(steps * strides[i] - room, 0)
        inner = [0, 0] * (x.ndim - 1 - axis)
        x = F.pad(x, [*inner, before, after], value=padding)
        x = F.pad(x, [*inner, 0, more], value=beyond)
        x = x.unfold(axis, span, strides[i]).narrow(axis, 0, steps + 1)[..., :: dilations[i]]
    return x.flatten(2 + rank)
