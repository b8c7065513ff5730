"""Read the number of attention heads from the reshapes between projection and attention."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import onnx_ir as ir

from onnxq.graph.flow import Flow
from onnxq.graph.sites import Site
from onnxq.graph.weight_source import trace
from onnxq.graph.weights import read_weight

__all__ = ["Heads", "heads_of"]


@dataclasses.dataclass(frozen=True)
class Heads:
    """Query heads, key and value heads, and the width of a head; None where unknown."""

    heads: int | None
    kv_heads: int | None
    head_dim: int | None

    def filled_from(self, q: Site | None, k: Site | None, v: Site | None) -> Heads:
        """Complete from the widths of the projections what the reshapes left open."""
        heads, kv_heads, head_dim = self.heads, self.kv_heads, self.head_dim
        width = _features(q)
        if head_dim is None and heads and width:
            parts = heads + 2 * (kv_heads or heads) if q is k and q is v else heads
            head_dim = width // parts if width % parts == 0 else None
        if kv_heads is None and heads:
            key_width = _features(k)
            apart = k is not None and k is not q
            kv_heads = heads
            if apart and head_dim and key_width and key_width % head_dim == 0:
                kv_heads = key_width // head_dim
        return Heads(heads, kv_heads, head_dim)


def heads_of(
    sites: Sequence[Site | None], flows: Sequence[Flow], values: Sequence[ir.Value | None]
) -> Heads:
    """Heads of queries and of keys, from the split that follows each projection.

    Args:
        sites: the q, k and v projections.
        flows: the walks that found them.
        values: what enters the product, [batch, heads, sequence, head_dim] or similar.
    """
    fused = sites[0] is not None and sites[0] is sites[1] and sites[0] is sites[2]
    query = _split(sites[0], flows[0], values[0], fused)
    key = _split(sites[1], flows[1], values[1], fused)
    heads, head_dim = query if query else (None, None)
    kv_heads = key[0] if key else None
    return Heads(heads, kv_heads, head_dim)


def _split(
    site: Site | None, flow: Flow, value: ir.Value | None, fused: bool
) -> tuple[int, int] | None:
    """(heads, width of one), from the reshape nearest to the projection that tells both."""
    features = _features(site)
    for node in reversed(flow.nodes):
        if node.op_type != "Reshape" or len(node.inputs) < 2:
            continue
        target = _target(node.inputs[1])
        if target is None or len(target) < 3:
            target = _static(node.outputs[0])
        if target is None or len(target) < 3:
            continue
        pair = _last_two(target, None if flow.crosses(["Split", "Slice"]) else features)
        if pair is None:
            continue
        heads, width = pair
        if fused and features == heads * width and width % 3 == 0:
            width //= 3
        return heads, width
    shape = None if value is None else _static(value)
    if shape is not None and len(shape) == 4 and shape[1] is not None and shape[3] is not None:
        return shape[1], shape[3]
    return None


def _last_two(target: Sequence[int | None], features: int | None) -> tuple[int, int] | None:
    heads, width = target[-2], target[-1]
    if features is not None:
        if heads is None and width and features % width == 0:
            heads = features // width
        elif width is None and heads and features % heads == 0:
            width = features // heads
    return None if heads is None or width is None else (heads, width)


def _target(shape: ir.Value | None) -> list[int | None] | None:
    """The entries of a Reshape's target, None for those computed at run time or -1 or 0."""
    if shape is None:
        return None
    known = trace(shape).value
    if known is not None:
        return _entries(known)
    node = shape.producer()
    while node is not None and node.op_type == "Cast" and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    if node is None or node.op_type != "Concat":
        return None
    entries: list[int | None] = []
    for part in node.inputs:
        known = trace(part).value
        entries.extend([None] if known is None else _entries(known))
    return entries


def _entries(value: ir.Value) -> list[int | None]:
    return [int(size) if size > 0 else None for size in read_weight(value).reshape(-1)]


def _static(value: ir.Value) -> list[int | None] | None:
    if value.shape is None:
        return None
    return [size if isinstance(size, int) and size > 0 else None for size in value.shape]


def _features(site: Site | None) -> int | None:
    if site is None or site.weight is None or site.refusal is not None:
        return None
    shape = site.shape
    if site.kind == "MatMulNBits":
        return int(site.node.attributes["N"].as_int())
    return int(shape[site.out_axis])
