"""Write a Clip behind a layer with a bound for each channel of its own.

``Clip(x, l, h) = Min(Max(x, l), h)``, bit for bit, and Min and Max take a bound for every channel
where Clip takes one number: only then can channels be scaled one by one, as for ReLU6 in

    min(max(x / s, l / s), h / s) = clip(x, l, h) / s
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx_ir as ir

from onnxq.graph.sites import Site, find_sites
from onnxq.graph.weight_source import scalar
from onnxq.graph.weights import add_weight
from onnxq.passes.match import Found, home_of, replace

__all__ = ["open_clips"]


def open_clips(model: ir.Model, only: Collection[str] | None = None) -> list[str]:
    """Open each Clip with constant bounds that directly follows a layer.

    Args:
        model: changed in place; names of nodes are unique.
        only: names of the Clip nodes to open; None opens all that can be.

    Returns:
        the names of the nodes that were opened; the node that now gives the result of each has
        the name of the Clip.
    """
    by_result = {site.result: site for site in find_sites(model) if not site.path}
    opened = []
    for node in tuple(model.graph):
        if node.op_type != "Clip" or node.domain not in ("", "ai.onnx") or node.attributes:
            continue
        site = by_result.get(node.inputs[0]) if node.inputs[0] is not None else None
        bounds = _bounds(node)
        wanted = only is None or node.name in only
        if not wanted or site is None or not bounds or set(bounds.values()) == {0.0}:
            continue
        _open(model, node, site, bounds)
        opened.append(node.name or "")
    return opened


def _bounds(clip: ir.Node) -> dict[str, float]:
    """The bounds by the operator that keeps them; empty when one is not a known number."""
    found: dict[str, float] = {}
    for at, kind in ((1, "Max"), (2, "Min")):
        given = clip.inputs[at] if at < len(clip.inputs) else None
        if given is None:
            continue
        number = scalar(given)
        if number is None or not np.isfinite(number):
            return {}
        found[kind] = number
    return found


def _open(model: ir.Model, clip: ir.Node, site: Site, bounds: Mapping[str, float]) -> None:
    value, graph = clip.inputs[0], clip.graph
    if value is None or graph is None or site.weight is None:
        return
    is_conv = site.kind in ("Conv", "ConvTranspose")
    channels = site.shape[site.out_axis] * (site.groups if site.kind == "ConvTranspose" else 1)
    behind = len(site.shape) - 2 if is_conv else int(site.weight_index == 0)
    dtype = value.dtype or ir.DataType.FLOAT
    for number, (kind, bound) in enumerate(bounds.items()):
        if bound == 0.0 and kind == "Max":
            kind, operands = "Relu", [value]
        else:
            content = np.full([channels, *[1] * behind], bound).astype(dtype.numpy())
            name = f"{clip.name}_{kind.lower()}"
            constant = add_weight(
                home_of(model, clip), name, shape=content.shape, dtype=dtype, compute=content
            )
            operands = [value, constant]
        if number == len(bounds) - 1:
            replace(Found(root=clip, inside=(clip,)), kind, operands, {})
            return
        first = ir.node(kind, operands, name=f"{clip.name}_low")
        inner = first.outputs[0]
        inner.name, inner.shape, inner.dtype = f"{clip.name}_low_output", value.shape, dtype
        graph.insert_before(clip, first)
        value = inner
