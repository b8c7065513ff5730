"""Cut-down copies of a model that return inner values, or only their shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from onnxq.graph import walk_nodes

__all__ = ["returning", "returning_shapes"]


def returning(model: ir.Model, names: Sequence[str], pinned: Sequence[str] = ()) -> ir.Model:
    """A clone whose outputs are ``names`` and whose nodes are those needed for them.

    Args:
        model: left as it is.
        names: values to return.
        pinned: values that the runtime must not fuse away either, because another clone returns
            them: with the same fusions every clone computes the same bits. Each of them that the
            clone computes gets a Size node as a second reader, which keeps nothing in memory.
    """
    clone = model.clone()
    by_name = _by_name(clone)
    _prune(clone, [by_name[name] for name in names])
    computed = {value.name for node in clone.graph for value in node.outputs}
    prefix = _free_prefix(clone)
    for index, name in enumerate(pinned):
        if name in computed and name not in names:
            size = _read_by(clone, by_name[name], "Size", f"{prefix}{index}")
            clone.graph.outputs.append(size)
    return clone


def returning_shapes(model: ir.Model, names: Sequence[str]) -> tuple[ir.Model, dict[str, str]]:
    """A clone that returns the shape of each value instead of the value.

    Running it needs no more memory than running the model does.

    Returns:
        the clone, and the name of the output (int64 ``[rank]``) that tells each value's shape.
    """
    clone = model.clone()
    by_name: Mapping[str, ir.Value] = _by_name(clone)
    outputs: dict[str, str] = {}
    shapes: list[ir.Value] = []
    prefix = _free_prefix(clone)
    for index, name in enumerate(names):
        shape = _read_by(clone, by_name[name], "Shape", f"{prefix}{index}")
        outputs[name] = shape.name or ""
        shapes.append(shape)
    return _prune(clone, shapes), outputs


def _read_by(model: ir.Model, value: ir.Value, op_type: str, name: str) -> ir.Value:
    """The output of a new node that reads ``value``, right behind the node that makes it."""
    made = ir.Value(name=name, type=ir.TensorType(ir.DataType.INT64))
    node = ir.Node("", op_type, [value], outputs=[made])
    producer = value.producer()
    if producer is not None:
        model.graph.insert_after(producer, node)
    elif len(model.graph):
        model.graph.insert_before(model.graph[0], node)
    else:
        model.graph.append(node)
    return made


def _by_name(model: ir.Model) -> dict[str, ir.Value]:
    values = {value.name or "": value for node in model.graph for value in node.outputs}
    values.update({value.name or "": value for value in model.graph.inputs})
    return values


def _free_prefix(model: ir.Model) -> str:
    """A prefix that no value of the model, bodies included, begins with."""
    taken = {value.name or "" for _, node in walk_nodes(model) for value in node.outputs}
    taken.update(value.name or "" for value in model.graph.inputs)
    taken.update(model.graph.initializers)
    prefix = "onnxq_observed_"
    while any(name.startswith(prefix) for name in taken):
        prefix += "_"
    return prefix


def _prune(model: ir.Model, outputs: Sequence[ir.Value]) -> ir.Model:
    model.graph.outputs.clear()
    model.graph.outputs.extend(outputs)
    RemoveUnusedNodesPass()(model)
    return model
