"""The language head: the layer that gives one number for each token of a vocabulary.

Exporters name it ``lm_head``, ``logits``, ``MatMul_142`` or not at all, so it is found by where it
stands: a graph output is what it gives, or follows from it over operators that move, scale or cap
values, and it has as many outputs as a table that the model looks up has rows.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxq.graph.sites import Site, find_sites
from onnxq.graph.weights import is_weight

__all__ = ["language_heads"]

_AFTER = frozenset(
    ["Add", "Cast", "Concat", "Div", "Gather", "GatherND", "Identity", "LogSoftmax", "Mul",
     "Reshape", "Slice", "Softmax", "Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze"]
)  # fmt: skip
"""Operators between a head and an output: biases, masks, caps, probabilities, the last token."""

_LEAST_TOKENS = 64
"""Smaller tables hold kinds of tokens, such as the two of BERT, and no vocabulary."""

_FACTOR = 8
"""Without a table (a decoder may be given embeddings): more outputs than this times the inputs."""


def language_heads(model: ir.Model) -> list[Site]:
    """The sites that give logits over a vocabulary; most models have one or none.

    A part of a vocabulary that is split over several layers is not recognised.
    """
    sites = find_sites(model)
    tables = {s.shape[s.out_axis] for s in sites if s.is_embedding and len(s.shape) == 2}
    by_node = {site.node: site for site in sites if not site.is_embedding}
    return [site for site in _last_sites(model, by_node) if _gives_tokens(site, tables)]


def _gives_tokens(site: Site, tables: set[int]) -> bool:
    if site.kind not in ("MatMul", "Gemm", "MatMulNBits") or len(site.shape) < 2:
        return False
    outputs, inputs = site.shape[site.out_axis], site.shape[site.in_axis]
    if tables:
        return outputs >= _LEAST_TOKENS and outputs in tables
    return outputs > _FACTOR * inputs


def _last_sites(model: ir.Model, by_node: dict[ir.Node, Site]) -> list[Site]:
    """Sites from which an output follows without another site between, in order of the outputs."""
    found: dict[ir.Node, Site] = {}
    pending = [output.producer() for output in reversed(model.graph.outputs)]
    seen: set[ir.Node] = set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in by_node:
            found[node] = by_node[node]
        elif node.domain in ("", "ai.onnx") and node.op_type in _AFTER:
            pending += [v.producer() for v in node.inputs if v is not None and not is_weight(v)]
    return list(found.values())
