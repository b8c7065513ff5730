"""Walk every graph and node of a model: main graph, bodies of If, Loop and Scan, functions.

A path says where a graph is: ``""`` for the main graph, ``"node/attribute"`` for a body (joined
by ``/`` when nested deeper), ``"domain::name"`` for a function. Two graphs never share a path
when node names are unique, which `onnxq.graph.load` sees to.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

__all__ = [
    "OPERATOR_DOMAIN",
    "bodies",
    "function_path",
    "is_operator_body",
    "site_name",
    "walk_bodies",
    "walk_graphs",
    "walk_nodes",
]

OPERATOR_DOMAIN = "onnxq"
"""The domain of onnxq's own operators; a model carries their meaning as functions."""


def walk_graphs(model: ir.Model) -> Iterator[tuple[str, ir.Graph | ir.Function]]:
    """Yield ``(path, graph)``: the main graph, then its bodies, then each function and its bodies.

    An outer graph always comes before the bodies inside it.
    """
    yield from walk_bodies("", model.graph)
    for function in model.functions.values():
        yield from walk_bodies(function_path(function), function)


def walk_nodes(model: ir.Model) -> Iterator[tuple[str, ir.Node]]:
    """Yield ``(path of the graph it is in, node)`` for every node of the model.

    The nodes of each graph are listed before they are yielded, so the caller may edit the graph.
    """
    for path, graph in walk_graphs(model):
        for node in tuple(graph):
            yield path, node


def bodies(node: ir.Node) -> Iterator[tuple[str, ir.Graph]]:
    """Yield ``(attribute name, graph)`` for the bodies of an If, Loop, Scan or SequenceMap."""
    for name, attribute in node.attributes.items():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            yield name, attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            for index, graph in enumerate(attribute.as_graphs()):
                yield f"{name}[{index}]", graph


def function_path(function: ir.Function) -> str:
    """``domain::name``, with ``:overload`` when there is one."""
    overload = f":{function.overload}" if function.overload else ""
    return f"{function.domain}::{function.name}{overload}"


def is_operator_body(path: str) -> bool:
    """Whether a graph is in the function of one of onnxq's operators: its meaning, no network."""
    return path.startswith(f"{OPERATOR_DOMAIN}::")


def site_name(path: str, node: ir.Node) -> str:
    """The node's name with the path of its graph before it, unique in the model."""
    name = node.name or node.op_type
    return f"{path}/{name}" if path else name


def walk_bodies(
    path: str, graph: ir.Graph | ir.Function
) -> Iterator[tuple[str, ir.Graph | ir.Function]]:
    """Yield the graph itself under ``path``, then every body inside it."""
    yield path, graph
    for node in graph:
        for name, body in bodies(node):
            inner = f"{node.name or node.op_type}/{name}"
            yield from walk_bodies(f"{path}/{inner}" if path else inner, body)
