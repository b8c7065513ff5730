"""Fingerprints of computations.

Two are equal when a value is computed by the same nodes from the same weights and inputs, whatever
the values in between are called.
"""

from __future__ import annotations

import onnx_ir as ir

__all__ = ["Fingerprints"]


class Fingerprints:
    """Merkle hashes of the main-graph values of a model, valid in this process only.

    A weight is known by the identity of its tensor object: replacing a weight makes a new object,
    and cloning a model shares the old one. ``kept`` holds these objects so that no identity is
    used again while a fingerprint that names it lives.
    """

    def __init__(self, model: ir.Model) -> None:
        """Hash every value of the main graph; O(nodes), no weight is read."""
        self._kept: list[object] = []
        self._functions = model.functions
        self._function_hashes: dict[ir.OperatorIdentifier, int] = {}
        self._known: dict[ir.Value, int] = {}
        for value in model.graph.inputs:
            self._known[value] = hash(("input", value.name))
        for node in model.graph:
            self._hash_node(node)

    @property
    def kept(self) -> tuple[object, ...]:
        """The tensors that the fingerprints name by identity."""
        return tuple(self._kept)

    def of(self, value: ir.Value) -> int:
        """The fingerprint of a value of the main graph."""
        return self._of(value)

    def _of(self, value: ir.Value | None) -> int:
        if value is None:
            return 0
        if value not in self._known:
            producer = value.producer()
            if producer is None:
                self._known[value] = self._identity(value.const_value, value.name)
            else:
                self._hash_node(producer)
        return self._known[value]

    def _identity(self, tensor: object, name: str | None = None) -> int:
        if tensor is None:
            return hash(("unknown", name))
        self._kept.append(tensor)
        return hash(("tensor", id(tensor)))

    def _hash_node(self, node: ir.Node) -> None:
        constant = node.attributes.get("value") if node.op_type == "Constant" else None
        if constant is not None and constant.type == ir.AttributeType.TENSOR:
            self._known[node.outputs[0]] = self._identity(constant.value)
            return
        mixed = hash(
            (
                node.domain,
                node.op_type,
                node.overload,
                self._function(node.op_identifier()),
                tuple(self._of(value) for value in node.inputs),
                tuple(sorted((name, self._attribute(a)) for name, a in node.attributes.items())),
            )
        )
        for index, output in enumerate(node.outputs):
            self._known[output] = hash((mixed, index))

    def _attribute(self, attribute: ir.Attr) -> int:
        if attribute.ref_attr_name:
            return hash(("ref", attribute.ref_attr_name))
        value = attribute.value
        if attribute.type == ir.AttributeType.TENSOR:
            return self._identity(value)
        if attribute.type == ir.AttributeType.GRAPH:
            return self._body(value)
        if attribute.type == ir.AttributeType.GRAPHS:
            return hash(tuple(self._body(graph) for graph in value))
        if isinstance(value, (int, float, str, bytes)):
            return hash((attribute.type, value))
        return hash((attribute.type, repr(value)))

    def _function(self, identifier: ir.OperatorIdentifier) -> int:
        function = self._functions.get(identifier)
        if function is None:
            return 0
        if identifier not in self._function_hashes:
            self._function_hashes[identifier] = self._body(function)
        return self._function_hashes[identifier]

    def _body(self, body: ir.Graph | ir.Function) -> int:
        for index, value in enumerate(body.inputs):
            self._known[value] = hash(("body input", index))
        for node in body:
            self._hash_node(node)
        return hash(tuple(self._of(value) for value in body.outputs))
