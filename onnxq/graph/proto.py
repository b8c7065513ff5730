"""Checks on the protobuf, for what onnx_ir would lose or overlook when it builds the graph."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from onnxq.errors import ModelLoadError

if TYPE_CHECKING:
    import onnx

__all__ = ["check_proto", "expand_sparse"]

_FIELD = {
    ir.DataType.FLOAT: "float_data",
    ir.DataType.COMPLEX64: "float_data",
    ir.DataType.DOUBLE: "double_data",
    ir.DataType.COMPLEX128: "double_data",
    ir.DataType.INT64: "int64_data",
    ir.DataType.UINT32: "uint64_data",
    ir.DataType.UINT64: "uint64_data",
    ir.DataType.STRING: "string_data",
}
"""Where typed data are stored (onnx.proto, TensorProto); all others are in int32_data."""


def check_proto(proto: onnx.ModelProto, origin: str) -> None:
    """Refuse a protobuf that is no model, and names that are given twice.

    Raises:
        ModelLoadError: the sentence, with ``origin`` in front.
    """
    _check_header(proto, origin)
    for graph in _graphs(proto.graph):
        _check_names(graph, origin)
    for tensor in _tensors(proto):
        reason = _why_not_tensor(tensor)
        if reason is not None:
            raise ModelLoadError(
                f"{origin}: tensor {tensor.name!r} {reason}. If the file is not damaged, its "
                f"exporter is at fault: copy it or export it again."
            )
    for function in proto.functions:
        outputs = {name for node in function.node for name in node.output} | set(function.input)
        for name in function.output:
            if name not in outputs:
                raise ModelLoadError(
                    f"{origin}: output {name!r} of function {function.domain}::{function.name} "
                    f"is produced by no node. Export the model again."
                )


def _check_header(proto: onnx.ModelProto, origin: str) -> None:
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
    for imported in proto.opset_import:
        if imported.version < 1:
            raise ModelLoadError(
                f"{origin}: opset {imported.version} of domain {imported.domain!r} is none, so "
                f"the file is damaged. Copy it or export it again."
            )
    if not proto.graph.node and not proto.graph.output:
        raise ModelLoadError(
            f"{origin}: the graph has no nodes and no outputs, so there is nothing to run. "
            f"Check that this is the right file, or export it again."
        )


def expand_sparse(proto: onnx.ModelProto, origin: str) -> onnx.ModelProto:
    """Turn sparse initializers, which onnx_ir would drop, into dense ones (on a copy).

    Raises:
        ModelLoadError: indices or values of one do not fit its shape.
    """
    import onnx

    if not any(graph.sparse_initializer for graph in _graphs(proto.graph)):
        return proto
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for graph in _graphs(copy.graph):
        for sparse in graph.sparse_initializer:
            try:
                graph.initializer.append(_dense(sparse))
            except (IndexError, ValueError, TypeError) as error:
                raise ModelLoadError(
                    f"{origin}: sparse tensor {sparse.values.name!r} is damaged ({error}). "
                    f"Copy the file or export it again."
                ) from error
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


def _tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every dense tensor of the model: initializers, and attributes also in functions."""
    nodes = [node for function in proto.functions for node in function.node]
    graphs = list(_graphs(proto.graph))
    for node in nodes:
        for attribute in node.attribute:
            for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                graphs += _graphs(graph)
    for graph in graphs:
        yield from graph.initializer
        nodes += graph.node
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t") or attribute.type == attribute.TENSOR:
                yield attribute.t
            yield from attribute.tensors


def _why_not_tensor(tensor: onnx.TensorProto) -> str | None:
    """What is wrong with the type, the shape or the amount of data of a tensor."""
    if tensor.data_type not in set(ir.DataType) - {ir.DataType.UNDEFINED}:
        return f"has the unknown element type {tensor.data_type}"
    if tensor.data_type in (ir.DataType.FLOAT6E2M3, ir.DataType.FLOAT6E3M2):
        return "holds 6-bit floats, which ONNX Runtime does not take"
    if any(size < 0 for size in tensor.dims):
        return f"has the shape {list(tensor.dims)}"
    dtype = ir.DataType(tensor.data_type)
    size = math.prod(tensor.dims)
    if tensor.data_location == tensor.EXTERNAL:
        return "is text in external data" if dtype == ir.DataType.STRING else None
    if dtype != ir.DataType.STRING and tensor.HasField("raw_data"):
        found, wanted = len(tensor.raw_data), -(-size * dtype.bitwidth // 8)
        kind = "bytes"
    else:
        found, wanted = len(getattr(tensor, _FIELD.get(dtype, "int32_data"))), size
        kind = "values"
        if dtype in (ir.DataType.COMPLEX64, ir.DataType.COMPLEX128):
            wanted *= 2
        elif dtype != ir.DataType.STRING and dtype.bitwidth < 8:
            wanted = -(-size * dtype.bitwidth // 8)
    if found != wanted:
        return f"of type {dtype.name}{list(tensor.dims)} has {found} {kind} and not {wanted}"
    return None


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
