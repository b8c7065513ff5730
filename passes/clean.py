"""Remove what nothing reads, and give everything a name of its own.

Before → after: ``y = Identity(x); z = Relu(y)`` → ``z = Relu(x)``; nodes, weights, functions and
opset imports nobody uses go; small constants with the same content become one; nodes are put in
topological order and values get names that are unique in the model. The names of graph inputs and
outputs never change: callers feed and fetch by them.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from onnxq.graph.check import name_nodes, sort_graphs
from onnxq.graph.stage import Stage
from onnxq.graph.walk import bodies, site_name, walk_graphs, walk_nodes
from onnxq.graph.weights import read_weight
from onnxq.passes.base import Context, Pass, PassReport, Promise, SiteReport

__all__ = ["Clean"]

_SMALL = 64
"""Most elements of a constant that is compared with others: shapes, axes, steps."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clean(Pass):
    """Remove identities, dead nodes, weights, functions and opsets; sort; make names unique.

    Matches: Identity nodes; whatever no output depends on; equal scalars and small integer
        constants of one graph.
    Writes: nothing new. The model is then at stage PREPARED.
    Leaves: an Identity that gives a graph output its name; float weights that happen to be equal,
        because sharing them would tie what a later pass may do to either.
    """

    promise: ClassVar[Promise] = Promise.SAME_BITS
    gives_stage: ClassVar[Stage | None] = Stage.PREPARED

    def call(self, model: ir.Model, context: Context) -> PassReport:
        """Clean in place; the report lists removed nodes, and the identities that had to stay.

        Raises:
            UnsupportedGraph: the graph has a cycle; its nodes are named.
        """
        sites = list(_remove_identities(model))
        present = [(site_name(path, node), node) for path, node in walk_nodes(model)]
        changed = _remove_unused(model)
        sites += [SiteReport(site=name) for name, node in present if node.graph is None]
        sites += [SiteReport(site=name) for name in _merge_constants(model)]
        changed |= sort_graphs(model)
        changed |= name_nodes(model)
        graphs: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
        for graph in graphs:
            changed |= _name_values(graph, set())
        changed |= any(site.reason is None for site in sites)
        return PassReport(modified=changed, sites=tuple(sites))


def _remove_identities(model: ir.Model) -> list[SiteReport]:
    return [
        SiteReport(site=site_name(path, node), reason=_bypass(node))
        for path, node in walk_nodes(model)
        if node.op_type == "Identity" and node.domain in ("", "ai.onnx")
    ]


def _bypass(node: ir.Node) -> str | None:
    """Let readers of an Identity read its input, or say why it must stay."""
    source, output, graph = node.inputs[0], node.outputs[0], node.graph
    if source is None or graph is None:
        return "it has no input"
    if output.is_graph_output():
        reason = _why_named(source, output, graph)
        if reason is not None:
            return reason
        name = output.name
        output.name = None
        source.name = name
    if source.shape is None:
        source.shape = output.shape
    if source.type is None:
        source.type = output.type
    source.metadata_props.update(
        {k: v for k, v in output.metadata_props.items() if k not in source.metadata_props}
    )
    output.replace_all_uses_with(source, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    return None


def _why_named(source: ir.Value, output: ir.Value, graph: ir.Graph | ir.Function) -> str | None:
    """Why an Identity into a graph output cannot be replaced by renaming what it reads."""
    producer = source.producer()
    if producer is None:
        return f"it gives a graph input or weight {source.name!r} the output name {output.name!r}"
    if producer.graph is not graph:
        return f"a body must give its output {output.name!r} itself, not a value from outside"
    if source.is_graph_output():
        return f"what it reads, {source.name!r}, is a graph output under its own name"
    if source.shape is not None and output.shape is not None and source.shape != output.shape:
        return f"the declared shape of {output.name!r} is not that of {source.name!r}"
    return None


def _remove_unused(model: ir.Model) -> bool:
    before = sum(len(graph) for _, graph in walk_graphs(model))
    common.RemoveUnusedNodesPass()(model)
    changed = before != sum(len(graph) for _, graph in walk_graphs(model))
    for _, graph in walk_graphs(model):
        if isinstance(graph, ir.Graph):
            changed |= _remove_unread_weights(graph)
    changed |= bool(_functions()(model).modified)
    changed |= bool(common.RemoveUnusedOpsetsPass()(model).modified)
    return changed


def _functions() -> ir.passes.InPlacePass:
    return common.RemoveUnusedFunctionsPass()  # type: ignore[no-untyped-call]


def _remove_unread_weights(graph: ir.Graph) -> bool:
    unread = [
        name
        for name, value in graph.initializers.items()
        if not (value.uses() or value.is_graph_output() or value.is_graph_input())
    ]
    for name in unread:
        del graph.initializers[name]
    return bool(unread)


def _merge_constants(model: ir.Model) -> list[str]:
    """Let equal scalars and small integer constants of a graph be one; their names."""
    merged = []
    for path, graph in walk_graphs(model):
        if not isinstance(graph, ir.Graph):
            continue
        first: dict[tuple[object, ...], ir.Value] = {}
        for name, value in tuple(graph.initializers.items()):
            key = _content(value)
            if key is None:
                continue
            kept = first.setdefault(key, value)
            if kept is not value:
                value.replace_all_uses_with(kept)
                del graph.initializers[name]
                merged.append(f"{path}/{name}" if path else name)
    return merged


def _content(value: ir.Value) -> tuple[object, ...] | None:
    """Type, shape and bytes of a constant that may be shared; None when it may not."""
    tensor = value.const_value
    if tensor is None or value.is_graph_input() or value.is_graph_output():
        return None
    if tensor.dtype == ir.DataType.STRING or tensor.size > _SMALL:
        return None
    if tensor.size > 1 and tensor.dtype not in (ir.DataType.INT64, ir.DataType.INT32):
        return None
    array = np.ascontiguousarray(read_weight(value))
    return tensor.dtype, tuple(tensor.shape), array.tobytes()


def _name_values(graph: ir.Graph | ir.Function, outer: set[str]) -> bool:
    """Give values that share a name, or have none, one of their own; True when any changed.

    Graph inputs and outputs come first, so theirs never change. The name "" of an optional output
    that is not wanted stays.
    """
    taken = set(outer)
    seen: set[ir.Value] = set()
    changed = False
    values = [*graph.inputs, *graph.outputs]
    if isinstance(graph, ir.Graph):
        values += graph.initializers.values()
    values += [value for node in graph for value in node.outputs]
    for value in values:
        if value in seen or (not value.name and not value.uses()):
            continue
        seen.add(value)
        base, count = value.name or "value", 0
        name = base
        while name in taken:
            count += 1
            name = f"{base}_{count}"
        if name != value.name:
            value.name = name
            changed = True
        taken.add(name)
    for node in graph:
        for _, body in bodies(node):
            changed |= _name_values(body, taken)
    return changed
