"""Attention blocks: which sites are query, key, value and output projection, and how many heads.

Found from the fused operators (GroupQueryAttention, MultiHeadAttention, Attention) and from
decomposed graphs: a Softmax between two MatMuls of computed values, as torch's exporters,
optimum and paddle2onnx write scaled dot-product attention.
"""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from onnxq.graph.flow import VIEWS, Flow, SiteIndex
from onnxq.graph.heads import Heads, heads_of
from onnxq.graph.site_slots import integer
from onnxq.graph.sites import Site
from onnxq.graph.walk import site_name, walk_nodes

__all__ = ["AttentionBlock", "find_attention"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionBlock:
    """One attention layer.

    Attributes:
        name: of the fused operator or of the Softmax, with its path.
        kind: operator type of the fused operator; ``"decomposed"`` otherwise.
        node: the fused operator, or the Softmax.
        scores: the MatMul of queries and keys; None when fused.
        context: the MatMul of probabilities and values; None when fused.
        q: query projection; None when it was not found.
        k: key projection; the same site as ``q`` when fused. None for keys that are inputs.
        v: value projection, likewise.
        o: output projection; None when the result goes elsewhere.
        heads: number of query heads; None when the graph does not tell.
        kv_heads: number of key and value heads (fewer than ``heads`` in grouped-query attention).
        head_dim: width of one head.
        unknown: what was not found, as a sentence; None when all of it was.
        q_parts: the sites that queries come from: ``q``, or parts of a projection that is split.
        k_parts: likewise for keys.
    """

    name: str
    kind: str
    node: ir.Node
    scores: ir.Node | None
    context: ir.Node | None
    q: Site | None
    k: Site | None
    v: Site | None
    o: Site | None
    heads: int | None
    kv_heads: int | None
    head_dim: int | None
    unknown: str | None
    q_parts: tuple[Site, ...]
    k_parts: tuple[Site, ...]

    @property
    def is_fused_qkv(self) -> bool:
        """Whether one weight gives queries, keys and values."""
        return self.q is not None and self.q is self.k and self.q is self.v

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites of the block, each once, in the order q, k, v, o."""
        return tuple(dict.fromkeys(site for site in (self.q, self.k, self.v, self.o) if site))


_FUSED = frozenset(
    [
        "GroupQueryAttention",
        "MultiHeadAttention",
        "DecoderMaskedMultiHeadAttention",
        "PackedMultiHeadAttention",
        "SparseAttention",
        "PagedAttention",
        "Attention",
        "PackedAttention",
        "DecoderMaskedSelfAttention",
        "QAttention",
    ]
)
_OWN_WEIGHT = frozenset(
    ["Attention", "PackedAttention", "DecoderMaskedSelfAttention", "QAttention"]
)

_ROTARY = frozenset(
    ["Add", "Sub", "Mul", "Div", "Neg", "Concat", "Slice", "Split", "Gather", "GatherND"]
)
_NORM_STEPS = frozenset(
    [
        "Pow",
        "ReduceMean",
        "ReduceSum",
        "Sqrt",
        "Reciprocal",
        "RMSNormalization",
        "LayerNormalization",
        "SimplifiedLayerNormalization",
        "LpNormalization",
    ]
)
_REPEAT = frozenset(["Expand", "Tile", "Where", "RotaryEmbedding", "Trilu", "ScatterElements"])
_TO_PROJECTION = VIEWS | _ROTARY | _NORM_STEPS | _REPEAT
_TO_SCORES = VIEWS | {"Add", "Mul", "Div", "Sub", "Where", "Tanh", "Clip", "Max", "Slice"}
_FROM_SOFTMAX = VIEWS | {"Where", "Mul", "Slice"}
_TO_OUTPUT = VIEWS | {"Mul", "Slice", "Concat", "Div"} | _NORM_STEPS


def find_attention(model: ir.Model, index: SiteIndex) -> list[AttentionBlock]:
    """List the attention blocks in graph order."""
    blocks = []
    for path, node in walk_nodes(model):
        block = None
        if node.op_type in _FUSED and node.domain in ("", "com.microsoft"):
            block = _fused(path, node, index)
        elif node.op_type == "Softmax":
            block = _decomposed(path, node, index)
        if block is not None:
            blocks.append(block)
    return blocks


def _fused(path: str, node: ir.Node, index: SiteIndex) -> AttentionBlock:
    own = index.giving(node.outputs[0]) if node.op_type in _OWN_WEIGHT else None
    values = [node.inputs[i] if i < len(node.inputs) else None for i in range(3)]
    if own is not None:
        nothing = Flow(sites=(own,), nodes=(), ends=())
        flows = [nothing, nothing, nothing]
    else:
        packed = values[1] is None
        flows = [index.back(values[0] if packed else value, _TO_PROJECTION) for value in values]
    heads = integer(node, "num_heads") or integer(node, "q_num_heads")
    kv_heads = integer(node, "kv_num_heads") or heads
    read = heads_of([_only(flow) for flow in flows], flows, values)
    if heads:
        read = Heads(heads=heads, kv_heads=kv_heads, head_dim=None)
    return _block(path, node, node.op_type, flows, read, index, node.outputs[0], (None, None))


def _decomposed(path: str, softmax: ir.Node, index: SiteIndex) -> AttentionBlock | None:
    scores = _matmul_before(softmax.inputs[0])
    after = _matmul_after(softmax.outputs[0])
    if scores is None or after is None:
        return None
    context, at = after
    query, key = scores.inputs[0], scores.inputs[1]
    if at == 1:
        query, key = key, query
    values = [query, key, context.inputs[1 - at]]
    flows = [index.back(value, _TO_PROJECTION) for value in values]
    if not any(flow.sites for flow in flows):
        return None
    read = heads_of([_only(flow) for flow in flows], flows, values)
    result = context.outputs[0]
    return _block(path, softmax, "decomposed", flows, read, index, result, (scores, context))


def _block(
    path: str,
    node: ir.Node,
    kind: str,
    flows: list[Flow],
    read: Heads,
    index: SiteIndex,
    result: ir.Value,
    products: tuple[ir.Node | None, ir.Node | None],
) -> AttentionBlock:
    q, k, v = (_only(flow) for flow in flows)
    o = index.forward(result, _TO_OUTPUT)
    read = read.filled_from(q, k, v)
    return AttentionBlock(
        name=site_name(path, node),
        kind=kind,
        node=node,
        scores=products[0],
        context=products[1],
        q=q,
        k=k,
        v=v,
        o=o,
        heads=read.heads,
        kv_heads=read.kv_heads,
        head_dim=read.head_dim,
        unknown=_unknown(flows, o, read),
        q_parts=flows[0].sites,
        k_parts=flows[1].sites,
    )


def _only(flow: Flow) -> Site | None:
    return flow.sites[0] if len(flow.sites) == 1 else None


def _unknown(flows: list[Flow], o: Site | None, read: Heads) -> str | None:
    missing = []
    for role, flow in zip(("query", "key", "value"), flows, strict=True):
        if len(flow.sites) > 1:
            missing.append(f"the {role} comes from {len(flow.sites)} projections")
        elif not flow.sites:
            where = flow.ends[0].name if flow.ends else "a constant"
            missing.append(f"the {role} has no projection: it comes from {where!r}")
    if o is None:
        missing.append("no projection reads its result")
    if read.heads is None or read.head_dim is None:
        missing.append("the number of heads is not in the graph")
    return "; ".join(missing) or None


def _matmul_before(value: ir.Value | None) -> ir.Node | None:
    """The MatMul whose result, scaled and masked, is ``value``."""
    queue, seen = [value], 0
    while queue and seen < 40:
        here = queue.pop(0)
        seen += 1
        node = None if here is None else here.producer()
        if node is None:
            continue
        if node.op_type in ("MatMul", "FusedMatMul"):
            return node
        if node.op_type in _TO_SCORES:
            several = node.op_type in ("Add", "Mul", "Div", "Sub", "Where", "Max")
            queue.extend(node.inputs if several else node.inputs[:1])
    return None


def _matmul_after(value: ir.Value) -> tuple[ir.Node, int] | None:
    """The MatMul that multiplies the probabilities, and at which input it reads them."""
    queue, seen = [value], 0
    while queue and seen < 40:
        here = queue.pop(0)
        seen += 1
        for node, at in here.uses():
            if node.op_type in ("MatMul", "FusedMatMul"):
                return node, at
            if node.op_type in _FROM_SOFTMAX:
                queue.append(node.outputs[0])
    return None
