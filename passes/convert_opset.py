"""Bring a model to an operator set that later passes can write in.

Blocked and 4-bit DequantizeLinear need opset 21, 2-bit needs 25, LayerNormalization 17. The
conversion itself (`onnxq.graph.opset`) works on the graph and reads no weights.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir

from onnxq.graph.opset import ensure_opset
from onnxq.graph.versions import opset_of
from onnxq.passes.base import Context, Pass, PassReport, Promise, SiteReport

__all__ = ["ConvertOpset"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertOpset(Pass):
    """Convert the model to at least opset ``minimum``; a newer model is left as it is.

    Matches: every node whose operator was defined anew between the two opsets.
    Writes: the node as the new opset spells it.
    Leaves: nodes of other domains; models at ``minimum`` or newer.

    Attributes:
        minimum: standard opset wanted, at most the newest that ONNX Runtime takes.
    """

    promise: ClassVar[Promise] = Promise.SAME_FUNCTION
    minimum: int = 21

    def call(self, model: ir.Model, context: Context) -> PassReport:
        """Convert in place.

        Raises:
            UnsupportedGraph: a node has no equivalent at that opset; it is named.
        """
        before = opset_of(model)
        modified = ensure_opset(model, self.minimum)
        reason = None if modified else f"opset {before} is already {self.minimum} or newer"
        return PassReport(modified=modified, sites=(SiteReport(site="opset", reason=reason),))
