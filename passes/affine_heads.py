"""Matrices between value projections and output projections: where they go, and writing them.

Found with the walk of `rotate_heads`; here the matrix of a head need not be orthogonal, so what
gives the channels takes A⁻¹ and what reads them A.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxq.graph.sites import find_sites
from onnxq.graph.topology import Topology
from onnxq.graph.weights import read_weight, replace_weight, weight_tensor
from onnxq.passes.affine_points import PointPlan
from onnxq.passes.channel_labels import Labels
from onnxq.passes.rotation_rules import follow_rotation
from onnxq.passes.rotation_space import Space, find_space
from onnxq.passes.rotation_weights import runs_of, turned

if TYPE_CHECKING:
    from onnxq.learning.head_maps import HeadMap

__all__ = ["HeadPlan", "fold_heads", "head_map", "plan_heads"]

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class HeadPlan:
    """Where the matrices of one attention go.

    Attributes:
        space: the channels between values and output projection.
        readers: the stored weights that multiply them; all others of the space give them.
    """

    space: Space
    readers: tuple[ir.Value, ...]


def plan_heads(
    model: ir.Model, plans: Sequence[PointPlan], *, through_cache: bool
) -> tuple[dict[PointPlan, HeadPlan], dict[PointPlan, str]]:
    """The attention behind each output projection, and why others take no matrix.

    Args:
        model: the model, its shapes inferred.
        plans: its points.
        through_cache: also where a key-value cache holds the values.
    """
    by_node = {site.node: site for site in find_sites(model)}
    blocks = {block.o: block for block in Topology(model).attention if block.o is not None}
    outputs = {site.output: block for site, block in blocks.items()}
    found: dict[PointPlan, HeadPlan] = {}
    refused: dict[PointPlan, str] = {}
    for plan in plans:
        block = outputs.get(plan.sites[0].output)
        if block is None or block.head_dim is None:
            continue
        space = find_space(
            by_node,
            follow_rotation,
            plan.value,
            width=block.head_dim,
            count=plan.width,
            rotate_cache=through_cache,
        )
        outcome = space if isinstance(space, str) else _planned(space, plan)
        if isinstance(outcome, str):
            refused[plan] = outcome
        else:
            found[plan] = outcome
    return found, refused


def _planned(space: Space, plan: PointPlan) -> HeadPlan | str:
    """What the matrices go through, when every weight is one's own."""
    readers = tuple(site.weight for site in space.readers if site.weight is not None)
    if {site.node for site in space.readers} != {site.node for site in plan.sites}:
        return "its values are read by other sites too"
    if space.turned.copies:
        node = next(iter(space.turned.copies))[0]
        return f"a weight of {node.name!r} is read elsewhere too: run untie_weights first"
    if any(len(labels.axes) != 1 for edits in space.turned.edits.values() for labels in edits):
        return "the channels of its heads lie along several axes of a weight"
    return HeadPlan(space=space, readers=readers)


def head_map(plan: HeadPlan, stability: float) -> HeadMap:
    """What is learned for one attention, at the identity."""
    from onnxq.learning.head_maps import HeadMap, HeadWeight
    from onnxq.learning.matrices import DominantBlocks

    space = plan.space
    weights = [
        HeadWeight(
            weight=weight.name or "",
            axis=labels.axes[0],
            runs=tuple((run.start, run.block) for run in runs_of(labels, space.width, "a weight")),
            reads=weight in plan.readers,
        )
        for weight, edits in space.turned.edits.items()
        for labels in edits
    ]
    return HeadMap(DominantBlocks(space.blocks, space.width, stability), tuple(weights))


def fold_heads(plan: HeadPlan, matrices: Array) -> None:
    """Multiply every weight by A or A⁻¹, computed in float64 when the model is saved.

    Args:
        plan: where they go.
        matrices: A, float64 [key-value heads, width, width].
    """
    inverses = np.linalg.inv(matrices)
    for weight, edits in plan.space.turned.edits.items():
        by = np.swapaxes(matrices, 1, 2) if weight in plan.readers else inverses
        tensor = weight_tensor(weight)
        shape = [int(size) for size in tensor.shape.numpy()]
        stored = ir.Value(name=weight.name, const_value=tensor)
        compute = _content(stored, tuple(edits), plan.space.width, by)
        replace_weight(weight, shape=shape, dtype=tensor.dtype, compute=compute)


def _content(
    stored: ir.Value, edits: Sequence[Labels], width: int, by: Array
) -> Callable[[], Array]:
    def compute() -> Array:
        array: Array = read_weight(stored)
        for labels in edits:
            array = turned(array, labels, width, [_times(matrix) for matrix in by])
        return array

    return compute


def _times(matrix: Array) -> Callable[[Array], Array]:
    return lambda rows: np.asarray(rows @ matrix)
