"""Operators that move elements and compute nothing, as links between channel positions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxq.graph.weight_source import stored_weight
from onnxq.graph.weights import is_weight, read_weight, weight_tensor
from onnxq.passes.channel_labels import Labels, Leave, Link, named
from onnxq.passes.channel_region import Region

__all__ = ["VIEWS", "dims_of", "follow_view"]

_RESHAPES = frozenset(["Flatten", "Reshape", "Squeeze", "Unsqueeze"])
VIEWS = _RESHAPES | {"Concat", "Expand", "Slice", "Split", "Transpose"}
"""The operators that `follow_view` knows."""


def dims_of(value: ir.Value) -> list[int | None] | None:
    """The sizes of a value, None for those that vary; None when not even the rank is known."""
    if is_weight(value):
        return [int(size) for size in weight_tensor(value).shape.numpy()]
    if value.shape is None:
        return None
    # Paddle's exporter declares sizes that vary as -1.
    return [size if isinstance(size, int) and size >= 0 else None for size in value.shape]


def follow_view(region: Region, node: ir.Node, value: ir.Value, labels: Labels) -> None:
    """Carry the channels of ``value`` over a node that only moves elements.

    Raises:
        Leave: where they go is not known before the model runs.
    """
    if value not in node.outputs and value is not node.inputs[0] and node.op_type != "Concat":
        raise Leave(f"{named(node)} takes its shape from them")
    if node.op_type in _RESHAPES:
        _reshape(region, node, value, labels)
    elif node.op_type == "Transpose":
        _transpose(region, node, value, labels)
    elif node.op_type == "Expand":
        _expand(region, node, value, labels)
    elif node.op_type == "Concat":
        _concat(region, node, value, labels)
    else:
        _cut(region, node, value, labels)


def _transpose(region: Region, node: ir.Node, value: ir.Value, labels: Labels) -> None:
    source, target = _ends(node)
    perm = node.attributes.get("perm")
    sizes = _known(source)
    order = list(perm.as_ints()) if perm is not None else list(range(len(sizes)))[::-1]
    rank = len(order)
    # Axis a of the result is axis order[a] of the source.
    to = {order[at] - rank: at - rank for at in range(rank)}
    if value is target:
        back = {new: old for old, new in to.items()}
        source_axes = sorted(back[axis] for axis in labels.axes)
    else:
        source_axes = list(labels.axes)
    size = {(axis if value is source else to[axis]): axis for axis in source_axes}
    shape = [labels.sizes[key] for key in size]
    target_axes = sorted(to[axis] for axis in source_axes)
    turn = [source_axes.index(order[axis + rank] - rank) for axis in target_axes]
    places = np.arange(math.prod(shape)).reshape(shape).transpose(turn)
    link = Link(
        source, tuple(source_axes), tuple(shape), target, tuple(target_axes), places.shape,
        places.reshape(-1),
    )  # fmt: skip
    region.link(node, link)


def _reshape(region: Region, node: ir.Node, value: ir.Value, labels: Labels) -> None:
    """Split or join axes between two axes of varying size, where all elements keep their order."""
    source, target = _ends(node)
    old, new = _known(source), _reshaped(node, source, target)
    ours, theirs = (old, new) if value is source else (new, old)
    mine, other = _segments(ours), _segments(theirs)
    axes: list[int] = []
    images: list[int] = []
    for place, segment in enumerate(mine):
        covered = place >= len(other)
        if not covered:
            fits = _volume(ours, segment) == _volume(theirs, other[place])
            covered = not fits
        if covered and any(axis in labels.axes for axis in _from(mine[place:])):
            raise Leave(f"{named(node)} reshapes {old} to {new}, and where they go is not known")
        if covered:
            break
        if any(axis in labels.axes for axis in segment):
            axes += segment
            images += other[place]
    if not set(labels.axes) <= set(axes):
        raise Leave(f"{named(node)} reshapes {old} to {new}, and where they go is not known")
    count = _volume(ours, axes)
    first, second = (axes, images) if value is source else (images, axes)
    first, second = sorted(first), sorted(second)
    link = Link(
        source,
        tuple(first),
        tuple(old[axis] or 1 for axis in first),
        target,
        tuple(second),
        tuple(new[axis] or 1 for axis in second),
        np.arange(count),
    )
    region.link(node, link)


def _from(segments: Sequence[Sequence[int]]) -> list[int]:
    return [axis for segment in segments for axis in segment]


def _volume(sizes: Sequence[int | None], axes: Sequence[int]) -> int:
    return math.prod(sizes[axis] or 1 for axis in axes)


def _segments(sizes: Sequence[int | None]) -> list[list[int]]:
    """Runs of axes of fixed size between axes that vary, the last run first."""
    runs: list[list[int]] = [[]]
    for axis in range(-1, -len(sizes) - 1, -1):
        if sizes[axis] is None:
            runs.append([])
        else:
            runs[-1].append(axis)
    return runs


def _reshaped(node: ir.Node, source: ir.Value, target: ir.Value) -> list[int | None]:
    """The sizes after a reshape: as inferred, or as the constant target says."""
    sizes = dims_of(target)
    if sizes is not None and not (node.op_type == "Reshape" and None in sizes):
        return sizes
    shape = node.inputs[1] if len(node.inputs) > 1 else None
    if node.op_type != "Reshape" or shape is None or not is_weight(shape):
        return _known(target)
    old = _known(source)
    wanted = [int(size) for size in read_weight(shape).reshape(-1)]
    known: list[int | None] = [
        old[at] if size == 0 else (size if size > 0 else None) for at, size in enumerate(wanted)
    ]
    return known


def _expand(region: Region, node: ir.Node, value: ir.Value, labels: Labels) -> None:
    """Axes of length 1 are repeated; labelled ones may be among them."""
    source, target = _ends(node)
    sizes = _known(source)
    if value is source:
        region.link(node, Link.same(source, target, labels))
        return
    inner = [axis for axis in labels.axes if axis >= -len(sizes) and sizes[axis] != 1]
    if not inner or any(sizes[axis] != labels.sizes[axis] for axis in inner):
        raise Leave(f"{named(node)} repeats them, or sizes that are not known: {sizes}")
    own = [labels.sizes[axis] if axis in inner else 1 for axis in labels.axes]
    places = np.broadcast_to(np.arange(math.prod(own)).reshape(own), labels.ids.shape)
    shape = [labels.sizes[axis] for axis in inner]
    region.link(
        node,
        Link(
            source, tuple(inner), tuple(shape), target, labels.axes, labels.ids.shape,
            places.reshape(-1),
        ),
    )  # fmt: skip


def _concat(region: Region, node: ir.Node, value: ir.Value, labels: Labels) -> None:
    """Parts are joined along one axis: another one than theirs, or one they lie along."""
    target = node.outputs[0]
    axis = _negative(node.attributes.get_int("axis", 0), target, node)
    parts = [(at, part) for at, part in enumerate(node.inputs) if part is not None]
    whole = sum(_size(part, axis, node) for _, part in parts) if axis in labels.axes else 0
    start = 0
    for at, part in parts:
        size = _size(part, axis, node) if axis in labels.axes else 0
        if value is target or value is part:
            link = _range(target, part, axis, range(start, start + size), whole, labels)
            if stored_weight(part) is None:
                region.link(node, link)
            else:
                region.constant(node, at, link, link.forward(labels), of=part)
        start += size


def _cut(region: Region, node: ir.Node, value: ir.Value, labels: Labels) -> None:
    """Split and Slice: each result is a range of the source along one axis."""
    source = node.inputs[0]
    if source is None:
        return
    for target, axis, start, step in _ranges(node, source):
        if value is not source and value is not target:
            continue
        if axis in labels.axes:
            size, whole = _size(target, axis, node), _size(source, axis, node)
            places = range(start, start + step * size, step)
            region.link(node, _range(source, target, axis, places, whole, labels))
        else:
            region.link(node, Link.same(source, target, labels))


def _range(
    source: ir.Value, target: ir.Value, axis: int, places: range, whole: int, labels: Labels
) -> Link:
    """``target`` is ``source[..., places, ...]`` along ``axis``; labels are of either."""
    if axis not in labels.axes:
        return Link.same(source, target, labels)
    sizes = {**labels.sizes, axis: whole}
    shape = tuple(sizes[a] for a in labels.axes)
    index = np.arange(math.prod(shape)).reshape(shape)
    index = index.take(np.arange(places.start, places.stop, places.step), labels.axes.index(axis))
    return Link(source, labels.axes, shape, target, labels.axes, index.shape, index.reshape(-1))


def _ranges(node: ir.Node, source: ir.Value) -> list[tuple[ir.Value, int, int, int]]:
    """Of each result: axis from the end, first index, step."""
    if node.op_type == "Split":
        axis = _negative(node.attributes.get_int("axis", 0), source, node)
        found, start = [], 0
        for target in node.outputs:
            found.append((target, axis, start, 1))
            sizes = _known(target)
            start += sizes[axis] or 0
        return found
    given = [node.inputs[i] if i < len(node.inputs) else None for i in range(1, 5)]
    numbers = [
        None if part is None or not is_weight(part) else read_weight(part).reshape(-1).tolist()
        for part in given
    ]
    starts, _, axes, steps = numbers
    if any(
        part is not None and number is None for part, number in zip(given, numbers, strict=True)
    ):
        raise Leave(f"{named(node)} cuts at places computed as the model runs")
    if starts is None or axes is None or len(starts) != 1 or (steps or [1])[0] < 1:
        raise Leave(f"{named(node)} cuts several axes, or backwards")
    axis = _negative(int(axes[0]), source, node)
    size = _known(source)[axis]
    start = int(starts[0])
    if size is None and start < 0:
        raise Leave(f"{named(node)} cuts an axis of varying size")
    start = start + (size or 0) if start < 0 else start
    return [(node.outputs[0], axis, start, int((steps or [1])[0]))]


def _size(value: ir.Value, axis: int, node: ir.Node) -> int:
    sizes = dims_of(value)
    size = None if sizes is None else sizes[axis]
    if size is None:
        raise Leave(f"{named(node)} cuts or joins {value.name!r} of varying size")
    return size


def _negative(axis: int, value: ir.Value, node: ir.Node) -> int:
    return axis if axis < 0 else axis - len(_known(value))


def _known(value: ir.Value) -> list[int | None]:
    sizes = dims_of(value)
    if sizes is None:
        raise Leave(f"the shape of {value.name!r} is unknown: run fold_constants first")
    return sizes


def _ends(node: ir.Node) -> tuple[ir.Value, ir.Value]:
    source = node.inputs[0]
    if source is None:
        raise Leave(f"{named(node)} reads nothing")
    return source, node.outputs[0]
