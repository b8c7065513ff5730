"""Bring the channels that a norm gives to one range, within the norm and the layers behind it.

Quantizing what a layer norm gives with a step s and a zero point z of each channel's own keeps
channels of unlike size apart, and no integer kernel can do it. With a common step s̃ and zero point
z̃, r₁ = s / s̃ and r₂ = z − z̃::

    γ' = γ / r₁        β' = (β + s r₂) / r₁        W' = W diag(r₁)        b' = b − W (s r₂)

is the same function, and one step s̃ and zero point z̃ for all channels now round the new
x' = (x + s r₂) / r₁ exactly where s and z rounded x: x' / s̃ + z̃ = x / s + z. Li et al., "RepQ-ViT"
(arXiv:2212.08254), and "RepQuant" (arXiv:2402.05628).

A range [l, h] has s = (h − l) / (2ᵇ − 1) and z = −l / s, so the change is one of ranges alone and
does not depend on the bits b: every channel is brought to the width h̃ − l̃ that is the mean of all,
and its middle to the one that the mean of all z gives. The median instead of the mean (DopQ-ViT,
Yang et al., arXiv:2408.03291) only multiplies all of x' by one more number and divides
W' by it: where all steps are real numbers, the codes are the same (there is a test that says so).

With ``symmetric`` there is no shift and z = 0: x' = x / max|x| · s̃, which is how MergeQuant (Wang
et al., arXiv:2503.07654) folds the step of a static, per-channel quantizer into an RMS norm and the
weight that reads it: per tensor on x' then is per channel on x. Its clipping and its reconstruction
of dimensions, and the log√2 quantizer of RepQ-ViT for what a softmax gives, are not part of this.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxq.calibration import ObserverSpec, collect_ranges
from onnxq.calibration.observers import Method
from onnxq.calibration.ranges import ChannelRange
from onnxq.errors import RecipeError
from onnxq.graph.flow import VIEWS
from onnxq.graph.sites import Site
from onnxq.passes.base import Context, PassReport, SiteReport
from onnxq.passes.channel_labels import Leave, along
from onnxq.passes.float_transform import FloatTransform
from onnxq.passes.migration import Migration, find_migrations, scale_channels
from onnxq.passes.site_patterns import recipe_refusal
from onnxq.passes.site_shift import norm_refusal, shift_input, shift_norm, shift_refusal

__all__ = ["ReparameterizeNorm"]

Numbers = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReparameterizeNorm(FloatTransform):
    """Give all channels of a norm's output one range, so that one step serves them all.

    Matches: LayerNormalization, RMSNormalization and their Skip forms whose output only layers
        read: query, key and value; gate and up; the first layer of an MLP.
    Writes: scale and bias of the norm; weights and biases of its readers.
    Leaves: norms that something else reads as well or that are written as arithmetic (fuse them
        first); outputs of the graph; shared weights. Where norm or readers can take no shift, only
        the scale is moved, as with ``symmetric``; the report says so.

    Attributes:
        centre: the common step and zero point are the ``mean`` or the ``median`` of the channels'.
        middle: the common zero point is that of a range around 0, for activations that are
            quantized symmetrically.
        symmetric: no shift: scale every channel by its largest magnitude.
        strength: exponent of r₁: 1 makes all ranges equal; less leaves more of the difference in
            the activation, and less of it goes into the weights.
        observer: how the range of a channel is chosen.
        percentile: percentage of the values inside the range, for ``percentile``.
        tolerance: channels whose range differs less from the common one, as a share, stay.
        sites: name patterns of the layers to look at.
        exclude: name patterns of layers whose input stays as it is.
    """

    centre: Literal["mean", "median"] = "mean"
    middle: bool = False
    symmetric: bool = False
    strength: float = 1.0
    observer: Method = "minmax"
    percentile: float = 99.99
    tolerance: float = 1e-3
    sites: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()

    moves_outliers: ClassVar[bool] = True
    reads_activations: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse a strength that is none."""
        if not 0.0 < self.strength <= 1.0:
            raise RecipeError(
                f"strength is {self.strength}: it is the share of the differences between channels "
                "that moves into the weights, over 0 and at most 1."
            )

    def call(self, model: ir.Model, context: Context) -> PassReport:
        """Measure the channels of every norm in one go, then fold.

        Raises:
            CalibrationError: there are no samples, or they do not fit the model.
        """
        samples = context.needed_samples(
            "reparameterize_norm brings channels to one range, which calibration data have to "
            "show, and the recipe was run without: give calibration samples."
        )
        found = find_migrations(model, wants=self._unwanted)
        reports = {name: SiteReport(site=name, reason=why) for name, why in found.refused.items()}
        chosen: dict[Migration, ir.Node] = {}
        for migration in found.found:
            norm = _norm_of(migration)
            if isinstance(norm, str):
                _tell(reports, migration, reason=norm)
            else:
                chosen[migration] = norm
        names = [norm.outputs[0].name or "" for norm in chosen.values()]
        ranges = collect_ranges(
            model, names, samples, axes=dict.fromkeys(names, -1),
            observer=ObserverSpec(method=self.observer, percentile=self.percentile),
            progress=context.progress,
        )  # fmt: skip
        for (migration, norm), name in zip(chosen.items(), names, strict=True):
            seen = ranges.get(name)
            if isinstance(seen, ChannelRange):
                reason, note = self._fold(model, migration, norm, seen)
            else:
                why = ranges.reasons.get(name, "it was not observed")
                reason, note = f"{name!r} has no ranges: {why}", None
            _tell(reports, migration, reason=reason, note=note)
        rows = tuple(reports.values())
        return PassReport(modified=any(row.reason is None for row in rows), sites=rows)

    def _fold(
        self, model: ir.Model, migration: Migration, norm: ir.Node, seen: ChannelRange
    ) -> tuple[str | None, str | None]:
        """Scale and shift one norm and its readers; the reason when not, and a note when so."""
        refusal = None if self.symmetric else _no_shift(migration, norm)
        low, high = seen.low.astype(np.float64), seen.high.astype(np.float64)
        if self.symmetric or refusal is not None:
            low, high = -seen.magnitude.astype(np.float64), seen.magnitude.astype(np.float64)
        factors, shift = self._change(low, high)
        moves = bool((np.abs(shift) > self.tolerance * (high - low)).any())
        if not moves and np.abs(np.log(factors)).max() <= self.tolerance:
            return "its channels have one range already", None
        scale_channels(model, migration, factors)
        if moves:
            # What is shifted now is x / r₁, and the columns that read it hold W diag(r₁).
            _shift(model, migration, norm, shift / factors)
        widths = (high - low)[high > low]
        note = f"ranges of channels differed by up to {widths.max() / widths.min():.3g} times"
        if refusal is not None:
            note += f"; scaled without a shift: {refusal}"
        return None, note

    def _change(self, low: Numbers, high: Numbers) -> tuple[Numbers, Numbers]:
        """r₁ and the shift −s r₂ of each channel: x' = (x − shift) / r₁."""
        half, middle = (high - low) / 2, (high + low) / 2
        alive = half > 0
        factors, shift = np.ones_like(half), np.zeros_like(half)
        if not alive.any():
            return factors, shift
        pick = np.mean if self.centre == "mean" else np.median
        common = float(pick(half[alive]))
        place = 0.0 if self.middle else float(pick(middle[alive] / half[alive]))
        factors[alive] = (half[alive] / common) ** self.strength
        shift[alive] = middle[alive] - factors[alive] * place * common
        return factors, shift

    def _unwanted(self, site: Site) -> str | None:
        return recipe_refusal(site.name, sites=self.sites, exclude=self.exclude)


