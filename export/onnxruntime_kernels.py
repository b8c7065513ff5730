"""Which kernel ONNX Runtime runs for each site: read off its optimized graph and its profile.

Names change on the way: a fused node keeps the name of the MatMul, Gemm or Conv it is made of, or
gets a new one; then the stored weight tells it (also under the name of its transposed or repacked
copy), or the value that it computes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import onnx_ir as ir

from onnxq.graph import Site
from onnxq.graph.walk import walk_nodes
from onnxq.runtime.optimized import OptimizedModel

__all__ = ["KernelIndex"]

_FUSED_NAME = re.compile(r"(/MatMulAddFusion|_token_\d+|/duplicated)(_?\d+)?$")
_COPY = re.compile(r"(_T|_transposed|_quantized|_weight_q|_reordered)?(_token_\d+|_\d+)*$")
_PASSED = ("DequantizeLinear", "Transpose", "Cast", "ReorderInput", "Identity", "Reshape")
_RENAMED = {
    "FusedMatMul": "MatMul",
    "FusedGemm": "Gemm",
    "FusedConv": "Conv",
    "NhwcFusedConv": "Conv",
}
_STEPS = 6


class KernelIndex:
    """Finds sites in an optimized graph."""

    def __init__(self, optimized: OptimizedModel) -> None:
        """Index the nodes by name, by stored weight and by output."""
        self._ran = optimized.ran or {}
        self._by_name: dict[str, ir.Node] = {}
        self._by_weight: dict[str, list[ir.Node]] = {}
        self._by_output: dict[str, ir.Node] = {}
        for _, node in walk_nodes(optimized.model):
            name = _FUSED_NAME.sub("", node.name or "")
            if node.op_type not in _PASSED and node.op_type != "QuantizeLinear":
                self._by_name.setdefault(name, node)
            for value in node.outputs:
                self._by_output[value.name or ""] = node
            for source in node.inputs:
                if source is not None and source.producer() is None and source.name:
                    readers = self._by_weight.setdefault(source.name, [])
                    readers.extend(_readers(node))

    def kernel(self, site: Site) -> str | None:
        """What runs for a site, None when it is not found.

        ``DequantizeLinear`` stands before the operator when it dequantizes the weight on every run.
        """
        node = self._find(site)
        if node is None:
            return None
        return self.describe(node)

    def describe(self, node: ir.Node) -> str:
        """The operator of a node of the optimized graph, as the profile has it."""
        kind = self._ran.get(node.name or "", node.op_type)
        kind = _RENAMED.get(kind, kind)
        if any(_is_dequantized(value) for value in node.inputs[:2]):
            return f"DequantizeLinear, {kind}"
        return kind

    def named(self, name: str) -> ir.Node | None:
        """The node of a name."""
        return self._by_name.get(name)

    def _find(self, site: Site) -> ir.Node | None:
        node = self._by_name.get(site.node.name or "")
        if node is not None:
            return node
        mine = self._weight_readers(site)
        if len(mine) == 1:
            return mine[0]
        return self._by_value(site) or (mine[0] if mine else None)

    def _weight_readers(self, site: Site) -> Sequence[ir.Node]:
        if site.weight is None or not site.weight.name:
            return ()
        exact = self._by_weight.get(site.weight.name)
        if exact:
            return list(dict.fromkeys(exact))
        found = [
            node
            for name, nodes in self._by_weight.items()
            if name.startswith(site.weight.name) and _COPY.fullmatch(name, len(site.weight.name))
            for node in nodes
        ]
        return list(dict.fromkeys(found))

    def _by_value(self, site: Site) -> ir.Node | None:
        """The node that computes the first known value behind the site."""
        value: ir.Value | None = site.output
        for _ in range(_STEPS):
            if value is None:
                return None
            node = self._by_output.get(value.name or "")
            if node is not None:
                return _before_moves(node)
            uses = list(value.uses())
            value = uses[0].node.outputs[0] if len(uses) == 1 else None
        return None


def _readers(node: ir.Node, depth: int = 4) -> Iterator[ir.Node]:
    """The node itself, or those behind it when it only passes values on."""
    if node.op_type not in _PASSED or depth == 0:
        yield node
        return
    for use in node.outputs[0].uses():
        yield from _readers(use.node, depth - 1)


def _before_moves(node: ir.Node) -> ir.Node:
    while node.op_type in ("Reshape", "Transpose", "ReorderOutput", "Identity"):
        producer = None if node.inputs[0] is None else node.inputs[0].producer()
        if producer is None:
            return node
        node = producer
    return node


def _is_dequantized(value: ir.Value | None, depth: int = 4) -> bool:
    """Whether a value comes from stored codes, dequantized on every run."""
    producer = None if value is None else value.producer()
    if producer is None or depth == 0 or producer.op_type not in _PASSED:
        return False
    source = producer.inputs[0]
    if producer.op_type == "DequantizeLinear":
        return source is not None and source.producer() is None and not source.is_graph_input()
    return _is_dequantized(source, depth - 1)
