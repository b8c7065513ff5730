"""Match small expressions in a graph, check that nothing else reads inside, and replace them.

A pattern is an expression of `Op`, `Any`, `Number` and `Either`, matched backwards from a value
over its producers. Two-operand Add and Mul are tried in both orders. The nodes of a match lie in
one graph (main, body or function); what it reads may come from outside.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any as AnyValue

import onnx_ir as ir

from onnxq.errors import UnsupportedGraph
from onnxq.graph.walk import site_name, walk_nodes
from onnxq.graph.weights import is_weight, read_weight, weight_tensor
from onnxq.passes.base import PassReport, SiteReport

__all__ = [
    "Any",
    "Either",
    "Found",
    "Number",
    "Op",
    "as_number",
    "find",
    "fuse_sites",
    "home_of",
    "read_elsewhere",
    "replace",
    "take_place",
]

_COMMUTE = frozenset(["Add", "Mul", "And", "Max", "Min"])


@dataclasses.dataclass(frozen=True)
class Any:
    """Any value; the same name must be the same value everywhere in the pattern."""

    name: str


@dataclasses.dataclass(frozen=True)
class Number:
    """A constant of one element, equal to ``value`` up to float32 rounding."""

    value: float


@dataclasses.dataclass(frozen=True)
class Op:
    """A node by its type and inputs; more inputs than named match too.

    Attributes:
        op_type: operator of the standard domain.
        inputs: one pattern for each of the first inputs.
        name: name to find the node by in `Found.nodes`.
    """

    op_type: str
    inputs: tuple[Pattern, ...]
    name: str | None = None


@dataclasses.dataclass(frozen=True)
class Either:
    """The first of the patterns that matches."""

    patterns: tuple[Pattern, ...]


Pattern = Any | Number | Op | Either


@dataclasses.dataclass(frozen=True)
class Found:
    """A match: the values bound by name, the named nodes, and all nodes, root first."""

    root: ir.Node
    values: Mapping[str, ir.Value] = dataclasses.field(default_factory=dict)
    nodes: Mapping[str, ir.Node] = dataclasses.field(default_factory=dict)
    inside: tuple[ir.Node, ...] = ()

    def extend(self, *nodes: ir.Node) -> Found:
        """The same match with readers of its root taken in; the last is the new root."""
        return dataclasses.replace(self, root=nodes[-1], inside=(*self.inside, *nodes))


def find(node: ir.Node, pattern: Pattern) -> Found | None:
    """The first match of ``pattern`` with ``node`` as its root."""
    return next(_match(node.outputs[0], pattern, Found(root=node)), None)


def as_number(value: ir.Value | None) -> float | None:
    """The content of a constant of one element; None when it is anything else."""
    if value is None or not is_weight(value):
        return None
    tensor = weight_tensor(value)
    if tensor.size != 1 or tensor.dtype in (ir.DataType.STRING, ir.DataType.BOOL):
        return None
    return float(read_weight(value).reshape(-1)[0])


def read_elsewhere(found: Found) -> str | None:
    """Why the inner values of a match must stay: a graph output, or a reader outside of it."""
    members = set(found.inside)
    for node in found.inside:
        if node is found.root:
            continue
        for value in node.outputs:
            if value.is_graph_output():
                return f"its {node.op_type} output {value.name!r} is also a graph output"
            for reader in value.consumers():
                if reader not in members:
                    return (
                        f"its {node.op_type} output {value.name!r} is also read by "
                        f"{reader.op_type} {reader.name!r}"
                    )
    return None


def replace(
    found: Found,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, AnyValue],
    *,
    domain: str = "",
) -> ir.Node:
    """Put one node in the place of a match; its output keeps name, shape, type and metadata."""
    old, graph = found.root.outputs[0], found.root.graph
    node = ir.node(op_type, list(inputs), dict(attributes), domain=domain, name=found.root.name)
    new = node.outputs[0]
    name, old.name = old.name, None
    new.name, new.shape, new.type, new.doc_string = name, old.shape, old.type, old.doc_string
    new.metadata_props.update(old.metadata_props)
    new.meta.update(old.meta)
    node.metadata_props.update(found.root.metadata_props)
    if graph is not None:
        graph.insert_before(found.root, node)
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    _remove_unread(found.inside)
    return node


def home_of(model: ir.Model, node: ir.Node) -> ir.Graph | ir.Function:
    """Where a weight for the node goes: its graph, or the function whose graph that is.

    The nodes of a function report the graph inside of it, which cannot hold initializers.
    """
    if node.graph is None:
        raise UnsupportedGraph(f"Node {node.name!r} ({node.op_type}) is in no graph.")
    for function in model.functions.values():
        if function.graph is node.graph:
            return function
    return node.graph


def import_domain(model: ir.Model, node: ir.Node) -> None:
    """Declare the domain of a new node where it is used: in the model, or in its function."""
    if node.domain:
        model.opset_imports.setdefault(node.domain, 1)
        for function in model.functions.values():
            if any(member is node for member in function.all_nodes()):
                function.opset_imports.setdefault(node.domain, 1)


def fuse_sites(
    model: ir.Model,
    roots: frozenset[str],
    fuse: Callable[[ir.Node], ir.Node | str | None],
) -> PassReport:
    """Try to fuse at every node of the given types, in all graphs, and collect what happened.

    Args:
        model: changed in place.
        roots: operator types at which ``fuse`` is tried.
        fuse: returns the new node, the reason why a match was left alone, or None for no match.
    """
    sites: list[SiteReport] = []
    for path, node in walk_nodes(model):
        if node.graph is None or node.op_type not in roots or node.domain not in ("", "ai.onnx"):
            continue
        name = site_name(path, node)
        result = fuse(node)
        if isinstance(result, ir.Node):
            import_domain(model, result)
            sites.append(SiteReport(site=name))
        elif result is not None:
            sites.append(SiteReport(site=name, reason=result))
    changed = any(site.reason is None for site in sites)
    return PassReport(modified=changed, sites=tuple(sites))


def _match(value: ir.Value | None, pattern: Pattern, found: Found) -> Iterator[Found]:
    if isinstance(pattern, Either):
        for choice in pattern.patterns:
            yield from _match(value, choice, found)
    elif value is None:
        return
    elif isinstance(pattern, Any):
        bound = found.values.get(pattern.name)
        if bound is None:
            yield dataclasses.replace(found, values={**found.values, pattern.name: value})
        elif bound is value:
            yield found
    elif isinstance(pattern, Number):
        number = as_number(value)
        if number is not None and math.isclose(number, pattern.value, rel_tol=2e-5):
            yield found
    else:
        yield from _match_op(value, pattern, found)


def _match_op(value: ir.Value, pattern: Op, found: Found) -> Iterator[Found]:
    node = value.producer()
    if node is None or node.op_type != pattern.op_type or node.domain not in ("", "ai.onnx"):
        return
    if node.graph is not found.root.graph or len(node.inputs) < len(pattern.inputs):
        return
    if node.outputs[0] is not value:
        return
    inside = found.inside
    if node not in inside:
        inside = (*inside, node)
    nodes = {**found.nodes, pattern.name: node} if pattern.name else found.nodes
    here = dataclasses.replace(found, nodes=nodes, inside=inside)
    yield from _match_all(node.inputs, pattern.inputs, here)
    if pattern.op_type in _COMMUTE and len(pattern.inputs) == 2 == len(node.inputs):
        yield from _match_all(node.inputs, pattern.inputs[::-1], here)


def _match_all(
    values: Sequence[ir.Value | None], patterns: Sequence[Pattern], found: Found
) -> Iterator[Found]:
    if not patterns:
        yield found
        return
    for first in _match(values[0], patterns[0], found):
        yield from _match_all(values[1:], patterns[1:], first)


def _remove_unread(nodes: Sequence[ir.Node]) -> None:
    """Remove the nodes of a match that nothing reads any more, readers before what they read."""
    waiting = list(nodes)
    progress = True
    while waiting and progress:
        progress = False
        for node in tuple(waiting):
            if node.graph is None:
                waiting.remove(node)
            elif not any(value.uses() or value.is_graph_output() for value in node.outputs):
                node.graph.remove(node, safe=True)
                waiting.remove(node)
                progress = True


def take_place(node: ir.Node, new: ir.Value) -> None:
    """Let a new value stand for the output of a node, under its name, and remove the node."""
    old = node.outputs[0]
    name, old.name = old.name, None
    new.name, new.type, new.shape = name, old.type, old.shape
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    if node.graph is not None:
        node.graph.remove(node, safe=True)
