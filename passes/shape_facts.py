"""Two facts about shapes that exporters hide and ONNX's own inference does not see.

``Reshape(x, Concat(batch, -1, 16))`` has a last axis of 16, whatever the batch; and
``Gather(Shape(x), 3)`` is a constant as soon as that one axis is, though the others are dynamic.
TorchScript writes both around every attention head.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.graph.walk import walk_nodes
from onnxq.graph.weights import add_weight, is_weight, read_weight
from onnxq.passes.match import home_of

__all__ = ["fold_shape_reads", "note_reshapes"]


def note_reshapes(model: ir.Model) -> None:
    """Write the constant parts of a reshape's target into the shape of its output."""
    for _, node in walk_nodes(model):
        if node.op_type != "Reshape" or node.domain != "" or len(node.inputs) < 2:
            continue
        sizes = _target(node.inputs[1])
        output = node.outputs[0]
        if sizes is None or not any(sizes):
            continue
        known = output.shape
        if known is None:
            output.shape = ir.Shape(sizes)
        elif len(known) == len(sizes):
            pairs = zip(known, sizes, strict=True)
            output.shape = ir.Shape([size if size is not None else old for old, size in pairs])


def fold_shape_reads(model: ir.Model) -> bool:
    """Replace reads of one known axis of a shape by the number; True when any was."""
    changed = False
    for _, node in walk_nodes(model):
        size = _read_size(node)
        graph, output = node.graph, node.outputs[0] if node.outputs else None
        if size is None or graph is None or output is None or output.is_graph_output():
            continue
        name = f"{output.name}_known"
        weight = add_weight(
            home_of(model, node), name, shape=size.shape, dtype=ir.DataType.INT64, compute=size
        )
        output.replace_all_uses_with(weight)
        graph.remove(node, safe=True)
        changed = True
    return changed


def _target(value: ir.Value | None) -> list[int | None] | None:
    """The sizes a reshape's target is known to hold; None where one is not known, 0 or −1."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "Concat" or node.domain != "":
        return None
    sizes: list[int | None] = []
    for part in node.inputs:
        if part is not None and is_weight(part):
            sizes += [int(n) if n > 0 else None for n in read_weight(part).reshape(-1)]
        elif part is not None and part.shape is not None and tuple(part.shape) == (1,):
            sizes.append(None)
        else:
            return None
    return sizes


def _read_size(node: ir.Node) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]] | None:
    """What a Gather reads from a Shape, when all the axes it reads are known."""
    if node.op_type != "Gather" or node.domain != "" or len(node.inputs) != 2:
        return None
    source, indices = node.inputs
    shape = None if source is None else source.producer()
    if shape is None or shape.op_type != "Shape" or shape.domain != "" or shape.attributes:
        return None
    of = shape.inputs[0]
    if of is None or of.shape is None or indices is None or not is_weight(indices):
        return None
    wanted = read_weight(indices)
    rank = len(of.shape)
    if wanted.size > rank or any(not -rank <= int(index) < rank for index in wanted.reshape(-1)):
        return None
    sizes = [of.shape[int(index)] for index in wanted.reshape(-1)]
    if not all(isinstance(size, int) for size in sizes):
        return None
    return np.array([int(str(size)) for size in sizes], np.int64).reshape(wanted.shape)
