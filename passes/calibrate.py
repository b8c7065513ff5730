"""Measure the ranges of activations and record them in the graph.

The samples run through the model as it is, and every observed value gets a `Range` in its
``value.meta`` that later passes read with `onnxq.calibration.range_of`. No node changes. The ranges
are tied to the graph as it is now: a pass that transforms activations afterwards makes them stale,
and passes that need them refuse.

Min-max and percentile: Krishnamoorthi 2018 (arXiv:1806.08342); moving average: Jacob et al. 2018
(arXiv:1712.05877, section 3.1); entropy: Migacz 2017 (GTC S7310) and Wu et al. 2020
(arXiv:2004.09602, section 4); MSE: Banner et al. 2019 (arXiv:1810.05723).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Literal

import onnx_ir as ir

from onnxq.calibration import ObserverSpec, collect_ranges, drop_ranges, set_range, stamp_ranges
from onnxq.calibration.collect import DEFAULT_BUDGET
from onnxq.calibration.observable import observable_values
from onnxq.calibration.observers import Method
from onnxq.graph import is_weight, read_weight
from onnxq.graph.sites import find_sites
from onnxq.graph.stage import Stage
from onnxq.passes.base import Context, Pass, PassReport, Promise, SiteReport

__all__ = ["Calibrate"]

_CHANNELS_FIRST = frozenset(
    {"AveragePool", "BatchNormalization", "Conv", "ConvTranspose", "GlobalAveragePool"}
    | {"InstanceNormalization", "MaxPool", "PRelu"}
)
"""Operators whose activations hold their channels on axis 1; others on the last axis."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibrate(Pass):
    """Observe activations while the calibration samples run.

    Matches: floating-point activations of the main graph.
    Writes: their ranges, in ``value.meta``; nothing else.
    Leaves: weights, integers, what only a Relu reads, values inside bodies and functions (the
    runtime cannot return them), values that hold NaN, infinities or mask constants.

    Attributes:
        observer: how a range is chosen from what was seen.
        percentile: percentage of the values inside the range, for ``percentile``.
        bins: bins of a histogram, for ``percentile``, ``entropy`` and ``mse``.
        bits: width of the integers that ``entropy`` and ``mse`` optimize for.
        momentum: share of the old average that ``moving_average`` keeps.
        symmetric: ranges are centred on zero.
        per_channel: one range per channel (axis 1 around convolutions, the last one elsewhere).
        values: ``all`` activations, or only the inputs and outputs of linear ``sites``.
        before_activations: also observe what only a Relu (or a Clip from 0) reads. Kernels that
            write int8 absorb these operators, so it is wanted only when codes are symmetric.
        budget: bytes of activations that one run of the model may return.
    """

    observer: Method = "minmax"
    percentile: float = 99.99
    bins: int = 4096
    bits: int = 8
    momentum: float = 0.9
    symmetric: bool = False
    per_channel: bool = False
    values: Literal["all", "sites"] = "all"
    before_activations: bool = False
    budget: int = DEFAULT_BUDGET

    promise: ClassVar[Promise] = Promise.SAME_BITS
    needs_stage: ClassVar[Stage] = Stage.FLOAT
    gives_stage: ClassVar[Stage | None] = Stage.CALIBRATED
    reads_activations: ClassVar[bool] = True

    def call(self, model: ir.Model, context: Context) -> PassReport:
        """Observe and record; the report has one row per value.

        Raises:
            CalibrationError: there are no samples, or they do not fit the model.
        """
        samples = context.needed_samples(
            "calibrate needs samples, and the recipe was run without data: give some (a "
            "folder of .npz files, texts, images or audio), or choose a weight-only recipe."
        )
        found = observable_values(model)
        names = found.names if self.values == "all" else _site_values(model, found.names)
        absorbed = {} if self.before_activations else _absorbed(model, names)
        names = [name for name in names if name not in absorbed]
        ranges = collect_ranges(
            model,
            names,
            samples,
            observer=self._spec(),
            axes=_channel_axes(model) if self.per_channel else None,
            budget=self.budget,
            progress=context.progress,
        )
        drop_ranges(model)
        for value in _values(model):
            if value.name is not None and value.name in ranges:
                set_range(value, ranges[value.name])
        stamp_ranges(model)
        reasons = {**found.reasons, **absorbed, **ranges.reasons}
        rows = [SiteReport(site=name) for name in ranges]
        rows += [SiteReport(site=name, reason=reason) for name, reason in reasons.items()]
        return PassReport(modified=False, sites=tuple(rows))

    def _spec(self) -> ObserverSpec:
        return ObserverSpec(
            method=self.observer,
            percentile=self.percentile,
            bins=self.bins,
            bits=self.bits,
            momentum=self.momentum,
            symmetric=self.symmetric,
        )


def _values(model: ir.Model) -> list[ir.Value]:
    """Inputs and node outputs of the main graph."""
    return [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]


def _absorbed(model: ir.Model, names: Sequence[str]) -> dict[str, str]:
    """Those of ``names`` that only a Relu or a Clip from 0 reads, with the reason to skip them."""
    wanted = set(names)
    reasons: dict[str, str] = {}
    for node in model.graph:
        if not _cuts_at_zero(node) or node.inputs[0] is None:
            continue
        value = node.inputs[0]
        is_inner = value.producer() is not None and not value.is_graph_output()
        if value.name in wanted and is_inner and len(value.uses()) == 1:
            reasons[value.name or ""] = (
                f"only {node.op_type} node {node.name!r} reads it, which int8 kernels absorb "
                "(before_activations=true observes it all the same)"
            )
    return reasons


def _cuts_at_zero(node: ir.Node) -> bool:
    """Whether the node is a Relu, or a Clip whose lower bound is the constant 0."""
    if node.domain not in ("", "ai.onnx") or node.op_type != "Clip":
        return node.domain in ("", "ai.onnx") and node.op_type == "Relu"
    if "min" in node.attributes:
        return node.attributes["min"].as_float() == 0
    bound = node.inputs[1] if len(node.inputs) > 1 else None
    return bound is not None and is_weight(bound) and not read_weight(bound).any()


def _site_values(model: ir.Model, names: Sequence[str]) -> list[str]:
    """The names among ``names`` that a linear site of the main graph reads or writes."""
    wanted: set[str | None] = set()
    for site in find_sites(model):
        if not site.path:
            wanted.update(value.name for value in site.node.inputs if value is not None)
            wanted.update(value.name for value in site.node.outputs)
            if site.bias_node is not None:
                wanted.update(value.name for value in site.bias_node.outputs)
    return [name for name in names if name in wanted]


def _channel_axes(model: ir.Model) -> dict[str, int]:
    """The channel axis of every value of the main graph."""
    axes: dict[str, int] = {}
    for value in _values(model):
        producer = value.producer()
        around = {node.op_type for node, _ in value.uses()}
        if producer is not None:
            around.add(producer.op_type)
        axes[value.name or ""] = 1 if around & _CHANNELS_FIRST else -1
    return axes
