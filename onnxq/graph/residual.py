"""Residual streams: the values that Adds and Skip norms connect, who writes them and who reads.

All values of a stream live in one space: an orthogonal map of that space, folded into every
writer and every reader, leaves the function as it is. A pre-norm network has one long stream; in
a post-norm network every norm begins a new one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import onnx_ir as ir

from onnxq.graph.flow import SAME_VALUES, SiteIndex
from onnxq.graph.norms import Norm
from onnxq.graph.sites import Site
from onnxq.graph.walk import walk_nodes
from onnxq.graph.weight_source import stored_weight
from onnxq.graph.weights import weight_tensor

__all__ = ["ResidualStream", "find_residual"]

_RESHAPES = frozenset(["Reshape", "Squeeze", "Unsqueeze", "Flatten"])


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResidualStream:
    """One set of values connected by additions.

    Attributes:
        values: the values, in graph order.
        adds: the Add and Skip nodes that connect them.
        writers: sites whose result is one of the values.
        norms: norms that read one of them.
        readers: sites that read one of them directly, without a norm between.
        norm_writers: norms whose output is one of the values (post-norm networks, and those
            that normalize a branch before it is added).
        others: other nodes that give or read a value of the stream: whoever changes the space
            of the stream has to know what each of them does.
        width: features of the stream; None when neither a writer nor a shape tells.
    """

    values: tuple[ir.Value, ...]
    adds: tuple[ir.Node, ...]
    writers: tuple[Site, ...]
    norms: tuple[Norm, ...]
    readers: tuple[Site, ...]
    norm_writers: tuple[Norm, ...]
    others: tuple[ir.Node, ...]
    width: int | None


class _Sets:
    """Union-find over values."""

    def __init__(self) -> None:
        self._parent: dict[ir.Value, ir.Value] = {}

    def root(self, value: ir.Value) -> ir.Value:
        self._parent.setdefault(value, value)
        while self._parent[value] is not value:
            self._parent[value] = self._parent[self._parent[value]]
            value = self._parent[value]
        return value

    def join(self, first: ir.Value, second: ir.Value) -> None:
        self._parent[self.root(second)] = self.root(first)

    def groups(self) -> list[list[ir.Value]]:
        found: dict[ir.Value, list[ir.Value]] = {}
        for value in self._parent:
            found.setdefault(self.root(value), []).append(value)
        return list(found.values())


def find_residual(model: ir.Model, index: SiteIndex, norms: Sequence[Norm]) -> list[ResidualStream]:
    """List the streams that a site writes and somebody reads, the most additions first."""
    biases = {site.bias_node for site in index.sites if site.bias_node is not None}
    skips = {norm.node: norm for norm in norms if len(norm.inputs) == 2}
    sets, adds = _Sets(), []
    for _, node in walk_nodes(model):
        if node in skips:
            norm = skips[node]
            sets.join(norm.inputs[0], norm.inputs[1])
            if norm.sum is not None:
                sets.join(norm.inputs[0], norm.sum)
            adds.append(node)
        elif node.op_type == "Add" and node not in biases and not _has_constant(node):
            for value in _given(node):
                sets.join(node.outputs[0], value)
            adds.append(node)
        elif _keeps_space(node) or (node.op_type == "Add" and node not in biases):
            for value in _given(node):
                sets.join(value, node.outputs[0])
    added = {sets.root(value) for node in adds for value in node.inputs[:2] if value is not None}
    groups = [values for values in sets.groups() if sets.root(values[0]) in added]
    streams = [_stream(values, adds, index, norms) for values in groups]
    kept = [stream for stream in streams if stream.writers and _is_read(stream)]
    return sorted(kept, key=lambda stream: -len(stream.adds))


def _is_read(stream: ResidualStream) -> bool:
    """Whether the stream goes on; a sum inside an activation (tanh GELU) goes nowhere else."""
    leaves = any(value.is_graph_output() for value in stream.values)
    return bool(stream.norms or stream.readers or leaves)


def _keeps_space(node: ir.Node) -> bool:
    """Whether the output is the input up to rounding, one common factor, or outer axes."""
    if node.op_type in SAME_VALUES:
        return True
    if node.op_type in ("Mul", "Div") and len(_given(node)) == 1:
        constant = next(
            (stored_weight(v) for v in node.inputs if stored_weight(v) is not None), None
        )
        return constant is not None and weight_tensor(constant).size == 1
    if node.op_type in _RESHAPES and node.inputs[0] is not None:
        before, after = _width(node.inputs[0]), _width(node.outputs[0])
        return before is not None and before == after
    return False


def _given(node: ir.Node) -> list[ir.Value]:
    """The computed operands along which data flows."""
    operands = node.inputs if node.op_type in ("Add", "Mul", "Div") else node.inputs[:1]
    return [value for value in operands if value is not None and stored_weight(value) is None]


def _has_constant(node: ir.Node) -> bool:
    return len(_given(node)) < 2


def _width(value: ir.Value) -> int | None:
    if value.shape is None or len(value.shape) == 0:
        return None
    last = value.shape[-1]
    return last if isinstance(last, int) else None


def _stream(
    values: list[ir.Value], adds: Sequence[ir.Node], index: SiteIndex, norms: Sequence[Norm]
) -> ResidualStream:
    inside = set(values)
    own = tuple(node for node in adds if node.inputs[0] in inside)
    writers = tuple(s for s in index.sites if s.result in inside or s.output in inside)
    reading = tuple(norm for norm in norms if inside.intersection(norm.inputs))
    readers = tuple(site for site in index.sites if site.input in inside)
    widths = [*_writer_widths(writers), *(w for v in values if (w := _width(v)) is not None)]
    return ResidualStream(
        values=tuple(values),
        adds=own,
        writers=writers,
        norms=reading,
        readers=readers,
        norm_writers=tuple(norm for norm in norms if norm.output in inside),
        others=_others(values, index, norms),
        width=widths[0] if widths else None,
    )


def _others(
    values: Sequence[ir.Value], index: SiteIndex, norms: Sequence[Norm]
) -> tuple[ir.Node, ...]:
    """Nodes at the stream that are neither sites, norms, additions nor views."""
    inside = set(values)
    known = {node for norm in norms for node in norm.nodes}
    known.update(node for site in index.sites for node in (site.node, site.bias_node) if node)
    found: dict[ir.Node, None] = {}
    for value in values:
        producer = value.producer()
        touching = [*([producer] if producer is not None else []), *value.consumers()]
        for node in touching:
            within = node.outputs[0] in inside and any(v in inside for v in node.inputs)
            if node not in known and not within and node.op_type != "Shape":
                found[node] = None
    return tuple(found)


def _writer_widths(writers: Sequence[Site]) -> Iterator[int]:
    for site in writers:
        if site.already is None and site.refusal is None:
            yield site.shape[site.in_axis if site.is_embedding else site.out_axis]
        elif site.kind == "MatMulNBits":
            yield site.node.attributes["N"].as_int()
