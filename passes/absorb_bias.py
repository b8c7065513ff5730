"""Take out of an activation what all its values have at least, into the bias of the next layer.

Where W₁ x + b₁ never falls below c ≥ 0, a ReLU does nothing to it, and for f(u) = u on u ≥ 0::

    W₂ f(W₁ x + b₁) + b₂  =  W₂ f(W₁ x + (b₁ − c)) + (b₂ + W₂ c)

so the quantizer between the layers need not spend its range on [0, c]. Equalization makes large
biases; this takes them back. Nagel, van Baalen, Blankevoort and Welling, "Data-Free Quantization
Through Weight Equalization and Bias Correction" (arXiv:1906.04721), section 4.1.

The paper knows no inputs and takes c = max(0, β − 3γ) from the batch norm before, which changes the
0.13 % of the values that lie below. That is no equality, and the norm is folded by now: here c is
the least value seen on all calibration samples, less a margin, so that the promise holds on every
one of them. It is a promise about inputs like these: a value lower than all that was seen, by more
than the margin, is cut off by the ReLU where it was not before.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxq.calibration import collect_ranges
from onnxq.calibration.ranges import ChannelRange
from onnxq.errors import RecipeError
from onnxq.graph.sites import Site, find_sites
from onnxq.graph.weight_source import scalar
from onnxq.passes.base import Context, PassReport, SiteReport
from onnxq.passes.float_transform import FloatTransform
from onnxq.passes.site_patterns import is_named, recipe_refusal
from onnxq.passes.site_shift import output_refusal, shift_input, shift_output, shift_refusal

__all__ = ["AbsorbBias"]

_KINDS = frozenset(["Conv", "MatMul", "Gemm"])
_RECTIFIERS = frozenset(["Relu", "LeakyRelu", "PRelu", "Clip"])
"""f(u) = u for u ≥ 0; Clip when it has no upper bound."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AbsorbBias(FloatTransform):
    """Move the part of an activation that is always there into the bias behind it.

    Matches: Conv, MatMul and Gemm with a ReLU, LeakyReLU, PReLU or Clip at 0 behind them, whose
        result only layers read.
    Writes: the biases of the first layer and of all that read it; a layer without a bias gets one.
    Leaves: channels that come near 0 on some sample; convolutions that pad their input, where a
        border of zeros would have to become one of −c; outputs of the graph.

    Attributes:
        margin: how far c stays under the least value seen, as a share of the range of a channel:
            the more, the fewer values of each channel the samples show.
        tolerance: a c that is a smaller share of the range of a channel is not worth it.
        sites: name patterns of the layers to look at, by the first of each pair.
        exclude: name patterns of layers whose biases stay as they are.
    """

    margin: float = 0.25
    tolerance: float = 1e-3
    sites: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()

    reads_activations: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse a margin that would cut values that were seen."""
        if self.margin < 0:
            raise RecipeError(
                f"margin is {self.margin}: it is a distance under the least value, 0 or more."
            )

    def call(self, model: ir.Model, context: Context) -> PassReport:
        """Measure what comes before every ReLU in one go, then fold.

        Raises:
            CalibrationError: there are no samples, or they do not fit the model.
        """
        samples = context.needed_samples(
            "absorb_bias takes out what an activation has at least, which calibration data "
            "have to show, and the recipe was run without: give calibration samples."
        )
        sites = find_sites(model)
        outcomes = {site: self._readers(site, sites) for site in sites if site.kind in _KINDS}
        values = {
            site.result.name or "": _channel_axis(site)
            for site, outcome in outcomes.items()
            if not isinstance(outcome, str)
        }
        ranges = collect_ranges(
            model, list(values), samples, axes=values, progress=context.progress
        )
        reports = []
        for site, outcome in outcomes.items():
            seen = ranges.get(site.result.name or "")
            if isinstance(outcome, str):
                report = SiteReport(site=site.name, reason=outcome)
            elif not isinstance(seen, ChannelRange):
                why = ranges.reasons.get(site.result.name or "", "it was not observed")
                reason = f"{site.result.name!r} has no ranges: {why}"
                report = SiteReport(site=site.name, reason=reason)
            else:
                report = self._absorb(model, site.name, [r.name for r in outcome], seen)
            reports.append(report)
        modified = any(report.reason is None for report in reports)
        return PassReport(modified=modified, sites=tuple(reports))

    def _absorb(
        self, model: ir.Model, name: str, readers: Sequence[str], seen: ChannelRange
    ) -> SiteReport:
        low, high = seen.low.astype(np.float64), seen.high.astype(np.float64)
        amount = np.maximum(0.0, low - self.margin * (high - low))
        amount[amount <= self.tolerance * high] = 0.0
        count = int(np.count_nonzero(amount))
        if count == 0:
            return SiteReport(site=name, reason="all its channels come near 0 or fall under it")
        # A layer that took part before has another bias now.
        now = {site.name: site for site in find_sites(model)}
        shift_output(model, now[name], lambda: -amount)
        for reader in readers:
            shift_input(model, now[reader], lambda: amount)
        share = float(np.max(amount[amount > 0] / high[amount > 0]))
        note = f"{count} of {len(amount)} channels, by up to {share:.0%} of their largest value"
        return SiteReport(site=name, note=note)

    def _readers(self, site: Site, sites: Sequence[Site]) -> list[Site] | str:
        """The layers behind the ReLU behind a layer, or why it is left."""
        reason = recipe_refusal(site.name, sites=self.sites, exclude=self.exclude)
        if reason is not None:
            return reason
        if site.path:
            return "it is inside a body or function, whose activations cannot be measured"
        reason = site.already or site.refusal or output_refusal(site)
        if reason is not None:
            return reason
        rectified = _rectified(site)
        if isinstance(rectified, str):
            return rectified
        readers = [other for other in sites if other.input is rectified and not other.is_embedding]
        for node in rectified.consumers():
            if not any(reader.node is node for reader in readers):
                return f"{node.op_type} {node.name!r} reads {rectified.name!r}, and is no layer"
        for reader in readers:
            if is_named(reader.name, self.exclude):
                return f"the recipe excludes {reader.name!r}, which reads it"
            reason = reader.already or reader.refusal or shift_refusal(reader)
            if reason is not None:
                return f"its reader cannot take a shift: {reason}"
        return readers or f"nothing reads {rectified.name!r}"


def _rectified(site: Site) -> ir.Value | str:
    """What the ReLU behind a layer gives, or why there is none."""
    value = site.result
    uses = list(value.uses())
    if value.is_graph_output():
        return f"its output {value.name!r} is a graph output"
    if len(uses) != 1 or uses[0].idx != 0 or uses[0].node.op_type not in _RECTIFIERS:
        readers = ", ".join(sorted({use.node.op_type for use in uses})) or "nothing"
        return f"its output is read by {readers}, and not by one ReLU"
    node = uses[0].node
    if node.op_type == "Clip":
        bounds = [node.inputs[at] if at < len(node.inputs) else None for at in (1, 2)]
        low = None if bounds[0] is None else scalar(bounds[0])
        if node.attributes or bounds[1] is not None or (bounds[0] is not None and low != 0.0):
            return f"Clip {node.name!r} has another bound than 0, which would have to move too"
    if node.outputs[0].is_graph_output():
        return f"{node.outputs[0].name!r} is a graph output"
    return node.outputs[0]


def _channel_axis(site: Site) -> int:
    """The axis of the output channels, counted from the end."""
    if site.kind == "Conv":
        return 1 - len(site.shape)
    return -2 if site.weight_index == 0 else -1