def _norm_of(migration: Migration) -> ir.Node | str:
    """The norm that gives the activation, or why it is not a norm's."""
    names = ", ".join(repr(producer.name) for producer in migration.producers[:3])
    if migration.kind != "norm" or len(migration.producers) != 1:
        return f"its input comes from {names}, and not from one norm"
    node = migration.producers[0].node
    if node.op_type == "BatchNormalization":
        return f"its input comes from {names}: run fold_batch_norm first"
    labels = migration.region.labels.get(node.outputs[0])
    try:
        ids = along(labels, -1, node) if labels is not None else np.zeros(0, np.int64)
    except Leave as left:
        return str(left)
    if not np.array_equal(ids, np.arange(migration.count)):
        return f"channels of {names} have to be scaled alike further on"
    return node


def _no_shift(migration: Migration, norm: ir.Node) -> str | None:
    """Why a norm or one of its readers can take no shift; None when all can."""
    reason = norm_refusal(norm)
    for site in migration.readers:
        reason = reason or shift_refusal(site) or _not_a_view(site, norm)
    return reason


def _not_a_view(site: Site, norm: ir.Node) -> str | None:
    """Why what a layer reads is not the output of the norm, element by element."""
    value = site.input
    while value is not None and value is not norm.outputs[0]:
        node = value.producer()
        if node is None or node.op_type not in VIEWS:
            return f"{node.op_type if node else 'something'} lies between {norm.name!r} and it"
        value = node.inputs[0]
    return None


def _shift(model: ir.Model, migration: Migration, norm: ir.Node, shift: Numbers) -> None:
    """Take a constant out of what the norm gives, and add what it gave to the biases behind."""
    shift_norm(model, norm, lambda: -shift)
    for site in migration.readers:
        amounts = np.append(shift, 0.0)[migration.channels(site)]  # FIXED is -1: the last
        shift_input(model, site, partial(np.asarray, amounts))


def _tell(
    reports: dict[str, SiteReport],
    migration: Migration,
    *,
    reason: str | None = None,
    note: str | None = None,
) -> None:
    for site in migration.readers:
        reports[site.name] = SiteReport(site=site.name, reason=reason, note=note)
