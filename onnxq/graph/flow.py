"""Follow values backwards and forwards between sites.

Attention, MLPs and norms differ between exporters in the small operators between the matrix
multiplications: reshapes, casts, rotary arithmetic, repeated heads, quantize-dequantize pairs.
These walks step over a given set of such operators and stop at sites.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection

import onnx_ir as ir

from onnxq.graph.sites import Site
from onnxq.graph.weight_source import stored_weight
from onnxq.graph.weights import is_weight

__all__ = ["SAME_VALUES", "VIEWS", "Flow", "SiteIndex", "origin"]

SAME_VALUES = frozenset(
    [
        *("Identity", "Cast", "CastLike", "QuantizeLinear", "DequantizeLinear", "Dropout"),
        *("DynamicFakeQuantize", "DynamicFakeQuantizeAsymmetric"),  # onnxq's, written by its passes
    ]
)
"""Operators whose output is their first input, up to rounding."""

VIEWS = SAME_VALUES | {"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten"}
"""Operators whose output holds the elements of their first input."""

_JOINS = frozenset(["Add", "Sub", "Mul", "Div", "Concat", "Where", "Max", "Min", "Pow"])
_LIMIT = 400


def origin(value: ir.Value | None) -> ir.Value | None:
    """The value before any casts and quantize-dequantize pairs."""
    while value is not None:
        node = value.producer()
        if node is None or node.op_type not in SAME_VALUES or not node.inputs:
            return value
        value = node.inputs[0]
    return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flow:
    """What a backward walk has met.

    Attributes:
        sites: sites whose outputs the value depends on, nearest first.
        nodes: the nodes walked over, nearest first.
        ends: values the walk could not go through: graph inputs and other operators' outputs.
    """

    sites: tuple[Site, ...]
    nodes: tuple[ir.Node, ...]
    ends: tuple[ir.Value, ...]

    def crosses(self, kinds: Collection[str]) -> bool:
        """Whether the walk went over an operator of these types."""
        return any(node.op_type in kinds for node in self.nodes)


class SiteIndex:
    """Sites by the value they give and the value they read."""

    def __init__(self, sites: Collection[Site]) -> None:
        """Index the sites; those without a constant weight are left out."""
        self.sites = [site for site in sites if site.weight is not None]
        self._by_output = {site.output: site for site in self.sites}
        self._by_input: dict[ir.Value, list[Site]] = {}
        for site in self.sites:
            if site.input is not None:
                self._by_input.setdefault(site.input, []).append(site)

    def giving(self, value: ir.Value) -> Site | None:
        """The site whose node gives ``value``."""
        return self._by_output.get(value)

    def reading(self, value: ir.Value) -> list[Site]:
        """The sites whose activation is ``value`` itself."""
        return self._by_input.get(value, [])

    def back(
        self,
        value: ir.Value | None,
        over: Collection[str],
        *,
        jump: Callable[[ir.Value], ir.Value | None] | None = None,
    ) -> Flow:
        """Walk from ``value`` against the arrows over the operators named, until sites.

        Joining operators (Add, Mul, Concat, ...) are followed along every computed operand,
        others along the first. ``jump`` may give the value to go on from instead of a value, for
        instance the input of the norm that computed it.
        """
        sites: dict[Site, None] = {}
        nodes: dict[ir.Node, None] = {}
        ends: dict[ir.Value, None] = {}
        seen: set[ir.Value] = set()
        queue = [] if value is None else [value]
        while queue and len(seen) < _LIMIT:
            here = queue.pop(0)
            if here in seen or is_weight(here):
                continue
            seen.add(here)
            site = self.giving(here)
            if site is not None:
                if site.refusal is None or site.already is not None:
                    sites[site] = None
                continue
            jumped = jump(here) if jump is not None else None
            if jumped is not None:
                queue.append(jumped)
                continue
            node = here.producer()
            if node is None or node.op_type not in over:
                ends[here] = None
                continue
            nodes[node] = None
            queue.extend(_operands(node))
        return Flow(sites=tuple(sites), nodes=tuple(nodes), ends=tuple(ends))

    def forward(self, value: ir.Value, over: Collection[str]) -> Site | None:
        """The first site that reads ``value``, through the operators named."""
        seen: set[ir.Value] = set()
        queue = [value]
        while queue and len(seen) < _LIMIT:
            here = queue.pop(0)
            if here in seen:
                continue
            seen.add(here)
            reading = self.reading(here)
            if reading:
                return reading[0]
            for node in here.consumers():
                if node.op_type in over:
                    queue.append(node.outputs[0])
        return None


def _operands(node: ir.Node) -> list[ir.Value]:
    """The inputs of a node along which data flows, constants left out."""
    given = node.inputs if node.op_type in _JOINS else node.inputs[:1]
    if node.op_type == "Where":
        given = node.inputs[1:]
    return [value for value in given if value is not None and stored_weight(value) is None]
