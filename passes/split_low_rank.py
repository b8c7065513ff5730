"""Split a linear site in two, so that its first input channels can keep more bits than the rest.

For any split of the channels of x into the first r and the others::

    x W  =  x_high W_high + x_low W_low        W_high the first r rows of W, W_low the others

    MatMul(x, W)  →  MatMul(x_high, W_high) + MatMul(x_low, W_low),   x_high, x_low = Split(x)

which changes nothing by itself; then `quantize_activations` and `quantize_weights` give each half
a format of its own by name (``*_high``, ``*_low``). It pays when the first channels hold most of
what there is to round: after a rotation into the principal components of the activation
(`rotate_residual` with the matrix ``klt``) they are the subspace of the largest variance, which
ResQ (Saxena et al., arXiv:2412.14363, section 4) keeps at 8 bits, an eighth of all, while the rest
goes to 4; QUAD (Hu et al., arXiv:2503.19353) does the same with a few dozen singular vectors. For
a first step without a rotation, `permute_channels` brings the channels of the largest mean square
to the front.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxq.errors import RecipeError
from onnxq.graph.names import unique_value_name
from onnxq.graph.sites import Site
from onnxq.graph.topology import Topology
from onnxq.graph.weights import add_weight, is_weight, read_weight, weight_tensor
from onnxq.numerics.rotation import first_part
from onnxq.passes.base import Context, PassReport, SiteReport
from onnxq.passes.fake_quantization import rounded_by
from onnxq.passes.float_transform import FloatTransform
from onnxq.passes.int8_weights import drop_unused
from onnxq.passes.preconditions import need_opset
from onnxq.passes.site_patterns import is_named

__all__ = ["SplitLowRank"]

_MINIMUM_OPSET = 13


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitLowRank(FloatTransform):
    """Two sites for one: the first input channels apart from the rest.

    Matches: MatMul and Gemm whose weight on the right is a constant float matrix.
    Writes: one Split for all sites that read a value, two products and their sum. The first is
    named ``..._high``, the second ``..._low`` and keeps the bias of a Gemm.
    Leaves: weights that others read, quantized sites, sites in functions, halves of a split, sites
    with no more channels than the first half is to hold; each with its reason.

    Attributes:
        rank: channels of the first half; None takes the ``share`` of all.
        share: of the channels for the first half, rounded to a ``multiple``.
        multiple: what both halves are rounded to, such as the group size of their formats.
        sites: name patterns of the sites to look at.
        exclude: name patterns of sites to leave whole.
    """

    rank: int | None = None
    share: float = 0.125
    multiple: int = 32
    sites: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what no model could be run with, before any work."""
        if self.rank is not None and self.rank < 1:
            raise RecipeError(f"rank is {self.rank}: the first half holds at least one channel.")
        if not 0.0 < self.share < 1.0:
            raise RecipeError(f"share is {self.share}: it is a part of the channels, in (0, 1).")
        if self.multiple < 1:
            raise RecipeError(f"multiple is {self.multiple}: it is a number of channels, from 1.")

    def requires(self, model: ir.Model) -> None:
        """Refuse a model that is calibrated or quantized already, or too old.

        Raises:
            UnsupportedGraph: says what was found and what to do first.
        """
        super().requires(model)
        need_opset(model, _MINIMUM_OPSET, "Split with given sizes")

    def call(self, model: ir.Model, context: Context) -> PassReport:
        """Split site by site; weights are sliced when they are read."""
        topology = Topology(model)
        inner = {node for function in model.functions.values() for node in function.all_nodes()}
        splits = _Splits()
        reports = []
        for site in topology.sites:
            reason = self._refusal(site, topology)
            if site.node in inner:
                reason = "it is inside a function: inline functions first"
            if reason is None:
                note = splits.split(site, self._rank(site))
                reports.append(SiteReport(site=site.name, note=note))
            else:
                reports.append(SiteReport(site=site.name, reason=reason))
        splits.finish()
        modified = any(report.reason is None for report in reports)
        return PassReport(modified=modified, sites=tuple(reports))

    def _rank(self, site: Site) -> int:
        if self.rank is not None:
            return self.rank
        return first_part(site.shape[site.in_axis], self.share, self.multiple)

    def _refusal(self, site: Site, topology: Topology) -> str | None:
        if not is_named(site.name, self.sites):
            return "the recipe does not name it"
        if is_named(site.name, self.exclude):
            return "the recipe leaves it whole"
        if site.already is not None:
            return f"it is already quantized ({site.already})"
        if site.is_embedding or site.kind not in ("MatMul", "Gemm"):
            return f"{site.kind} is not split: MatMul and Gemm are"
        if site.refusal is not None:
            return site.refusal
        return _unsplittable(site, topology) or self._too_narrow(site)

    def _too_narrow(self, site: Site) -> str | None:
        columns, rank = site.shape[site.in_axis], self._rank(site)
        if columns <= rank:
            return f"it has {columns} input channels, and the first half alone is to hold {rank}"
        return None


def _unsplittable(site: Site, topology: Topology) -> str | None:
    """What stands in the way of two halves of this site; None when nothing does."""
    if site.weight is None or site.input is None or is_weight(site.input):
        return "it multiplies no activation by a constant weight"
    if site.weight_index != 1 or len(site.shape) != 2:
        return "its weight is not a matrix on the right"
    if site.kind == "Gemm" and bool(site.node.attributes.get_int("transA", 0)):
        return "it reads its activation transposed"
    if topology.shared(site).is_shared:
        return f"its weight {site.weight.name!r} is read by others too: untie weights first"
    if any(view.op_type not in ("Transpose", "Identity") for view in site.via):
        return f"its weight goes through {site.via[0].op_type}: fold constants first"
    if rounded_by(site) is not None:
        return "its activation is quantized already, and halves are made before that"
    if _is_half(site):
        return "it is half of a split already"
    return None


