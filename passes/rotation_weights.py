"""The stored weights that a rotation of channels multiplies, and whether it can.

Every weight that gives channels x (rows of a layer, biases, embeddings, constants that are added)
becomes W Q along its channel axis, so that x Q is given instead. Every weight that reads them
becomes Qᵀ W, which is the same product along its own channel axis: each column w becomes Qᵀ w.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxq.graph.scratch import Scratch
from onnxq.graph.weight_source import stored_weight
from onnxq.graph.weights import add_weight, read_weight, replace_weight, weight_tensor
from onnxq.passes.channel_labels import FIXED, Labels, Leave
from onnxq.passes.channel_weights import Demands, drop_unread
from onnxq.passes.match import home_of

__all__ = ["Map", "RotatedWeights", "Run", "runs_of", "turned"]

Array = npt.NDArray[Any]
Map = Callable[[Array], Array]
"""Multiplies rows of float64 ``[..., width]`` by a matrix."""

_CHUNK = 1 << 18
"""Entries in float64 at a time: no wide copy of a large embedding, and copies of a few MB stay in
caches and in the heap."""


@dataclasses.dataclass(frozen=True)
class Run:
    """Where the channels of one block lie, one after another: from ``start``, block ``block``."""

    start: int
    block: int


class RotatedWeights(Demands):
    """What one rotation of channels asks of stored weights."""

    def blocks(self, width: int) -> None:
        """Raise `Leave` unless every weight has whole blocks of ``width`` channels in order."""
        for weight, edits in self.edits.items():
            for labels in edits:
                runs_of(labels, width, f"weight {weight.name!r}")
        for (node, _), edits in self.copies.items():
            for labels in edits:
                runs_of(labels, width, f"a constant of {node.name!r}")

    def rotate(
        self, model: ir.Model, width: int, maps: Sequence[Map], scratch: Scratch | None = None
    ) -> None:
        """Multiply every weight; what others read too is copied first.

        Args:
            model: the model that holds the weights.
            width: channels in a block.
            maps: x to x Q, one for each block.
            scratch: keeps what is computed; when None it is computed at every read.
        """
        for weight, edits in self.edits.items():
            replace_weight(weight, **_turned_weight(weight, edits, width, maps, scratch))
        for (node, index), edits in self.copies.items():
            shared = node.inputs[index]
            source = stored_weight(shared)
            if source is None:
                continue
            own = _turned_weight(source, edits, width, maps, scratch)
            name = f"{source.name}_{node.name}"
            node.replace_input_with(index, add_weight(home_of(model, node), name, **own))
            drop_unread(shared)


def runs_of(labels: Labels, width: int, what: str) -> tuple[Run, ...]:
    """The blocks along the labelled axes, taken together in their order.

    Args:
        labels: channels are numbered block by block.
        width: channels in a block.
        what: carries them, for the reason.

    Raises:
        Leave: a block is not whole, or its channels are not side by side in their order.
    """
    ids = labels.ids.reshape(-1)
    runs: list[Run] = []
    place = 0
    while place < ids.size:
        if ids[place] == FIXED:
            place += 1
            continue
        found = ids[place : place + width]
        block, rest = divmod(int(found[0]), width)
        if rest or not np.array_equal(found, np.arange(width) + block * width):
            raise Leave(f"{what} has only some of the {width} channels that turn together")
        runs.append(Run(place, block))
        place += width
    return tuple(runs)


def turned(
    array: Array, labels: Labels, width: int, maps: Sequence[Map], runs: Sequence[Run] | None = None
) -> Array:
    """A copy of an array with x Q for every block x of channels, computed in float64.

    Args:
        array: of any float type; its labelled axes are counted from the start.
        labels: where its channels lie.
        width: channels in a block.
        maps: one for each block.
        runs: those of the labels, when they are known.
    """
    count = len(labels.axes)
    back = np.moveaxis(array, labels.axes, range(array.ndim - count, array.ndim))
    rows = np.array(back).reshape(-1, labels.ids.size)
    blocks = runs_of(labels, width, "an array") if runs is None else runs
    for part in _parts(len(rows), max(1, _CHUNK // max(rows.shape[1], 1))):
        for run in blocks:
            place = (part, slice(run.start, run.start + width))
            # Types NumPy lacks (bfloat16) take float64 by assignment too.
            rows[place] = maps[run.block](rows[place].astype(np.float64)).astype(rows.dtype)
    moved = rows.reshape(back.shape)
    return np.ascontiguousarray(
        np.moveaxis(moved, range(array.ndim - count, array.ndim), labels.axes)
    )


class _Content(TypedDict):
    """What `replace_weight` and `add_weight` take."""

    shape: list[int]
    dtype: ir.DataType
    compute: Callable[[], Array]


def _turned_weight(
    weight: ir.Value,
    edits: Sequence[Labels],
    width: int,
    maps: Sequence[Map],
    scratch: Scratch | None,
) -> _Content:
    """The weight with its channels rotated."""
    tensor = weight_tensor(weight)
    stored = ir.Value(name=weight.name, const_value=tensor)

    def compute() -> Array:
        array = read_weight(stored)
        for labels in edits:
            array = turned(array, labels, width, maps)
        return array

    shape = [int(size) for size in tensor.shape.numpy()]
    if math.prod(shape) == 0:
        raise Leave(f"weight {weight.name!r} is empty")
    if scratch is None:
        return {"shape": shape, "dtype": tensor.dtype, "compute": compute}
    kept = ir.Value(name=weight.name, const_value=scratch.keep(compute(), tensor.dtype))
    return {"shape": shape, "dtype": tensor.dtype, "compute": lambda: read_weight(kept)}


def _parts(total: int, step: int) -> Iterator[slice]:
    for start in range(0, total, step):
        yield slice(start, start + step)
