"""Gather at constant places, as links between channel positions.

Two things are written alike, and mean different things for the channels along the other axes::

    Gather(x [b, tokens, c], 0, axis 1)         one token of many: all of them hold the channels
    Gather(x [b, tokens, heads, 3, c], 2, axis 3)    values of queries, keys and values packed

The second is known by its being complete: every reader of the packed value takes a part of that
axis, and there are several. Then the other parts hold other channels.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxq.graph.weight_source import stored_weight
from onnxq.graph.weights import is_weight, read_weight
from onnxq.passes.channel_labels import Labels, Leave, Link, named
from onnxq.passes.channel_region import Region
from onnxq.passes.channel_views import dims_of

__all__ = ["follow_pick"]


def follow_pick(region: Region, node: ir.Node, value: ir.Value, labels: Labels) -> None:
    """Carry the channels of ``value`` over a Gather that gives or reads it.

    Raises:
        Leave: which of them are picked is not known before the model runs.
    """
    source, target = node.inputs[0], node.outputs[0]
    sizes = None if source is None else dims_of(source)
    if source is None or sizes is None or value not in (source, target):
        raise Leave(f"{named(node)} is on their way, and the rank of its input is unknown")
    axis = _negative(node, len(sizes))
    places = _places(node)
    stays = places is not None and places.ndim == 1
    theirs = axis in labels.axes and (value is source or stays)
    if not theirs and not _is_taken_apart(source, axis, len(sizes)):
        if any(other <= axis for other in labels.axes):
            raise Leave(f"{named(node)} picks some of them")
        region.link(node, Link.same(source, target, labels))
        return
    whole = sizes[axis]
    if places is None or whole is None or places.ndim > 1:
        raise Leave(f"{named(node)} picks some of them, at places that are not known")
    region.link(node, _link(source, target, axis, whole, places % whole, value is source, labels))


def _link(
    source: ir.Value,
    target: ir.Value,
    axis: int,
    whole: int,
    places: npt.NDArray[np.int64],
    is_source: bool,
    labels: Labels,
) -> Link:
    """``target`` is ``source`` at some places of an axis, which is gone if there is one place."""
    gone = places.ndim == 0

    def behind(other: int) -> int:
        return other + 1 if gone and other < axis else other

    own = {other if is_source or not gone or other > axis else other - 1 for other in labels.axes}
    axes = sorted(own | {axis})
    length = {other: labels.sizes[other if is_source else behind(other)] for other in own}
    shape = tuple(whole if other == axis else length[other] for other in axes)
    index = np.arange(math.prod(shape)).reshape(shape).take(places, axes.index(axis))
    left = tuple(behind(other) for other in axes if not (gone and other == axis))
    if not left:
        raise Leave(f"one channel of {source.name!r} is taken alone")
    return Link(source, tuple(axes), shape, target, left, index.shape, index.reshape(-1))


def _is_taken_apart(source: ir.Value, axis: int, rank: int) -> bool:
    """Whether all who read a value take parts of one axis of it, and so read different things."""
    readers = list(source.consumers())
    if len(readers) < 2 or source.is_graph_output():
        return False
    return all(_cut_axis(reader, rank) == axis for reader in readers)


def _cut_axis(node: ir.Node, rank: int) -> int | None:
    """The axis, from the end, that a node takes parts of at known places."""
    if (node.op_type == "Gather" and _places(node) is not None) or node.op_type == "Split":
        return _negative(node, rank)
    axes = node.inputs[3] if node.op_type == "Slice" and len(node.inputs) > 3 else None
    if axes is None or not is_weight(axes):
        return None
    given = read_weight(axes).reshape(-1)
    axis = int(given[0])
    return None if len(given) != 1 else axis if axis < 0 else axis - rank


def _places(node: ir.Node) -> npt.NDArray[np.int64] | None:
    stored = stored_weight(node.inputs[1])
    return None if stored is None else np.asarray(read_weight(stored), np.int64)


def _negative(node: ir.Node, rank: int) -> int:
    axis = node.attributes.get_int("axis", 0)
    return axis if axis < 0 else axis - rank
