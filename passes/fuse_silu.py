"""Recognise SiLU, ``x · sigmoid(α x)``, and write it as one node.

``y = x · σ(α x)`` → ``QuickGelu<alpha = α>(x)`` of ONNX Runtime, or ``Swish`` of opset 24
(Ramachandran, Zoph, Le, "Searching for Activation Functions", arXiv:1710.05941). α = 1 is SiLU,
α = 1.702 the quick GELU of CLIP.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import onnx_ir as ir

from onnxq.graph.versions import opset_of
from onnxq.passes.base import Context, Pass, PassReport, Promise
from onnxq.passes.match import Any, Op, as_number, find, fuse_sites, read_elsewhere, replace

__all__ = ["FuseSilu"]

_STANDARD_SINCE = 24
_X = Any("x")
_SCALED = Op("Mul", (_X, Op("Sigmoid", (Op("Mul", (_X, Any("alpha"))),))))
_PLAIN = Op("Mul", (_X, Op("Sigmoid", (_X,))))


@dataclasses.dataclass(frozen=True, kw_only=True)
class FuseSilu(Pass):
    """Write ``x · sigmoid(α x)`` as one node.

    Matches: a product of a value and its own sigmoid, with or without a constant factor inside.
    Writes: QuickGelu of ONNX Runtime (one thread of x86-64 runs it twice as fast as its Swish).
    Leaves: matches of which an inner value is a graph output or read elsewhere; a computed α.

    Attributes:
        form: ``standard`` writes Swish, which needs opset 24.
    """

    promise: ClassVar[Promise] = Promise.SAME_FUNCTION
    form: Literal["onnxruntime", "standard"] = "onnxruntime"

    def call(self, model: ir.Model, context: Context) -> PassReport:
        """Fuse every site that can be; the report says why the others were left."""
        opset = opset_of(model)
        return fuse_sites(model, frozenset(["Mul"]), lambda node: self._fuse(node, opset))

    def _fuse(self, node: ir.Node, opset: int) -> ir.Node | str | None:
        found = find(node, _PLAIN) or find(node, _SCALED)
        if found is None:
            return None
        given = found.values.get("alpha")
        alpha = 1.0 if given is None else as_number(given)
        if alpha is None:
            return f"its factor {given.name if given else ''!r} is not a constant number"
        reason = read_elsewhere(found)
        if reason is not None:
            return reason
        x = found.values["x"]
        if self.form == "onnxruntime":
            return replace(found, "QuickGelu", [x], {"alpha": alpha}, domain="com.microsoft")
        if opset < _STANDARD_SINCE:
            return f"Swish needs opset 24, the model has {opset}: run convert_opset first"
        return replace(found, "Swish", [x], {"alpha": alpha})
