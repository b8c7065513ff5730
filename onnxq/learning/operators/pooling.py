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
    return _windows(call, x, low)[0].amax(-1)


@operator("AveragePool")
def _average_pool(call: Call, x: Tensor) -> Result:
    found, pads = _windows(call, x, 0.0)
    # What lies outside the padding, where the size was rounded up, never counts.
    ones = torch.ones_like(x)
    if call.attribute("count_include_pad", 0):
        widths = [width for pair in reversed(pads) for width in pair]
        counted = F.pad(torch.ones_like(x), widths, value=1.0)
        return found.sum(-1) / _unfolded(call, counted, 0.0, [(0, 0)] * len(pads)).sum(-1)
    return found.sum(-1) / _windows(call, ones, 0.0)[0].sum(-1)


def _windows(call: Call, x: Tensor, fill: float) -> tuple[Tensor, list[tuple[int, int]]]:
    """Windows [batch, channels, *places, elements], and the padding of each axis."""
    pads = paddings(call, x.shape[2:], call.attribute("kernel_shape"))
    return _unfolded(call, x, fill, pads), pads


def _unfolded(call: Call, x: Tensor, fill: float, pads: list[tuple[int, int]]) -> Tensor:
    kernel = [int(width) for width in call.attribute("kernel_shape")]
    rank = len(kernel)
    strides, dilations = per_axis(call, "strides", rank), per_axis(call, "dilations", rank)
    for i, ((before, after), width) in enumerate(zip(pads, kernel, strict=True)):
        axis, span = i + 2, (width - 1) * dilations[i] + 1
        room = x.shape[axis] + before + after - span
        steps = -(-room // strides[i]) if call.attribute("ceil_mode", 0) else room // strides[i]
        if steps * strides[i] >= x.shape[axis] + before:  # a window wholly in the padding
            steps -= 1
        more = max(steps * strides[i] - room, 0)
        widths = [0, 0] * (x.ndim - 1 - axis) + [before, after + more]
        x = F.pad(x, widths, value=fill)
        x = x.unfold(axis, span, strides[i]).narrow(axis, 0, steps + 1)[..., :: dilations[i]]
    return x.flatten(2 + rank)
