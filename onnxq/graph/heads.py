"""Read the number of attention heads from the reshapes between projection and attention."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import onnx_ir as ir

from onnxq.graph.flow import VIEWS, Flow
from onnxq.graph.site_slots import integer
from onnxq.graph.sites import Site
from onnxq.graph.weight_source import stored_weight
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
        key_width = _features(k)
        if heads and head_dim and width and q is k and q is v:
            kv_heads = (width // head_dim - heads) // 2 or kv_heads
        elif heads and head_dim and key_width and k is not q and kv_heads is None:
            kv_heads = key_width // head_dim if key_width % head_dim == 0 else None
        if kv_heads is None:
            kv_heads = heads
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
    # What enters the product tells the query heads; keys may have been repeated on the way there.
    query = _product_shape(values[0]) or _split(sites[0], flows[0], fused)
    key = None if fused else _split(sites[1], flows[1], fused)
    heads, head_dim = query if query else (None, None)
    return Heads(heads, key[0] if key else None, head_dim)


def _product_shape(value: ir.Value | None) -> tuple[int, int] | None:
    """(heads, width of one) of [batch, heads, sequence, width]."""
    shape = None if value is None else _static(value)
    if shape is None or len(shape) != 4 or shape[1] is None or shape[3] is None:
        return None
    return shape[1], shape[3]


def _split(site: Site | None, flow: Flow, fused: bool) -> tuple[int, int] | None:
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
        whole = features if _is_whole(node.inputs[0], site) else None
        pair = _last_two(target, whole)
        if pair is not None:
            return _of_queries(pair, target, flow, features) if fused else pair
    return None


def _is_whole(value: ir.Value | None, site: Site | None) -> bool:
    """Whether the value is all that the projection gives, with its bias, and not a part."""
    while value is not None and site is not None:
        if value is site.output or value is site.result:
            return True
        node = value.producer()
        if node is None or not (node.op_type in VIEWS or node.op_type == "Add"):
            return False
        computed = [v for v in node.inputs if v is not None and stored_weight(v) is None]
        value = computed[0] if len(computed) == 1 or node.op_type in VIEWS else None
    return False


def _of_queries(
    pair: tuple[int, int], target: Sequence[int | None], flow: Flow, features: int | None
) -> tuple[int, int] | None:
    """Take apart a reshape of queries, keys and values together."""
    heads, width = pair
    if heads == 3 and len(target) > 4 and target[-3] and target[-3] * 3 * width == features:
        return target[-3], width  # [.., heads, 3, width]
    if features != heads * width:
        return pair  # [.., 3, heads, width], or split before the reshape
    if width % 3 == 0 and _cuts_last_axis(flow):
        return heads, width // 3  # [.., heads, 3 * width]
    return None  # queries and keys are different entries of one axis of heads


def _cuts_last_axis(flow: Flow) -> bool:
    for node in flow.nodes:
        if node.op_type == "Split":
            return integer(node, "axis") in (-1, 3)
        if node.op_type == "Slice" and len(node.inputs) > 3:
            axes = stored_weight(node.inputs[3])
            return axes is not None and _integers(axes) in ([-1], [3])
    return False


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
    known = stored_weight(shape)
    if known is not None:
        return _entries(known)
    node = shape.producer()
    while node is not None and node.op_type == "Cast" and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    if node is None or node.op_type != "Concat":
        return None
    entries: list[int | None] = []
    for part in node.inputs:
        known = stored_weight(part)
        entries.extend([None] if known is None else _entries(known))
    return entries


def _entries(value: ir.Value) -> list[int | None]:
    return [size if size > 0 else None for size in _integers(value)]


def _integers(value: ir.Value) -> list[int]:
    return [int(size) for size in read_weight(value).reshape(-1)]


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
