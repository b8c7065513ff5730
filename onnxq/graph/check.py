"""Whether a graph is well formed, on onnx_ir alone and without touching weight data.

`check_graph` verifies what every other room takes for granted: each name is given once in its
scope, each value that is read exists and comes before its reader, each output is produced.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from onnxq.errors import UnsupportedGraph
from onnxq.graph.walk import bodies, function_path, walk_graphs, walk_nodes

__all__ = ["check_graph", "find_cycle", "graph_problems", "name_nodes", "sort_graphs"]


def check_graph(model: ir.Model, *, node_names: bool = True) -> None:
    """Raise `UnsupportedGraph` with the first problems found, naming node and tensor.

    Args:
        model: the model; no weight data are read.
        node_names: also require that every node has a name nobody else has.

    Raises:
        UnsupportedGraph: a name given twice, a value nobody produces, a reader before its
            producer, a cycle, or an output that does not exist.
    """
    problems = graph_problems(model, node_names=node_names)
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise UnsupportedGraph("The graph is not valid: " + "; ".join(problems[:3]) + more + ".")


def graph_problems(model: ir.Model, *, node_names: bool = True) -> list[str]:
    """Every problem of the model's graphs as a phrase; empty when it is well formed."""
    problems: list[str] = []
    _check_scope("", model.graph, set(), problems)
    for function in model.functions.values():
        _check_scope(function_path(function), function, set(), problems)
    if node_names:
        problems.extend(_node_name_problems(model))
    return problems


def find_cycle(graph: ir.Graph | ir.Function) -> list[ir.Node]:
    """The nodes of one cycle, in order; empty when there is none. Bodies count as their node."""
    members = set(graph)
    state: dict[ir.Node, int] = {}
    for root in graph:
        if root in state:
            continue
        trail: list[tuple[ir.Node, list[ir.Node]]] = [(root, _reads_among(members, root))]
        state[root] = 1
        while trail:
            node, waiting = trail[-1]
            if not waiting:
                state[node] = 2
                trail.pop()
                continue
            before = waiting.pop()
            if state.get(before) == 1:
                nodes = [node for node, _ in trail]
                return nodes[nodes.index(before) :]
            if before not in state:
                state[before] = 1
                trail.append((before, _reads_among(members, before)))
    return []


def sort_graphs(model: ir.Model) -> bool:
    """Put nodes after the nodes they read where that is not so; True when something moved.

    Raises:
        UnsupportedGraph: a graph has a cycle; the sentence lists its nodes.
    """
    unsorted = [path for path, graph in walk_graphs(model) if not _is_sorted(graph)]
    if not unsorted:
        return False
    for path, graph in walk_graphs(model):
        cycle = find_cycle(graph)
        if cycle:
            raise UnsupportedGraph(_cycle_sentence(path, cycle) + ".")
    try:
        model.graph.sort()
        for function in model.functions.values():
            function.sort()
    except ValueError as error:
        where = ", ".join(path or "the main graph" for path in unsorted)
        raise UnsupportedGraph(f"nodes of {where} read each other in a cycle.") from error
    return True


def name_nodes(model: ir.Model) -> bool:
    """Give every node a name of its own in the whole model; True when one was given or changed.

    Functions are their own space of names, told apart by their path.
    """
    changed = False
    taken: set[str] = set()
    counts: dict[str, int] = {}
    nodes = [node for _, node in walk_nodes(model)]
    wished = {node.name for node in nodes if node.name}
    for node in nodes:
        if node.name and node.name not in taken:
            taken.add(node.name)
            continue
        base = node.name or f"node_{node.op_type}"
        while (candidate := f"{base}_{counts.get(base, 0)}") in taken or candidate in wished:
            counts[base] = counts.get(base, 0) + 1
        node.name = candidate
        taken.add(candidate)
        changed = True
    return changed


def _check_scope(
    path: str,
    graph: ir.Graph | ir.Function,
    outer: set[ir.Value],
    problems: list[str],
) -> None:
    where = f" in {path}" if path else ""
    known = set(outer)
    names: dict[str | None, str] = {}
    _declare(graph.inputs, "graph input", names, where, problems)
    known.update(graph.inputs)
    if isinstance(graph, ir.Graph):
        defaults = set(graph.inputs)
        weights = [value for value in graph.initializers.values() if value not in defaults]
        _declare(weights, "initializer", names, where, problems)
        known.update(graph.initializers.values())
    for node in graph:
        label = f"node {node.name!r} ({node.op_type}){where}"
        for value in node.inputs:
            if value is not None and value not in known:
                problems.append(f"{label} reads {value.name!r}, {_why_unknown(value, graph)}")
        for name, body in bodies(node):
            inner = f"{path}/{node.name}/{name}" if path else f"{node.name}/{name}"
            _check_scope(inner, body, known, problems)
        _declare(node.outputs, label, names, where, problems)
        known.update(node.outputs)
    for value in graph.outputs:
        if value not in known:
            problems.append(f"graph output {value.name!r}{where} is produced by no node")


def _declare(
    values: Iterable[ir.Value],
    giver: str,
    names: dict[str | None, str],
    where: str,
    problems: list[str],
) -> None:
    for value in values:
        if value.name == "":
            continue
        if value.name is None:
            problems.append(f"an output of {giver} has no name")
        elif value.name in names:
            problems.append(
                f"{value.name!r} is given twice{where}: by {names[value.name]} and by {giver}"
            )
        else:
            names[value.name] = giver


def _why_unknown(value: ir.Value, graph: ir.Graph | ir.Function) -> str:
    producer = value.producer()
    if producer is None:
        return "which nothing produces: no node, input or initializer has that name"
    if any(node is producer for node in graph):
        cycle = find_cycle(graph)
        if cycle:
            return _cycle_sentence("", cycle)
        return f"which node {producer.name!r} ({producer.op_type}) produces only later"
    return f"which node {producer.name!r} produces in a graph it cannot see"


def _cycle_sentence(path: str, cycle: list[ir.Node]) -> str:
    where = f" in {path}" if path else ""
    names = [repr(node.name or node.op_type) for node in reversed(cycle)]
    shown = names[:6] + (["..."] if len(names) > 6 else []) + names[:1]
    return f"the graph{where} has a cycle: {' -> '.join(shown)}"


def _node_name_problems(model: ir.Model) -> list[str]:
    problems = []
    seen: set[str] = set()
    for path, node in walk_nodes(model):
        where = f" in {path}" if path else ""
        if not node.name:
            problems.append(f"a {node.op_type} node{where} has no name")
        elif node.name in seen:
            problems.append(
                f"two nodes are named {node.name!r}; the second is{where or ' in main'}"
            )
        else:
            seen.add(node.name)
    return problems


def _is_sorted(graph: ir.Graph | ir.Function) -> bool:
    members = set(graph)
    done: set[ir.Node] = set()
    for node in graph:
        if any(before in members and before not in done for before in _read_nodes(node)):
            return False
        done.add(node)
    return True


def _read_nodes(node: ir.Node) -> set[ir.Node]:
    """Producers of everything the node and the bodies in it read."""
    producers = {value.producer() for value in node.inputs if value is not None}
    for _, body in bodies(node):
        producers |= {value.producer() for value in body.outputs}
        for inner in body:
            producers |= _read_nodes(inner)
    return {producer for producer in producers if producer is not None}


def _reads_among(members: set[ir.Node], node: ir.Node) -> list[ir.Node]:
    return sorted(_read_nodes(node) & members, key=lambda before: before.name or "")
