"""Resize: nearest, linear and cubic, as a product with a matrix along each axis.

Each output element of an axis is a fixed mixture of input elements, so one matrix per axis holds
the whole operator, gradient included, whatever the rule for coordinates is.
"""

from __future__ import annotations

import math

import torch

from onnxq.learning.operators.shapes import ints
from onnxq.learning.operators.table import Call, Result, Tensor, operator

__all__: list[str] = []


@operator("Resize", "Upsample")
def _resize(
    call: Call,
    x: Tensor,
    roi: Tensor | None = None,
    scales: Tensor | None = None,
    sizes: Tensor | None = None,
) -> Result:
    if call.opset < 11:
        raise call.refusal("before opset 11 it left open where elements lie")
    if call.attribute("coordinate_transformation_mode") == "tf_crop_and_resize":
        raise call.refusal("the mode tf_crop_and_resize is not computed")
    if call.attribute("antialias", 0):
        raise call.refusal("antialias is not computed")
    axes = [axis % x.ndim for axis in call.attribute("axes") or range(x.ndim)]
    given = [] if scales is None else [float(scale) for scale in scales.tolist()]
    wished = ints(sizes)
    if wished:
        wished, given = _by_sizes(call, [x.shape[axis] for axis in axes], wished)
    else:
        wished = [math.floor(x.shape[a] * scale) for a, scale in zip(axes, given, strict=True)]
    for axis, size, scale in zip(axes, wished, given, strict=True):
        if size == x.shape[axis] and scale == 1.0:
            continue
        matrix = _mixture(call, x.shape[axis], size, scale).to(x.dtype).to(x.device)
        x = torch.matmul(x.movedim(axis, -1), matrix.t()).movedim(-1, axis)
    return x


def _by_sizes(call: Call, old: list[int], wished: list[int]) -> tuple[list[int], list[float]]:
    policy = call.attribute("keep_aspect_ratio_policy", "stretch")
    given = [new / size for new, size in zip(wished, old, strict=True)]
    if policy == "stretch":
        return wished, given
    scale = min(given) if policy == "not_larger" else max(given)
    return [math.floor(size * scale + 0.5) for size in old], [scale] * len(old)


def _mixture(call: Call, old: int, new: int, scale: float) -> Tensor:
    """The matrix [new, old] of one axis."""
    mode = call.attribute("mode", "nearest")
    matrix = torch.zeros(new, old, dtype=torch.float64)
    for row in range(new):
        at = _place(call, row, old, new, scale)
        if mode == "nearest":
            matrix[row, min(max(_nearest(call, at), 0), old - 1)] = 1.0
            continue
        first = math.floor(at)
        part = at - first
        if mode == "linear":
            pairs = [(first, 1 - part), (first + 1, part)]
        else:
            pairs = _cubic(call, first, part, old)
        for index, share in pairs:
            matrix[row, min(max(index, 0), old - 1)] += share
    return matrix


def _place(call: Call, row: int, old: int, new: int, scale: float) -> float:
    mode = call.attribute("coordinate_transformation_mode", "half_pixel")
    if mode == "asymmetric":
        return row / scale
    if mode == "align_corners":
        return 0.0 if new == 1 else row * (old - 1) / (new - 1)
    if mode == "pytorch_half_pixel" and new == 1:
        return 0.0
    if mode == "half_pixel_symmetric":
        centre = old / 2 * (1 - new / (scale * old))
        return centre + (row + 0.5) / scale - 0.5
    if mode in ("half_pixel", "pytorch_half_pixel"):
        return (row + 0.5) / scale - 0.5
    raise call.refusal(f"the coordinates {mode!r} are not computed")


def _nearest(call: Call, at: float) -> int:
    rule = call.attribute("nearest_mode", "round_prefer_floor")
    if rule == "floor":
        return math.floor(at)
    if rule == "ceil":
        return math.ceil(at)
    if rule == "round_prefer_ceil":
        return math.floor(at + 0.5)
    return math.ceil(at - 0.5)


def _cubic(call: Call, first: int, part: float, old: int) -> list[tuple[int, float]]:
    a = call.attribute("cubic_coeff_a", -0.75)
    shares = [((a * (d + 1) - 5 * a) * (d + 1) + 8 * a) * (d + 1) - 4 * a for d in (part, 1 - part)]
    near = [((a + 2) * d - (a + 3)) * d * d + 1 for d in (part, 1 - part)]
    pairs = list(zip(range(first - 1, first + 3), [shares[0], *near, shares[1]], strict=True))
    if not call.attribute("exclude_outside", 0):
        return pairs
    inside = [(index, share) for index, share in pairs if 0 <= index < old]
    total = sum(share for _, share in inside)
    return [(index, share / total) for index, share in inside]
