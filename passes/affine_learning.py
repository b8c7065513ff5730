"""Learning the maps of points block by block, for the passes that then fold them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir

from onnxq.formats import parse_integers
from onnxq.passes.affine_pass import AffinePass
from onnxq.passes.affine_points import PointPlan, learning_copy
from onnxq.passes.base import Context

if TYPE_CHECKING:
    from onnxq.learning.affine import AffineLearner, AffinePoint
    from onnxq.learning.head_maps import HeadMap
    from onnxq.learning.reconstruction import BlockResult
    from onnxq.learning.torch_graph import TorchGraph

__all__ = ["Learned", "learn_points"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learned:
    """What was learned.

    Attributes:
        points: the maps by plan, of the blocks where they are better than nothing.
        results: of the block of each of these plans.
        refused: by name of every other site of a plan, why it is left alone.
        notes: clauses on what happened otherwise than asked.
    """

    points: Mapping[PointPlan, AffinePoint]
    results: Mapping[PointPlan, BlockResult]
    refused: Mapping[str, str]
    notes: tuple[str, ...]


def learn_points(
    model: ir.Model,
    plans: Sequence[PointPlan],
    points: Mapping[PointPlan, AffinePoint],
    options: AffinePass,
    context: Context,
    heads: Mapping[PointPlan, HeadMap] | None = None,
) -> Learned:
    """Learn every point in the block in which all its sites lie.

    Args:
        model: left as it is.
        plans: the points of the model.
        points: what is learned for each of them, named anew after its value in the copy.
        options: the pass.
        context: samples and progress.
        heads: what is learned within the weights, by the plan of the output projection.

    Raises:
        CalibrationError: samples that do not fit.
        UnsupportedGraph: an operator of a block that torch does not run here.
    """
    from onnxq.learning.blocks import Block, find_blocks
    from onnxq.learning.finished_blocks import FinishedBlocks
    from onnxq.learning.reconstruction import Schedule, reconstruct

    copy, names = learning_copy(model, plans)
    blocks, notes = find_blocks(copy)
    for plan, name in zip(plans, names, strict=True):
        points[plan].name = name
    inside = [{site.output.name for site in block.sites} for block in blocks]
    homes = {plan: _home(plan, inside) for plan in plans}
    given = heads or {}

    def learner(block: Block, graph: TorchGraph) -> AffineLearner | None:
        here = [plan for plan in plans if homes[plan] == blocks.index(block)]
        maps = [given[plan] for plan in here if plan in given]
        return _learner(graph, [points[plan] for plan in here], maps, options) if here else None

    schedule = Schedule(
        steps=options.steps,
        checks=2,
        batch=options.batch,
        inputs=options.inputs,
        seed=options.seed,
        threads=options.threads,
    )
    samples = itertools.islice(iter(context.samples or ()), options.samples)
    finished = FinishedBlocks(context.work, [context.origin, options.key(), options.options()])
    results = reconstruct(
        copy, samples, blocks, learner, schedule, finished=finished, progress=context.progress
    )
    by_name = {result.name: result for result in results}
    told = (*notes, *finished.notes)
    return _sorted(plans, points, homes, [by_name.get(block.name) for block in blocks], told)


def _learner(
    graph: TorchGraph,
    points: Sequence[AffinePoint],
    heads: Sequence[HeadMap],
    options: AffinePass,
) -> AffineLearner:
    """What learns one block."""
    from onnxq.learning.affine import AffineLearner, AffineRates
    from onnxq.learning.quantizers import TokenQuantizer, WeightQuantizer

    return AffineLearner(
        graph,
        points,
        weights=WeightQuantizer(fmt=parse_integers(options.weight_format)),
        activations=TokenQuantizer(bits=options.activation_bits, symmetric=options.symmetric),
        rates=AffineRates(
            matrix=options.rate,
            clip=10.0 * options.rate,
            balance=options.balance,
            clip_start=0.95 if options.clip else 1.0,
        ),
        heads=heads,
    )


def _home(plan: PointPlan, blocks: Sequence[set[str | None]]) -> int | None:
    """The block that all sites of a plan are in."""
    wanted = {site.output.name for site in plan.sites}
    return next((at for at, inside in enumerate(blocks) if wanted <= inside), None)


def _sorted(
    plans: Sequence[PointPlan],
    points: Mapping[PointPlan, AffinePoint],
    homes: Mapping[PointPlan, int | None],
    results: Sequence[BlockResult | None],
    notes: tuple[str, ...],
) -> Learned:
    """Plans that are to be written, and reasons for the others."""
    kept: dict[PointPlan, AffinePoint] = {}
    of: dict[PointPlan, BlockResult] = {}
    refused: dict[str, str] = {}
    for plan in plans:
        home = homes[plan]
        result = None if home is None else results[home]
        if result is None:
            why = "it is outside the layers that are learned"
        elif result.progress is None:
            why = f"nothing that was learned beat plain rounding in the layer of {result.name!r}"
        else:
            kept[plan], of[plan] = points[plan], result
            continue
        refused |= {site.name: why for site in plan.sites}
    return Learned(points=kept, results=of, refused=refused, notes=notes)
