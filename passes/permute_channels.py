"""Order the input channels of linear layers by their importance, within the weights.

With f working on each channel alone and P a permutation::

    y = W₂ f(W₁ x + b₁)  =  (W₂ Pᵀ) f((P W₁) x + P b₁)

so the columns of W₂ can be brought into any order when the rows of W₁, and every constant between
them, follow: no index is stored and nothing is gathered as the model runs. Channels are ordered by
E[x²] of the input of W₂, the diagonal of H = E[x xᵀ]: a group of weights that share a scale then
holds channels of like importance, and a solver that goes through the columns in order (GPTQ)
rounds the important ones first, while there are most columns left to make up for the error.

The order is the activation order of GPTQ (Frantar et al., arXiv:2210.17323; ``act-order`` in its
code), folded into weights as RPTQ does (Yuan et al.,
arXiv:2304.01089). In attention the values of a key-value
head and the columns of the output projection of all its query heads move together: the result of
head h is Σ_t p_t v_t, channel by channel.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, TypedDict

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxq.calibration.channel_squares import channel_squares
from onnxq.graph.opset import infer_shapes
from onnxq.graph.sites import Site, find_sites
from onnxq.graph.weight_source import stored_weight
from onnxq.graph.weights import add_weight, read_weight, replace_weight, weight_tensor
from onnxq.passes.base import Context, Pass, PassReport, Promise, SiteReport
from onnxq.passes.channel_labels import FIXED, Ids, Labels, Leave, reorder
from onnxq.passes.channel_region import Options, Region
from onnxq.passes.channel_rules import follow
from onnxq.passes.channel_weights import drop_unread
from onnxq.passes.match import home_of

__all__ = ["PermuteChannels"]

_KINDS = frozenset(["MatMul", "Gemm", "FusedMatMul", "Conv", "ConvTranspose", "Attention"])

Outcome = Region | str


@dataclasses.dataclass(frozen=True, kw_only=True)
class PermuteChannels(Pass):
    """Sort input channels by mean square, and fold the order into the weights before and after.

    Matches: MatMul, Gemm and Conv whose input comes, channel by channel, from weights: MLPs plain
        and gated, values and output of attention, convolutions with norms and activations between.
    Writes: the same weights, biases and factors with rows or columns in another order.
    Leaves: channels that reach a graph input or output or an operator that may mix them; weights
        that are shared, computed or quantized; sites in bodies and functions.

    Attributes:
        order: ``descending`` puts the channels of the largest mean square first.
        sites: name patterns of the sites to look at.
        exclude: name patterns of sites whose input channels stay in place.
        across_norms: also move channels that a layer norm or RMS norm reads: a residual stream
            then gets one order for all its layers, by the sum of their relative importances.
        permute_cache: also move values that a key-value cache holds. The function of the tokens
            is the same when the cache is only fed back, but the ``present`` outputs hold their
            channels in the new order, so the promise cannot be checked: run with checks off.
    """

    order: Literal["descending", "ascending"] = "descending"
    sites: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    across_norms: bool = False
    permute_cache: bool = False

    promise: ClassVar[Promise] = Promise.SAME_FUNCTION
    reads_activations: ClassVar[bool] = True

    def call(self, model: ir.Model, context: Context) -> PassReport:
        """Find what can move, measure it in one run over the samples, then reorder.

        Raises:
            CalibrationError: there are no samples, or they do not fit the model.
        """
        samples = context.needed_samples(
            "permute_channels orders channels by what flows through them, and the recipe was "
            "run without data: give calibration samples."
        )
        infer_shapes(model)
        sites = [site for site in find_sites(model) if _takes_channels(site)]
        outcomes = self._regions(model, sites)
        regions = list(dict.fromkeys(o for o in outcomes.values() if isinstance(o, Region)))
        axes = {site.input.name or "": axis for region in regions
                for site, axis in region.readers.items() if site.input is not None}  # fmt: skip
        squares = channel_squares(model, axes, samples, progress=context.progress)
        reasons = {region: self._reorder(model, region, squares) for region in regions}
        reports = []
        for site, outcome in outcomes.items():
            reason = outcome if isinstance(outcome, str) else reasons[outcome]
            reports.append(SiteReport(site=site.name, reason=reason))
        modified = any(reason is None for reason in reasons.values())
        return PassReport(modified=modified, sites=tuple(reports))

    def _regions(self, model: ir.Model, sites: Sequence[Site]) -> dict[Site, Outcome]:
        """For each site what moves with its input channels, or why they stay."""
        by_node = {site.node: site for site in find_sites(model)}
        options = Options(across_norms=self.across_norms, permute_cache=self.permute_cache)
        known: dict[ir.Value, Outcome] = {}
        outcomes: dict[Site, Outcome] = {}
        for site in sites:
            reason = self._refusal(site)
            if reason is not None or site.input is None:
                outcomes[site] = reason or "it has no input"
                continue
            if site.input not in known:
                region = Region(options, by_node, follow)
                outcome = _grown(region, site)
                if isinstance(outcome, Region):
                    outcome = self._excluded(region) or region
                known[site.input] = outcome
                known.update((other.input, outcome) for other in region.readers if other.input)
            outcomes[site] = known[site.input]
        return outcomes

    def _refusal(self, site: Site) -> str | None:
        if not any(fnmatch.fnmatchcase(site.name, pattern) for pattern in self.sites):
            return "the recipe does not name it"
        if site.already is not None:
            return f"it is already quantized ({site.already})"
        if site.refusal is not None:
            return site.refusal
        if site.path:
            return "it is inside a body or function, whose activations cannot be measured"
        return None

    def _excluded(self, region: Region) -> str | None:
        for site in region.readers:
            if any(fnmatch.fnmatchcase(site.name, pattern) for pattern in self.exclude):
                return f"the recipe excludes {site.name!r}, whose channels would move"
        return None

    def _reorder(
        self, model: ir.Model, region: Region, squares: dict[str, npt.NDArray[np.float64]]
    ) -> str | None:
        """Reorder the weights of a region; returns the reason when it is left."""
        importance = _importance(region, squares)
        if isinstance(importance, str):
            return importance
        ascending = self.order == "ascending"
        if region.in_order(importance, ascending=ascending):
            return "its channels are in this order already"
        try:
            order = region.order(importance, ascending=ascending)
        except Leave as left:
            return f"its channels cannot move: {left}"
        for weight, edits in region.weights.edits.items():
            replace_weight(weight, **_permuted(weight, edits, order))
        for (node, index), edits in region.weights.copies.items():
            shared = node.inputs[index]
            source = stored_weight(shared)
            if source is not None:
                name, own = f"{source.name}_{node.name}", _permuted(source, edits, order)
                node.replace_input_with(index, add_weight(home_of(model, node), name, **own))
                drop_unread(shared)
        return None


def _takes_channels(site: Site) -> bool:
    depthwise = site.kind == "Conv" and site.groups > 1
    return (site.kind in _KINDS or site.already is not None) and not (
        depthwise or site.is_embedding
    )


def _grown(region: Region, site: Site) -> Outcome:
    """Follow the input channels of a site as far as they go."""
    try:
        axis = 1 - len(site.shape) if site.kind in ("Conv", "ConvTranspose") else -1
        if site.weight_index == 0:
            axis = -2
        if site.input is not None:
            region.grow(site.input, axis, site.shape[site.in_axis])
    except Leave as left:
        return f"its channels cannot move: {left}"
    return region


def _importance(
    region: Region, squares: dict[str, npt.NDArray[np.float64]]
) -> npt.NDArray[np.float64] | str:
    """Σ over readers and copies of x², each reader's total being 1; float64 [channels]."""
    total = np.zeros(region.count)
    for site in region.readers:
        if site.input is None:
            continue
        sums = squares[site.input.name or ""]
        if not np.isfinite(sums).all():
            return f"the input of {site.name!r} holds NaN or infinity in the calibration data"
        ids = region.labels[site.input].ids
        moving = ids != FIXED
        scale = float(sums.sum()) or 1.0
        total += np.bincount(ids[moving], sums[moving] / scale, minlength=region.count)
    return total


class _Content(TypedDict):
    """What `replace_weight` and `add_weight` take."""

    shape: list[int]
    dtype: ir.DataType
    compute: Callable[[], np.ndarray[Any, Any]]


def _permuted(weight: ir.Value, edits: Sequence[Labels], order: Ids) -> _Content:
    """The weight with its channels in their new order, computed when it is read."""
    tensor = weight_tensor(weight)
    stored = ir.Value(name=weight.name, const_value=tensor)

    def compute() -> np.ndarray[Any, Any]:
        array = read_weight(stored)
        for labels in edits:
            array = reorder(array, labels, order)
        return array

    shape = [int(size) for size in tensor.shape.numpy()]
    return {"shape": shape, "dtype": tensor.dtype, "compute": compute}