def _is_half(site: Site) -> bool:
    """Whether the site reads one part of a Split and its output is added to another's."""
    source = None if site.input is None else site.input.producer()
    if source is None or source.op_type != "Split":
        return False
    for adding in site.output.consumers():
        for value in adding.inputs if adding.op_type == "Add" else ():
            other = None if value is None else value.producer()
            if other is None or other is site.node or not other.inputs or other.inputs[0] is None:
                continue
            if other.inputs[0].producer() is source:
                return True
    return False


class _Splits:
    """Edits one model; splits each activation once for each rank."""

    def __init__(self) -> None:
        self._parts: dict[tuple[ir.Value, int], tuple[ir.Value, ir.Value]] = {}
        self._replaced: list[ir.Value] = []

    def split(self, site: Site, rank: int) -> str:
        """Put two products and their sum in the place of the site; gives a note."""
        node, graph = site.node, site.node.graph
        if not isinstance(graph, ir.Graph) or site.weight is None or site.input is None:
            raise ValueError(f"site {site.name!r} has not been checked")
        columns = site.shape[site.in_axis]
        parts = self._split(site.input, rank, columns)
        products = []
        for part, value, (start, stop) in zip(
            ("high", "low"), parts, ((0, rank), (rank, columns)), strict=True
        ):
            inputs = [value, _rows(site, site.weight, graph, part, start, stop)]
            if part == "low":
                inputs.extend(value for value in node.inputs[2:] if value is not None)
            half = ir.Node("", node.op_type, inputs, _attributes(site, part))
            products.append(_named(graph, half, f"{node.name}_{part}", site.output))
        total = ir.node("Add", [half.outputs[0] for half in products], name=f"{node.name}_sum")
        for made in products:
            graph.insert_before(node, made)
        self._replaced.extend(v for v in (site.weight, node.inputs[1]) if v is not None)
        name, old = site.output.name, site.output
        total.outputs[0].type, total.outputs[0].shape = old.type, old.shape
        old.name = None
        total.outputs[0].name = name
        graph.insert_before(node, total)
        old.replace_all_uses_with(total.outputs[0], replace_graph_outputs=True)
        graph.remove(node, safe=True)
        for view in reversed(site.via):
            if not any(v.uses() or v.is_graph_output() for v in view.outputs) and view.graph:
                view.graph.remove(view, safe=True)
        return f"{rank} channels of {columns} in {node.name}_high"

    def finish(self) -> None:
        """Remove the weights that nobody reads any more."""
        drop_unused(self._replaced)

    def _split(self, value: ir.Value, rank: int, columns: int) -> tuple[ir.Value, ir.Value]:
        """The first ``rank`` and the other channels of a value, behind what computes it."""
        if (value, rank) not in self._parts:
            producer = value.producer()
            graph = value.graph if producer is None else producer.graph
            if not isinstance(graph, ir.Graph):
                raise ValueError(f"{value.name!r} is in no graph that can be edited")
            sizes = np.array([rank, columns - rank], np.int64)
            given = add_weight(
                graph,
                f"{value.name}_sizes",
                shape=(2,),
                dtype=ir.DataType.INT64,
                compute=sizes,
            )
            node = ir.node("Split", [value, given], {"axis": -1}, num_outputs=2)
            node.name = unique_value_name(graph, f"{value.name}_Split")
            for output, part, size in zip(node.outputs, ("high", "low"), sizes, strict=True):
                output.name = unique_value_name(graph, f"{value.name}_{part}")
                output.type = value.type
                if value.shape is not None:
                    output.shape = ir.Shape([*value.shape[:-1], int(size)])
            if producer is None:
                graph.insert_before(graph[0], node)
            else:
                graph.insert_after(producer, node)
            self._parts[value, rank] = (node.outputs[0], node.outputs[1])
        return self._parts[value, rank]


def _attributes(site: Site, part: str) -> list[ir.Attr]:
    """Those of the site; the half without the bias has no use for its factor."""
    attributes = site.node.attributes.values()
    return [attr for attr in attributes if part == "low" or attr.name != "beta"]


def _named(graph: ir.Graph, node: ir.Node, name: str, like: ir.Value) -> ir.Node:
    """The node with a name, and its output named and typed like that of the site."""
    node.name, output = name, node.outputs[0]
    output.name = unique_value_name(graph, f"{like.name}_{name.rsplit('_', 1)[-1]}")
    output.type, output.shape = like.type, like.shape
    return node


def _rows(
    site: Site, weight: ir.Value, graph: ir.Graph, part: str, start: int, stop: int
) -> ir.Value:
    """Input channels ``start`` to ``stop`` of the weight as the node reads it, sliced when read."""
    tensor = weight_tensor(weight)
    stored = ir.Value(name=weight.name, const_value=tensor)
    flipped = site.kind == "Gemm" and bool(site.node.attributes.get_int("transB", 0))
    turned = (site.in_axis == 0) == flipped  # stored [in, out] and read [out, in], or the reverse
    outputs = site.shape[site.out_axis]

    def compute() -> np.ndarray[Any, Any]:
        array = read_weight(stored)
        half = array[start:stop] if site.in_axis == 0 else array[:, start:stop]
        return np.ascontiguousarray(half.T if turned else half)

    size = stop - start
    home = weight.graph if isinstance(weight.graph, ir.Graph) else graph
    return add_weight(
        home,
        f"{weight.name}_{part}",
        shape=[outputs, size] if flipped else [size, outputs],
        dtype=tensor.dtype,
        compute=compute,
    )
