"""Convolutions and their transposes, in one to three dimensions."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F

from onnxq.learning.operators.table import Call, Result, Tensor, operator

__all__ = ["paddings", "per_axis"]

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def per_axis(call: Call, name: str, rank: int) -> list[int]:
    """An attribute with one number per spatial axis, ones when it is not given."""
    return [int(number) for number in call.attribute(name) or [1] * rank]


def paddings(call: Call, sizes: Sequence[int], kernel: Sequence[int]) -> list[tuple[int, int]]:
    """Padding before and after each spatial axis, by ``auto_pad`` or ``pads``.

    Args:
        call: a convolution or pooling.
        sizes: spatial sizes of its input.
        kernel: sizes of its window.
    """
    rank, mode = len(sizes), call.attribute("auto_pad", "NOTSET")
    if mode in ("NOTSET", ""):
        given = call.attribute("pads") or [0] * (2 * rank)
        return [(int(given[i]), int(given[i + rank])) for i in range(rank)]
    if mode == "VALID":
        return [(0, 0)] * rank
    strides, dilations = per_axis(call, "strides", rank), per_axis(call, "dilations", rank)
    found = []
    for size, width, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        total = max((-(-size // stride) - 1) * stride + (width - 1) * dilation + 1 - size, 0)
        small = total // 2
        found.append((small, total - small) if mode == "SAME_UPPER" else (total - small, small))
    return found


def _widths(pads: Sequence[tuple[int, int]]) -> list[int]:
    return [width for pair in reversed(pads) for width in pair]


@operator("Conv")
def _conv(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Result:
    rank = x.ndim - 2
    if rank not in _CONV:
        raise call.refusal(f"a convolution in {rank} dimensions is not computed")
    pads = paddings(call, x.shape[2:], weight.shape[2:])
    if all(before == after for before, after in pads):
        padding = [before for before, _ in pads]
    else:
        x, padding = F.pad(x, _widths(pads)), [0] * rank
    return _CONV[rank](
        x,
        weight,
        bias,
        per_axis(call, "strides", rank),
        padding,
        per_axis(call, "dilations", rank),
        call.attribute("group", 1),
    )


@operator("ConvTranspose")
def _conv_transpose(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Result:
    rank = x.ndim - 2
    if rank not in _TRANSPOSED:
        raise call.refusal(f"a transposed convolution in {rank} dimensions is not computed")
    strides, dilations = per_axis(call, "strides", rank), per_axis(call, "dilations", rank)
    extra = [int(number) for number in call.attribute("output_padding") or [0] * rank]
    # Everything is computed, the output padding at the end as well, and the pads are cut off.
    whole = _TRANSPOSED[rank](
        x,
        weight,
        None,
        strides,
        0,
        0,
        call.attribute("group", 1),
        dilations,
    )
    full = [
        (size - 1) * stride + (width - 1) * dilation + 1 + more
        for size, width, stride, dilation, more in zip(
            x.shape[2:], weight.shape[2:], strides, dilations, extra, strict=True
        )
    ]
    whole = F.pad(whole, _widths([(0, n - m) for n, m in zip(full, whole.shape[2:], strict=True)]))
    cut = _cut(call, x, full, strides)
    whole = F.pad(whole, _widths([(-before, -after) for before, after in cut]))
    return whole if bias is None else whole + bias.reshape([1, -1] + [1] * rank)


def _cut(
    call: Call, x: Tensor, full: Sequence[int], strides: Sequence[int]
) -> list[tuple[int, int]]:
    """How much of the full result lies outside the output, before and after, on each axis."""
    rank, mode = len(full), call.attribute("auto_pad", "NOTSET")
    wished = call.attribute("output_shape")
    if wished is None and mode in ("SAME_UPPER", "SAME_LOWER"):
        wished = [size * stride for size, stride in zip(x.shape[2:], strides, strict=True)]
    if wished is None:
        return [(0, 0)] * rank if mode == "VALID" else paddings(call, full, full)
    found = []
    for size, wanted in zip(full, list(wished)[-rank:], strict=True):
        total, small = size - wanted, (size - wanted) // 2
        found.append((small, total - small) if mode == "SAME_UPPER" else (total - small, small))
    return found
