"""The table: (domain, operator) to the function that computes it with torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import onnx_ir as ir
import torch

from onnxq.errors import UnsupportedGraph

__all__ = ["Call", "Operator", "Result", "known_operators", "of_two", "operator", "operator_of"]

Tensor = torch.Tensor
Result = Any
"""One tensor, or a tuple of tensors (None for an output that is not computed)."""

Operator = Callable[..., Result]
"""``operator(call, *inputs)``: one argument per input of the node, None for one left out."""

_TABLE: dict[tuple[str, str], Operator] = {}


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """What an operator knows of the node it computes.

    Attributes:
        node: the node.
        opset: version of the node's domain that the model imports.
        attributes: plain values; tensors as ``ir.TensorProtocol``.
        wanted: for each output, whether anything reads it.
        compute: the type that takes the place of float16, bfloat16, float32 and float64; None
            keeps each.
    """

    node: ir.Node
    opset: int
    attributes: Mapping[str, Any]
    wanted: tuple[bool, ...]
    compute: torch.dtype | None = None

    def attribute(self, name: str, default: Any = None) -> Any:
        """The attribute's value, or ``default`` when the node has none."""
        return self.attributes.get(name, default)

    def wants(self, index: int) -> bool:
        """Whether output ``index`` is read by anything."""
        return index < len(self.wanted) and self.wanted[index]

    def type_of(self, index: int) -> ir.DataType | None:
        """ONNX type of an input as far as the graph tells; int4 and int8 are one in torch."""
        value = self.node.inputs[index] if index < len(self.node.inputs) else None
        if value is None:
            return None
        if value.const_value is not None:
            return value.const_value.dtype
        return value.dtype

    def refusal(self, reason: str) -> UnsupportedGraph:
        """The error to raise for a form of the operator that is not computed."""
        return UnsupportedGraph(
            f"{self.node.op_type} (domain {self.node.domain or 'ai.onnx'!r}, opset {self.opset}) "
            f"at node {self.node.name!r} cannot be run in torch: {reason}. Choose inputs and "
            "outputs that leave this node out, or rewrite it before learning."
        )


def operator(*names: str, domain: str = "") -> Callable[[Operator], Operator]:
    """Register a function as what computes these operators of a domain."""

    def register(function: Operator) -> Operator:
        for name in names:
            _TABLE[domain, name] = function
        return function

    return register


def of_two(function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Operator:
    """What computes an operator that is just this function of its two inputs."""

    def compute(call: Call, a: torch.Tensor, b: torch.Tensor) -> Result:
        return function(a, b)

    return compute


def operator_of(node: ir.Node) -> Operator | None:
    """The function that computes a node; None when there is none."""
    return _TABLE.get(("" if node.domain == "ai.onnx" else node.domain, node.op_type))


def known_operators() -> frozenset[tuple[str, str]]:
    """``(domain, operator)`` of every operator in the table; the domain of ONNX is ``""``."""
    return frozenset(_TABLE)
