"""Shapes: views, joins, cuts, padding, and tensors made from shapes."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import torch
import torch.nn.functional as F

from onnxq.learning.operators.table import Call, Result, Tensor, operator
from onnxq.learning.operators.types import tensor_of, torch_type

__all__ = ["axes_of", "ints"]


def ints(tensor: Tensor | None) -> list[int]:
    """The elements of an integer tensor; an empty list for one left out."""
    return [] if tensor is None else [int(item) for item in tensor.reshape(-1).tolist()]


def axes_of(call: Call, since: int, tensor: Tensor | None) -> list[int] | None:
    """Axes, an attribute before opset ``since`` and an input from then on; None: not given."""
    if call.opset < since:
        given = call.attribute("axes")
        return None if given is None else [int(axis) for axis in given]
    return None if tensor is None else ints(tensor)


@operator("Reshape")
def _reshape(call: Call, x: Tensor, shape: Tensor) -> Result:
    sizes = ints(shape)
    if not call.attribute("allowzero", 0):
        sizes = [x.shape[at] if size == 0 else size for at, size in enumerate(sizes)]
    return x.reshape(sizes)


@operator("Transpose")
def _transpose(call: Call, x: Tensor) -> Result:
    return x.permute(tuple(call.attribute("perm") or reversed(range(x.ndim))))


@operator("Squeeze")
def _squeeze(call: Call, x: Tensor, axes: Tensor | None = None) -> Result:
    chosen = axes_of(call, 13, axes)
    if chosen is None:
        return x.squeeze()
    return x.squeeze(tuple(chosen)) if chosen else x


@operator("Unsqueeze")
def _unsqueeze(call: Call, x: Tensor, axes: Tensor | None = None) -> Result:
    chosen = axes_of(call, 13, axes) or []
    rank = x.ndim + len(chosen)
    for axis in sorted(axis % rank for axis in chosen):
        x = x.unsqueeze(axis)
    return x


@operator("Flatten")
def _flatten(call: Call, x: Tensor) -> Result:
    axis = call.attribute("axis", 1)
    axis += x.ndim if axis < 0 else 0
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@operator("Concat")
def _concat(call: Call, *parts: Tensor) -> Result:
    return torch.cat(parts, dim=call.attribute("axis"))


@operator("Split")
def _split(call: Call, x: Tensor, sizes: Tensor | None = None) -> Result:
    axis = call.attribute("axis", 0)
    given = call.attribute("split") if call.opset < 13 else ints(sizes)
    if given:
        return tuple(torch.split(x, list(given), axis))
    count = call.attribute("num_outputs", len(call.node.outputs))
    return tuple(torch.split(x, -(-x.shape[axis] // count), axis))


@operator("Slice")
def _slice(
    call: Call,
    x: Tensor,
    starts: Tensor | None = None,
    ends: Tensor | None = None,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Result:
    if call.opset < 10:
        first, last = call.attribute("starts"), call.attribute("ends")
        along = call.attribute("axes") or range(len(first))
    else:
        first, last = ints(starts), ints(ends)
        along = range(len(first)) if axes is None else ints(axes)
    strides = ints(steps) or [1] * len(first)
    for start, end, axis, stride in zip(first, last, along, strides, strict=True):
        x = _sliced(x, axis % x.ndim, start, end, stride)
    return x


def _sliced(x: Tensor, axis: int, start: int, end: int, stride: int) -> Tensor:
    size = x.shape[axis]
    if stride > 0:
        at = [slice(None)] * x.ndim
        # Python's rule for bounds out of range is ONNX's; torch warns of those beyond 32 bits.
        at[axis] = slice(*slice(start, end, stride).indices(size))
        return x[tuple(at)]
    start = min(max(start + size if start < 0 else start, -1), size - 1)
    end = min(max(end + size if end < 0 else end, -1), size)
    picked = torch.arange(start, end, stride, device=x.device) if start > end else []
    return x.index_select(axis, torch.as_tensor(picked, dtype=torch.int64, device=x.device))


@operator("Expand")
def _expand(call: Call, x: Tensor, shape: Tensor) -> Result:
    return x.broadcast_to(torch.broadcast_shapes(x.shape, tuple(ints(shape))))


@operator("Tile")
def _tile(call: Call, x: Tensor, repeats: Tensor) -> Result:
    return x.repeat(ints(repeats)) if x.ndim else x


@operator("Shape")
def _shape(call: Call, x: Tensor) -> Result:
    start, end = call.attribute("start", 0), call.attribute("end")
    return torch.tensor(list(x.shape)[start:end], dtype=torch.int64)


@operator("Size")
def _size(call: Call, x: Tensor) -> Result:
    return torch.tensor(x.numel(), dtype=torch.int64)


@operator("ConstantOfShape")
def _constant_of_shape(call: Call, shape: Tensor) -> Result:
    value = call.attribute("value")
    if value is None:
        return torch.zeros(ints(shape), dtype=call.compute or torch.float32)
    filled = tensor_of(np.array(value.numpy()), value.dtype, call.compute)
    return filled.reshape(()).expand(ints(shape)).clone()


@operator("Range")
def _range(call: Call, start: Tensor, limit: Tensor, delta: Tensor) -> Result:
    first, step = start.item(), delta.item()
    count = max(math.ceil((limit.item() - first) / step), 0)
    return start.reshape(()) + torch.arange(count, device=start.device).to(start.dtype) * delta


@operator("EyeLike")
def _eye_like(call: Call, x: Tensor) -> Result:
    dtype = call.attribute("dtype")
    wanted = x.dtype if dtype is None else torch_type(ir.DataType(dtype), call.compute)
    ones = torch.ones(x.shape, device=x.device)
    above = call.attribute("k", 0)
    return (torch.triu(ones, above) * torch.tril(ones, above)).to(wanted)


@operator("Trilu")
def _trilu(call: Call, x: Tensor, k: Tensor | None = None) -> Result:
    diagonal = int(k.item()) if k is not None else 0
    return torch.triu(x, diagonal) if call.attribute("upper", 1) else torch.tril(x, diagonal)


@operator("Dropout")
def _dropout(
    call: Call, x: Tensor, ratio: Tensor | None = None, training: Tensor | None = None
) -> Result:
    if training is not None and bool(training.item()):
        if ratio is not None and ratio.item() == 0:
            return x, torch.ones_like(x, dtype=torch.bool)
        raise call.refusal("its training mode draws random numbers")
    return x, torch.ones_like(x, dtype=torch.bool)


@operator("DepthToSpace")
def _depth_to_space(call: Call, x: Tensor) -> Result:
    size = call.attribute("blocksize")
    batch, channels, height, width = x.shape
    depth = channels // (size * size)
    if call.attribute("mode", "DCR") == "DCR":
        spread = x.reshape(batch, size, size, depth, height, width).permute(0, 3, 4, 1, 5, 2)
    else:
        spread = x.reshape(batch, depth, size, size, height, width).permute(0, 1, 4, 2, 5, 3)
    return spread.reshape(batch, depth, height * size, width * size)


@operator("SpaceToDepth")
def _space_to_depth(call: Call, x: Tensor) -> Result:
    size = call.attribute("blocksize")
    batch, channels, height, width = x.shape
    parts = x.reshape(batch, channels, height // size, size, width // size, size)
    depth_last = call.attribute("mode", "DCR") == "DCR"
    order = (0, 3, 5, 1, 2, 4) if depth_last else (0, 1, 3, 5, 2, 4)
    return parts.permute(order).reshape(
        batch, channels * size * size, height // size, width // size
    )


@operator("Pad")
def _pad(
    call: Call,
    x: Tensor,
    pads: Tensor | None = None,
    value: Tensor | None = None,
    axes: Tensor | None = None,
) -> Result:
    sizes = ints(pads) if call.opset >= 11 else list(call.attribute("pads"))
    along = range(x.ndim) if axes is None else [axis % x.ndim for axis in ints(axes)]
    before, after = sizes[: len(sizes) // 2], sizes[len(sizes) // 2 :]
    both = dict(zip(along, zip(before, after, strict=True), strict=True))
    mode = call.attribute("mode", "constant")
    if mode == "constant":
        fill = call.attribute("value", 0.0) if value is None else value.item()
        return _padded(x, both, fill)
    for axis, widths in both.items():
        x = x.index_select(axis, _mirrored(x.shape[axis], *widths, mode).to(x.device))
    return x


def _padded(x: Tensor, both: dict[int, tuple[int, int]], fill: float) -> Tensor:
    widths: list[int] = []
    for axis in reversed(range(x.ndim)):
        widths += both.get(axis, (0, 0))
    return F.pad(x, widths, value=fill)


def _mirrored(size: int, before: int, after: int, mode: str) -> Tensor:
    """Which element each place shows: edges repeated, reflected, or wrapped around."""
    places = torch.arange(-before, size + after)
    if mode == "edge":
        return places.clamp(0, size - 1)
    if mode == "wrap":
        return places % size
    period = max(2 * (size - 1), 1)
    folded = places % period
    return torch.where(folded < size, folded, period - folded)
