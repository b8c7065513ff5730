"""A hash of what a model computes with: its graphs and the bytes of its weights.

Two models have the same hash when they are written alike, whatever file they came from. Weights
are read one at a time, so memory is bounded by the largest.
"""

from __future__ import annotations

import hashlib
from typing import Any

import onnx_ir as ir

from onnxq.graph.walk import walk_graphs
from onnxq.graph.weights import walk_weights, weight_tensor

__all__ = ["content_hash"]

_CHUNK = 64 << 20


def content_hash(model: ir.Model) -> str:
    """SHA-256 in hexadecimal; reads every weight once.

    Args:
        model: any model; left as it is. Metadata and documentation do not count.
    """
    digest = hashlib.sha256()
    _say(digest, "model", model.ir_version, sorted(model.opset_imports.items()))
    for path, graph in walk_graphs(model):
        _say(digest, "graph", path, *(_typed(value) for value in graph.inputs))
        for node in graph:
            _say(digest, node.op_identifier(), [value and value.name for value in node.inputs])
            _say(digest, [value.name for value in node.outputs])
            for name, attribute in sorted(node.attributes.items()):
                _say_attribute(digest, name, attribute)
        _say(digest, "outputs", [value.name for value in graph.outputs])
    for path, value in walk_weights(model):
        _say(digest, "weight", path, value.name)
        _say_tensor(digest, weight_tensor(value))
    return digest.hexdigest()


def _typed(value: ir.Value) -> tuple[str | None, str, str]:
    return value.name, str(value.type), str(value.shape)


def _say(digest: Any, *parts: object) -> None:
    digest.update(repr(parts).encode())


def _say_attribute(digest: Any, name: str, attribute: ir.Attr) -> None:
    if attribute.is_ref():
        _say(digest, name, "ref", attribute.ref_attr_name)
    elif attribute.type == ir.AttributeType.TENSOR:
        _say(digest, name)
        _say_tensor(digest, attribute.as_tensor())
    elif attribute.type not in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
        _say(digest, name, attribute.type, attribute.value)


def _say_tensor(digest: Any, tensor: ir.TensorProtocol) -> None:
    _say(digest, tensor.dtype, list(tensor.shape.numpy()))
    stored = memoryview(tensor.tobytes())
    for start in range(0, len(stored), _CHUNK):
        digest.update(stored[start : start + _CHUNK])
