"""Rotate both sides of single weights, and undo it around them as the model runs.

    x W  =  ((x V) (Vᵀ W U)) Uᵀ,     V = diag(±1) H / √n,   U = diag(±1) H / √m

The weight Vᵀ W U that is stored has no large entry, whatever W was like (QuIP, Chee et al. 2023,
arXiv:2307.13304, section 4; with randomized Hadamard matrices: QuIP#, Tseng et al. 2024,
arXiv:2402.04396, section 3), which is what codebooks for Gaussian numbers need. Unlike the
rotations of a stream it works on any layer, wherever it stands, and costs two fast transforms for
each token: O(n log n + m log m) additions beside the n m products.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxq.custom_ops.hadamard import hadamard_node, is_hadamard
from onnxq.graph.names import unique_value_name
from onnxq.graph.opset import ensure_opset, infer_shapes
from onnxq.graph.scratch import Scratch
from onnxq.graph.sites import Site
from onnxq.graph.topology import Topology
from onnxq.graph.weights import add_weight, read_weight, replace_weight, weight_tensor
from onnxq.numerics.incoherence import TwoSided, incoherence, two_sided
from onnxq.passes.base import Context, PassReport, SiteReport
from onnxq.passes.float_transform import FloatTransform
from onnxq.passes.site_patterns import is_named

__all__ = ["RotateWeights"]

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
_OPSET = 15


@dataclasses.dataclass(frozen=True, kw_only=True)
class RotateWeights(FloatTransform):
    """Store weights with both sides rotated, between ``onnxq.Hadamard`` nodes that undo it.

    Matches: MatMul with a weight of its own on the right.
    Writes: the rotated weight; a product with signs and a Hadamard node before the layer, and both
        the other way round behind it, before its bias.
    Leaves: embeddings, convolutions, Gemm; weights that are shared, computed or quantized; layers
        between such nodes already; bodies and functions.

    Attributes:
        sites: name patterns of the layers.
        exclude: name patterns of layers to leave as they are.
        seed: of the signs; every layer has its own.
    """

    sites: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ("*lm_head*", "@head")
    seed: int = 0

    change: ClassVar[str] = "a rotation"

    def call(self, model: ir.Model, context: Context) -> PassReport:
        """Rotate in place; every layer gets a row in the report."""
        ensure_opset(model, _OPSET)
        infer_shapes(model)
        topology = Topology(model)
        reports = []
        for number, site in enumerate(topology.sites):
            reason = self._refusal(topology, site)
            note = None
            if reason is None:
                columns, rows = site.shape[site.in_axis], site.shape[site.out_axis]
                both = two_sided(rows, columns, seed=self.seed + number)
                note = _rotate(model, site, both, context.scratch)
            reports.append(SiteReport(site=site.name, reason=reason, note=note))
        modified = any(report.reason is None for report in reports)
        return PassReport(modified=modified, sites=tuple(reports))

    def _refusal(self, topology: Topology, site: Site) -> str | None:
        named = is_named(site.name, self.sites)
        excluded = is_named(site.name, self.exclude)
        if not named or excluded:
            return "the recipe excludes it" if named else "the recipe does not name it"
        if site.already is not None or site.refusal is not None:
            return site.refusal or f"it is already quantized ({site.already})"
        if site.path:
            return "it is inside a body or function: inline functions first"
        if site.kind != "MatMul" or site.weight_index != 1 or len(site.shape) != 2:
            return f"{site.kind} is no product with one matrix on the right"
        if site.weight is None or site.input is None or topology.shared(site).is_shared:
            return "its weight is shared with others: run untie_weights first"
        if site.via or site.input.dtype not in _FLOATS or site.output.is_graph_output():
            return "its weight goes through a view, or it gives or reads another type: run clean"
        if is_hadamard(site.input.producer()):
            return "its input is rotated already"
        return None


def _rotate(model: ir.Model, site: Site, both: TwoSided, scratch: Scratch) -> str:
    """Write the weight and what undoes it; returns what the report says."""
    node, graph = site.node, site.node.graph
    if graph is None or site.weight is None or site.input is None:
        return ""
    tensor = weight_tensor(site.weight)
    old = read_weight(site.weight).astype(np.float64)
    matrix = old.T if site.in_axis == 0 else old
    turned = both.rotate(matrix)
    stored = (turned.T if site.in_axis == 0 else turned).astype(tensor.dtype.numpy())
    kept = ir.Value(name=site.weight.name, const_value=scratch.keep(stored, tensor.dtype))
    replace_weight(
        site.weight, shape=stored.shape, dtype=tensor.dtype, compute=lambda: read_weight(kept)
    )
    name = node.name or site.output.name or "layer"
    readers = tuple(site.output.uses())
    signed = _signed(model, site.input, both.columns.signs, f"{name}_signs_in")
    inwards = hadamard_node(model, signed.outputs[0], both.columns.size, name=f"{name}_inwards")
    graph.insert_before(node, [signed, inwards])
    node.replace_input_with(0, inwards.outputs[0])
    outwards = hadamard_node(model, site.output, both.rows.size, name=f"{name}_outwards")
    _transpose_factor(model, outwards)
    result = _signed(model, outwards.outputs[0], both.rows.signs, f"{name}_signs_out")
    graph.insert_after(node, [outwards, result])
    for use in readers:
        use.node.replace_input_with(use.idx, result.outputs[0])
    return (
        f"entries up to {incoherence(matrix):.3g} of their mean, and {incoherence(turned):.3g} now"
    )


def _signed(
    model: ir.Model, value: ir.Value, signs: npt.NDArray[np.float64] | None, name: str
) -> ir.Node:
    """``value`` times the signs of its channels."""
    dtype = value.dtype or ir.DataType.FLOAT
    given: npt.NDArray[Any] = np.ones(1) if signs is None else signs
    content = given.astype(dtype.numpy())
    factor = add_weight(model.graph, name, shape=content.shape, dtype=dtype, compute=content)
    node = ir.node("Mul", [value, factor], name=f"{name}_mul")
    output = node.outputs[0]
    output.name = unique_value_name(model.graph, f"{name}_output")
    output.type, output.shape = value.type, value.shape
    return node


def _transpose_factor(model: ir.Model, node: ir.Node) -> None:
    """Make a Hadamard node multiply by Hᵀ: Sylvester's factor is symmetric, the other is not."""
    factor = node.inputs[1]
    if factor is None or factor.dtype is None:
        return
    name = f"{factor.name}_transposed"
    present = model.graph.initializers.get(name)
    if present is None:
        content = np.ascontiguousarray(read_weight(factor).T)
        present = add_weight(
            model.graph, name, shape=content.shape, dtype=factor.dtype, compute=content
        )
    node.replace_input_with(1, present)
    if not factor.uses():
        del model.graph.initializers[factor.name or ""]
