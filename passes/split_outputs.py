"""Write a layer as several, each with those of its output channels that matter alike.

A permutation π of the output channels of x W, cut into parts, gives

    [y_1, y_2, ...] = x [W_π1, W_π2, ...],    y = [y_1, y_2, ...] in the order π⁻¹,

which changes nothing, but the parts are sites of their own: a budget can give those channels more
bits whose errors the model minds more (MixLLM, Zheng et al., arXiv:2412.14590, whose channels of 8
and 4 bits are chosen over the whole model as here).

How much channel i minds errors is f_i ‖w_i‖²: a format of a fixed rate leaves errors in proportion
to the size of a row, and f_i is what the loss of the model makes of them
(`onnxq.learning.output_curvature`). With the channels in this order the first of two parts has a
share p of the loss of the layer. Losses fall by half for each half bit, so half a bit more there
and half a bit less in the other gives p/2 + 2 (1 − p) of what it was: something is gained where
p > 2/3, and among layers that differ less is enough. Rotations mix the channels of what writes to
the residual stream, so that these matter alike: what is split are the projections to queries, keys,
values, gates and ups.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from onnxq.calibration.samples import Samples, few_samples
from onnxq.errors import RecipeError, UnsupportedGraph
from onnxq.evaluate.output_loss import find_output_loss
from onnxq.graph.names import unique_value_name
from onnxq.graph.orientation import to_rows
from onnxq.graph.sites import Site, find_sites
from onnxq.graph.stage import Stage
from onnxq.graph.weights import add_weight, float32_bytes, is_weight, weight_tensor
from onnxq.passes.base import Context, PassReport, SiteReport
from onnxq.passes.channel_weights import drop_unread
from onnxq.passes.float_transform import FloatTransform
from onnxq.passes.match import home_of, take_place
from onnxq.passes.projection_parts import PART, channels_of, part_refusal
from onnxq.passes.site_patterns import HEAD, recipe_refusal
from onnxq.runtime.machine import available_memory

__all__ = ["SplitOutputs"]

Array = np.ndarray[Any, Any]

_TOKENS = 8192
"""Of the samples that gradients are taken on, at most so many."""
_SEEN = 512
"""Of the calibration samples, the first so many are what a few are spread over."""
_STEP = 32
"""Parts have a multiple of so many channels, which is what kernels work on at once."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitOutputs(FloatTransform):
    """Several layers in the place of one, by how much its output channels matter.

    Matches: MatMul and Gemm with a constant weight of their own on the right.
    Writes: a product for each part, a Concat and a Gather that puts the channels back, whose
        indices take two bytes for each channel.
    Leaves: the head; layers with fewer than 64 channels, or whose channels matter alike; shared
        weights; everything without calibration data, or where torch does not run the model.

    Attributes:
        parts: how many layers for one, at most; of equal size but for multiples of 32.
        least_share: of what errors cost that the more important half of the channels must have.
        samples: how many samples are looked at, spread over all; fewer are looked at repeatedly,
            with gradients of other random errors.
        seed: of what is drawn at random.
        sites: name patterns of the layers to look at.
        exclude: name patterns of layers to leave whole, or ``@head``.
    """

    parts: int = 2
    least_share: float = 0.6
    samples: int = 16
    seed: int = 0
    sites: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = (HEAD,)

    needs_stage: ClassVar[Stage] = Stage.FLOAT
    gives_stage: ClassVar[Stage | None] = None

    def __post_init__(self) -> None:
        """Refuse what splits nothing."""
        if not 2 <= self.parts <= 16:
            raise RecipeError(f"parts is {self.parts}: a layer is split into 2 to 16.")
        if not 0.5 <= self.least_share < 1.0:
            raise RecipeError(
                f"least_share is {self.least_share}: the more important half has 0.5 to 1 of all."
            )
        if self.samples < 1:
            raise RecipeError(f"samples is {self.samples}: look at 1 or more.")

    def call(self, model: ir.Model, context: Context) -> PassReport:
        """Find what channels matter, then split layer by layer; weights are picked when read."""
        sites = [site for site in find_sites(model) if site.kind in ("MatMul", "Gemm")]
        reasons = {site: self._refusal(site) for site in sites}
        able = [site for site, reason in reasons.items() if reason is None]
        weights = self._importances(model, able, context)
        reports = []
        for site, refused in reasons.items():
            order = refused or self._order(site, weights)
            if isinstance(order, str):
                reports.append(SiteReport(site=site.name, reason=order))
                continue
            share, parts = order
            names = _split(model, site, parts)
            note = f"now {', '.join(names)}; the half that matters more has {share:.0%} of the loss"
            reports.append(SiteReport(site=site.name, note=note))
        modified = any(report.reason is None for report in reports)
        return PassReport(modified=modified, sites=tuple(reports))

    def _refusal(self, site: Site) -> str | None:
        reason = recipe_refusal(site.name, sites=self.sites, exclude=self.exclude)
        reason = reason or part_refusal(site)
        if reason is None and PART in site.node.metadata_props:
            reason = f"it is part {site.node.metadata_props[PART]} already"
        if reason is None and site.shape[site.out_axis] < 2 * _STEP:
            reason = f"it has {site.shape[site.out_axis]} output channels, too few for two parts"
        return reason

    def _importances(
        self, model: ir.Model, sites: Sequence[Site], context: Context
    ) -> Mapping[str, Array] | str:
        """f_i ‖w_i‖² of the channels by name of the site, or why it cannot be known."""
        if context.samples is None:
            return "which of its channels matter shows on calibration data, and there is none"
        if importlib.util.find_spec("torch") is None:
            return "which of its channels matter is found by gradients: install onnxq[torch]"
        if not sites:
            return {}
        needed, free = float32_bytes(model), available_memory()
        if free is not None and needed > free:
            return (
                f"which of its channels matter is found by gradients, which take "
                f"{needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are available"
            )
        from onnxq.learning.output_curvature import output_curvature

        samples = list(Samples.of(context.samples, limit=_SEEN))
        if not samples:
            return "the calibration data have no sample"
        few = few_samples(samples, most=self.samples, tokens=_TOKENS)
        try:
            found = output_curvature(
                model,
                few,
                sites,
                find_output_loss(model),
                draws=-(-self.samples // len(few)),
                seed=self.seed,
                matrices=False,
                progress=context.progress,
            )
        except UnsupportedGraph as error:
            return f"which of its channels matter is found by torch, and {error}"
        sizes = {site.name: _squares(site) for site in sites if site.name in found}
        return {name: found[name].rows * size for name, size in sizes.items()}

    def _order(
        self, site: Site, importances: Mapping[str, Array] | str
    ) -> tuple[float, list[Array]] | str:
        """The share of the more important half, and the channels of each part; or why not."""
        if isinstance(importances, str):
            return importances
        weights = importances.get(site.name, np.zeros(1))
        if not weights.sum() > 0:
            return "no gradient of the loss reaches it"
        order = np.argsort(-weights, kind="stable")
        share = float(weights[order[: len(order) // 2]].sum() / weights.sum())
        if share < self.least_share:
            return f"its channels matter alike: the half that matters more has {share:.0%}"
        count = min(self.parts, len(order) // _STEP)
        ends = [round(len(order) * at / count / _STEP) * _STEP for at in range(1, count)]
        return share, [np.sort(part) for part in np.split(order, ends)]


def _squares(site: Site) -> Array:
    """‖w_i‖² of every output channel."""
    assert site.weight is not None
    rows = to_rows(site, weight_tensor(site.weight).numpy())
    squares: Array = np.square(rows, dtype=np.float64).sum(axis=1)
    return squares


def _split(model: ir.Model, site: Site, parts: Sequence[Array]) -> list[str]:
    """Put the parts in the place of the layer; give their names."""
    node, graph, weight = site.node, site.node.graph, site.weight
    if graph is None or weight is None:
        return []
    shown, home = node.outputs[0], home_of(model, node)
    made = []
    for number, channels in enumerate(parts, 1):
        inputs = [
            channels_of(model, node, value, site, channels, at)
            if at > 0 and value is not None and is_weight(value)
            else value
            for at, value in enumerate(node.inputs)
        ]
        part = ir.Node(
            node.domain,
            node.op_type,
            inputs,
            list(node.attributes.values()),
            name=f"{site.name}_part{number}",
        )
        part.metadata_props.update({**node.metadata_props, PART: f"{number}/{len(parts)}"})
        part.outputs[0].name = unique_value_name(home, f"{shown.name}_part{number}")
        part.outputs[0].type = shown.type
        made.append(part)
    whole = ir.node("Concat", [part.outputs[0] for part in made], {"axis": -1})
    whole.name = f"{site.name}_parts"
    whole.outputs[0].name = unique_value_name(home, f"{shown.name}_parts")
    whole.outputs[0].type, whole.outputs[0].shape = shown.type, shown.shape
    index = _stored_places(home, weight.name or site.name, np.argsort(np.concatenate(parts)))
    read = ir.node("Cast", [index], {"to": ir.DataType.INT64}, name=f"{site.name}_places")
    read.outputs[0].name = unique_value_name(home, f"{index.name}_int64")
    back = ir.node("Gather", [whole.outputs[0], read.outputs[0]], {"axis": -1})
    back.name = f"{site.name}_order"
    graph.insert_before(node, [*made, whole, read, back])
    spent = [value for value in node.inputs[1:] if value is not None and is_weight(value)]
    take_place(node, back.outputs[0])
    for value in spent:
        drop_unread(value)
    return [part.name or "" for part in made]


def _stored_places(home: ir.Graph | ir.Function, name: str, places: Array) -> ir.Value:
    """Where each channel is, in as few bytes as hold it: runtimes cast it once, at load."""
    small = len(places) <= 1 << 16
    return add_weight(
        home,
        f"{name}_places",
        shape=places.shape,
        dtype=ir.DataType.UINT16 if small else ir.DataType.INT32,
        compute=places.astype(np.uint16 if small else np.int32),
    )
