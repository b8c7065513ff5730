"""Split a layer into several, each with the weights of one range of values, whose outputs add up.

Let the entries of W be put into k clusters and W_i hold those of cluster i, and 0 elsewhere::

    W x + b  =  W_1 x + W_2 x + ... + W_k x + b

Nothing changes, as every entry is in exactly one W_i. But each W_i has a range of its own, and so
finer steps: with k = 3 the few large weights of both signs leave the many small ones in the middle,
which then do not share their scale. Song and Lin, "SplitQuant: Layer Splitting for Low-Bit Neural
Network Quantization" (arXiv:2501.12428), with k-means over the values. The price is k products for
one, and codes for k · W: it is for small models and few bits, where accuracy costs more than size.

``by = "columns"`` puts whole input channels into the clusters, by the largest magnitude of each: a
scale for each row or for the tensor then is that of like channels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxq.errors import RecipeError
from onnxq.graph.names import unique_value_name
from onnxq.graph.sites import Site, find_sites
from onnxq.graph.weights import add_weight, read_weight, weight_tensor
from onnxq.passes.base import Context, PassReport, SiteReport
from onnxq.passes.channel_weights import drop_unread
from onnxq.passes.float_transform import FloatTransform
from onnxq.passes.match import home_of, take_place
from onnxq.passes.preconditions import cut_refusal, shared_refusal
from onnxq.passes.projection_parts import PART
from onnxq.passes.site_patterns import recipe_refusal

__all__ = ["SplitLayer"]

Array = npt.NDArray[Any]

_KINDS = frozenset(["MatMul", "Gemm", "Conv"])
_ROUNDS = 50
_SEEN = 1 << 18
"""Entries that the clusters are found on: evenly spaced over larger weights."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitLayer(FloatTransform):
    """Replace a layer by several whose outputs are added, each with one range of its weights.

    Matches: MatMul, Gemm and Conv with a constant float weight of their own.
    Writes: ``parts`` layers of the same kind and a Sum; the bias stays with the first.
    Leaves: shared and computed weights, layers inside bodies and functions, layers that are parts
    already, weights of too few different values.

    Attributes:
        parts: how many layers for one.
        by: ``values`` puts entries of like value together, ``columns`` input channels of like
            range.
        scale: what the format of the weights will share a scale over: of a ``row`` values are
            compared with the largest of their row, of a ``tensor`` as they are.
        sites: name patterns of the layers to split.
        exclude: name patterns of layers to leave as they are.
    """

    parts: int = 3
    by: Literal["values", "columns"] = "values"
    scale: Literal["row", "tensor"] = "row"
    sites: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()

    moves_outliers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse what splits nothing."""
        if not 2 <= self.parts <= 16:
            raise RecipeError(f"parts is {self.parts}: a layer is split into 2 to 16.")

    def call(self, model: ir.Model, context: Context) -> PassReport:
        """Split layer by layer; the parts of a weight are computed when the model is saved."""
        reports = []
        sites = [site for site in find_sites(model) if site.kind in _KINDS]
        for number, site in enumerate(sites):
            context.progress("split layers", number, len(sites))
            reason = self._refusal(site)
            edges = None if reason is not None else self._edges(site)
            if reason is None and edges is None:
                reason = f"its weight has fewer than {self.parts} different values"
            if edges is None:
                reports.append(SiteReport(site=site.name, reason=reason))
                continue
            self._split(model, site, edges)
            reports.append(SiteReport(site=site.name, note=f"{self.parts} parts by {self.by}"))
        modified = any(report.reason is None for report in reports)
        return PassReport(modified=modified, sites=tuple(reports))

    def _refusal(self, site: Site) -> str | None:
        reason = recipe_refusal(site.name, sites=self.sites, exclude=self.exclude)
        reason = reason or cut_refusal(site)
        if reason is not None:
            return reason
        if PART in site.node.metadata_props:
            return f"it is part {site.node.metadata_props[PART]} already"
        return None if site.weight is None else shared_refusal(site.weight)

    def _measure(self, site: Site, array: Array) -> Array:
        """What is clustered: a number for each entry, or for each input channel."""
        if self.by == "columns":
            others = tuple(axis for axis in range(array.ndim) if axis != site.in_axis)
            return np.asarray(np.abs(array).max(axis=others, keepdims=True))
        if self.scale == "tensor":
            return array
        others = tuple(axis for axis in range(array.ndim) if axis != site.out_axis)
        reach = np.abs(array).max(axis=others, keepdims=True)
        return np.asarray(array / np.where(reach > 0, reach, 1))

    def _edges(self, site: Site) -> Array | None:
        """The values between the clusters, ascending; None when there are too few values."""
        if site.weight is None:
            return None
        array = read_weight(site.weight).astype(np.float32, copy=False)
        values = np.sort(self._measure(site, array).reshape(-1))
        values = values[:: max(1, len(values) // _SEEN)].astype(np.float64)
        return cluster_edges(values, self.parts)

    def _split(self, model: ir.Model, site: Site, edges: Array) -> None:
        """Put the parts in the place of the layer."""
        node, graph, weight = site.node, site.node.graph, site.weight
        if graph is None or weight is None:
            return
        tensor = weight_tensor(weight)
        stored = ir.Value(name=weight.name, const_value=tensor)
        shape = [int(size) for size in tensor.shape.numpy()]
        shown = node.outputs[0]
        outputs = []
        for part in range(self.parts):
            own = add_weight(
                home_of(model, node), f"{weight.name}_part{part + 1}", shape=shape,
                dtype=tensor.dtype, compute=self._part(site, stored, edges, part),
            )  # fmt: skip
            inputs = [own if i == site.weight_index else v for i, v in enumerate(node.inputs)]
            if part and len(inputs) > 2:
                inputs = inputs[:2]
            made = ir.Node(
                node.domain, node.op_type, inputs, list(node.attributes.values()),
                name=node.name if part == 0 else f"{node.name}_part{part + 1}",
            )  # fmt: skip
            made.metadata_props.update({**node.metadata_props, PART: f"{part + 1}/{self.parts}"})
            output = made.outputs[0]
            output.type, output.shape = shown.type, shown.shape
            graph.insert_before(node, made)
            output.name = unique_value_name(graph, f"{shown.name}_part{part + 1}")
            outputs.append(output)
        total = ir.node("Sum", outputs, name=f"{node.name}_sum")
        graph.insert_before(node, total)
        take_place(node, total.outputs[0])
        drop_unread(weight)

    def _part(self, site: Site, stored: ir.Value, edges: Array, part: int) -> Callable[[], Array]:
        """The weight with all but one cluster set to 0, computed when it is read."""

        def compute() -> Array:
            array = read_weight(stored)
            measure = self._measure(site, array.astype(np.float32, copy=False))
            cluster = np.searchsorted(edges, measure.astype(np.float64), side="right")
            return np.where(cluster == part, array, np.zeros((), array.dtype))

        return compute


def cluster_edges(values: Array, count: int) -> Array | None:
    """The borders between clusters of sorted numbers: k-means in one dimension.

    Begins with ranges of equal width and moves the borders to the middle between the means of
    neighbours until they rest (Lloyd, 1982).

    Args:
        values: float64 [n], ascending.
        count: of clusters.

    Returns:
        float64 [count - 1], ascending; None when there are fewer than ``count`` different values.
    """
    distinct = np.unique(values)
    if len(distinct) < count:
        return None
    sums = np.concatenate([[0.0], np.cumsum(values)])
    starts = np.linspace(values[0], values[-1], count + 1)[1:-1]
    edges = starts
    for _ in range(_ROUNDS):
        cuts = np.concatenate([[0], np.searchsorted(values, edges, side="right"), [len(values)]])
        sizes = np.diff(cuts)
        if not sizes.all():  # an empty cluster: begin with clusters of different values
            edges = distinct[np.linspace(0, len(distinct), count + 1).astype(int)[1:-1]]
            edges = np.nextafter(edges, -np.inf)
            break
        means = np.diff(sums[cuts]) / sizes
        moved = (means[1:] + means[:-1]) / 2
        if np.allclose(moved, edges, rtol=1e-6, atol=0):
            break
        edges = moved
    return np.asarray(edges)
