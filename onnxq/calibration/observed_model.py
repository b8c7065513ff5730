"""Cut-down copies of a model that return inner values, or only their shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from onnxq.graph import walk_nodes

__all__ = ["returning", "returning_shapes"]


def returning(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """A clone whose outputs are ``names`` and whose nodes are those needed for them."""
    clone = model.clone()
    return _prune(clone, [_by_name(clone)[name] for name in names])


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
        shape = ir.Value(name=f"{prefix}{index}", type=ir.TensorType(ir.DataType.INT64))
        clone.graph.append(ir.Node("", "Shape", [by_name[name]], outputs=[shape]))
        outputs[name] = shape.name or ""
        shapes.append(shape)
    return _prune(clone, shapes), outputs


def _by_name(model: ir.Model) -> dict[str, ir.Value]:
    values = {value.name or "": value for node in model.graph for value in node.outputs}
    values.update({value.name or "": value for value in model.graph.inputs})
    return values


def _free_prefix(model: ir.Model) -> str:
    """A prefix that no value of the model, bodies included, begins with."""
    taken = {value.name or "" for _, node in walk_nodes(model) for value in node.outputs}
    taken.update(value.name or "" for value in model.graph.inputs)
    taken.update(model.graph.initializers)
    prefix = "onnxq_shape_"
    while any(name.startswith(prefix) for name in taken):
        prefix += "_"
    return prefix


def _prune(model: ir.Model, outputs: Sequence[ir.Value]) -> ir.Model:
    model.graph.outputs.clear()
    model.graph.outputs.extend(outputs)
    RemoveUnusedNodesPass()(model)
    return model
