"""Fused attention operators: value channels in, the same channels of each query head out.

The result of query head h is Σ_t p_t v_t of its key-value head, channel by channel, so channels
of one key-value head may change places when those of all its query heads do, and channels of
different heads may not.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.graph.site_slots import integer
from onnxq.passes.channel_labels import FIXED, Labels, Leave, Link, named
from onnxq.passes.channel_region import Region
from onnxq.passes.channel_views import dims_of

__all__ = ["ATTENTION", "follow_attention"]

ATTENTION = frozenset(["GroupQueryAttention", "MultiHeadAttention", "Attention"])
"""The operators that `follow_attention` knows."""

_PAST = {"GroupQueryAttention": 4, "MultiHeadAttention": 7, "Attention": 5}
"""At which input each reads the values of the tokens before."""


def follow_attention(region: Region, node: ir.Node, value: ir.Value, labels: Labels) -> None:
    """Carry value channels over a fused attention operator.

    Raises:
        Leave: the channels are of queries or keys, or a cache outside of the model holds them.
    """
    if node.op_type == "Attention" and node.domain == "com.microsoft":
        _with_own_weight(region, node, value, labels)
        return
    packed = node.inputs[1] is None
    values, out = node.inputs[0 if packed else 2], node.outputs[0]
    if value not in (values, out) or values is None:
        raise Leave(f"{named(node)} takes products of them: they are channels of queries or keys")
    _no_cache(region, node, _PAST[node.op_type])
    sizes = dims_of(values)
    if sizes is not None and len(sizes) == 4 and node.op_type == "Attention":
        _by_head(region, node, value, labels)
        return
    if labels.axes != (-1,):
        raise Leave(f"{named(node)} sees them along other axes than the last")
    heads, kv_heads = _heads(node)
    width, start, whole = _layout(node, values, value is out, labels.ids.size, packed)
    if packed and value is values and np.any(labels.ids[: whole - kv_heads * width] != FIXED):
        raise Leave(f"{named(node)} takes products of them: they are channels of queries or keys")
    of_head = np.arange(heads) // (heads // kv_heads)
    index = (start + of_head[:, None] * width + np.arange(width)).reshape(-1)
    region.link(node, Link(values, (-1,), (whole,), out, (-1,), (heads * width,), index))
    region.hold(out, -1, width)
    if node.op_type == "MultiHeadAttention" and len(node.inputs) > 3 and node.inputs[3]:
        _bias(region, node, 3, region.labels[values])


def _by_head(region: Region, node: ir.Node, value: ir.Value, labels: Labels) -> None:
    """Values [batch, kv heads, tokens, width], results [batch, heads, tokens, width]."""
    query, values, out = node.inputs[0], node.inputs[2], node.outputs[0]
    wide = dims_of(query) if query is not None else None
    narrow = dims_of(values) if values is not None else None
    heads, kv_heads = (wide or [None] * 4)[-3], (narrow or [None] * 4)[-3]
    if values is None or not heads or not kv_heads or heads % kv_heads:
        raise Leave(f"{named(node)} does not tell its number of heads")
    if -1 not in labels.axes or -2 in labels.axes:
        raise Leave(f"{named(node)} sees them along other axes than heads and the last")
    width = labels.sizes[-1]
    of_head = np.arange(heads) // (heads // kv_heads)
    index = (of_head[:, None] * width + np.arange(width)).reshape(-1)
    axes = (-3, -1)
    region.link(node, Link(values, axes, (kv_heads, width), out, axes, (heads, width), index))
    region.hold(out, -3)


def _heads(node: ir.Node) -> tuple[int, int]:
    heads = integer(node, "num_heads") or integer(node, "q_num_heads")
    kv_heads = integer(node, "kv_num_heads") or heads
    if not heads or heads % kv_heads:
        raise Leave(f"{named(node)} does not tell its number of heads")
    return heads, kv_heads


def _layout(
    node: ir.Node, values: ir.Value, from_out: bool, size: int, packed: bool
) -> tuple[int, int, int]:
    """Width of a head, where the values begin on the last axis, and the length of that axis."""
    heads, kv_heads = _heads(node)
    if packed and node.op_type != "GroupQueryAttention":
        raise Leave(f"{named(node)} reads queries, keys and values interleaved")
    parts = heads + 2 * kv_heads if packed else kv_heads
    width, rest = divmod(size, heads if from_out else parts)
    sizes = dims_of(values)
    if rest or (sizes is not None and sizes[-1] not in (None, parts * width)):
        raise Leave(f"{named(node)} gives values another width than its result")
    if sizes is not None and len(sizes) != 3:
        raise Leave(f"{named(node)} reads values of {len(sizes)} axes")
    return width, (heads + kv_heads) * width if packed else 0, parts * width


def _no_cache(region: Region, node: ir.Node, past: int) -> None:
    """A cache outside of the model would hold the channels in their new order."""
    if region.options.permute_cache:
        return
    present = node.outputs[2 if node.op_type != "Attention" or node.domain == "" else 1 :][:1]
    shown = [out for out in present if out.uses() or out.is_graph_output()]
    read = [node.inputs[past]] if len(node.inputs) > past and node.inputs[past] else []
    for value in (*shown, *read):
        if value is not None:
            raise Leave(
                f"{named(node)} keeps them in the cache {value.name!r}, which callers see: set "
                f"{region.options.cache_option} if it is only ever fed back"
            )


def _with_own_weight(region: Region, node: ir.Node, value: ir.Value, labels: Labels) -> None:
    """com.microsoft Attention holds the weight [in, q + k + v] and the bias [q + k + v]."""
    site = region.site_of(node)
    if site is None or site.weight is None or site.already or site.refusal:
        raise Leave(f"{named(node)} is on their way, and its weight cannot be changed")
    if labels.axes != (-1,):
        raise Leave(f"{named(node)} sees them along other axes than the last")
    if value is node.inputs[0]:
        inner = Labels((site.in_axis,), labels.ids)
        region.weights.ask_stored(site.weight, node, site.weight_index, "in", inner)
        region.read(site, -1)
        return
    if value is not node.outputs[0]:
        raise Leave(f"{named(node)} takes products of them")
    _no_cache(region, node, 4)
    heads, columns = integer(node, "num_heads"), site.shape[site.out_axis]
    size = labels.ids.size
    if not heads or size % heads or columns < size:
        raise Leave(f"{named(node)} does not tell its number of heads")
    ids = np.full(columns, FIXED, dtype=np.int64)
    ids[columns - size :] = labels.ids
    region.weights.ask_stored(
        site.weight, node, site.weight_index, "out", Labels((site.out_axis,), ids)
    )
    region.hold(value, -1, size // heads)
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        region.weights.ask(node, 2, "bias", Labels((-1,), ids))


def _bias(region: Region, node: ir.Node, index: int, labels: Labels) -> None:
    """One bias for queries, keys and values, in this order."""
    bias = node.inputs[index]
    sizes = dims_of(bias) if bias is not None else None
    if sizes is None or len(sizes) != 1 or sizes[0] is None:
        raise Leave(f"{named(node)} computes its bias")
    ids = np.full(sizes[0], FIXED, dtype=np.int64)
    ids[sizes[0] - labels.ids.size :] = labels.ids
    region.weights.ask(node, index, "bias", Labels((-1,), ids))
