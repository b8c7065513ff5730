"""Fold the scale and the bias of a norm into the layers that read it.

    W (s ∘ x̂ + b) + c  =  (W diag(s)) x̂ + (W b + c),       x̂ = x / √(mean(x²) + ε)  or
                                                            x̂ = (x − mean(x)) / √(var(x) + ε)

After it the norm has the scale 1 and no bias, so that a rotation goes through it (QuaRot, Ashkboos
et al. 2024, arXiv:2404.00456, section 4; SliceGPT, arXiv:2401.15024, section 3).
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxq.graph.norms import Norm, find_norms
from onnxq.graph.opset import infer_shapes
from onnxq.graph.sites import Site, find_sites
from onnxq.graph.weight_source import stored_weight
from onnxq.graph.weights import add_weight, read_weight, replace_weight, weight_tensor
from onnxq.passes.base import Context, PassReport, SiteReport
from onnxq.passes.channel_labels import Labels, Leave, along, named
from onnxq.passes.channel_norms import NORMS
from onnxq.passes.channel_picks import follow_pick
from onnxq.passes.channel_region import Options, Region
from onnxq.passes.channel_views import VIEWS
from onnxq.passes.channel_weights import drop_unread
from onnxq.passes.float_transform import FloatTransform
from onnxq.passes.match import home_of
from onnxq.passes.migration_rules import follow_scale
from onnxq.passes.migration_weights import ScaledWeights
from onnxq.passes.rotation_rules import SCALE_OF, follow_mean
from onnxq.passes.site_patterns import is_named
from onnxq.passes.site_shift import shift_input, shift_refusal

__all__ = ["FoldNormScales"]

Array = npt.NDArray[Any]

_PASSED = VIEWS | {"Cast", "Dropout", "Identity", "Shape", "Size"}
_LAYERS = frozenset(["Attention", "Conv", "Gemm", "MatMul"])


@dataclasses.dataclass(frozen=True, kw_only=True)
class FoldNormScales(FloatTransform):
    """Leave norms with scales of 1 and without a bias.

    Matches: LayerNormalization, RMSNormalization and ONNX Runtime's Simplified and Skip forms of
        which every reader, through casts and views, is a MatMul, Gemm, Conv or Attention.
    Writes: the weights and biases of the readers; a bias for those without one where the norm has
        one.
    Leaves: norms with another reader, or that are graph outputs; weights that others read too
        (``untie_weights`` gives a tied head its own).

    Attributes:
        exclude: name patterns of norms to leave as they are.
    """

    exclude: tuple[str, ...] = ()

    change: ClassVar[str] = "folding the scale of a norm"

    def call(self, model: ir.Model, context: Context) -> PassReport:
        """Fold every norm that can be."""
        infer_shapes(model)
        by_node = {site.node: site for site in find_sites(model)}
        reports = []
        for norm in find_norms(model):
            excluded = is_named(norm.name, self.exclude)
            reason = "the recipe excludes it" if excluded else _fold(model, norm, by_node)
            reports.append(SiteReport(site=norm.name, reason=reason))
            if reason is None:  # biases and what adds them are others now
                by_node = {site.node: site for site in find_sites(model)}
        modified = any(report.reason is None for report in reports)
        return PassReport(modified=modified, sites=tuple(reports))


def _fold(model: ir.Model, norm: Norm, by_node: dict[ir.Node, Site]) -> str | None:
    """Fold one norm, or say why it stays."""
    node = norm.node
    if node is None or node.op_type not in NORMS:
        return "it is written as arithmetic: run fuse_layer_norm and fuse_rms_norm first"
    if norm.scale is None:
        return "its scale is computed"
    scale = read_weight(norm.scale).astype(np.float64).reshape(-1)
    shift = _bias_of(norm)
    if isinstance(shift, str):
        return shift
    if (scale == 1).all() and shift is None:
        return "its scale is 1 and it has no bias"
    try:
        region = _readers(norm, node, scale.size, by_node)
    except Leave as left:
        return f"it cannot be folded: {left}"
    if shift is not None:
        reason = next((r for s in region.readers if (r := shift_refusal(s)) is not None), None)
        if reason is not None:
            return f"its bias cannot be folded: {reason}"
        for site, axis in region.readers.items():
            _shift(model, region, site, axis, shift)
    weights = region.weights
    if isinstance(weights, ScaledWeights):
        # The norm's own scale is divided by itself, but where it is 0: it is 1 in the end.
        weights.scale(model, scale)
    _set_ones(node)
    if shift is not None:
        _clear_bias(model, norm, node)
    return None


def _bias_of(norm: Norm) -> Array | str | None:
    """The bias in float64 [channels], None when it is absent or 0; or why it cannot be read."""
    node = norm.node
    at = 2 if node is not None and node.op_type == "LayerNormalization" else 3
    has_one = norm.kind == "LayerNorm" and node is not None and len(node.inputs) > at
    if not has_one or node is None or node.inputs[at] is None:
        return None
    if norm.bias is None:
        return "its bias is computed"
    bias = read_weight(norm.bias).astype(np.float64).reshape(-1)
    return bias if bias.any() else None


def _readers(norm: Norm, node: ir.Node, count: int, by_node: dict[ir.Node, Site]) -> Region:
    """Everything that reads the norm, with what it asks of weights.

    Raises:
        Leave: a reader is no linear layer, or something else gives what it reads.
    """

    def rule(region: Region, here: ir.Node, value: ir.Value, labels: Labels) -> None:
        site = region.site_of(here)
        layer = site is not None and here.op_type in _LAYERS and value is not here.outputs[0]
        if site is None and here.op_type == "Gather":
            follow_pick(region, here, value, labels)
            return
        if here.op_type == "ReduceMean":
            follow_mean(region, here, value, labels)
            return
        if here is not node and not layer and here.op_type not in _PASSED:
            raise Leave(f"{named(here)} reads it, and is no linear layer")
        if site is not None and site.path:
            raise Leave(f"{named(here)} is inside {site.path!r}, a body or function")
        follow_scale(region, here, value, labels)

    region = Region(Options(across_norms=False, permute_cache=False), by_node, rule)
    region.weights = ScaledWeights(by_node)
    region.grow(norm.output, -1, count)
    if not region.readers:
        raise Leave("no linear layer reads it")
    if region.count != count:
        raise Leave("its channels are joined with others on the way")
    return region


def _shift(model: ir.Model, region: Region, site: Site, axis: int, shift: Array) -> None:
    if site.input is None:
        return
    ids = along(region.labels[site.input], axis, site.node)
    known = np.append(shift, 0.0)  # FIXED is -1: the last
    shift_input(model, site, lambda: known[ids])


def _clear_bias(model: ir.Model, norm: Norm, node: ir.Node) -> None:
    """Write zeros for the bias: without one, ONNX Runtime's fusions crash (1.31.1)."""
    at = 2 if node.op_type == "LayerNormalization" else 3
    old = node.inputs[at]
    if norm.bias is None or old is None:
        return
    tensor = weight_tensor(norm.bias)
    zeros = np.zeros([int(size) for size in tensor.shape.numpy()], tensor.dtype.numpy())
    name = f"{norm.bias.name}_folded"
    own = add_weight(
        home_of(model, node), name, shape=zeros.shape, dtype=tensor.dtype, compute=zeros
    )
    node.replace_input_with(at, own)
    drop_unread(old)


def _set_ones(node: ir.Node) -> None:
    """Write 1 for the scale that was folded, exactly."""
    scale = stored_weight(node.inputs[SCALE_OF[node.op_type]])
    if scale is None:
        return
    tensor = weight_tensor(scale)
    shape = [int(size) for size in tensor.shape.numpy()]
    kind = tensor.dtype
    replace_weight(scale, shape=shape, dtype=kind, compute=lambda: np.ones(shape, kind.numpy()))
