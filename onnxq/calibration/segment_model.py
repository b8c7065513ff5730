"""A segment as a model of its own, with some of its weights replaced, open in the runtime."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.convenience import extract
from onnx_ir.passes.common import RemoveUnusedNodesPass

from onnxq.calibration.wiring import values_read
from onnxq.graph.orientation import from_rows
from onnxq.graph.site_bias import bias_reader, moved_bias
from onnxq.graph.sites import Site
from onnxq.graph.weights import add_weight, weight_tensor
from onnxq.runtime import Session, open_session

__all__ = ["NewWeight", "open_segment"]

_IN_MEMORY = 1 << 30
"""Weights of a segment up to this go to the runtime as bytes; a protobuf holds no more than 2 GiB,
so larger ones take the way over a file."""


@dataclasses.dataclass(frozen=True)
class NewWeight:
    """What a site is to compute with.

    Attributes:
        content: its weight as `onnxq.graph.orientation.to_rows` lays it out, float32 [rows,
            columns]; or a function that gives it, so that it need not be in memory till then.
        shift: what its bias is to move its output by, [rows]; None leaves the bias as it is.
    """

    content: np.ndarray | Callable[[], np.ndarray]
    shift: np.ndarray | None = None

    def rows(self) -> np.ndarray:
        """The weight, made anew at every call when ``content`` is a function."""
        found = self.content() if callable(self.content) else self.content
        return np.asarray(found, np.float32)


def open_segment(
    model: ir.Model,
    boundary: Mapping[ir.Value, np.ndarray],
    outputs: Sequence[ir.Value],
    replaced: Mapping[Site, NewWeight],
    threads: int | None,
) -> Session:
    """Open the nodes between ``boundary`` and ``outputs``; close the session when done.

    Args:
        model: the whole model, left as it is; ``boundary`` and ``outputs`` are values of it.
        boundary: values that will be fed, each with an example that tells type and rank.
        outputs: values to compute.
        replaced: new weights of sites; those of sites outside do no harm.
        threads: threads inside an operator.
    """
    graph = extract(model.graph, list(boundary), list(outputs))
    part = ir.Model(graph, ir_version=model.ir_version, functions=list(model.functions.values()))
    by_output = {node.outputs[0].name: node for node in graph if node.outputs}
    for site, new in replaced.items():
        node = by_output.get(site.output.name)
        if node is None:
            continue
        _replace(graph, node, site, new)
        reader = None if new.shift is None else bias_reader(site)
        adding = None if reader is None else by_output.get(reader[0].outputs[0].name)
        if new.shift is not None and reader is not None and adding is not None:
            _move_bias(graph, adding, reader[1], site, new.shift)
    RemoveUnusedNodesPass()(part)
    _declare(graph, {value.name: array for value, array in boundary.items()})
    size = sum(
        value.const_value.nbytes for value in graph.initializers.values() if value.const_value
    )
    source = part if size > _IN_MEMORY else ir.to_proto(part).SerializeToString()
    return open_session(source, threads=threads, lean=True)


def _replace(graph: ir.Graph, node: ir.Node, site: Site, new: NewWeight) -> None:
    """Let the node, and no other reader of its weight, read new rows."""
    chain: list[ir.Node] = []
    operand = node.inputs[site.weight_index]
    for _ in site.via:
        view = operand.producer() if operand is not None else None
        if view is None:
            raise ValueError(f"the views before the weight of site {site.name!r} have changed")
        chain.append(view)
        operand = view.inputs[0]
    if operand is None:
        raise ValueError(f"site {site.name!r} has no weight")
    tensor = weight_tensor(operand)
    kind = tensor.dtype.numpy()
    value = add_weight(
        graph,
        f"{operand.name}_replaced",
        shape=[int(size) for size in tensor.shape.numpy()],
        dtype=tensor.dtype,
        compute=lambda: from_rows(site, new.rows()).astype(kind, copy=False),
    )
    for view in reversed(chain):
        copy = ir.Node(
            view.domain,
            view.op_type,
            [value, *view.inputs[1:]],
            attributes=view.attributes.values(),
            overload=view.overload,
            outputs=[ir.Value(name=f"{value.name}_{view.op_type}")],
        )
        graph.insert_before(node, copy)
        value = copy.outputs[0]
    node.replace_input_with(site.weight_index, value)


def _move_bias(graph: ir.Graph, node: ir.Node, index: int, site: Site, shift: np.ndarray) -> None:
    moved = moved_bias(site, shift)
    name, dtype = f"{site.output.name}_moved_bias", ir.DataType.from_numpy(moved.dtype)
    value = add_weight(graph, name, shape=moved.shape, dtype=dtype, compute=moved)
    node.replace_input_with(index, value)


def _declare(graph: ir.Graph, examples: Mapping[str | None, np.ndarray]) -> None:
    """Give the inputs the type and rank they will have; inner shapes are left to the runtime."""
    used = set(_read(graph))
    for value in list(graph.inputs):
        if value not in used and not value.is_graph_output():
            graph.inputs.remove(value)
            continue
        example = examples[value.name]
        value.dtype = ir.DataType.from_numpy(example.dtype)
        value.shape = ir.Shape([None] * example.ndim)


def _read(graph: ir.Graph) -> Iterator[ir.Value]:
    for node in graph:
        yield from values_read(node)
