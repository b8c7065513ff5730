"""Stored weights as values of the graph, and nodes of a site replaced: what all forms share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from onnxq.graph.scratch import Scratch
from onnxq.graph.sites import Site
from onnxq.graph.weights import add_weight
from onnxq.passes.weight_layout import Array, Stored, weight_of, weight_type

__all__ = [
    "Encoded",
    "cast_scales",
    "epilogue",
    "graph_of",
    "insert_early",
    "nbytes_of",
    "replace_site",
    "store_array",
    "store_arrays",
]


@dataclasses.dataclass(frozen=True)
class Encoded:
    """The stored values of one weight in one form, and what they cost.

    Attributes:
        values: by name of the array.
        nbytes: of all of them.
        error: ‖W − Ŵ‖ / ‖W‖.
        elements: of the weight.
    """

    values: Mapping[str, ir.Value]
    nbytes: int
    error: float
    elements: int


def store_arrays(
    site: Site, label: str, stored: Stored, scratch: Scratch, *, elements: int, error: float
) -> Encoded:
    """Put arrays into the graph of the weight of a site; large ones go to ``scratch``.

    Args:
        site: the site whose weight they stand for.
        label: of the format, for the names.
        stored: arrays and their types by name.
        scratch: where their bytes are kept.
        elements: of the weight.
        error: ‖W − Ŵ‖ / ‖W‖.
    """
    graph, weight = graph_of(site), weight_of(site)
    values: dict[str, ir.Value] = {}
    nbytes = 0
    for what, (array, dtype) in stored.items():
        values[what] = store_array(graph, f"{weight.name}_{label}_{what}", array, dtype, scratch)
        nbytes += nbytes_of(values[what])
    return Encoded(values, nbytes, error, elements)


def store_array(
    graph: ir.Graph, name: str, array: Array, dtype: ir.DataType, scratch: Scratch
) -> ir.Value:
    """Put an array into a graph; its bytes go to ``scratch`` when they are many."""
    value = add_weight(graph, name, shape=array.shape, dtype=dtype, compute=array)
    tensor = scratch.keep(array, dtype)
    tensor.name = value.name
    value.const_value = tensor
    return value


def nbytes_of(value: ir.Value) -> int:
    """Bytes of a stored value."""
    return 0 if value.const_value is None else value.const_value.nbytes


def cast_scales(site: Site, scales: ir.Value) -> ir.Value:
    """Scales stored in fewer bits than the model computes in; runtimes fold the Cast."""
    if scales.dtype == weight_type(site):
        return scales
    node = ir.node("Cast", [scales], {"to": weight_type(site)}, name=f"{scales.name}_Cast")
    output = node.outputs[0]
    output.name = f"{node.name}_output"
    output.dtype, output.shape = weight_type(site), scales.shape
    insert_early(graph_of(site), node)
    return output


def epilogue(site: Site, node: ir.Node) -> list[ir.Node]:
    """The nodes that take the place of a Gemm: scaling by alpha and adding beta · c."""
    nodes = [node]
    if site.kind != "Gemm":
        return nodes
    alpha = site.node.attributes.get_float("alpha", 1.0)
    beta = site.node.attributes.get_float("beta", 1.0)
    if alpha != 1.0:
        nodes.append(_scaled(site, node.outputs[0], alpha, "alpha"))
    bias = site.node.inputs[2] if len(site.node.inputs) > 2 else None
    if bias is not None:
        if beta != 1.0:
            nodes.insert(0, _scaled(site, bias, beta, "beta"))
            bias = nodes[0].outputs[0]
        result = nodes[-1].outputs[0]
        nodes.append(ir.node("Add", [result, bias], name=f"{site.node.name}_bias"))
    return nodes


def _scaled(site: Site, value: ir.Value, factor: float, what: str) -> ir.Node:
    dtype = weight_type(site)
    constant = add_weight(
        graph_of(site),
        f"{site.node.name}_{what}",
        shape=(),
        dtype=dtype,
        compute=np.array(factor, dtype.numpy()),
    )
    return ir.node("Mul", [value, constant], name=f"{site.node.name}_times_{what}")


def graph_of(site: Site) -> ir.Graph:
    """The graph new weights and nodes of a site go to: where its weight is, else its own."""
    graph = site.node.graph if site.weight is None else (site.weight.graph or site.node.graph)
    if not isinstance(graph, ir.Graph):
        raise ValueError(f"site {site.name!r} is inside a function")
    return graph


def insert_early(graph: ir.Graph, node: ir.Node) -> None:
    """Put a node that reads stored values at the front, behind what computes its inputs."""
    makers = [value.producer() for value in node.inputs if value is not None]
    behind = [maker for maker in makers if maker is not None]
    if behind:
        graph.insert_after(behind[-1], node)
    else:
        graph.insert_before(next(iter(graph)), node)


def replace_site(site: Site, node: ir.Node, nodes: list[ir.Node]) -> None:
    """Put ``nodes`` where the site's node is; the last one gives its output."""
    old = site.node
    for value, source in zip(nodes[-1].outputs, old.outputs, strict=True):
        value.type, value.shape = source.type, source.shape
    if old.graph is None:
        raise ValueError(f"site {site.name!r} has been removed from its graph")
    ir.convenience.replace_nodes_and_values(
        old.graph, old, [old], nodes, old.outputs, nodes[-1].outputs
    )
