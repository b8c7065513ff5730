"""Columns of a weight kept in full precision: y → y + x[…, K] · Sᵀ beside the quantized site.

K and S are those of `onnxq.solvers.kept_columns`. A Gather takes the k columns out of the
activation, a thin MatMul multiplies them, and an Add puts the product on the output of the site.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from onnxq.graph.scratch import Scratch
from onnxq.graph.sites import Site
from onnxq.passes.base import SiteReport
from onnxq.passes.site_shift import add_behind
from onnxq.passes.weight_layout import weight_of, weight_type
from onnxq.passes.weight_storing import nbytes_of, store_array
from onnxq.solvers.kept_columns import KeptColumns

__all__ = ["counted", "keeping_refusal", "write_kept_columns"]


def keeping_refusal(site: Site, count: int) -> str | None:
    """Why no columns can be kept beside a site; None when they can."""
    if site.kind not in ("MatMul", "Gemm") or site.weight_index != 1:
        return f"they are kept of the right operand of MatMul and Gemm, and this is a {site.kind}"
    if site.kind == "Gemm" and site.node.attributes.get_int("transA"):
        return "columns of a transposed activation (transA=1) cannot be gathered"
    if count >= site.shape[site.in_axis]:
        return f"it has {site.shape[site.in_axis]} columns, not more than the {count} to keep"
    return None


def write_kept_columns(site: Site, kept: KeptColumns, scratch: Scratch) -> int:
    """Add the correction behind a site, before its own node is rewritten.

    Returns:
        Bytes stored for it.

    Raises:
        ValueError: the site has been removed from its graph.
    """
    graph, node, dtype = site.node.graph, site.node, weight_type(site)
    if not isinstance(graph, ir.Graph):
        raise ValueError(f"site {site.name!r} is not in a graph that can hold weights")
    alpha = node.attributes.get_float("alpha", 1.0) if site.kind == "Gemm" else 1.0
    factor = np.ascontiguousarray(alpha * kept.correction.T).astype(dtype.numpy())
    stem = weight_of(site).name
    stored = []
    for what, array in (("kept_columns", kept.columns), ("kept", factor)):
        kind = ir.DataType.from_numpy(array.dtype)
        stored.append(store_array(graph, f"{stem}_{what}", array, kind, scratch))
    gathered = ir.node("Gather", [node.inputs[0], stored[0]], {"axis": -1})
    product = ir.node("MatMul", [gathered.outputs[0], stored[1]])
    for made, what in ((gathered, "gather"), (product, "matmul")):
        made.name = f"{node.name}_kept_{what}"
        made.outputs[0].name = f"{made.name}_output"
    add_behind(site.output, product.outputs[0], "with_kept")
    graph.insert_after(node, [gathered, product])  # before the sum, which is behind the site too
    return sum(nbytes_of(value) for value in stored)


def counted(report: SiteReport, site: Site, kept: KeptColumns, nbytes: int) -> SiteReport:
    """The report of a site with what the correction costs added to its bytes and bits."""
    total = (report.nbytes or 0) + nbytes
    words = f"{len(kept.columns)} columns kept in {weight_type(site).name.lower()}"
    return dataclasses.replace(
        report,
        nbytes=total,
        bits=8 * total / float(np.prod(site.shape)),
        note=words if report.note is None else f"{report.note}; {words}",
    )
