"""Checks on the protobuf, for what onnx_ir would lose or overlook when it builds the graph."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from onnxq.errors import ModelLoadError

if TYPE_CHECKING:
    import onnx

__all__ = ["check_proto", "expand_sparse"]


def check_proto(proto: onnx.ModelProto, origin: str) -> None:
    """Refuse a protobuf that is no model, and names that are given twice.

    Raises:
        ModelLoadError: the sentence, with ``origin`` in front.
    """
    if proto.ir_version <= 0 or not proto.HasField("graph"):
        raise ModelLoadError(
            f"{origin}: not an ONNX model (no IR version or no graph in it). "
            f"Check that this is the right file, or export it again."
        )
    if not proto.opset_import and proto.ir_version >= 3:
        raise ModelLoadError(
            f"{origin}: the model names no opset, so the file is truncated or was written by a "
            f"faulty exporter. Copy it or export it again."
        )
    if not proto.graph.node and not proto.graph.output:
        raise ModelLoadError(
            f"{origin}: the graph has no nodes and no outputs, so there is nothing to run. "
            f"Check that this is the right file, or export it again."
        )
    for graph in _graphs(proto.graph):
        _check_names(graph, origin)
    for function in proto.functions:
        outputs = {name for node in function.node for name in node.output} | set(function.input)
        for name in function.output:
            if name not in outputs:
                raise ModelLoadError(
                    f"{origin}: output {name!r} of function {function.domain}::{function.name} "
                    f"is produced by no node. Export the model again."
                )


def expand_sparse(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Turn sparse initializers, which onnx_ir would drop, into dense ones (on a copy)."""
    import onnx

    if not any(graph.sparse_initializer for graph in _graphs(proto.graph)):
        return proto
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for graph in _graphs(copy.graph):
        for sparse in graph.sparse_initializer:
            graph.initializer.append(_dense(sparse))
        del graph.sparse_initializer[:]
    return copy


def _dense(sparse: onnx.SparseTensorProto) -> onnx.TensorProto:
    from onnx import numpy_helper

    values = numpy_helper.to_array(sparse.values)
    indices = numpy_helper.to_array(sparse.indices)
    dense = np.zeros(tuple(sparse.dims), dtype=values.dtype)
    if indices.ndim == 1:
        dense.reshape(-1)[indices] = values
    else:
        dense[tuple(indices.T)] = values
    return numpy_helper.from_array(dense, sparse.values.name)


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)
            for inner in attribute.graphs:
                yield from _graphs(inner)


def _check_names(graph: onnx.GraphProto, origin: str) -> None:
    where = f" of graph {graph.name!r}" if graph.name else ""
    inputs = _unique([value.name for value in graph.input], f"input{where}", origin)
    names = [tensor.name for tensor in graph.initializer]
    names += [sparse.values.name for sparse in graph.sparse_initializer]
    given = dict.fromkeys(_unique(names, f"initializer{where}", origin), "an initializer")
    given.update(dict.fromkeys(inputs, "a graph input"))
    for index, node in enumerate(graph.node):
        label = f"node {node.name or f'number {index}'!r} ({node.op_type})"
        for name in node.output:
            if name and name in given:
                raise ModelLoadError(
                    f"{origin}: the name {name!r}{where} is given twice, by {given[name]} and by "
                    f"{label}; in ONNX each value has one producer. Export the model again."
                )
            given[name] = label


def _unique(names: list[str], kind: str, origin: str) -> set[str]:
    seen: set[str] = set()
    for name in names:
        if not name or name in seen:
            fault = f"is given twice: {name!r}" if name else "has no name"
            raise ModelLoadError(f"{origin}: an {kind} {fault}. Export the model again.")
        seen.add(name)
    return seen
