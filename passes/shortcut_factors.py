"""A constant factor in front of everything but linear layers that reads what a norm gives.

Behind a norm of a post-norm network the layers and the shortcut read the same activation::

    n = norm(x),   y = n + f(W n)        →        n = norm(x),   y = n · 1 + f(W n)

With the factor, a scale moved from n into W can be taken back on the shortcut, (n / s) · s, at the
cost of one product for each element. Wei et al., "Outlier Suppression" (arXiv:2209.13325), moves
the scale of the norm itself in this way.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.graph.names import unique_value_name
from onnxq.graph.topology import Topology
from onnxq.graph.weights import add_weight, read_weight, weight_tensor
from onnxq.passes.match import home_of

__all__ = ["add_shortcut_factors", "drop_unused_factors"]

_LINEAR = frozenset(["MatMul", "Gemm"])
_VIEWS = frozenset(["Shape", "Size"])


def add_shortcut_factors(model: ir.Model) -> list[ir.Node]:
    """Multiply what norms give to others than linear layers by a constant vector of ones.

    Norms that only layers, or only others, read are left alone, and those whose result is a graph
    output or is read inside a body.
    """
    topology = Topology(model)
    by_input = {site.node for site in topology.sites if site.kind in _LINEAR and not site.path}
    added = []
    for norm in topology.norms:
        value, scale = norm.output, norm.scale
        graph = norm.nodes[0].graph
        readers = list(value.consumers())
        others = [node for node in readers if node not in by_input and node.op_type not in _VIEWS]
        apart = any(node.graph is not graph for node in readers)
        if scale is None or len(others) == len(readers) or not others:
            continue
        if value.is_graph_output() or apart or not isinstance(graph, ir.Graph):
            continue
        if any(node.op_type == "Mul" and _constant(node) is not None for node in others):
            continue  # it has such a factor
        added.append(_add(model, norm.output, scale, others))
    return added


def drop_unused_factors(nodes: list[ir.Node]) -> int:
    """Take the factors away again that are still ones; returns how many are left."""
    left = 0
    for node in nodes:
        value, constant = node.inputs[0], node.inputs[1]
        if constant is None or value is None or not bool(np.all(read_weight(constant) == 1)):
            left += 1
            continue
        node.outputs[0].replace_all_uses_with(value)
        if node.graph is not None:
            node.graph.remove(node, safe=True)
        if isinstance(constant.graph, ir.Graph):
            constant.graph.initializers.pop(constant.name or "", None)
    return left


def _add(model: ir.Model, value: ir.Value, scale: ir.Value, others: list[ir.Node]) -> ir.Node:
    tensor = weight_tensor(scale)
    size, dtype = int(tensor.size), value.dtype or tensor.dtype
    graph = others[0].graph
    if graph is None:
        raise ValueError(f"{others[0].name!r} is in no graph")
    ones = add_weight(
        home_of(model, others[0]), f"{value.name}_shortcut_scale", shape=[size], dtype=dtype,
        compute=np.ones(size, dtype.numpy()),
    )  # fmt: skip
    node = ir.node("Mul", [value, ones])
    output = node.outputs[0]
    output.name = unique_value_name(graph, f"{value.name}_shortcut")
    node.name = output.name
    output.type, output.shape = value.type, value.shape
    for use in tuple(value.uses()):
        if use.node in others:
            use.node.replace_input_with(use.idx, output)
    producer = value.producer()
    if producer is not None:
        graph.insert_after(producer, node)
    return node


def _constant(node: ir.Node) -> ir.Value | None:
    return next((v for v in node.inputs if v is not None and v.is_initializer()), None)
