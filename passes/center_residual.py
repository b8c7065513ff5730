"""Make the mean of a residual stream zero, so that LayerNorm is RMSNorm.

LayerNorm subtracts the mean over channels, x − (1ᵀx / n) 1 = M x with M = I − 1 1ᵀ / n. When all
that is ever added to the stream has mean zero, x = M x, and

    LayerNorm(x) = M x / √(mean((M x)²) + ε) ∘ s + b  =  RMSNorm(x) ∘ s + b.

So M is folded into everything that writes: M W_o, M b_o, the rows of the embedding, positions,
class tokens. What reads the stream is LayerNorm alone, which does not see a difference (SliceGPT,
Ashkboos et al. 2024, arXiv:2401.15024, section 3.1). An RMSNorm commutes with rotations, a
LayerNorm does not.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy.typing as npt
import onnx_ir as ir

from onnxq.graph.opset import infer_shapes
from onnxq.graph.sites import Site, find_sites
from onnxq.graph.topology import ResidualStream, Topology
from onnxq.graph.versions import opset_of
from onnxq.passes.base import Context, PassReport, SiteReport
from onnxq.passes.centered_norms import centering_bridge, to_rms_norm, without_mean
from onnxq.passes.channel_labels import Labels, Leave, named
from onnxq.passes.channel_norms import NORMS
from onnxq.passes.channel_region import Region
from onnxq.passes.float_transform import FloatTransform
from onnxq.passes.rotation_rules import follow_through, tie_norm
from onnxq.passes.rotation_space import Space, find_space

__all__ = ["CenterResidual"]

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CenterResidual(FloatTransform):
    """Subtract the mean in everything that writes a residual stream; write RMSNorm for LayerNorm.

    Matches: streams that LayerNormalization and SkipLayerNormalization read and nothing else.
    Writes: weights, biases, embeddings and added constants without their mean over channels; the
        norms as RMSNormalization (before opset 23 SimplifiedLayerNormalization), an Add behind
        those with a bias; one subtraction of the mean where a stream begins behind an activation
        function.
    Leaves: post-norm networks, whose stream is written by a LayerNorm with scale and bias; streams
        that something else reads or that are graph outputs.
    """

    change: ClassVar[str] = "centering the stream"

    def call(self, model: ir.Model, context: Context) -> PassReport:
        """Center every stream that can be."""
        infer_shapes(model)
        by_node = {site.node: site for site in find_sites(model)}
        reports: list[SiteReport] = []
        for stream in Topology(model).residual:
            if any(norm.kind == "LayerNorm" for norm in stream.norms):
                reports.append(_centered(model, stream, by_node))
        modified = any(report.reason is None for report in reports)
        return PassReport(modified=modified, sites=tuple(reports))


def _centered(model: ir.Model, stream: ResidualStream, by_node: dict[ir.Node, Site]) -> SiteReport:
    """Center one stream, or say why it stays."""
    start = stream.norms[0].inputs[0]
    name = start.name or ""
    nodes = [norm.node for norm in stream.norms if norm.node is not None]
    if len(nodes) < len(stream.norms):
        return SiteReport(site=name, reason="a norm is arithmetic: run fuse_layer_norm first")
    if stream.width is None:
        return SiteReport(site=name, reason="its width is not known")
    reason = next((r for node in nodes if (r := _norm_refusal(node)) is not None), None)
    if reason is not None:
        return SiteReport(site=name, reason=reason)
    space = find_space(
        by_node, _follow, start, width=stream.width, count=stream.width, bridges=len(nodes)
    )
    if isinstance(space, str):
        return SiteReport(site=name, reason=space)
    if space.exits:
        reason = next(iter(space.exits.values()))
        return SiteReport(site=name, reason=f"the mean is seen by others: {reason}")
    space.apply(model, [without_mean], centering_bridge)
    for node in nodes:
        to_rms_norm(model, node, standard=opset_of(model) >= 23)
    return SiteReport(site=name, note=_said(space, len(nodes)))


def _follow(region: Region, node: ir.Node, value: ir.Value, labels: Labels) -> None:
    """What each operator means for channels that lose their mean."""
    if node.domain not in ("", "ai.onnx", "com.microsoft"):
        raise Leave(f"{named(node)} is on their way, an operator of the domain {node.domain!r}")
    if node.op_type in ("Shape", "Size"):
        return
    if node.op_type in NORMS:
        _norm(region, node, value, labels)
        return
    site = region.site_of(node)
    if site is not None and value is site.input:
        raise Leave(f"{named(node)} reads the stream without a norm, and would miss the mean")
    if not follow_through(region, node, value, labels):
        raise Leave(f"{named(node)} is not linear")


def _norm(region: Region, node: ir.Node, value: ir.Value, labels: Labels) -> None:
    """A LayerNorm that reads the stream ends the path; one that writes it cannot lose a mean."""
    activations, results = NORMS[node.op_type]
    total = [node.outputs[i] for i in results[1:] if i < len(node.outputs) and node.outputs[i].name]
    inputs = list(node.inputs[:activations])
    if value is node.outputs[0]:
        raise Leave(
            f"{named(node)} writes the stream (a post-norm network): its scale and bias bring a "
            "mean back, which no weight can take out"
        )
    if node.op_type not in ("LayerNormalization", "SkipLayerNormalization"):
        raise Leave(f"{named(node)} reads it, and an RMS norm does not subtract the mean")
    if value not in (*inputs, *total):
        raise Leave(f"{named(node)} takes {value.name!r} as a parameter")
    if activations > 1:
        tie_norm(region, node, value, labels, [*inputs, *total])


def _norm_refusal(node: ir.Node) -> str | None:
    extra = [out for out in node.outputs[1:3] if out.uses() or out.is_graph_output()]
    if extra:
        return f"{named(node)} also gives {extra[0].name!r}, the mean or deviation"
    if node.attributes.get_int("axis", -1) != -1:
        rank = len(node.inputs[0].shape) if node.inputs[0] and node.inputs[0].shape else 0
        if node.attributes.get_int("axis", -1) != rank - 1:
            return f"{named(node)} normalizes over more than the last axis"
    return None


def _said(space: Space, norms: int) -> str:
    edits = len(space.turned.edits) + len(space.turned.copies)
    text = f"the mean is out of {edits} weights; {norms} norms are RMS norms now"
    if space.entries:
        text += f"; it is subtracted at {len(space.entries)} values as the model runs"
    return text
