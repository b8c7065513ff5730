"""Where the graphs of two forms of one model differ, told by the values that both compute.

A value that both models compute under one name is a *landmark*. Behind each landmark lies a cone:
the nodes between it and the landmarks, inputs and constants before it. Where the cones of the two
models differ (other operators, other constants) the models differ, and only there::

    reference   x ── MatMul(W) ── y              candidate   x ── MatMulNBits(codes, scales) ── y

Nothing is known here of formats or of quantization: integer products, quantize-dequantize pairs,
operators of onnxq and edits by other tools are all found in the same way. Bodies of If, Loop and
Scan that stand at the same place of both models are compared too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxq.graph import find_sites, is_weight, read_weight, walk_graphs, weight_tensor
from onnxq.graph.walk import bodies, site_name

__all__ = ["Cone", "Difference", "find_differences"]

_STANDARD = ("", "ai.onnx")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cone:
    """The nodes that give a landmark, back to what comes before them.

    Attributes:
        root: the landmark.
        nodes: in graph order.
        boundary: what the nodes read that is computed elsewhere, an input, or of an outer graph.
    """

    root: ir.Value
    nodes: tuple[ir.Node, ...]
    boundary: tuple[ir.Value, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """One place where the candidate computes otherwise than the reference.

    Attributes:
        name: of the site of the reference that lies there, else of the node.
        is_site: whether it is a site: a weight that acts as a linear map.
        graph: the graph of the reference that it is in.
        visible: values of the reference that this graph can read, by name.
        pairs: cones in the reference and in the candidate that give the same values.
        reason: why the one cannot stand in for the other; None when it can.
    """

    name: str
    is_site: bool
    graph: ir.Graph
    visible: Mapping[str, ir.Value]
    pairs: tuple[tuple[Cone, Cone], ...]
    reason: str | None = None


def find_differences(reference: ir.Model, candidate: ir.Model) -> list[Difference]:
    """Every place where two forms of one model differ, in graph order of the reference.

    Args:
        reference: the model to measure against; left as it is.
        candidate: another form of it, with the names of values kept where they are the same.
    """
    names = _names(reference)
    theirs = dict(walk_graphs(candidate))
    outer: dict[ir.Graph | ir.Function, dict[str, ir.Value]] = {}
    found: list[Difference] = []
    for path, graph in walk_graphs(reference):
        own = {value.name or "": value for value in graph.inputs}
        visible = {**outer.get(graph, {}), **own, **_computed(graph)}
        outer.update((body, visible) for node in graph for _, body in bodies(node))
        other = theirs.get(path)
        if isinstance(graph, ir.Graph) and isinstance(other, ir.Graph):
            found += _graph_differences(path, graph, other, names, visible)
    return found


def _names(model: ir.Model) -> dict[ir.Node, tuple[str, bool]]:
    """What to call the nodes of sites, and of the additions of their biases."""
    names: dict[ir.Node, tuple[str, bool]] = {}
    for site in find_sites(model):
        for node in (site.node, site.bias_node):
            if node is not None:
                names.setdefault(node, (site.name, site.weight is not None))
    return names


def _graph_differences(
    path: str,
    graph: ir.Graph,
    other: ir.Graph,
    names: dict[ir.Node, tuple[str, bool]],
    visible: Mapping[str, ir.Value],
) -> Iterator[Difference]:
    """Differences of one graph; ``visible`` are the values it can read, of outer graphs too."""
    ours, theirs = _computed(graph), _computed(other)
    common = ours.keys() & theirs.keys()
    found: dict[tuple[str, bool], list[tuple[Cone, Cone]]] = {}
    for name, value in ours.items():
        if name not in common:
            continue
        pair = _cone(value, graph, common), _cone(theirs[name], other, common)
        if not _same_result(value, theirs[name], pair, common):
            found.setdefault(_label(path, pair[0], names), []).append(pair)
    for (name, is_site), pairs in found.items():
        yield Difference(
            name=name,
            is_site=is_site,
            graph=graph,
            visible=visible,
            pairs=tuple(pairs),
            reason=_refusal(pairs, visible),
        )


def _computed(graph: ir.Graph | ir.Function) -> dict[str, ir.Value]:
    """Values that nodes of the graph compute from what they are given, by name."""
    return {
        value.name: value
        for node in graph
        for value in node.outputs
        if value.name and not is_weight(value)
    }


def _cone(root: ir.Value, graph: ir.Graph, common: set[str]) -> Cone:
    nodes: set[ir.Node] = set()
    boundary: dict[ir.Value, None] = {}
    waiting = [root]
    while waiting:
        node = waiting.pop().producer()
        if node is None or node in nodes:
            continue
        nodes.add(node)
        for value in node.inputs:
            if value is None or is_weight(value):
                continue
            producer = value.producer()
            if producer is None or producer.graph is not graph or value.name in common:
                boundary[value] = None
            else:
                waiting.append(value)
    ordered = tuple(nodes) if len(nodes) == 1 else tuple(node for node in graph if node in nodes)
    return Cone(root=root, nodes=ordered, boundary=tuple(boundary))


def _label(path: str, cone: Cone, names: dict[ir.Node, tuple[str, bool]]) -> tuple[str, bool]:
    known = [names[node] for node in cone.nodes if node in names]
    return known[0] if known else (site_name(path, cone.nodes[-1]), False)


def _refusal(pairs: Sequence[tuple[Cone, Cone]], visible: Collection[str]) -> str | None:
    for ours, theirs in pairs:
        if any(next(bodies(node), None) for node in (*ours.nodes, *theirs.nodes)):
            return "it holds a body (If, Loop or Scan) that is not the same in both models"
        for value in theirs.boundary:
            if value.name not in visible:
                return f"the candidate reads {value.name!r} there, which the reference has not"
        types = {cone.root.dtype for cone in (ours, theirs)} - {None}
        if len(types) > 1:
            first, second = ours.root.dtype, theirs.root.dtype
            return f"it gives {first} in the reference and {second} in the candidate"
    return None


def _same_result(
    first: ir.Value, second: ir.Value, cones: tuple[Cone, Cone], common: set[str]
) -> bool:
    """Whether two cones compute the same, by operators and constants."""
    if len(cones[0].nodes) != len(cones[1].nodes):
        return False
    return _same_node(first, second, common)


def _same_value(first: ir.Value | None, second: ir.Value | None, common: set[str]) -> bool:
    if first is None or second is None:
        return first is second
    if is_weight(first) or is_weight(second):
        return is_weight(first) and is_weight(second) and _same_content(first, second)
    if first.name == second.name:  # a landmark, an input, or a value of an outer graph
        return True
    if first.name in common or second.name in common:
        return False
    return _same_node(first, second, common)


def _same_node(first: ir.Value, second: ir.Value, common: set[str]) -> bool:
    ours, theirs = first.producer(), second.producer()
    if ours is None or theirs is None:
        return False
    alike = (
        ours.op_type == theirs.op_type
        and (ours.domain == theirs.domain or {ours.domain, theirs.domain} <= {*_STANDARD})
        and first.index() == second.index()
        and len(ours.inputs) == len(theirs.inputs)
        and _attributes(ours) == _attributes(theirs)
    )
    pairs = zip(ours.inputs, theirs.inputs, strict=False)
    return alike and all(_same_value(a, b, common) for a, b in pairs)


def _attributes(node: ir.Node) -> dict[str, str]:
    """Attributes as text; bodies are compared on their own."""
    inner = {name.partition("[")[0] for name, _ in bodies(node)}
    return {
        name: str(attribute.value)
        for name, attribute in node.attributes.items()
        if name not in inner
    }


def _same_content(first: ir.Value, second: ir.Value) -> bool:
    ours, theirs = weight_tensor(first), weight_tensor(second)
    if ours is theirs:
        return True
    if ours.dtype != theirs.dtype or tuple(ours.shape.numpy()) != tuple(theirs.shape.numpy()):
        return False
    return bool(np.array_equal(read_weight(first), read_weight(second)))
