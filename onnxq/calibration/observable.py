"""Which values of a model can be observed, and which cannot and why."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from onnxq.graph import is_weight, walk_graphs
from onnxq.graph.walk import bodies, is_operator_body

__all__ = ["Observable", "is_sequence", "observable_values"]

FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE})
"""Types ONNX Runtime can return and an observer can read."""

_SEQUENCE_OPS = frozenset(
    {"Optional", "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert"}
    | {"SequenceMap", "SplitToSequence", "ZipMap"}
)
"""Operators whose outputs are no tensors."""


@dataclasses.dataclass(frozen=True)
class Observable:
    """What can be observed in a model.

    Attributes:
        names: values of the main graph whose type is a float, or not known before the model is
            loaded by the runtime (those that turn out to be integers are skipped then).
        reasons: by name of a value, body or function: why it cannot be observed.
    """

    names: tuple[str, ...]
    reasons: dict[str, str]


def observable_values(model: ir.Model) -> Observable:
    """Activations of the main graph: its inputs and node outputs that depend on an input.

    Weights, and values computed from weights only, are never observed: their numbers are known.
    """
    types = _types(model)
    names: list[str] = []
    reasons: dict[str, str] = {}
    live: set[ir.Value] = set()
    for value in model.graph.inputs:
        if not value.is_initializer():
            live.add(value)
            _sort_out(value, types, names, reasons)
    for node in model.graph:
        if not _is_live(node, live):
            continue
        for value in node.outputs:
            if value.name and not is_weight(value):
                live.add(value)
                _sort_out(value, types, names, reasons)
    for path, graph in walk_graphs(model):
        if path and not is_operator_body(path) and any(True for _ in graph):
            reasons[path] = (
                "values inside the body of an operator or function cannot be fetched from the "
                "runtime, so they are not observed"
            )
    return Observable(tuple(names), reasons)


def _is_live(node: ir.Node, live: set[ir.Value]) -> bool:
    """Whether the node reads an activation, itself or in a body, or makes numbers from nothing."""
    if any(value in live for value in node.inputs if value is not None):
        return True
    if any(
        a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
        for a in node.attributes.values()
    ):
        return True
    return node.op_type.startswith("Random")


def _types(model: ir.Model) -> dict[str, ir.TypeProtocol | None]:
    """Types of the main-graph values by name, inferred where the model does not tell."""
    if all(value.type is not None for node in model.graph for value in node.outputs):
        inferred = model
    else:
        inferred = model.clone()
        ShapeInferencePass(check_type=False, strict_mode=False, data_prop=False)(inferred)
    return {
        value.name or "": value.type
        for values in (inferred.graph.inputs, *(node.outputs for node in inferred.graph))
        for value in values
    }


def is_sequence(value: ir.Value) -> bool:
    """Whether a value is no tensor, told from how it is made: inferred types do not tell it."""
    if value.type is not None and not isinstance(value.type, ir.TensorType):
        return True
    node = value.producer()
    if node is None:
        return False
    if node.op_type == "Identity" and node.inputs[0] is not None:
        return is_sequence(node.inputs[0])
    index = node.outputs.index(value) + (node.op_type == "Loop")
    inner = [graph.outputs[index] for _, graph in bodies(node) if index < len(graph.outputs)]
    return node.op_type in _SEQUENCE_OPS or any(is_sequence(output) for output in inner)


def _sort_out(
    value: ir.Value,
    types: dict[str, ir.TypeProtocol | None],
    names: list[str],
    reasons: dict[str, str],
) -> None:
    """Put a value among the names or the reasons; integers and sequences are neither."""
    name = value.name or ""
    kind = types.get(name)
    if is_sequence(value):
        return
    if kind is None:
        names.append(name)
    elif isinstance(kind, ir.TensorType):
        if kind.dtype in FLOATS:
            names.append(name)
        elif kind.dtype.is_floating_point():
            reasons[name] = f"its type is {kind.dtype.name}, which no observer reads"
