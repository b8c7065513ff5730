"""Weights of a model: what counts as one, reading it, and replacing it lazily.

A weight is a value whose content is known before the model runs: an initializer, or the output of
a Constant node, in any graph, body or function. Reading always gives memory of the caller's own,
so no view of a file outlives the call. Writing is lazy: element type and shape are fixed at once,
the values are computed when the model is saved, one tensor at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxq.errors import UnsupportedGraph
from onnxq.graph.data_file import FileTensor
from onnxq.graph.names import unique_value_name
from onnxq.graph.walk import walk_graphs

__all__ = [
    "add_weight",
    "float32_bytes",
    "is_weight",
    "read_weight",
    "replace_weight",
    "walk_weights",
    "weight_tensor",
]

_CONSTANT_FIELDS = {
    "value": ir.AttributeType.TENSOR,
    "value_float": ir.AttributeType.FLOAT,
    "value_floats": ir.AttributeType.FLOATS,
    "value_int": ir.AttributeType.INT,
    "value_ints": ir.AttributeType.INTS,
}


def is_weight(value: ir.Value | None) -> bool:
    """Whether the value is known before the model runs.

    A graph input with a default value is not: whoever runs the model may pass another.
    """
    return value is not None and _known_tensor(value) is not None


def weight_tensor(value: ir.Value) -> ir.TensorProtocol:
    """The tensor behind a weight, without reading its data.

    Raises:
        UnsupportedGraph: the value is computed, or is an input.
    """
    tensor = _known_tensor(value)
    if tensor is None:
        raise UnsupportedGraph(
            f"{value.name!r} is not a weight: it is {_origin(value)}. "
            f"Fold constants first, or leave this site alone."
        )
    return tensor


def read_weight(value: ir.Value) -> np.ndarray[Any, Any]:
    """The weight as an owned, C-contiguous, writable array of its logical shape.

    The dtype is that of ``ir.DataType.numpy()``: types NumPy lacks come as ml_dtypes (bfloat16,
    int4, float4_e2m1fn, ...), one element each, unpacked. A lazy weight is computed afresh at
    every call, so keep the result when it is needed twice.

    Raises:
        UnsupportedGraph: the value is not a weight.
        ModelLoadError: its data file has changed or been truncated since the model was loaded.
    """
    return _read(weight_tensor(value))


def replace_weight(
    value: ir.Value,
    *,
    shape: Sequence[int],
    dtype: ir.DataType,
    compute: Callable[[], np.ndarray[Any, Any]],
) -> None:
    """Give a weight a new type, shape and content; the content is computed when it is read.

    Args:
        value: an initializer or the output of a Constant node.
        shape: the new logical shape.
        dtype: the new element type.
        compute: returns an array of that shape in ``dtype.numpy()``; for types below 8 bits also
            int8/uint8 with one element each, or a flat uint8 array already packed as ONNX packs.

    Raises:
        UnsupportedGraph: the value is not a weight. Later, when the content is computed: the
            array is not of the promised shape or type.
    """
    weight_tensor(value)
    tensor = _lazy(value.name or "", shape, dtype, compute)
    producer = value.producer()
    if producer is None:
        value.const_value = tensor
    else:
        for field in _CONSTANT_FIELDS:
            producer.attributes.pop(field, None)
        producer.attributes.add(ir.AttrTensor("value", tensor))
        value.const_value = None
    value.shape = ir.Shape(shape)
    value.dtype = dtype


def add_weight(
    graph: ir.Graph | ir.Function,
    name: str,
    *,
    shape: Sequence[int],
    dtype: ir.DataType,
    compute: Callable[[], np.ndarray[Any, Any]] | np.ndarray[Any, Any] | ir.TensorProtocol,
) -> ir.Value:
    """Add a weight to a graph under ``name``, or the next free name after it.

    A function has no initializers, so there the weight becomes a Constant node at the beginning.

    Args:
        graph: where to add it.
        name: wished name; ``_1``, ``_2``, ... is appended when it is taken.
        shape: logical shape.
        dtype: element type.
        compute: the array, a tensor that holds it, or a callable as in `replace_weight`.

    Returns:
        The new value, with name, shape and type set.

    Raises:
        UnsupportedGraph: an array was given and is not of that shape and type; or the graph is
            the inner one of a function, which would lose an initializer when it is saved.
    """
    # Bodies import no opsets, and `onnxq.graph.load` names the main graph: it is a function's.
    if isinstance(graph, ir.Graph) and not graph.name and graph.opset_imports:
        raise UnsupportedGraph(
            f"Weight {name!r} cannot be added to a graph without a name: the inner graph of a "
            "function has no initializers. Add it to the function itself, or name the graph."
        )
    unique = unique_value_name(graph, name)
    if isinstance(compute, np.ndarray):
        tensor: ir.TensorProtocol = _tensor_of(unique, compute, tuple(shape), dtype)
    elif isinstance(compute, ir.TensorProtocol):
        tensor = compute
    else:
        tensor = _lazy(unique, shape, dtype, compute)
    if isinstance(graph, ir.Function):
        node = ir.node("Constant", [], {"value": tensor}, name=f"{unique}_constant")
        value = node.outputs[0]
        value.name = unique
        first = next(iter(graph), None)
        if first is None:
            graph.append(node)
        else:
            graph.insert_before(first, node)
    else:
        value = ir.Value(name=unique, const_value=tensor)
    value.shape = ir.Shape(shape)
    value.dtype = dtype
    if not isinstance(graph, ir.Function):
        graph.register_initializer(value)
    return value


def walk_weights(model: ir.Model) -> Iterator[tuple[str, ir.Value]]:
    """Yield ``(path of the graph, value)`` for every weight, initializers before Constants."""
    for path, graph in walk_graphs(model):
        if isinstance(graph, ir.Graph):
            for value in tuple(graph.initializers.values()):
                if is_weight(value):
                    yield path, value
        for node in tuple(graph):
            if node.op_type == "Constant" and is_weight(node.outputs[0]):
                yield path, node.outputs[0]


def float32_bytes(model: ir.Model) -> int:
    """Bytes of all weights in float32, as they are held where gradients are taken."""
    return sum(4 * int(weight_tensor(value).size) for _, value in walk_weights(model))


def _known_tensor(value: ir.Value) -> ir.TensorProtocol | None:
    producer = value.producer()
    if producer is None:
        return None if value.is_graph_input() else value.const_value
    if producer.op_type != "Constant" or producer.domain not in ("", "ai.onnx"):
        return None
    for field, kind in _CONSTANT_FIELDS.items():
        attribute = producer.attributes.get(field)
        if attribute is not None and not attribute.is_ref() and attribute.type == kind:
            return _attribute_tensor(field, attribute)
    return None


def _attribute_tensor(field: str, attribute: ir.Attr) -> ir.TensorProtocol:
    if field == "value":
        return attribute.as_tensor()
    dtype = np.float32 if "float" in field else np.int64
    return ir.tensor(np.array(attribute.value, dtype=dtype), name=attribute.name)


def _read(tensor: ir.TensorProtocol) -> np.ndarray[Any, Any]:
    if isinstance(tensor, FileTensor):
        return tensor.read()
    array = np.array(tensor.numpy(), order="C", copy=True)
    if isinstance(tensor, ir.ExternalTensor):
        tensor.release()
    return array


def _lazy(
    name: str,
    shape: Sequence[int],
    dtype: ir.DataType,
    compute: Callable[[], np.ndarray[Any, Any]],
) -> ir.LazyTensor:
    fixed = tuple(int(size) for size in shape)

    def evaluate() -> ir.TensorProtocol:
        return _tensor_of(name, compute(), fixed, dtype)

    return ir.LazyTensor(evaluate, dtype=dtype, shape=ir.Shape(fixed), name=name)


def _tensor_of(
    name: str, array: np.ndarray[Any, Any], shape: tuple[int, ...], dtype: ir.DataType
) -> ir.TensorProtocol:
    if _is_packed(array, shape, dtype):
        return ir.PackedTensor(array, dtype, shape=ir.Shape(shape), name=name)
    fits = array.dtype == dtype.numpy() or (
        dtype.bitwidth < 8 and array.dtype in (np.int8, np.uint8)
    )
    if array.shape != shape or not fits:
        raise UnsupportedGraph(
            f"weight {name!r} was declared as {dtype.name}{list(shape)}, but its new content is "
            f"{array.dtype}{list(array.shape)}. This is a fault of the pass that replaced it."
        )
    return ir.Tensor(np.ascontiguousarray(array).reshape(shape), dtype, name=name)


def _is_packed(array: np.ndarray[Any, Any], shape: tuple[int, ...], dtype: ir.DataType) -> bool:
    if dtype == ir.DataType.STRING or dtype.bitwidth >= 8 or array.dtype != np.uint8:
        return False
    nbytes = -(-int(np.prod(shape, dtype=np.int64)) * dtype.bitwidth // 8)
    return array.ndim == 1 and array.size == nbytes and array.shape != shape


def _origin(value: ir.Value) -> str:
    producer = value.producer()
    if producer is not None:
        return f"computed by node {producer.name!r} ({producer.op_type})"
    return "a graph input" if value.is_graph_input() else "a value nobody gives"
